"""Walks over the elements of a Matroska or WebM file, which must follow each other without a gap, and counts blocks.

FFmpeg skips whatever it cannot read or does not know, and does not report the frames that are lost.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from videollava_jax.media.errors import Cause, MediaError, MediaLimits, cut_short
from videollava_jax.media.source import OpenSource

MAGIC = b"\x1a\x45\xdf\xa3"
_SEGMENT, _CLUSTER, _TRACKS = 0x18538067, 0x1F43B675, 0x1654AE6B
_ATTACHMENTS, _ATTACHED_FILE = 0x1941A469, 0x61A7
_VOID, _CHECKSUM = 0xEC, 0xBF
# The elements that RFC 9559 knows in a Segment: seek head, info, tracks, cues, attachments, chapters, tags.
_IN_SEGMENT = {
    _CLUSTER,
    _TRACKS,
    _VOID,
    _CHECKSUM,
    0x114D9B74,
    0x1549A966,
    0x1C53BB6B,
    _ATTACHMENTS,
    0x1043A770,
    0x1254C367,
}
_BLOCK, _SIMPLE_BLOCK, _BLOCK_GROUP = 0xA1, 0xA3, 0xA0
# A SimpleBlock's id, its size in one to eight bytes, a track below 128, a time, flags of a keyframe or of none. As one
# pattern, since a packet has thousands of places to look at.
_SIZES = b"|".join(b"[\\x%02x-\\x%02x].{%d}" % (1 << 7 - more, (2 << 7 - more) - 1, more) for more in range(8))
_BLOCK_HEAD = re.compile(rb"\xa3(?=(?:" + _SIZES + rb")[\x80-\xff]..[\x00\x80])", re.DOTALL)
# In a Cluster: its timestamp, its position, the size of the one before, a list of silent tracks.
_NUMBERS, _SILENT = {0xE7, 0xA7, 0xAB, _CHECKSUM}, 0x5854
_IN_CLUSTER = {_SIMPLE_BLOCK, _BLOCK_GROUP, _VOID, _SILENT, *_NUMBERS}
_TRACK_ENTRY, _TRACK_NUMBER, _TRACK_TYPE, _VIDEO = 0xAE, 0xD7, 0x83, 1
_MAX_TRACKS = 1000  # FFmpeg's own limit of streams, which it applies after it has read them all
_LACING, _KEYFRAME = 0x06, 0x80
# Ten hours of video and sound have about three million. In a hostile file of empty elements the check stops here.
_MAX_ELEMENTS = 5_000_000


def count_blocks(source: OpenSource, limits: MediaLimits) -> list[tuple[int, bool]]:
    """Walks over the Segment's elements and those of its Clusters, reading only their heads.

    Live recordings leave the sizes of both open; the Segment then ends with the file.

    Returns:
      For each video track, in their order, how many blocks there are, each a frame, and whether the first is marked as
      a keyframe.

    Raises:
      MediaError: the file ends within an element, the bytes where an element should begin are not one, or a block is
        of no track or holds several frames.
    """
    found = _segment(source)
    if found is None:
        raise _damaged(source, 0)
    blocks: Counter[int] = Counter()
    keyframes: dict[int, bool] = {}
    tracks: dict[int, int] = {}
    offset, end = found
    segment_end = source.size if end is None else end
    if segment_end > source.size:
        raise cut_short(source.name, source.size, segment_end)
    cluster_end, in_open, metadata = None, False, 0
    for _ in range(_MAX_ELEMENTS):
        if cluster_end is not None and offset >= cluster_end:
            if offset > cluster_end:
                raise _damaged(source, offset)
            cluster_end = None
        if offset == segment_end:
            break
        head = _head(source, offset)
        if head is None:
            raise _damaged(source, offset)
        element, content, element_end = head
        if element_end is not None and element_end > source.size and end is None:
            raise cut_short(source.name, source.size, element_end)
        if (element_end is None and element != _CLUSTER) or (element_end or 0) > segment_end:
            raise _damaged(source, offset)
        within = cluster_end is not None
        if element not in (_IN_CLUSTER if within else _IN_SEGMENT) and not (in_open and element in _IN_CLUSTER):
            raise _damaged(source, offset)
        if element == _CLUSTER:
            offset, cluster_end, in_open = content, element_end, element_end is None
            continue
        in_open &= element not in _IN_SEGMENT or element in (_VOID, _CHECKSUM)
        stop = content if element_end is None else element_end
        if element == _TRACKS:
            tracks |= _read_tracks(source, content, stop)
        elif element in (_SIMPLE_BLOCK, _BLOCK_GROUP):
            at = content if element == _SIMPLE_BLOCK else _block_in_group(source, content, stop)
            number, flags = _track_and_flags(source, at, tracks)
            blocks[number] += 1
            if tracks[number] != _VIDEO and holds_a_block(source.read(at, min(stop - at, 2**16))):
                raise _damaged(source, offset)
            keyframes.setdefault(number, element == _SIMPLE_BLOCK and bool(flags & _KEYFRAME))
        elif (within or in_open) and _was_a_block(source, element, content, stop):
            raise _damaged(source, offset)
        elif element != _CLUSTER and element in _IN_SEGMENT:
            metadata += _metadata_bytes(source, element, content, stop, limits)
            if metadata > limits.max_metadata_bytes:
                message = f"over the limit of {limits.max_metadata_bytes} bytes of titles, chapters and other metadata"
                raise MediaError(source.name, Cause.TOO_LARGE, message)
        offset = stop
    return [(blocks[number], keyframes.get(number, False)) for number, kind in tracks.items() if kind == _VIDEO]


def end_of_segment(source: OpenSource) -> int | None:
    """Returns the offset where the Segment ends by its own size; None if it has none, or there is no Segment."""
    found = _segment(source)
    return None if found is None else found[1]


def holds_a_block(packet: bytes) -> bool:
    """Whether a packet ends with a whole SimpleBlock of a video: its size may have been changed to reach over it."""
    for found in _BLOCK_HEAD.finditer(packet):
        at = found.start() + 1
        width = 9 - packet[at].bit_length()
        size = int.from_bytes(packet[at : at + width], "big") & (1 << 7 * width) - 1
        if at + width + size == len(packet) and len(packet) - at > 5:
            return True
    return False


def _metadata_bytes(source: OpenSource, element: int, start: int, end: int, limits: MediaLimits) -> int:
    """Returns how much of an element FFmpeg keeps piece by piece. Padding is skipped, a file's content kept as one."""
    if element in (_VOID, _CHECKSUM):
        return 0
    if element != _ATTACHMENTS:
        return end - start
    files = kept = 0
    for child, _, to in _children(source, start, end):
        files += child == _ATTACHED_FILE
        kept += 0 if child == _ATTACHED_FILE else to - start
        start = to
        if files > limits.max_attachments:
            message = f"over the limit of {limits.max_attachments} files attached to it"
            raise MediaError(source.name, Cause.TOO_LARGE, message)
        if kept > limits.max_metadata_bytes:
            break
    return kept


def _was_a_block(source: OpenSource, element: int, start: int, end: int) -> bool:
    """Whether a number in a cluster is too long for one, or padding holds something."""
    if element in _NUMBERS:
        return end - start > 8
    return element == _VOID and bool(source.read(start, min(end - start, 2**16)).strip(b"\0"))


def _read_tracks(source: OpenSource, start: int, end: int) -> dict[int, int]:
    """Returns the type of each track by its number, in the order of the tracks."""
    tracks: dict[int, int] = {}
    for count, (element, content, stop) in enumerate(_children(source, start, end)):
        if count == _MAX_TRACKS:
            raise MediaError(source.name, Cause.TOO_LARGE, f"over the limit of {_MAX_TRACKS} tracks")
        if element == _TRACK_ENTRY:
            fields = {
                child: source.read(at, to - at) for child, at, to in _children(source, content, stop) if to - at < 9
            }
            number = int.from_bytes(fields.get(_TRACK_NUMBER, b""), "big")
            tracks[number] = int.from_bytes(fields.get(_TRACK_TYPE, b""), "big")
    return tracks


def _children(source: OpenSource, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yields the identifier of each element from `start` to `end`, and the offsets of its content and its end."""
    while start < end:
        head = _head(source, start)
        if head is None or head[2] is None or head[2] > end:
            raise _damaged(source, start)
        yield head[0], head[1], head[2]
        start = head[2]


def _block_in_group(source: OpenSource, start: int, end: int) -> int:
    """Returns the offset of the content of a group's only block."""
    blocks = [content for element, content, _ in _children(source, start, end) if element == _BLOCK]
    if len(blocks) != 1:
        raise _damaged(source, start)
    return blocks[0]


def _track_and_flags(source: OpenSource, content: int, tracks: dict[int, int]) -> tuple[int, int]:
    """Returns the number of a block's track, of variable width, and its flags, after a time in two bytes."""
    head = source.read(content, 8 + 3)
    width = 9 - head[0].bit_length() if head and head[0] else 0
    if not width or len(head) < width + 3:
        raise _damaged(source, content)
    number = int.from_bytes(head[:width], "big") & (1 << 7 * width) - 1
    if number not in tracks:
        raise _damaged(source, content)
    if tracks[number] == _VIDEO and head[width + 2] & _LACING:
        raise MediaError(source.name, Cause.DECODE_FAILED, f"several frames in one block (lacing) at byte {content}")
    return number, head[width + 2]


def _segment(source: OpenSource) -> tuple[int, int | None] | None:
    """Finds the Segment: returns the offsets of its content and of its end, None as the end if its size is open."""
    offset = 0
    for _ in range(8):  # the EBML header, perhaps padding, the Segment
        head = _head(source, offset)
        if head is None:
            return None
        element, content, end = head
        if element == _SEGMENT:
            return content, end
        if end is None:
            return None
        offset = end
    return None


def _head(source: OpenSource, offset: int) -> tuple[int, int, int | None] | None:
    """Reads an element's identifier and the offsets of its content and of its end, None as the end if it is open."""
    raw = source.read(offset, 12)
    if not raw or raw[0] < 0x10:  # identifiers take four bytes at most
        return None
    id_width = 9 - raw[0].bit_length()
    if len(raw) <= id_width or not raw[id_width]:
        return None
    width = 9 - raw[id_width].bit_length()
    content = id_width + width
    if len(raw) < content:
        return None
    open_size = (1 << 7 * width) - 1
    size = int.from_bytes(raw[id_width:content], "big") & open_size
    end = None if size == open_size else offset + content + size
    return int.from_bytes(raw[:id_width], "big"), offset + content, end


def _damaged(source: OpenSource, offset: int) -> MediaError:
    return MediaError(source.name, Cause.DECODE_FAILED, f"the video is damaged at byte {offset}")
