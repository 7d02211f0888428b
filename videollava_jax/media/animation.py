"""Image files with several frames: counts the frames, and decodes animated WebP with PIL, as FFmpeg cannot."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from videollava_jax.media.chunks import count_webp_frames
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
    except Exception as error:
        raise damaged(source.name, error) from None


def play(source: OpenSource, limits: MediaLimits) -> Iterator[tuple[npt.NDArray[np.uint8], float]]:
    """Decodes an animated WebP: yields each frame, uint8 [H, W, 3], and the second at which it is shown."""
    image = open_image(source, limits)
    total = int(getattr(image, "n_frames", 1))
    if total != count_webp_frames(source):
        message = f"damaged: {total} of its {count_webp_frames(source)} frames could be read"
        raise MediaError(source.name, Cause.DECODE_FAILED, message)
    if total > limits.max_frames:
        raise MediaError(source.name, Cause.TOO_LARGE, f"over the limit of {limits.max_frames} frames")
    seconds = 0.0
    for number in range(total):
        try:
            image.seek(number)
            image.load()
            pixels = np.array(image.convert("RGB"))
        except Exception as error:
            raise damaged(source.name, error) from None
        yield pixels, seconds
        seconds += float(image.info.get("duration", 0)) / 1000
