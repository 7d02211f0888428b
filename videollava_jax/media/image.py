"""Reads still images as RGB pixels, with PIL."""

from __future__ import annotations

import contextlib

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from videollava_jax.media.errors import Cause, MediaError, MediaLimits
from videollava_jax.media.source import OpenSource, Source, open_source
from videollava_jax.media.structure import check_whole

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
# WebP and AVIF, recognised by bytes 8 to 12. PIL reads these files completely when it opens them.
_HELD_WHOLE = (b"WEBP", b"avif", b"avis", b"mif1", b"msf1")


def read_image(source: Source, limits: MediaLimits = MediaLimits()) -> npt.NDArray[np.uint8]:  # noqa: B008
    """Reads an image, turned upright by its EXIF orientation; of an animation, the first frame.

    Transparency is dropped, not blended, like transformers' `convert_to_rgb`; palette, CMYK and grey images become
    RGB. 16-bit grey keeps its upper 8 bits, which PIL alone would clip to white.

    Args:
      source: a path, the bytes of a file, or a binary file object.
      limits: a larger image is refused before its pixels are decoded.

    Returns:
      uint8 [H, W, 3], RGB, 0-255.

    Raises:
      MediaError: not an image, damaged, cut short, or larger than the limits.
    """
    with open_source(source, limits.max_image_bytes) as opened:
        image = open_image(opened, limits)
        try:
            image.load()
            _turn_upright(image)
            return _rgb(image)
        except Exception as error:
            raise damaged(opened, error) from None


def open_image(source: OpenSource, limits: MediaLimits) -> Image.Image:
    """Opens an image: its header is read and its size is within the limits; its pixels are not decoded yet."""
    head = source.read(0, 12)
    held_whole = head[8:] in _HELD_WHOLE
    if held_whole and source.size > limits.max_image_bytes:
        message = f"{source.size} bytes, over the limit max_image_bytes of {limits.max_image_bytes}"
        raise MediaError(source.name, Cause.TOO_LARGE, message)
    try:
        image = Image.open(source.rewound(), formats=FORMATS)  # type: ignore[arg-type]  # read, seek, tell suffice
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise MediaError(
            source.name, Cause.TOO_LARGE, "an image of more pixels than PIL decodes (Image.MAX_IMAGE_PIXELS)"
        ) from None
    except Exception as error:
        if held_whole or head.startswith(b"GIF8"):
            check_whole(source)  # PIL does not recognise these when they are cut short
        if not isinstance(error, UnidentifiedImageError):
            raise damaged(source, error) from None
        raise MediaError(
            source.name,
            Cause.NOT_MEDIA,
            f"expected an image ({', '.join(FORMATS)}), got {describe(source)}; a video is read by read_video",
        ) from None
    check_pixels(source.name, "an image", image.width, image.height, limits)
    return image


def check_pixels(name: str, what: str, width: int, height: int, limits: MediaLimits) -> None:
    """Raises a MediaError if a frame or image has more than `max_pixels`."""
    if width * height > limits.max_pixels:
        raise MediaError(
            name,
            Cause.TOO_LARGE,
            f"{what} of {width} by {height} pixels, over the limit of {limits.max_pixels}; "
            "raise MediaLimits.max_pixels if it is meant",
        )


def damaged(source: OpenSource, error: Exception) -> MediaError:
    """Makes the error to raise when PIL fails (with OSError, SyntaxError, ValueError, struct.error or others)."""
    if isinstance(error, MemoryError):
        return MediaError(source.name, Cause.TOO_LARGE, "too little memory for the image")
    if "truncated" in str(error).lower() or isinstance(error, EOFError):
        return MediaError(source.name, Cause.TRUNCATED, "the image is cut short; fetch or copy it again")
    return MediaError(source.name, Cause.DECODE_FAILED, f"the image is damaged ({type(error).__name__})")


def describe(source: OpenSource) -> str:
    """Describes a file that is not what was expected, by its first bytes."""
    return f"a file that begins with {source.read(0, 12)!r}"


def _turn_upright(image: Image.Image) -> None:
    # Without a readable EXIF block the orientation is unknown, but the pixels are fine.
    with contextlib.suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)


def _rgb(image: Image.Image) -> npt.NDArray[np.uint8]:
    if image.mode.startswith("I"):  # I;16 and its byte orders; I, the same values in 32 bits
        grey = (np.asarray(image).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8)
        return np.stack([grey] * 3, axis=-1)
    image.info.pop("transparency", None)
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))
