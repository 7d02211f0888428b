"""Media: frames by seeking equal frames in order, preprocessing equals transformers', bad files are refused."""

import io
from fractions import Fraction

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from videollava_jax.media import (
    Cause,
    Fps,
    FramePreprocessor,
    Indices,
    Linspace,
    MediaError,
    MediaLimits,
    Uniform,
    read_image,
    read_video,
)


def write(path, codec, pix_fmt="yuv420p", *, frames=60, size=(64, 48), gop=12, rate=10, options=None, step=None):
    """A small video of a moving gradient; `step(i)` gives timestamps for a variable frame rate."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
        stream.codec_context.gop_size = gop
        if step:
            stream.codec_context.time_base = Fraction(1, 100)
        rows, columns = np.mgrid[: size[1], : size[0]]
        for i in range(frames):
            picture = np.stack([rows * 3 + i * 4, columns * 2 + i * 7, rows + columns + i * 11], -1) % 256
            frame = av.VideoFrame.from_ndarray(picture.astype(np.uint8), format="rgb24")
            if step:
                frame.pts, frame.time_base = step(i), Fraction(1, 100)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


KINDS = {
    "h264_b_frames.mp4": dict(codec="libx264", options={"bf": "3"}),
    "h264_long_gop.mp4": dict(codec="libx264", gop=1000, options={"sc_threshold": "0"}),
    "h264_gop_60.mp4": dict(codec="libx264", gop=60, frames=150),
    "h264_intra.mp4": dict(codec="libx264", gop=1),
    "h264_open_gop.mp4": dict(codec="libx264", options={"x264-params": "open-gop=1:bframes=3:b-adapt=0"}, frames=90),
    "h264.mkv": dict(codec="libx264"),
    "h264.mov": dict(codec="libx264"),
    "h264.ts": dict(codec="libx264"),
    "h264.avi": dict(codec="libx264", options={"bf": "0"}),
    "h264_odd_444.mp4": dict(codec="libx264", pix_fmt="yuv444p", size=(63, 47)),
    "h264_10_bit.mkv": dict(codec="libx264", pix_fmt="yuv420p10le"),
    "h264_variable_rate.mp4": dict(codec="libx264", step=lambda i: i * 7 + i * i // 3),
    "h264_variable_rate.mkv": dict(codec="libx264", step=lambda i: i * 7 + i * i // 3),
    "single.mp4": dict(codec="libx264", frames=1),
    "three.mp4": dict(codec="libx264", frames=3),
    "vp8.webm": dict(codec="libvpx", frames=30),
    "vp9.webm": dict(codec="libvpx-vp9", frames=30),
    "vp9_alpha.webm": dict(codec="libvpx-vp9", pix_fmt="yuva420p", frames=20),
    "mpeg4.avi": dict(codec="mpeg4"),
    "mpeg4_b_frames.avi": dict(codec="mpeg4", options={"bf": "2"}),
    "mpeg2.mpg": dict(codec="mpeg2video", rate=25),
    "mjpeg.avi": dict(codec="mjpeg", pix_fmt="yuvj420p"),
    "animation.gif": dict(codec="gif", pix_fmt="rgb8", frames=20),
    "ffv1.mkv": dict(codec="ffv1"),
    "raw.h264": dict(codec="libx264"),
    "fragmented.mp4": dict(codec="libx264"),
}


@pytest.fixture(scope="session")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    return {name: write(folder / name, **arguments) for name, arguments in KINDS.items()}


def in_order(path):
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("rule", [Uniform(8), Linspace(8), Indices((0,))])
def test_frames_equal_those_decoded_in_order(videos, name, rule):
    expected = in_order(videos[name])
    video = read_video(videos[name], rule)
    assert video.total_frames == len(expected)
    np.testing.assert_array_equal(video.indices, rule.indices(len(expected), None))
    np.testing.assert_array_equal(video.frames, np.stack([expected[i] for i in video.indices]))


def test_every_single_frame_of_an_open_group_is_found(videos):
    expected = in_order(videos["h264_open_gop.mp4"])
    for i, frame in enumerate(expected):
        np.testing.assert_array_equal(read_video(videos["h264_open_gop.mp4"], Indices((i,))).frames[0], frame)


def test_seeking_decodes_less(videos):
    assert read_video(videos["h264_gop_60.mp4"], Indices((149,))).decoded_frames < 60
    assert read_video(videos["h264_intra.mp4"], Uniform(4)).decoded_frames < 10
    assert read_video(videos["h264_long_gop.mp4"], Indices((59,))).decoded_frames == 60


def test_bytes_and_files_read_as_paths(videos):
    path = videos["h264_b_frames.mp4"]
    expected = read_video(path).frames
    np.testing.assert_array_equal(read_video(path.read_bytes()).frames, expected)
    np.testing.assert_array_equal(read_video(io.BytesIO(path.read_bytes())).frames, expected)


@given(total=st.integers(1, 10_000), count=st.integers(1, 40))
def test_sampling_rules(total, count):
    uniform, linspace = Uniform(count).indices(total, None), Linspace(count).indices(total, None)
    for indices in (uniform, linspace):
        assert len(indices) == count
        assert indices[0] == 0
        assert indices[-1] < total
        assert (np.diff(indices) >= 0).all()
    np.testing.assert_array_equal(uniform, np.arange(0, total, total / count).astype(int)[:count])
    np.testing.assert_array_equal(linspace, np.linspace(0, total - 1, count).astype(int))


def test_sampling_by_rate():
    np.testing.assert_array_equal(Fps(1, max_frames=100).indices(100, 10.0), np.arange(0, 100, 10))
    assert len(Fps(5, max_frames=8).indices(1000, 10.0)) == 8
    with pytest.raises(ValueError, match="frame rate"):
        Fps(1).indices(10, None)
    with pytest.raises(ValueError, match="has 5 frames"):
        Indices((5,)).indices(5, None)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    height=st.integers(1, 120), width=st.integers(1, 120), seed=st.integers(0, 99), crop=st.sampled_from([28, 20, 35])
)
def test_preprocessing_equals_transformers(height, width, seed, crop):
    from transformers.models.video_llava.image_processing_video_llava import VideoLlavaImageProcessor

    frame = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    ours = FramePreprocessor(size=28, crop_size=crop)
    theirs = VideoLlavaImageProcessor.from_dict(ours.to_json())
    arguments = dict(data_format="channels_last", input_data_format="channels_last", return_tensors="np")
    expected = theirs.preprocess(frame, do_rescale=False, do_normalize=False, **arguments)["pixel_values_images"][0]
    got = ours(frame[None])[0]
    np.testing.assert_array_equal(got, expected)
    normalised = theirs.preprocess(frame, **arguments)["pixel_values_images"][0]
    np.testing.assert_allclose(ours.normalize(got), normalised, rtol=0, atol=1e-6)


def test_preprocessor_json_round_trip():
    ours = FramePreprocessor(size=56, crop_size=56)
    assert FramePreprocessor.from_json(ours.to_json()) == ours
    with pytest.raises(ValueError, match="do_center_crop"):
        FramePreprocessor.from_json({"do_center_crop": False})


def png(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, **({"format": "PNG"} | options))
    return buffer.getvalue()


def test_images_of_every_mode():
    for mode in ("RGB", "RGBA", "L", "LA", "P", "1"):
        assert read_image(png(Image.new(mode, (5, 4)))).shape == (4, 5, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side
    assert read_image(png(Image.new("RGB", (5, 4)), format="JPEG", exif=exif)).shape == (5, 4, 3)
    sixteen = Image.fromarray(np.full((4, 5), 65535, np.uint16))
    assert read_image(png(sixteen)).max() == 255


def refused(read, source, cause, **limits):
    with pytest.raises(MediaError) as caught:
        read(source, limits=MediaLimits(**limits))
    assert caught.value.cause == cause, caught.value
    assert " at 0x" not in str(caught.value)


def test_bad_images(tmp_path):
    refused(read_image, tmp_path / "none.png", Cause.NOT_FOUND)
    refused(read_image, tmp_path, Cause.NOT_A_FILE)
    refused(read_image, b"", Cause.NOT_MEDIA)
    refused(read_image, b"<html></html>", Cause.NOT_MEDIA)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    refused(read_image, png(noise)[:2000], Cause.TRUNCATED)
    refused(read_image, png(Image.new("1", (20000, 20000))), Cause.TOO_LARGE)


def test_bad_videos(tmp_path, videos):
    refused(read_video, tmp_path / "none.mp4", Cause.NOT_FOUND)
    refused(read_video, tmp_path, Cause.NOT_A_FILE)
    refused(read_video, "http://127.0.0.1/x.mp4", Cause.NOT_FOUND)
    refused(read_video, "concat:a.mp4|b.mp4", Cause.NOT_FOUND)
    refused(read_video, b"", Cause.NOT_MEDIA)
    refused(read_video, b"just some text, many lines\n" * 200, Cause.NOT_MEDIA)
    refused(read_video, b"<!doctype html><html><body>404</body></html>" * 50, Cause.NOT_MEDIA)
    whole = videos["h264_b_frames.mp4"].read_bytes()
    refused(read_video, whole[: len(whole) // 2], Cause.TRUNCATED)  # the index is at the end
    refused(read_video, whole, Cause.TOO_LARGE, max_pixels=1000)
    refused(read_video, whole, Cause.TOO_LARGE, max_bytes=1000)
    refused(read_video, whole, Cause.TOO_LARGE, max_frames=10)
    matroska = videos["ffv1.mkv"].read_bytes()
    refused(read_video, matroska[: len(matroska) // 2], Cause.TRUNCATED)


def test_audio_alone_is_no_video(tmp_path):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    refused(read_video, path, Cause.NO_VIDEO_STREAM)


@pytest.mark.parametrize(
    "script",
    [
        "ffconcat version 1.0\nfile '{victim}'\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{victim}\n#EXT-X-ENDLIST\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video 5000 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    ],
)
def test_a_playlist_that_poses_as_mp4_opens_nothing(tmp_path, videos, script):
    disguised = tmp_path / "clip.mp4"
    disguised.write_text(script.format(victim=videos["h264_b_frames.mp4"]))
    refused(read_video, disguised, Cause.NOT_MEDIA)


def test_mutated_files_are_read_or_refused(videos):
    rng = np.random.default_rng(0)
    outcomes = {"read": 0, "refused": 0}
    for name in ("h264_b_frames.mp4", "h264.mkv", "mpeg4.avi", "vp8.webm", "animation.gif"):
        whole = np.frombuffer(videos[name].read_bytes(), np.uint8)
        for _ in range(20):
            mutated = whole.copy()
            mutated[rng.integers(0, len(whole), 8)] = rng.integers(0, 256, 8, np.uint8)
            try:
                video = read_video(mutated.tobytes(), limits=MediaLimits(max_pixels=10**6))
            except MediaError:
                outcomes["refused"] += 1
            else:
                outcomes["read"] += 1
                assert len(video.frames) == 8
    assert min(outcomes.values()) > 0, outcomes
