"""Which frames of a video were taken, and the pixels of a medium together with that."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from videollava_jax.media.video import Video


@dataclass(frozen=True)
class Frames:
    """The frames of a video that were taken.

    Attributes:
      indices: their numbers in the video, from 0 in the order of presentation.
      seconds: when each is shown, since the video's first frame; None if the file gives no times.
      total: frames in the video; None if that is not known.
    """

    indices: tuple[int, ...]
    seconds: tuple[float, ...] | None
    total: int | None

    @classmethod
    def of(cls, video: Video) -> Frames:
        """Returns the frames that were read of a video."""
        seconds = tuple(video.timestamps.tolist())
        known = all(math.isfinite(second) for second in seconds)
        return cls(tuple(video.indices.tolist()), seconds if known else None, video.total_frames)


@dataclass(frozen=True, eq=False)
class MediumPixels:
    """A medium as the towers take it.

    Attributes:
      pixels: [F, S, S, 3] of the preprocessor's dtype, RGB, 0-255; F is 1 for an image.
      frames: which frames of a video these are; None of an image, and of a video that was given as pixels.
    """

    pixels: npt.NDArray[Any]
    frames: Frames | None = None
