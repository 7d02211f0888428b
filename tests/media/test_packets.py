"""A packet is not always a frame: fields, packed bitstreams, packets without a picture, recordings cut anywhere."""

import io
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from tests.media.clips import KINDS, QUIET_X265, decoded, in_order, without_first, write, x264
from tests.media.field_pictures import field_pictures, level, mpeg2_field_pictures, remux
from tests.media.refusal import refused
from videollava_jax.media import Cause, Fps, Indices, Linspace, Uniform, read_video

FILES = Path(__file__).parent / "files"

# ── two packets, one frame ──


@pytest.fixture(scope="module")
def fields(tmp_path_factory):
    """Field pictures in every container that holds them: 48 frames, 96 packets."""
    place = tmp_path_factory.mktemp("fields")
    (place / "fields.h264").write_bytes(field_pictures())
    remux(place / "fields.h264", place / "fields.ts")
    for suffix in ("mkv", "mp4", "mov", "avi", "flv", "asf", "nut", "mxf"):
        remux(place / "fields.ts", place / f"fields.{suffix}")
    return place


def grey(number):
    """Returns level `number` of the drawn frames as RGB: their video has the range 16-235."""
    return round((level(number) - 16) * 255 / 219)


@pytest.mark.parametrize("suffix", ["h264", "ts", "mkv", "mp4", "mov", "avi", "flv", "asf", "nut", "mxf"])
def test_two_fields_are_one_frame(fields, suffix):
    path = fields / f"fields.{suffix}"
    with av.open(str(path)) as container:
        assert sum(1 for packet in container.demux(video=0) if packet.size) == 96
    video = read_video(path, Uniform(8))
    assert video.total_frames == 48
    np.testing.assert_array_equal(video.indices, [0, 6, 12, 18, 24, 30, 36, 42])
    for rule in (Uniform(8), Linspace(5), Indices((47,))):
        video = read_video(path, rule)
        shown = video.frames[:, 20, 20, 0].astype(int)
        assert np.abs(shown - [grey(i) for i in video.indices]).max() <= 1
    if suffix != "mxf":  # its muxer counts a field for a frame's time
        assert video.fps == pytest.approx(25)
        np.testing.assert_array_equal(read_video(path, Fps(5, max_frames=99)).indices, np.arange(0, 48, 5))


TOGETHER, APART = ("m2v", "ts", "mpg", "mkv", "mp4", "mov", "avi", "mxf"), ("mkv", "mp4", "avi")


@pytest.mark.parametrize(("suffix", "apart"), [(s, False) for s in TOGETHER] + [(s, True) for s in APART])
def test_fields_of_mpeg2(tmp_path, suffix, apart):
    """FFmpeg writes both fields of MPEG-2 into one packet; other writers have a packet for each."""
    source, path = tmp_path / "fields.m2v", tmp_path / f"copied.{suffix}"
    source.write_bytes(mpeg2_field_pictures())
    remux(source, path, halves=_halves if apart else None)
    video = read_video(path, Uniform(8))
    assert video.total_frames == 24
    np.testing.assert_array_equal(video.indices, np.arange(0, 24, 3))
    assert np.abs(video.frames[:, 20, 20, 0].astype(int) - [grey(i) for i in video.indices]).max() <= 1


def _halves(content):
    second = content.index(b"\0\0\1\0", content.index(b"\0\0\1\0") + 4)
    return content[:second], content[second:]


# ── one packet, two frames ──

_START = b"\0\0\1\xb6"


def packed(source, target):
    """Packs the B pictures of MPEG-4 into the packets of the pictures before them, as DivX did it for AVI.

    In place of each goes a picture that is not coded.
    """
    with av.open(str(source)) as read, av.open(str(target), "w") as written:
        stream = written.add_stream_from_template(read.streams.video[0])
        packets = [packet for packet in read.demux(video=0) if packet.size]
        contents = [bytes(packet) for packet in packets]
        contents[0] = contents[0].replace(_START, b"\0\0\1\xb2DivX503b1393p" + _START)  # p: packed
        for i in range(len(contents) - 1):
            following = contents[i + 1]
            if following[following.index(_START) + 4] >> 6 == 2:
                contents[i] += following
                # Type P, no seconds, the marker, a time of 4 bits (10 frames a second), the marker, not coded.
                contents[i + 1] = _START + bytes([0b01_0_1_0000, 0b1_0_011111])
        for i, (packet, content) in enumerate(zip(packets, contents, strict=True)):
            copy = av.Packet(content)
            copy.dts = copy.pts = i
            copy.time_base, copy.stream, copy.is_keyframe = Fraction(1, 10), stream, packet.is_keyframe
            written.mux(copy)
    return target


@pytest.mark.parametrize("suffix", ["avi", "mkv", "mp4", "mov"])
def test_packed_bitstreams(videos, tmp_path, suffix):
    write(tmp_path / "plain.avi", "mpeg4", frames=24, options={"bf": "1", "b_strategy": "0"})
    path = packed(tmp_path / "plain.avi", tmp_path / f"packed.{suffix}")
    expected = in_order(tmp_path / "plain.avi")
    assert len(in_order(path)) == len(expected) == 24
    for rule in (Uniform(8), Indices((23,)), Indices((0, 1, 2))):
        video = read_video(path, rule)
        assert video.total_frames == 24
        np.testing.assert_array_equal(video.frames, np.stack([expected[i] for i in video.indices]))


def test_a_picture_marked_as_not_coded_that_is_coded(videos):
    content = bytearray(videos["mpeg4.avi"].read_bytes())
    second = content.index(_START, content.index(_START) + 4)
    content[second + 5] ^= 0x40  # vop_coded, after 2 + 2 + 4 + 1 bits
    assert "not coded" in str(refused(read_video, bytes(content), Cause.DECODE_FAILED))


# ── packets without a picture ──


def copied_stream(container, template):
    if "av1" not in template.codec_context.codec.canonical_name:
        return container.add_stream_from_template(template)
    kind = KINDS["av1.mp4"]  # the decoder's name is no encoder's
    stream = container.add_stream(kind["codec"], rate=10, options=kind["options"])
    stream.width, stream.height, stream.pix_fmt = template.width, template.height, "yuv420p"
    stream.codec_context.gop_size = 12
    return stream


def with_packets(source, target, extra, *, at=20):
    """Copies a video with one more packet, after that numbered `at` and halfway to the next one in time."""
    with av.open(str(source)) as read, av.open(str(target), "w") as written:
        stream = copied_stream(written, read.streams.video[0])
        packets = [packet for packet in read.demux(video=0) if packet.size]
        made = []
        for i, packet in enumerate(packets):
            copy = av.Packet(bytes(packet))
            copy.pts, copy.dts = 10 * packet.pts, 10 * packet.dts
            copy.time_base, copy.is_keyframe, copy.stream = packet.time_base / 10, packet.is_keyframe, stream
            made.append(copy)
            if i == at:
                dts = (10 * packet.dts + 10 * packets[i + 1].dts) // 2
                more = av.Packet(extra(bytes(read.streams.video[0].codec_context.extradata or b""), packets))
                more.pts = more.dts = dts
                more.pts += max(packet.pts - packet.dts for packet in packets) * 10
                more.time_base, more.stream = packet.time_base / 10, stream
                made.append(more)
        for copy in made:
            written.mux(copy)
    return target


def units(*contents):
    return b"".join(struct.pack(">I", len(content)) + content for content in contents)


def sets_of_avcc(extradata, packets):
    """The parameter sets of an avcC record with one of each."""
    size = int.from_bytes(extradata[6:8], "big")
    rest = extradata[8 + size + 1 :]
    return units(extradata[8 : 8 + size], rest[2 : 2 + int.from_bytes(rest[:2], "big")])


def sets_of_hvcc(extradata, packets):
    found, at = [], 23
    for _ in range(extradata[22]):
        count, at = int.from_bytes(extradata[at + 1 : at + 3], "big"), at + 3
        for _ in range(count):
            size = int.from_bytes(extradata[at : at + 2], "big")
            found.append(extradata[at + 2 : at + 2 + size])
            at += 2 + size
    return units(*found[:3])


def always(content):
    return lambda extradata, packets: content


WITHOUT_PICTURE = {
    "h264_b_frames.mp4": {
        "parameter sets": sets_of_avcc,
        "a delimiter": always(units(b"\x09\x30")),
        "a message": always(units(b"\x06\x05\x04abcd\x80")),
        "filler": always(units(b"\x0c" + b"\xff" * 30 + b"\x80")),
        "the end of a sequence": always(units(b"\x0a")),
        "several": always(units(b"\x09\x30", b"\x06\x05\x04abcd\x80", b"\x0c\xff\x80")),
    },
    "hevc_open_gop.mp4": {
        "parameter sets": sets_of_hvcc,
        "a delimiter": always(units(b"\x46\x01\x50")),
        "a message": always(units(b"\x4e\x01\x05\x04abcd\x80")),
        "filler": always(units(b"\x4c\x01" + b"\xff" * 30 + b"\x80")),
    },
    "mpeg2.mkv": {
        "user data": always(b"\0\0\1\xb2nothing"),
    },
    "av1.mp4": {
        "a delimiter": always(b"\x12\0"),
        "padding": always(b"\x12\0\x7a\4\1\2\3\x80"),
        "metadata": always(b"\x2a\6\1\0\x10\0\x10\x80"),
    },
}
# Packets that hold nothing of the sort: a picture that was there was changed.
BROKEN = {
    "h264_b_frames.mp4": (
        units(b"\x41" + bytes(30)), units(b"\x06\x05\x09abcd\x80"), units(b"\x09" + b"\x9a" * 9), b"\0\0\0\0",
        units(b"\x0c" + bytes(range(1, 20))), units(b"\x68" + b"\xff" * 9), units(b"\x1e" + b"\x80" * 9),
    ),
    "hevc_open_gop.mp4": (
        units(b"\x46\x01" + b"\x12" * 9), units(b"\x40\x01\x0c\x12\x34\x56"), units(b"\x44\x01\xc1\x99\x80"),
    ),
    "mpeg2.mkv": (b"\0\0\1\xb2\0\0\1\5abc", b"nothing", b"\0\0\1\xb9abc"),
    "av1.mp4": (b"\x12\0\x0a\4\1\2\3\4", b"\x22\4\1\2\3\4"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name, kinds in WITHOUT_PICTURE.items() for kind in kinds])
def test_a_packet_without_a_picture_is_no_frame(videos, tmp_path, name, kind):
    path = with_packets(videos[name], tmp_path / name, WITHOUT_PICTURE[name][kind])
    expected = in_order(videos[name])
    for rule in (Uniform(8), Indices((len(expected) - 1,))):
        video = read_video(path, rule)
        assert video.total_frames == len(expected)
        np.testing.assert_array_equal(video.frames, np.stack([expected[i] for i in video.indices]))


@pytest.mark.parametrize("name", BROKEN)
def test_a_packet_of_something_else_is_damage(videos, tmp_path, name):
    for i, content in enumerate(BROKEN[name]):
        path = with_packets(videos[name], tmp_path / f"{i}-{name}", always(content))
        assert "damaged: packet 21" in str(refused(read_video, path, Cause.DECODE_FAILED))


def test_a_hidden_frame_in_a_packet_of_its_own(tmp_path):
    """Encoders of VP9 pack a hidden reference frame with the next shown one; some files have them apart."""
    source, path = tmp_path / "plain.webm", tmp_path / "apart.webm"
    write(source, "libvpx-vp9", frames=30, gop=10, options={"lag-in-frames": "0"})
    with av.open(str(source)) as read, av.open(str(path), "w") as written:
        stream = written.add_stream_from_template(read.streams.video[0])
        packets = [packet for packet in read.demux(video=0) if packet.size]
        for i, packet in enumerate(packets):
            content, time = bytes(packet), packet.pts
            if packet.is_keyframe:  # hidden, a moment before the next one
                content, time = bytes([content[0] & ~2]) + content[1:], packets[i + 1].pts - 1
            copy = av.Packet(content)
            copy.pts = copy.dts = time
            copy.time_base, copy.stream, copy.is_keyframe = packet.time_base, stream, packet.is_keyframe
            written.mux(copy)
    expected = in_order(path)
    assert len(expected) == 27
    for rule in (Uniform(8), Indices((26,))):
        video = read_video(path, rule)
        assert video.total_frames == 27
        np.testing.assert_array_equal(video.frames, np.stack([expected[i] for i in video.indices]))


# ── recordings that begin anywhere ──

OPEN = {
    "h264": dict(codec="libx264", frames=48, options=x264(open_gop=1, bframes=3, b_adapt=0)),
    "h264_refresh": dict(codec="libx264", frames=60, gop=20, options=x264(intra_refresh=1, bframes=0)),
    "hevc": dict(codec="libx265", frames=40, options={"x265-params": f"{QUIET_X265}:open-gop=1:bframes=3:b-adapt=0"}),
    "mpeg2": dict(codec="mpeg2video", rate=25, frames=48, options={"bf": "2"}),
    "mpeg4": dict(codec="mpeg4", frames=48, options={"bf": "2"}),
}


@pytest.fixture(scope="module")
def streams(tmp_path_factory):
    place = tmp_path_factory.mktemp("streams")
    return {name: {s: write(place / f"{name}.{s}", **kind) for s in ("mkv", "ts")} for name, kind in OPEN.items()}


@pytest.mark.parametrize("suffix", ["mkv", "mp4", "ts"])
@pytest.mark.parametrize("name", OPEN)
def test_open_groups_cut_anywhere(streams, tmp_path, name, suffix):
    """What `ffmpeg -c copy` and recorders write: the frames are those that a decoder gives."""
    source = streams[name]["ts" if suffix == "ts" else "mkv"]
    with av.open(str(source)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    keys = [i for i, packet in enumerate(packets) if packet.is_keyframe]
    for first in {keys[1], keys[2], keys[1] + 1, keys[1] + 3, keys[2] - 1, 5}:
        path = without_first(source, tmp_path / f"{first}.{suffix}", first)
        expected = in_order(path)
        video = read_video(path, Uniform(8))
        assert video.total_frames == len(expected) >= len(packets) - first - 25
        np.testing.assert_array_equal(video.frames, np.stack([expected[i] for i in video.indices]))


def test_leading_pictures_without_a_time():
    video = read_video(FILES / "hevc_cut.mkv", Uniform(8))
    assert video.total_frames == 24
    assert [drawn_number(frame) for frame in video.frames] == [24, 27, 30, 33, 36, 39, 42, 45]


def drawn_number(frame):
    """Reads the number drawn in a frame (see files/README.md)."""
    height, width = frame.shape[:2]
    fields = [frame[height * (1 + 2 * (bit // 6)) // 6, width * (1 + 2 * (bit % 6)) // 12] for bit in range(12)]
    return sum(int(field.mean() > 128) << bit for bit, field in enumerate(fields))


def test_frames_missing_after_the_beginning_are_damage(streams, tmp_path):
    """A recording may begin anywhere; a keyframe in its middle may not be missing."""
    content = streams["h264"]["mkv"].read_bytes()
    with av.open(io.BytesIO(content)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    for number in (0, 9, 20):
        at = content.index(packets[number])
        refused(read_video, content[:at] + bytes(4) + content[at + 4 :], Cause.DECODE_FAILED)


# ── which track ──


def tracks(path, *dispositions, frames=(6, 12), attached=False):
    """Writes a video with two tracks, the first grey 40 and the second grey 200, with these dispositions."""
    with av.open(str(path), "w") as container:
        streams = []
        for disposition in dispositions:
            stream = container.add_stream("mpeg4", rate=10)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            stream.disposition = disposition
            streams.append(stream)
        for stream, tone, count in zip(streams, (40, 200), frames, strict=True):
            for _ in range(count):
                picture = np.full((48, 64, 3), tone, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode(None))
    return path


D = av.stream.Disposition
NONE, DEFAULT = D(0), D.default


@pytest.mark.parametrize("suffix", ["mkv", "mp4", "mov"])
@pytest.mark.parametrize(
    ("dispositions", "tone"),
    [((NONE, DEFAULT), 200), ((DEFAULT, NONE), 40), ((DEFAULT | D.visual_impaired, DEFAULT), 200)],
    ids=["second", "first", "not_for_the_visually_impaired"],
)
def test_the_default_track_is_read(tmp_path, suffix, dispositions, tone):
    path = tracks(tmp_path / f"two.{suffix}", *dispositions)
    with av.open(str(path)) as container:
        best = container.streams.best("video").index
        assert len(container.streams.video) == 2
    video = read_video(path, Uniform(2))
    assert video.total_frames == (6, 12)[best]
    if not (suffix in ("mp4", "mov") and dispositions[0] & D.visual_impaired):  # MP4 does not say so
        assert abs(int(video.frames[0, 20, 20, 0]) - tone) < 6


def test_a_track_of_thumbnails_that_is_not_enabled_is_not_read(tmp_path):
    """As in QuickTime: the first track is a picture, and its header says that it is not enabled."""
    content = bytearray(tracks(tmp_path / "two.mov", DEFAULT, DEFAULT, frames=(1, 12)).read_bytes())
    header = content.index(b"tkhd")
    content[header + 7] &= ~1
    video = read_video(bytes(content))
    assert video.total_frames == 12
    assert video.frames.mean() > 150


def test_the_only_track_is_read_though_it_is_not_enabled(videos):
    content = bytearray(videos["h264.mov"].read_bytes())
    content[content.index(b"tkhd") + 7] &= ~1
    assert read_video(bytes(content)).total_frames == len(list(decoded(bytes(content)))) == 60
