"""Still images to RGB pixels, with PIL."""

from __future__ import annotations

import io
import os
import warnings

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from videollava_jax.media.errors import Cause, MediaError, MediaLimits, Source, source_name

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")


def read_image(source: Source, limits: MediaLimits = MediaLimits()) -> npt.NDArray[np.uint8]:  # noqa: B008
    """Reads an image, upright by its EXIF orientation; of an animation, the first frame.

    Transparency is dropped, as transformers' `convert_to_rgb` drops it; grey, palette, CMYK and 16-bit images
    become 8-bit RGB.

    Returns:
      uint8 [H, W, 3], RGB, 0-255.

    Raises:
      MediaError: not an image, damaged, or larger than the limits; checked before the pixels are decoded.
    """
    name = source_name(source)
    data = read_bytes(source, limits)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit follows
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > limits.max_pixels:
            raise MediaError(
                name,
                Cause.TOO_LARGE,
                f"an image of {image.width} by {image.height} pixels, over the limit of {limits.max_pixels}; "
                "raise MediaLimits.max_pixels if it is meant",
            )
        image.load()
        upright = ImageOps.exif_transpose(image)
    except MediaError:
        raise
    except UnidentifiedImageError:
        raise MediaError(
            name, Cause.NOT_MEDIA, f"not an image; expected one of {', '.join(FORMATS)}, got {describe(data)}"
        ) from None
    except Image.DecompressionBombError:
        raise MediaError(name, Cause.TOO_LARGE, "an image of more pixels than PIL will decode") from None
    except Exception as error:
        # PIL's readers raise OSError, SyntaxError, ValueError, struct.error and more on damaged files.
        cause = Cause.TRUNCATED if "truncated" in str(error).lower() else Cause.DECODE_FAILED
        raise MediaError(name, cause, f"the image is damaged ({type(error).__name__})") from None
    if upright.mode.startswith(("I;16", "I")):
        upright = Image.fromarray((np.asarray(upright, np.int64) >> 8).clip(0, 255).astype(np.uint8))
    return np.asarray(upright.convert("RGB"))


def read_bytes(source: Source, limits: MediaLimits) -> bytes:
    """The content of a source, or a `MediaError` that says why there is none."""
    name = source_name(source)
    if isinstance(source, bytes):
        size, data = len(source), source
    elif isinstance(source, str | os.PathLike):
        size = checked_size(source)
        data = b""
    else:
        data = source.read(limits.max_bytes + 1)
        size = len(data)
    if size > limits.max_bytes:
        raise MediaError(name, Cause.TOO_LARGE, f"{size} bytes, over the limit of {limits.max_bytes}")
    if isinstance(source, str | os.PathLike):
        with open(source, "rb") as file:
            data = file.read()
    if not data:
        raise MediaError(name, Cause.NOT_MEDIA, "the file is empty")
    return data


def checked_size(path: str | os.PathLike[str]) -> int:
    """The size of a regular file, in bytes."""
    name = os.fspath(path)
    if not os.path.exists(path):
        raise MediaError(name, Cause.NOT_FOUND, "no such file")
    if not os.path.isfile(path):
        raise MediaError(name, Cause.NOT_A_FILE, "expected a file, got something else (a directory or a device)")
    return os.path.getsize(path)


def describe(data: bytes) -> str:
    """The first bytes of a file, for an error."""
    return f"a file that begins with {data[:8]!r}"
