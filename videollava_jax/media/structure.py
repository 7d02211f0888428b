"""Checks by the sizes in a container's headers that a file is complete, without decoding anything."""

from __future__ import annotations

from videollava_jax.media import matroska
from videollava_jax.media.errors import Cause, MediaError, cut_short
from videollava_jax.media.mp4 import boxes
from videollava_jax.media.source import OpenSource

# In a hostile file of tiny boxes or blocks the check stops here.
_MAX_STEPS = 500_000
_MP4_FIRST = {b"ftyp", b"styp", b"moov", b"moof", b"mdat", b"free", b"skip", b"wide", b"pnot"}
_MP4_INDEX = {b"moov", b"moof", b"meta"}  # meta is the index of AVIF images


def check_whole(source: OpenSource) -> None:
    """Checks the sizes in MP4 and related formats, Matroska, AVI, WebP and GIF; other formats do not state any.

    Raises:
      MediaError: the file ends too early, has a gap, or is an MP4 without its index (a recording never finished).
    """
    head = source.read(0, 16)
    if head[4:8] in _MP4_FIRST:
        _check_mp4(source)
    elif head.startswith(matroska.MAGIC):
        matroska.check_elements(source)
    elif head[:4] == b"RIFF" and head[8:12] in (b"AVI ", b"WEBP"):
        # The last chunk may lack its padding byte if its length is odd; size 0 means the recording was not finished.
        end = 8 + int.from_bytes(head[4:8], "little")
        if end > source.size + 1:
            raise cut_short(source.name, source.size, end)
    elif head[:6] in (b"GIF87a", b"GIF89a"):
        _check_gif(source)


def _check_mp4(source: OpenSource) -> None:
    """Checks the outermost boxes. Bytes at the end of the file that are no box are accepted, as players do."""
    kinds: set[bytes] = set()
    end = 0
    for step, box in enumerate(boxes(source, 0, source.size)):
        if step == _MAX_STEPS:
            return
        end = box.end
        if end > source.size:
            if box.kind in _MP4_INDEX or (box.kind == b"mdat" and kinds & _MP4_INDEX):
                raise cut_short(source.name, source.size, end)
            break
        kinds.add(box.kind)
    if not kinds & _MP4_INDEX and end + 8 > source.size:
        message = "cut short: it ends before its index (moov); fetch or copy it again"
        raise MediaError(source.name, Cause.TRUNCATED, message)


def _check_gif(source: OpenSource) -> None:
    """Checks the blocks of a GIF. A missing trailer after a complete block is accepted, as browsers do."""
    screen = source.read(0, 13)
    offset, inside = 13 + _colours(screen[10] if len(screen) == 13 else 0), False
    for _ in range(_MAX_STEPS):
        block = source.read(offset, 10)
        if inside:  # a chain of sub-blocks, each preceded by its length, up to an empty one
            if not block:
                break
            inside = block[0] > 0
            offset += 1 + block[0]
        elif block[:1] == b",":
            offset, inside = offset + 11 + _colours(block[9] if len(block) == 10 else 0), True
        elif block[:1] == b"!":
            offset, inside = offset + 2, True
        else:  # the trailer, the end of the file, or bytes that are no block
            break
    if offset + inside > source.size:
        raise cut_short(source.name, source.size, offset + inside)


def _colours(flags: int) -> int:
    """Returns the bytes of the colour table that a GIF's flags announce."""
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0
