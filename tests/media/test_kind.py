"""Image or video, by content: names say nothing."""

import io

import av
import numpy as np
import pytest
from PIL import Image, features

from tests.media.refusal import refused
from videollava_jax.media import Cause, is_video, media_kind, open_medium, read_image, read_video


def pictures(format, count=1, **options):
    frames = [Image.new("RGB", (40, 30), (30 * i, 0, 0)) for i in range(count)]
    file = io.BytesIO()
    more = dict(save_all=True, append_images=frames[1:]) if count > 1 else {}
    frames[0].save(file, format=format, **more, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (pictures("PNG"), "image"),
        (pictures("JPEG"), "image"),
        (pictures("WEBP"), "image"),
        (pictures("BMP"), "image"),
        (pictures("GIF"), "image"),
        (pictures("TIFF", 3), "image"),  # pages
        (pictures("GIF", 3), "video"),
        (pictures("PNG", 3), "video"),
        (pictures("WEBP", 3), "video"),
    ],
    ids=["png", "jpeg", "webp", "bmp", "gif", "tiff_pages", "animated_gif", "animated_png", "animated_webp"],
)
def test_pictures(content, kind, tmp_path):
    misnamed = tmp_path / "clip.mp4"
    misnamed.write_bytes(content)
    for source in (content, misnamed, io.BytesIO(content)):
        assert media_kind(source) == kind
    assert is_video(content) == (kind == "video")
    assert read_image(content).shape == (30, 40, 3)
    if kind == "video":
        assert read_video(content).total_frames == 3


@pytest.mark.skipif(not features.check("avif"), reason="this build of Pillow has no AVIF")
def test_avif():
    assert media_kind(pictures("AVIF")) == "image"
    assert media_kind(pictures("AVIF", 3)) == "video"


@pytest.mark.parametrize(
    "name", ["h264_b_frames.mp4", "fragmented.mp4", "vp8.webm", "mpeg4.avi", "h264.ts", "raw.h264"]
)
def test_videos_with_the_name_of_an_image(videos, tmp_path, name):
    misnamed = tmp_path / "picture.png"
    misnamed.write_bytes(videos[name].read_bytes())
    assert media_kind(misnamed) == "video"
    refused(read_image, misnamed, Cause.NOT_MEDIA)


def sound(path, codec="aac", format="fltp", layout="mono"):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=48000, layout=layout)
        for i in range(4):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format=format, layout=layout)
            frame.rate, frame.pts = 48000, 1024 * i
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def with_cover(content):
    """Returns sound with a cover picture in an ID3v2.3 tag."""
    cover = b"\0image/jpeg\0\3\0" + pictures("JPEG")
    frame = b"APIC" + len(cover).to_bytes(4, "big") + b"\0\0" + cover
    size = bytes(len(frame) >> shift & 0x7F for shift in (21, 14, 7, 0))
    return b"ID3\3\0\0" + size + frame + content


@pytest.mark.parametrize("name", ["sound.mp4", "sound.mkv", "sound.aac", "sound.mov"])
def test_sound_is_neither(tmp_path, name):
    path = sound(tmp_path / name)
    for read in (media_kind, is_video, read_video):
        refused(read, path, Cause.NO_VIDEO_STREAM)


def test_sound_with_a_cover_picture_is_neither(tmp_path):
    content = with_cover(sound(tmp_path / "sound.aac").read_bytes())
    with av.open(io.BytesIO(content)) as container:
        assert len(container.streams.video) == 1  # FFmpeg shows the cover as a video
    for read in (media_kind, read_video):
        assert "cover" in str(refused(read, content, Cause.NO_VIDEO_STREAM))


@pytest.mark.parametrize(
    "content",
    [b"just some text, many lines\n" * 200, b"<!doctype html><html><body>404</body></html>" * 50, b"%PDF-1.7\n" * 99],
    ids=["text", "html", "pdf"],
)
def test_neither(content):
    for read in (media_kind, is_video, read_video, read_image):
        refused(read, content, Cause.NOT_MEDIA)


def test_titles_in_any_encoding_are_let_pass(videos, tmp_path):
    path = tmp_path / "titled.mkv"
    with av.open(str(videos["h264.mkv"])) as read, av.open(str(path), "w") as written:
        written.metadata["title"] = "QQQQQQQQ"
        stream = written.add_stream_from_template(read.streams.video[0])
        for packet in read.demux(read.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                written.mux(packet)
    whole = path.read_bytes()
    assert b"QQQQQQQQ" in whole
    path.write_bytes(whole.replace(b"QQQQQQQQ", b"\xff\xfe\x80abc\xc3\x28"))
    np.testing.assert_array_equal(open_medium(path).frames, read_video(whole).frames)
