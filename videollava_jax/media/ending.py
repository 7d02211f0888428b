"""Whether a file's own format says that it ends where it ends, for downloads whose server did not say their length."""

from __future__ import annotations

from typing import BinaryIO

from videollava_jax.media import matroska, mp4
from videollava_jax.media.errors import MediaError
from videollava_jax.media.source import OpenSource, open_source

_MAX_BOXES = 10_000


def says_its_end(file: BinaryIO) -> bool:
    """Returns whether a file is whole by its own format.

    Only formats are known that say where they end: PNG, JPEG, GIF, WebP, AVI, MP4 that is not in fragments, and
    Matroska whose segment has a size. Of all others a part looks like a whole.
    """
    try:
        with open_source(file, 2**62) as opened:
            return _ends(opened)
    except MediaError:
        return False


def _ends(source: OpenSource) -> bool:
    head, tail = source.read(0, 16), source.read(max(0, source.size - 12), 12)
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return tail[4:8] == b"IEND"
    if head.startswith(b"\xff\xd8\xff"):
        return tail.endswith(b"\xff\xd9")
    if head.startswith((b"GIF87a", b"GIF89a")):
        return tail.endswith(b"\x3b")
    if head.startswith(b"RIFF"):
        length = int.from_bytes(head[4:8], "little")
        return length > 0 and 8 + length + length % 2 == source.size
    if head.startswith(matroska.MAGIC):
        return matroska.end_of_segment(source) == source.size
    return _ends_mp4(source)


def _ends_mp4(source: OpenSource) -> bool:
    """Returns whether the outermost boxes fill the file, and hold an index and the frames. Fragments have no number."""
    kinds: set[bytes] = set()
    end = 0
    for number, box in enumerate(mp4.boxes(source, 0, source.size)):
        open_ended = source.read(end, 4) == b"\0\0\0\0"
        if number == _MAX_BOXES or box.kind == b"moof" or open_ended:
            return False
        kinds.add(box.kind)
        end = box.end
    return end == source.size and bool({b"moov", b"meta"} & kinds) and b"mdat" in kinds
