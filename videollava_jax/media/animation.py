"""Image files with several frames: counts the frames, and decodes animated WebP with PIL, as FFmpeg cannot."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from videollava_jax.media.chunks import webp_durations
from videollava_jax.media.errors import Cause, MediaError, MediaLimits
from videollava_jax.media.image import damaged, open_image
from videollava_jax.media.source import OpenSource


def is_webp(source: OpenSource) -> bool:
    """Returns whether the file is WebP, animated or not."""
    head = source.read(0, 12)
    return head[:4] == b"RIFF" and head[8:] == b"WEBP"


def frame_count(source: OpenSource, limits: MediaLimits) -> int:
    """Counts the frames of an image file. With more than 1, a GIF, PNG, WebP or AVIF is a video; a TIFF has pages."""
    image = open_image(source, limits)
    try:
        return int(getattr(image, "n_frames", 1)) if image.format in ("GIF", "PNG", "WEBP", "AVIF") else 1
    except MediaError:
        raise
    except Exception as error:
        raise damaged(source.name, error) from None


def times(source: OpenSource, limits: MediaLimits) -> npt.NDArray[np.float64]:
    """Returns the second at which each frame of an animated WebP is shown, by its headers: float64 [frames].

    Raises:
      MediaError: its chunks hold another number of frames than PIL finds, or decoding them all is over the limits.
    """
    image = open_image(source, limits)
    total, durations = int(getattr(image, "n_frames", 1)), webp_durations(source)
    if total != len(durations):
        message = f"damaged: {total} of its {len(durations)} frames could be read"
        raise MediaError(source.name, Cause.DECODE_FAILED, message)
    if total > limits.max_frames:
        raise MediaError(source.name, Cause.TOO_LARGE, f"over the limit of {limits.max_frames} frames")
    if total * image.width * image.height > limits.max_animation_pixels:
        message = f"{total} frames of {image.width} by {image.height} pixels, in all over the limit of "
        message += f"{limits.max_animation_pixels}; raise MediaLimits.max_animation_pixels if it is meant"
        raise MediaError(source.name, Cause.TOO_LARGE, message)
    return np.cumsum([0.0, *durations[:-1]])


def play(source: OpenSource, limits: MediaLimits) -> Iterator[npt.NDArray[np.uint8]]:
    """Decodes an animated WebP: yields each frame, uint8 [H, W, 3]. `times` has checked the file."""
    image = open_image(source, limits)
    for number in range(int(getattr(image, "n_frames", 1))):
        try:
            image.seek(number)
            image.load()
            pixels = np.array(image.convert("RGB"))
        except MediaError:
            raise
        except Exception as error:
            raise damaged(source.name, error) from None
        yield pixels
