"""Frames do not go missing in silence: a changed byte of a container is noticed where the container can tell."""

import struct

import av
import numpy as np
import pytest

from tests.faults.media import fuzz_media
from tests.faults.tables import table
from tests.media.clips import box, edited, write
from tests.media.refusal import check_error, refused
from videollava_jax.media import Cause, MediaError, read_video
from videollava_jax.media.matroska import holds_a_block


def changed(content, at, new):
    return content[:at] + new + content[at + len(new) :]


def test_a_few_mutations():
    """A little of `python -m tests.faults.media`."""
    tallies = fuzz_media(400, seed=7)
    assert not any(tally.violations for tally in tallies), table(tallies)
    assert sum(tally.outcomes["refused"] for tally in tallies) > 150, table(tallies)


@pytest.mark.parametrize("name", ["h264_b_frames.mp4", "h264.mov", "fragmented.mp4", "h264.avi", "hevc_open_gop.mp4"])
def test_a_sample_whose_first_bytes_are_zero(videos, name):
    """FFmpeg would drop it and all frames that refer to it."""
    content = videos[name].read_bytes()
    with av.open(str(videos[name])) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    for packet in (packets[0], packets[12], packets[-1]):
        error = refused(read_video, changed(content, content.index(packet), bytes(4)), Cause.DECODE_FAILED)
        assert "damaged" in str(error)


def test_a_chunk_of_avi_by_another_name(videos):
    content = videos["mpeg4.avi"].read_bytes()
    first = content.index(b"00dc", content.index(b"movi"))
    for at in (first, content.index(b"00dc", first + 4), content.rindex(b"00dc", 0, content.index(b"idx1"))):
        for name in (b"00ec", b"01dc", b"10dc", b"00wb", b"00pc", b"\0\0dc", b"JUNX"):
            assert "damaged" in str(refused(read_video, changed(content, at, name), Cause.DECODE_FAILED))
    np.testing.assert_array_equal(
        read_video(changed(content, content.rindex(b"00dc"), b"00ec")).frames, read_video(content).frames
    )  # the index alone


def test_a_block_of_matroska_that_is_something_else(videos):
    content = videos["vp8.webm"].read_bytes()
    block = content.index(b"\xa3", content.index(b"\x1f\x43\xb6\x75") + 12)
    track = block + 9 - content[block + 1].bit_length() + 1
    for at, new in ((block, b"\xec"), (block, b"\xa7"), (block, b"\xab"), (block, b"\x9f"), (track, b"\x82")):
        assert "damaged" in str(refused(read_video, changed(content, at, new), Cause.DECODE_FAILED))
    assert "lacing" in str(refused(read_video, changed(content, track + 3, b"\x06"), Cause.DECODE_FAILED))


@pytest.mark.parametrize(
    ("packet", "holds"),
    [
        (b"picture\xa3\x87\x81\0\x21\x80abc", True),
        (b"picture\xa3\x40\x07\x81\0\x21\0abc", True),
        (b"\xa3\xa3\xa3\x01\0\0\0\0\0\0\x05\x81\0\n\x80a", True),
        (b"picture\xa3\x87\x81\0\x21\x80ab", False),  # cut short
        (b"picture\xa3\x87\x01\0\x21\x80abc", False),  # no track
        (b"picture\xa3\x87\x81\0\x21\x06abc", False),  # laced
        (b"picture\xa3\x01\0\0\0\0\0\0\0", False),  # of no bytes
        (b"\xa3", False),
        (b"", False),
    ],
)
def test_a_packet_that_holds_the_next_block(packet, holds):
    assert holds_a_block(packet) is holds


def test_a_hidden_frame_of_vp8(videos):
    """Hidden reference frames are no frames, but a frame that has a time of its own is none of them."""
    content = videos["vp8.webm"].read_bytes()
    with av.open(str(videos["vp8.webm"])) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    at = content.index(packets[20])
    assert "marked as hidden" in str(refused(read_video, changed(content, at, bytes([content[at] & ~0x10]))))


@pytest.mark.parametrize("position", [800, 801, 802, 810])
def test_a_gif_with_a_changed_block(videos, position):
    content = videos["animation.gif"].read_bytes()
    second = content.index(b"\x21\xf9", content.index(b"\x21\xf9") + 2)
    for at in (second + position - 800, second + 8, second + 20 + content[second + 19]):
        for bit in range(8):
            mutated = changed(content, at, bytes([content[at] ^ 1 << bit]))
            try:
                total = read_video(mutated).total_frames
            except MediaError as error:
                check_error(error)
            else:
                assert total == 20
    assert "cut short" in str(refused(read_video, content[:-1], Cause.TRUNCATED))
    assert "damaged" in str(refused(read_video, changed(content, second, b";"), Cause.DECODE_FAILED))


def test_tables_of_an_mp4_that_disagree(videos):
    content = videos["h264_b_frames.mp4"].read_bytes()
    sizes = box(content, b"stsz") + 8
    error = refused(read_video, changed(content, sizes, struct.pack(">I", 50)), Cause.DECODE_FAILED)
    assert "sizes of 50 frames and places for 60" in str(error)


def test_sizes_that_were_set_to_zero(videos):
    """An empty sample repeats the frame before it; that its bytes lie in the file says that it was not empty."""
    content = videos["mpeg4_b_frames.mp4"].read_bytes()
    sizes = box(content, b"stsz") + 12
    assert "empty frames" in str(refused(read_video, changed(content, sizes + 4 * 59, bytes(4)), Cause.DECODE_FAILED))


def test_an_edit_list_that_disagrees_with_its_track(videos):
    """One changed number could hide frames: a list that hides some must agree with all durations."""
    content = videos["h264_b_frames.mp4"].read_bytes()
    trimmed = edited(content, 5 * 1024, None)
    assert read_video(trimmed).total_frames == 55
    entry, track, movie = box(trimmed, b"elst") + 8, box(trimmed, b"tkhd") + 20, box(trimmed, b"mvhd") + 12
    for at, number in ((entry, 3000), (entry + 4, 9 * 1024), (track, 3000), (movie, 1 << 19 | 1000)):
        error = refused(read_video, changed(trimmed, at, struct.pack(">I", number)), Cause.DECODE_FAILED)
        assert "edit list" in str(error)


def test_a_fragment_that_is_lost(videos):
    content = videos["fragmented.mp4"].read_bytes()
    fragments = [at for at in range(len(content)) if content.startswith(b"moof", at)]
    for new in (b"mopf", b"free"):
        refused(read_video, changed(content, fragments[2], new), Cause.DECODE_FAILED)
    without = content[: fragments[1] - 4] + content[fragments[2] - 4 :]
    assert "fragment 3 follows fragment 1" in str(refused(read_video, without, Cause.DECODE_FAILED))
    for kind in (b"mfhd", b"tfhd", b"tfdt"):  # a length of 0 reaches to the end
        refused(read_video, changed(content, content.index(kind, fragments[2]) - 4, bytes(4)), Cause.DECODE_FAILED)
    for kind in (b"traf", b"trun", b"tfhd"):
        refused(read_video, changed(content, content.index(kind, fragments[2]), b"zzzz"), Cause.DECODE_FAILED)


def test_animations_that_count_their_frames(videos, tmp_path):
    apng = videos["animation.apng"].read_bytes()
    for new in (struct.pack(">I", 19), struct.pack(">I", 21)):
        assert "holds 20" in str(refused(read_video, changed(apng, box(apng, b"acTL"), new), Cause.DECODE_FAILED))
    path = tmp_path / "cut.gif"
    write(path, "gif", "rgb8", frames=3)
    assert read_video(path).total_frames == 3
