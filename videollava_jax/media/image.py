"""Reads still images as RGB pixels, with PIL."""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from videollava_jax.media.errors import Cause, MediaError, MediaLimits
from videollava_jax.media.other_formats import AVIF, HEIC, TIFF, OtherFormat, is_heic, other_format
from videollava_jax.media.source import OpenSource, Source, open_source
from videollava_jax.media.structure import check_whole

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
# WebP and AVIF, recognised by bytes 8 to 12. PIL reads these files completely when it opens them.
_HELD_WHOLE = (b"WEBP", b"avif", b"avis", b"mif1", b"msf1", b"heic", b"heix", b"heim", b"heis")
_JPEG_CHUNK = 2**20
_GREY_16, _FLOAT = ("I;16", "I;16L", "I;16B", "I;16N", "I"), "F"
# Colours multiplied with their transparency: PIL divides them again on the way to these.
_PREMULTIPLIED = {"RGBa": "RGBA", "La": "LA"}


def read_image(source: Source, limits: MediaLimits = MediaLimits()) -> npt.NDArray[np.uint8]:  # noqa: B008
    """Reads an image, turned upright by its EXIF orientation; of an animation, the first frame.

    Transparency is dropped, not blended, like transformers' `convert_to_rgb`; palette, CMYK and grey images become
    RGB. 16-bit grey keeps its upper 8 bits, which PIL alone would clip to white; grey in floating point is scaled from
    0-1. HEIC is read if pillow-heif is installed (the extra `heic`).

    Args:
      source: a path, the bytes of a file, or a binary file object.
      limits: a larger image is refused before its pixels are decoded.

    Returns:
      uint8 [H, W, 3], RGB, 0-255.

    Raises:
      MediaError: not an image, damaged, cut short, or larger than the limits.
    """
    with open_source(source, limits.max_image_bytes, limits.seconds) as opened:
        image = open_image(opened, limits)
        return rgb_pixels(image, opened.name)


def rgb_pixels(image: Image.Image, name: str = "<image>") -> npt.NDArray[np.uint8]:
    """Converts an open PIL image, from a file or a program's own, to uint8 [H, W, 3], RGB, 0-255, upright.

    Args:
      image: of any mode; it is not changed.
      name: for error messages.

    Raises:
      MediaError: its pixels do not decode, or have no meaning as colours from 0 to 255.
    """
    try:
        image.load()
        return _rgb(_upright(image), name)
    except MediaError:
        raise
    except Exception as error:
        raise damaged(name, error) from None


def open_image(source: OpenSource, limits: MediaLimits) -> Image.Image:
    """Opens an image: its header is read and its size is within the limits; its pixels are not decoded yet."""
    head = source.read(0, 12)
    held_whole = head[8:] in _HELD_WHOLE
    if held_whole and source.size > limits.max_image_bytes:
        message = f"{source.size} bytes, over the limit max_image_bytes of {limits.max_image_bytes}"
        raise MediaError(source.name, Cause.TOO_LARGE, message)
    other = other_format(source)
    if other is not None:
        raise not_read(source, other, "an image")
    formats: tuple[str, ...] = FORMATS
    if is_heic(source.read(0, 64)):
        if not reads_heic():
            raise not_read(source, HEIC, "an image")
        formats = ("HEIF",)
    try:
        image = Image.open(source.rewound(), formats=formats)  # type: ignore[arg-type]  # read, seek, tell suffice
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise MediaError(
            source.name, Cause.TOO_LARGE, "an image of more pixels than PIL decodes (Image.MAX_IMAGE_PIXELS)"
        ) from None
    except MediaError:
        raise
    except Exception as error:
        if held_whole or head.startswith(b"GIF8"):
            check_whole(source)  # PIL does not recognise these when they are cut short
        if not isinstance(error, UnidentifiedImageError):
            raise damaged(source.name, error) from None
        if head[4:12] in (b"ftypavif", b"ftypmif1"):
            raise not_read(source, AVIF, "an image") from None
        if head[:4] in (b"II*\0", b"MM\0*"):
            raise not_read(source, TIFF, "an image") from None
        raise MediaError(
            source.name,
            Cause.NOT_MEDIA,
            f"expected an image ({', '.join(FORMATS)}), got {describe(source)}; a video is read by read_video",
        ) from None
    check_pixels(source.name, "an image", image.width, image.height, limits)
    if image.format in ("JPEG", "MPO"):
        _check_scans(source, limits)
    return image


def _check_scans(source: OpenSource, limits: MediaLimits) -> None:
    """Refuses a JPEG that goes over its pixels again and again. A scan's marker cannot be part of its coded pixels."""
    scans, offset = 0, 0
    while offset < source.size:
        chunk = source.read(offset, _JPEG_CHUNK + 1)  # a marker may lie across two chunks
        scans += chunk.count(b"\xff\xda")
        offset += _JPEG_CHUNK
    if scans > limits.max_scans:
        message = f"a JPEG of {scans} scans, over the limit of {limits.max_scans}; save it again, or raise "
        raise MediaError(source.name, Cause.TOO_LARGE, message + "MediaLimits.max_scans if it is meant")


def check_pixels(name: str, what: str, width: int, height: int, limits: MediaLimits) -> None:
    """Raises a MediaError if a frame or image has more than `max_pixels`."""
    if width * height > limits.max_pixels:
        raise MediaError(
            name,
            Cause.TOO_LARGE,
            f"{what} of {width} by {height} pixels, over the limit of {limits.max_pixels}; "
            "raise MediaLimits.max_pixels if it is meant",
        )


def not_read(source: OpenSource, other: OtherFormat, expected: str) -> MediaError:
    """Makes the error to raise for a file of a format that is not read, whoever was asked to."""
    cause = Cause.FORBIDDEN_FORMAT if other.is_image else Cause.NOT_MEDIA
    return MediaError(source.name, cause, f"expected {expected}, got {other.name}; {other.advice}")


@functools.cache
def reads_heic() -> bool:
    """Returns whether pillow-heif is installed; if so, PIL reads HEIC from then on."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


def damaged(name: str, error: Exception) -> MediaError:
    """Makes the error to raise when PIL fails (with OSError, SyntaxError, ValueError, struct.error or others)."""
    if isinstance(error, MemoryError):
        return MediaError(name, Cause.TOO_LARGE, "too little memory for the image")
    if "truncated" in str(error).lower() or isinstance(error, EOFError):
        return MediaError(name, Cause.TRUNCATED, "the image is cut short; fetch or copy it again")
    return MediaError(name, Cause.DECODE_FAILED, f"the image is damaged ({type(error).__name__})")


def describe(source: OpenSource) -> str:
    """Describes a file that is not what was expected, without a byte of it: it may be somebody's secret."""
    head = source.read(0, 512)
    text = not any(byte < 32 and byte not in b"\t\n\r\f\x1b" for byte in head)
    return f"{'text' if text else 'data'} of no format that is known ({source.size} bytes)"


def _upright(image: Image.Image) -> Image.Image:
    # Without a readable EXIF block the orientation is unknown, but the pixels are fine.
    with contextlib.suppress(Exception):
        return ImageOps.exif_transpose(image)
    return image


def _rgb(image: Image.Image, name: str) -> npt.NDArray[np.uint8]:
    if image.mode in _GREY_16:  # I: the same values in 32 bits
        values = np.asarray(image).astype(np.int64)
        _check_range(values, 0, 65535, image.mode, name)
        return np.stack([(values >> 8).astype(np.uint8)] * 3, axis=-1)
    if image.mode == _FLOAT:
        levels = np.asarray(image)
        _check_range(levels, 0, 1, image.mode, name)
        return np.stack([np.round(levels * 255).astype(np.uint8)] * 3, axis=-1)
    if image.mode in _PREMULTIPLIED:
        image = image.convert(_PREMULTIPLIED[image.mode])
    if image.mode == "RGB":
        return np.array(image)
    if "transparency" in image.info:
        image = image.copy()
        image.info.pop("transparency")
    return np.array(image.convert("RGB"))


def _check_range(values: npt.NDArray[Any], low: int, high: int, mode: str, name: str) -> None:
    least, most = values.min(), values.max()
    if not (least >= low and most <= high):  # NaN too
        message = f"an image of mode {mode} with values from {least} to {most}; expected {low} to {high}, scale them"
        raise MediaError(name, Cause.DECODE_FAILED, message)
