"""Videos: the frames found by seeking are those decoded in order, upright, with their times."""

import io
import struct

import av
import numpy as np
import pytest
from PIL import Image, features

from tests.media.clips import KINDS, box, decoded, edited, in_order, write, x264
from tests.media.refusal import refused
from videollava_jax.media import Cause, Fps, Indices, Linspace, Uniform, read_video


def assert_equal_in_order(video, expected):
    assert video.total_frames == len(expected)
    np.testing.assert_array_equal(video.frames, np.stack([expected[i] for i in video.indices]))


@pytest.mark.parametrize("name", KINDS)
def test_frames_equal_those_decoded_in_order(videos, name):
    expected = in_order(videos[name])
    for rule in (Uniform(8), Linspace(8), Indices((0,)), Indices((len(expected) - 1,))):
        video = read_video(videos[name], rule)
        np.testing.assert_array_equal(video.indices, rule.indices(len(expected), None))
        assert_equal_in_order(video, expected)


@pytest.mark.parametrize(
    "name",
    [
        "h264_open_gop.mp4",
        "h264_pyramid.mp4",
        "h264_intra_refresh.mkv",
        "hevc_open_gop.mp4",
        "hevc_layers.mp4",
        "mpeg4_b_frames.mp4",
        "mpeg2.mkv",
        "vp8.webm",
    ],
)
def test_every_single_frame_is_found(videos, name):
    expected = in_order(videos[name])
    for i in range(len(expected)):
        assert_equal_in_order(read_video(videos[name], Indices((i,))), expected)


def test_seeking_decodes_less(videos):
    assert read_video(videos["h264_gop_60.mp4"], Indices((149,))).decoded_frames < 60
    assert read_video(videos["h264_intra.mp4"], Uniform(4)).decoded_frames < 10
    assert read_video(videos["h264_pyramid.mp4"], Indices((23,))).decoded_frames <= 12
    assert read_video(videos["mpeg4_b_frames.mp4"], Uniform(8)).decoded_frames <= 30
    assert read_video(videos["fragmented.mp4"], Indices((59,))).decoded_frames <= 12
    assert read_video(videos["h264.mkv"], Indices((59,))).decoded_frames <= 12


def test_pictures_of_upper_layers_may_refer_to_those_that_a_decoder_leaves_out(videos):
    """So all are decoded: FFmpeg leaves out what no other picture of its own layer refers to."""
    path = videos["hevc_layers.mp4"]
    with av.open(str(path)) as container:
        assert max(bytes(packet)[5] & 7 for packet in container.demux(video=0) if packet.size) > 1
    assert read_video(path, Indices((39,))).decoded_frames == 40


def test_seeking_in_open_groups_starts_from_the_group_before_where_it_must(videos):
    decoded_frames = [read_video(videos["h264_open_gop.mp4"], Indices((i,))).decoded_frames for i in range(90)]
    assert max(decoded_frames) <= 24  # two groups
    assert np.mean(decoded_frames) < 10


def test_what_a_container_calls_keyframes_is_not_believed(tmp_path):
    path = write(tmp_path / "lying.avi", "wmv2", frames=40)
    content = bytearray(path.read_bytes())
    index = content.rindex(b"idx1")
    (size,) = struct.unpack_from("<I", content, index + 4)
    for entry in range(index + 8, index + 8 + size, 16):
        content[entry + 4] |= 0x10  # AVIIF_KEYFRAME
    with av.open(io.BytesIO(content)) as container:
        assert all(packet.is_keyframe for packet in container.demux(video=0) if packet.size)
    expected = in_order(bytes(content))
    for i in (1, 5, 30, 39):
        assert_equal_in_order(read_video(bytes(content), Indices((i,))), expected)


def test_the_fragmented_file_is_fragmented(videos):
    content = videos["fragmented.mp4"].read_bytes()
    assert content.count(b"moof") == 5


def test_bytes_and_files_read_as_paths(videos):
    path = videos["h264_b_frames.mp4"]
    content = path.read_bytes()
    expected = read_video(path).frames
    for source in (str(path), content, bytearray(content), memoryview(content), io.BytesIO(content)):
        np.testing.assert_array_equal(read_video(source).frames, expected)
    with open(path, "rb") as file:
        np.testing.assert_array_equal(read_video(file).frames, expected)
        assert not file.closed


@pytest.mark.parametrize("name", ["h264_variable_rate.mp4", "h264_variable_rate.mkv", "h264.ts", "animation.gif"])
def test_timestamps_are_seconds_after_the_first_frame(videos, name):
    with av.open(str(videos[name])) as container:
        time_base = container.streams.video[0].time_base
    times = [float(frame.pts * time_base) for frame in decoded(videos[name])]
    video = read_video(videos[name], Uniform(20))
    np.testing.assert_allclose(video.timestamps, [times[i] - times[0] for i in video.indices], rtol=0, atol=1e-9)
    assert video.timestamps[0] == 0


def test_sampling_by_rate_follows_the_frame_rate_of_the_file(videos):
    video = read_video(videos["h264.mkv"], Fps(2, max_frames=100))
    assert video.fps == 10
    np.testing.assert_array_equal(video.indices, np.arange(0, 60, 5))
    np.testing.assert_allclose(video.timestamps, np.arange(0, 6, 0.5))


# Edit lists: (ticks cut from the start, thousandths of a second kept), 1024 ticks per frame; None keeps all to the end.
@pytest.mark.parametrize("name", ["h264_open_gop.mp4", "h264_pyramid.mp4", "mpeg4_b_frames.mp4"])
@pytest.mark.parametrize(
    ("cut", "length", "count"),
    [(5 * 1024, None, 55), (13 * 1024, 1200, 12), (512, None, 59), (30 * 1024, 500, 5)],
    ids=["first_five", "a_second_group", "half_a_frame", "within"],
)
def test_an_edit_list_hides_frames(videos, name, cut, length, count):
    content = edited(videos[name].read_bytes(), cut, length)
    expected = in_order(content)
    assert len(expected) == count + (30 if name == "h264_open_gop.mp4" and length is None else 0)
    for rule in (Uniform(8), Indices((0,)), Indices((len(expected) - 1,)), Indices((len(expected) // 2,))):
        assert_equal_in_order(read_video(content, rule), expected)


def test_frames_before_time_zero_are_hidden_as_av_hides_them(tmp_path):
    path = tmp_path / "negative.mp4"
    write(path, "libx264", time=lambda i: i * 10 - 80, options=x264(bframes=2))
    expected = in_order(path)
    for rule in (Uniform(8), Linspace(8), Indices((0,))):
        assert_equal_in_order(read_video(path, rule), expected)


UNIT = 1 << 16
# As phones write them: (a, b, c, d) takes the point (x, y) to (a x + c y, b x + d y), y downwards.
MATRICES = {
    "90": ((0, UNIT, -UNIT, 0), lambda frame: np.rot90(frame, -1)),
    "180": ((-UNIT, 0, 0, -UNIT), lambda frame: np.rot90(frame, 2)),
    "270": ((0, -UNIT, UNIT, 0), lambda frame: np.rot90(frame, 1)),
    "mirrored": ((-UNIT, 0, 0, UNIT), lambda frame: frame[:, ::-1]),
    "upside_down_mirrored": ((UNIT, 0, 0, -UNIT), lambda frame: frame[::-1]),
    "mirrored_90": ((0, UNIT, UNIT, 0), lambda frame: frame.transpose(1, 0, 2)),
}


@pytest.mark.parametrize("name", ["h264_b_frames.mp4", "h264.mov"])
@pytest.mark.parametrize("turn", MATRICES)
def test_frames_come_upright(videos, name, turn):
    (a, b, c, d), upright = MATRICES[turn]
    content = bytearray(videos[name].read_bytes())
    # version and flags, two times, track, reserved, duration; reserved, layer, group, volume, reserved; the matrix
    struct.pack_into(">9i", content, box(content, b"tkhd") + 24 + 16, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    assert_equal_in_order(read_video(bytes(content)), [upright(frame) for frame in in_order(videos[name])])


def test_vp9_frames_that_share_a_packet_are_counted_once(tmp_path):
    """Two-pass encoders pack a hidden reference frame with the next shown one: "superframes"."""

    def superframe(hidden, shown):
        marker = bytes([0b110_01_001])  # two frames, sizes of two bytes
        sizes = len(hidden).to_bytes(2, "little") + len(shown).to_bytes(2, "little")
        return bytes([hidden[0] & ~2]) + hidden[1:] + shown + marker + sizes + marker  # bit 1 is show_frame

    plain, packed = tmp_path / "plain.webm", tmp_path / "packed.webm"
    write(plain, "libvpx-vp9", frames=30, gop=10, options={"lag-in-frames": "0"})
    with av.open(str(plain)) as read, av.open(str(packed), "w") as written:
        stream = written.add_stream_from_template(read.streams.video[0])
        packets = [packet for packet in read.demux(video=0) if packet.size]
        while packets:
            first = packets.pop(0)
            content = superframe(bytes(first), bytes(packets.pop(0))) if first.is_keyframe else bytes(first)
            packet = av.Packet(content)
            packet.pts, packet.dts, packet.time_base = first.pts, first.dts, first.time_base
            packet.is_keyframe, packet.stream = first.is_keyframe, stream
            written.mux(packet)
    expected = in_order(packed)
    assert len(expected) == 27
    for i in range(len(expected)):
        assert_equal_in_order(read_video(packed, Indices((i,))), expected)


def animation(format, durations, **options):
    """Makes an animated image with PIL; returns it and its frames."""
    pictures = [Image.new("RGB", (40, 30), (20 * i, 255 - 20 * i, 9)) for i in range(len(durations))]
    for i, shown in enumerate(pictures):
        shown.paste((255, 255, 255), (2 * i, 3, 2 * i + 9, 20))
    file = io.BytesIO()
    pictures[0].save(file, format=format, save_all=True, append_images=pictures[1:], duration=durations, **options)
    return file.getvalue(), [np.array(shown) for shown in pictures]


def test_an_animated_webp_is_a_video():
    durations = [100, 250, 40, 40, 500, 70, 30, 60, 110, 90]
    content, pictures = animation("WEBP", durations, lossless=True)
    times = np.cumsum([0, *durations[:-1]]) / 1000
    for rule in (Uniform(4), Linspace(10), Indices((9,))):
        video = read_video(content, rule)
        assert_equal_in_order(video, pictures)
        np.testing.assert_allclose(video.timestamps, times[video.indices])
    assert video.fps == pytest.approx(9 / times[-1])
    refused(read_video, animation("WEBP", [100])[0], Cause.NOT_MEDIA)
    refused(read_video, content, Cause.TOO_LARGE, max_frames=9)
    refused(read_video, content, Cause.TOO_LARGE, max_image_bytes=len(content) - 1)


@pytest.mark.skipif(not features.check("avif"), reason="this build of Pillow has no AVIF")
def test_an_animated_avif_is_a_video():
    """The first frame is stored twice: as a still image, FFmpeg's first stream, and in the sequence."""
    content, pictures = animation("AVIF", [100] * 6)
    video = read_video(content, Linspace(6))
    assert_equal_in_order(video, in_order(content, stream=1))
    assert np.abs(video.frames.astype(int) - np.stack(pictures)).mean() < 8  # compressed with loss
    refused(read_video, animation("AVIF", [100])[0], Cause.NOT_MEDIA)


def test_a_gif_of_one_frame_is_read_as_a_video_too():
    video = read_video(animation("GIF", [100])[0])
    assert video.total_frames == 1
    assert video.frames.shape == (8, 30, 40, 3)


def test_frames_that_change_their_size_are_refused(tmp_path):
    large = write(tmp_path / "large.h264", "libx264", frames=10, size=(64, 48)).read_bytes()
    small = write(tmp_path / "small.h264", "libx264", frames=10, size=(32, 32)).read_bytes()
    error = refused(read_video, large + small, Cause.DECODE_FAILED)
    assert "from 64 by 48 to 32 by 32" in str(error)
