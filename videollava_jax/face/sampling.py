"""Which frames of a video are taken, by transformers' arguments `num_frames`, `fps` and `do_sample_frames`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class EveryFrame:
    """Takes all frames: `do_sample_frames=False`."""

    def indices(self, total: int, fps: float | None) -> npt.NDArray[np.int64]:
        """Returns the chosen frame numbers (see `media.FrameSampling`)."""
        return np.arange(total)


@dataclass(frozen=True)
class TransformersSampling:
    """Takes frames `i · total // num_frames`, as transformers' `default_sample_indices_fn`; `fps` gives their number.

    A video with fewer frames than `num_frames` repeats them, where transformers raises: a model that was trained on 8
    frames gets 8.

    Attributes:
        num_frames: how many; None with `fps`.
        rate: frames a second of those taken; None with `num_frames`.
    """

    num_frames: int | None = None
    rate: float | None = None

    def indices(self, total: int, fps: float | None) -> npt.NDArray[np.int64]:
        """Returns the chosen frame numbers (see `media.FrameSampling`).

        Raises:
            ValueError: by rate, of a video whose own rate is not known.
        """
        count = self.num_frames
        if count is None:
            if fps is None:
                raise ValueError(
                    "fps: the video's own frame rate is not known; give it as video_metadata={'fps': …, "
                    "'total_num_frames': …}, or num_frames instead"
                )
            count = max(1, int(total / fps * (self.rate or fps)))
        return np.arange(count) * total // count


def sampling(do_sample_frames: bool | None, num_frames: int | None, fps: float | None) -> Any:
    """Returns the rule that transformers' arguments ask for; None where they ask for none.

    Raises:
        ValueError: both a number and a rate, or one that is not positive.
    """
    if num_frames is not None and fps is not None:
        raise ValueError("num_frames and fps exclude each other: give one of them")
    for name, value in (("num_frames", num_frames), ("fps", fps)):
        if value is not None and not (isinstance(value, (int, float, np.number)) and value > 0):
            raise ValueError(f"{name}: expected a positive number, got {value!r}")
    if do_sample_frames is False:
        return EveryFrame()
    if num_frames is None and fps is None:
        return None
    return TransformersSampling(None if num_frames is None else int(num_frames), fps)
