"""Images of several frames: how many there are, and animated WebP, which FFmpeg does not play, played with PIL."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from videollava_jax.media.errors import Cause, MediaError, MediaLimits
from videollava_jax.media.image import damaged, open_image
from videollava_jax.media.source import OpenSource


def is_webp(source: OpenSource) -> bool:
    """Whether the file is WebP, animated or not."""
    head = source.read(0, 12)
    return head[:4] == b"RIFF" and head[8:] == b"WEBP"


def frame_count(source: OpenSource, limits: MediaLimits) -> int:
    """Frames of an image file: more than 1 makes a GIF, PNG, WebP or AVIF a video. Pages of a TIFF are not frames."""
    image = open_image(source, limits)
    try:
        return int(getattr(image, "n_frames", 1)) if image.format in ("GIF", "PNG", "WEBP", "AVIF") else 1
    except Exception as error:
        raise damaged(source, error) from None


def play(source: OpenSource, limits: MediaLimits) -> Iterator[tuple[npt.NDArray[np.uint8], float]]:
    """The frames of an animated WebP in order, uint8 [H, W, 3], each with the second at which it is shown."""
    image = open_image(source, limits)
    total = int(getattr(image, "n_frames", 1))
    if total > limits.max_frames:
        raise MediaError(source.name, Cause.TOO_LARGE, f"over the limit of {limits.max_frames} frames")
    seconds = 0.0
    for number in range(total):
        try:
            image.seek(number)
            image.load()
            pixels = np.array(image.convert("RGB"))
        except Exception as error:
            raise damaged(source, error) from None
        yield pixels, seconds
        seconds += float(image.info.get("duration", 0)) / 1000
