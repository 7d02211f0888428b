"""Counts the frames of animated WebP and PNG files by their chunks; decoders skip chunks that they do not know."""

from __future__ import annotations

import struct

from videollava_jax.media.errors import Cause, MediaError, cut_short
from videollava_jax.media.source import OpenSource

PNG = b"\x89PNG\r\n\x1a\n"
_WEBP = {b"VP8X", b"ANIM", b"ANMF", b"VP8 ", b"VP8L", b"ALPH", b"ICCP", b"EXIF", b"XMP "}
_MAX_CHUNKS = 5_000_000


def webp_durations(source: OpenSource) -> list[float]:
    """Returns the seconds that each frame of an animated WebP is shown; none of a still one.

    Raises:
      MediaError: between its chunks is something else.
    """
    end = min(source.size, 8 + int.from_bytes(source.read(4, 4), "little"))
    offset, durations = 12, []
    while offset + 8 <= end:
        name, size = struct.unpack("<4sI", source.read(offset, 8))
        if name not in _WEBP or offset + 8 + size > end:
            raise _damaged(source, offset)
        if name == b"ANMF":
            durations.append(int.from_bytes(source.read(offset + 20, 3), "little") / 1000)
        offset += 8 + size + (size & 1)
    return durations


def count_png_frames(source: OpenSource) -> int | None:
    """Returns how many frames an animated PNG says that it has; None of a still one.

    Raises:
      MediaError: it holds another number, or ends too early.
    """
    offset, stated, frames = len(PNG), None, 0
    for _ in range(_MAX_CHUNKS):
        head = source.read(offset, 12)
        if len(head) < 8:
            raise cut_short(source.name, source.size, source.size + 12)
        size, name = struct.unpack_from(">I4s", head)
        if name == b"acTL":
            stated = int.from_bytes(head[8:12], "big")
        frames += name == b"fcTL"
        offset += 12 + size
        if name == b"IEND":
            break
    if stated not in (None, frames):
        message = f"damaged: it says that it has {stated} frames, and holds {frames}"
        raise MediaError(source.name, Cause.DECODE_FAILED, message)
    return stated


def _damaged(source: OpenSource, offset: int) -> MediaError:
    return MediaError(source.name, Cause.DECODE_FAILED, f"the animation is damaged at byte {offset}")
