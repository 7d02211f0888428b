"""Walks over the blocks of a GIF and counts its images: decoders skip what they cannot read, without a word."""

from __future__ import annotations

import re

from PIL import Image

from videollava_jax.media.errors import Cause, MediaError, MediaLimits, cut_short
from videollava_jax.media.source import OpenSource

MAGIC = (b"GIF87a", b"GIF89a")
# In a hostile file of tiny blocks the check stops here.
_MAX_STEPS = 500_000
_CONTROL, _APPLICATION = 0xF9, 0xFF
# A graphic control extension and the image that it is for: what a frame begins with.
_FRAME = re.compile(rb"!\xf9\x04.{4}\0,", re.DOTALL)


def count_images(source: OpenSource, limits: MediaLimits) -> int:
    """Walks from block to block to the trailer.

    Where an image's data lie in pieces of odd lengths, as no writer divides them, all images are decoded: decoders of
    videos take less data than an image needs without a word.

    Returns:
      The number of images, each a frame.

    Raises:
      MediaError: the file ends before its trailer, the bytes where a block should begin are not one, or frames lie
        where no block is.
    """
    screen = source.read(0, 13)
    offset = 13 + _colours(screen[10] if len(screen) == 13 else 0)
    images, controls, odd = 0, set(), False
    for _ in range(_MAX_STEPS):
        block = source.read(offset, 12)
        if block[:1] == b",":
            images += 1
            start = offset + 11 + _colours(block[9] if len(block) >= 10 else 0)
        elif block[:1] == b"!" and len(block) > 2:
            start = offset + 2
            fixed = {_CONTROL: 4, _APPLICATION: 11}.get(block[1], block[2])
            if block[2] != fixed or (block[1] == _CONTROL and block[7:8] != b"\0"):
                raise _damaged(source, offset)
            controls.add(offset)
        elif block[:1] == b"\0":  # between blocks some writers leave empty ones
            offset += 1
            continue
        elif block[:1] == b";":
            break
        elif not block:
            raise cut_short(source.name, source.size, source.size + 1)
        else:
            raise _damaged(source, offset)
        lengths, offset = _chain(source, start)
        odd |= block[:1] == b"," and len(set(lengths[:-1])) > 1
    else:
        return images
    if odd:
        _decode_all(source, limits, images)
    _check_no_other_frames(source, controls)
    return images


def check_blocks(source: OpenSource) -> None:
    """Checks that a still image's blocks are complete; a missing trailer after a complete block is accepted."""
    screen = source.read(0, 13)
    offset = 13 + _colours(screen[10] if len(screen) == 13 else 0)
    for _ in range(_MAX_STEPS):
        block = source.read(offset, 10)
        if block[:1] == b",":
            offset = offset + 11 + _colours(block[9] if len(block) == 10 else 0)
        elif block[:1] == b"!":
            offset = offset + 2
        else:  # the trailer, the end of the file, or bytes that are no block
            break
        _, offset = _chain(source, offset)
    if offset > source.size:
        raise cut_short(source.name, source.size, offset)


def _chain(source: OpenSource, offset: int) -> tuple[list[int], int]:
    """Follows sub-blocks, each preceded by its length, to the empty one; returns their lengths and where they end."""
    lengths = []
    for _ in range(_MAX_STEPS):
        length = source.read(offset, 1)
        if not length:
            raise cut_short(source.name, source.size, offset + 1)
        offset += 1 + length[0]
        if not length[0]:
            break
        lengths.append(length[0])
    return lengths, offset


def _decode_all(source: OpenSource, limits: MediaLimits, images: int) -> None:
    try:
        with Image.open(source.rewound(), formats=["GIF"]) as image:  # type: ignore[arg-type]  # read, seek, tell suffice
            if image.width * image.height > limits.max_pixels:
                return  # refused when the video is opened
            for number in range(images):
                source.check_time()
                image.seek(number)
                image.load()
    except MediaError:
        raise
    except Exception as error:
        message = f"the animation is damaged: one of its {images} images is not whole ({type(error).__name__})"
        raise MediaError(source.name, Cause.DECODE_FAILED, message) from None


def _check_no_other_frames(source: OpenSource, controls: set[int]) -> None:
    """Refuses frames within another's data or after the trailer: the length before them was changed."""
    source.file.seek(0)
    before, start = b"", 0
    while chunk := source.file.read(2**20):
        source.check_time()
        piece = before + chunk
        for found in _FRAME.finditer(piece):
            if start + found.start() not in controls:
                raise _damaged(source, start + found.start())
        start += max(0, len(piece) - 8)
        before = piece[-8:]


def _colours(flags: int) -> int:
    """Returns the bytes of the colour table that a GIF's flags announce."""
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _damaged(source: OpenSource, offset: int) -> MediaError:
    return MediaError(source.name, Cause.DECODE_FAILED, f"the animation is damaged at byte {offset}")
