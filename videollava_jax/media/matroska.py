"""Checks that the elements of a Matroska or WebM file follow each other without a gap to the end of the file.

FFmpeg skips whatever it cannot read, up to the next cluster, and does not report the frames that are lost.
"""

from __future__ import annotations

from videollava_jax.media.errors import Cause, MediaError, cut_short
from videollava_jax.media.source import OpenSource

MAGIC = b"\x1a\x45\xdf\xa3"
_SEGMENT, _CLUSTER = 0x18538067, 0x1F43B675
# Ten hours of video and sound have about three million. In a hostile file of empty elements the check stops here.
_MAX_ELEMENTS = 5_000_000


def check_elements(source: OpenSource) -> None:
    """Walks over the Segment's elements and those of its Clusters, reading only their heads.

    Live recordings leave the sizes of both open; the Segment then ends with the file.

    Raises:
      MediaError: the file ends within an element, or the bytes where an element should begin are not one.
    """
    found = _segment(source)
    if found is None:
        return  # FFmpeg will refuse the file
    offset, end = found
    segment_end = source.size if end is None else end
    if segment_end > source.size:
        raise cut_short(source.name, source.size, segment_end)
    cluster_end = None
    for _ in range(_MAX_ELEMENTS):
        if cluster_end is not None and offset >= cluster_end:
            if offset > cluster_end:
                raise _damaged(source, offset)
            cluster_end = None
        if offset == segment_end:
            return
        head = _head(source, offset)
        if head is None:
            raise _damaged(source, offset)
        element, content, element_end = head
        if element_end is not None and element_end > source.size and end is None:
            raise cut_short(source.name, source.size, element_end)
        if (element_end is None and element != _CLUSTER) or (element_end or 0) > segment_end:
            raise _damaged(source, offset)
        if element == _CLUSTER:
            offset, cluster_end = content, element_end
        else:
            offset = content if element_end is None else element_end


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
