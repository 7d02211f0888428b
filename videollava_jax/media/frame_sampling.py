"""Rules that choose frames of a video, as small frozen objects: transformers', the authors', by rate, by number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt


class FrameSampling(Protocol):
    """A rule that chooses frames."""

    def indices(self, total: int, fps: float | None) -> npt.NDArray[np.int64]:
        """Returns the chosen frame numbers, int64 [F], ascending, each within 0..total-1.

        Args:
          total: frames in the video, at least 1.
          fps: average frames per second, None if the file does not say.
        """


@runtime_checkable
class TimedSampling(FrameSampling, Protocol):
    """A rule that goes by the times of frames, where the file gives them; `indices` is its rule where it does not."""

    def indices_at(self, times: npt.NDArray[np.float64], tick: float) -> npt.NDArray[np.int64]:
        """Returns the chosen frame numbers, int64 [F], ascending.

        Args:
          times: of all frames, seconds since the first one, float64 [total], ascending.
          tick: the unit in which the file writes times, seconds: they are rounded to it.
        """


@dataclass(frozen=True)
class Uniform:
    """Takes frames `arange(0, total, total / num_frames)`, the rule of transformers' documentation.

    If a video has fewer than `num_frames` frames, frames repeat: 8 of 3 frames are 0 0 0 1 1 1 2 2.
    """

    num_frames: int = 8

    def __post_init__(self) -> None:
        _require_positive("num_frames", self.num_frames)

    def indices(self, total: int, fps: float | None) -> npt.NDArray[np.int64]:
        """Returns the chosen frame numbers (see `FrameSampling.indices`)."""
        # arange with a fractional step can overshoot by one element.
        return np.arange(0, total, total / self.num_frames)[: self.num_frames].astype(np.int64)


@dataclass(frozen=True)
class Linspace:
    """Takes frames `linspace(0, total - 1, num_frames)`, the authors' rule: first and last frame included."""

    num_frames: int = 8

    def __post_init__(self) -> None:
        _require_positive("num_frames", self.num_frames)

    def indices(self, total: int, fps: float | None) -> npt.NDArray[np.int64]:
        """Returns the chosen frame numbers (see `FrameSampling.indices`)."""
        return np.linspace(0, total - 1, self.num_frames).astype(np.int64)


@dataclass(frozen=True)
class Fps:
    """Takes the frame on display every `1 / fps` seconds; of more than `max_frames`, that many, evenly spaced.

    The times of the frames decide, so a recording of variable rate is sampled evenly in time. A frame that stays for
    longer than `1 / fps` is taken once. Where a file gives no times, its frame rate does; a file that gives neither (a
    raw stream without a clock) is an error.

    A video tower that attends over windows of frames needs a multiple of the window. With `multiple_of` the number of
    frames is rounded up to one (never beyond `max_frames`): the frames are spaced evenly over the same seconds, and
    repeat if the video is too short.
    """

    fps: float
    max_frames: int = 8
    multiple_of: int = 1

    def __post_init__(self) -> None:
        if not self.fps > 0:
            raise ValueError(f"fps: expected a positive number, got {self.fps}")
        _require_positive("max_frames", self.max_frames)
        _require_positive("multiple_of", self.multiple_of)
        if self.max_frames % self.multiple_of:
            raise ValueError(f"max_frames: expected a multiple of {self.multiple_of}, got {self.max_frames}")

    def indices(self, total: int, fps: float | None) -> npt.NDArray[np.int64]:
        """Returns the chosen frame numbers (see `FrameSampling.indices`).

        Raises:
          ValueError: the file gives no frame rate.
        """
        if fps is None:
            raise ValueError("sampling by fps needs the video's frame rate, which this file does not give")
        chosen = np.unique(np.arange(0, total, max(fps / self.fps, 1.0)).astype(np.int64))
        if len(chosen) > self.max_frames:
            chosen = chosen[np.linspace(0, len(chosen) - 1, self.max_frames).astype(np.int64)]
        missing = -len(chosen) % self.multiple_of
        if missing:
            chosen = np.linspace(chosen[0], chosen[-1], len(chosen) + missing).astype(np.int64)
        return chosen

    def indices_at(self, times: npt.NDArray[np.float64], tick: float) -> npt.NDArray[np.int64]:
        """Returns the chosen frame numbers (see `TimedSampling.indices_at`)."""
        gaps = np.diff(times)
        early = min(tick / 2, 0.05 * float(np.median(gaps))) if len(gaps) else 0.0
        begins = times - early  # a frame may come a little later than meant, by rounding
        last = gaps[-1] if len(gaps) and gaps[-1] else 1 / self.fps
        ends = np.append(begins[1:], begins[-1] + last)
        # A frame is taken if one of the moments k / fps is between its beginning and its end.
        moments = [np.ceil(at * self.fps - 1e-9) for at in (begins, ends)]
        chosen = np.flatnonzero(moments[0] < moments[1])
        if len(chosen) > self.max_frames:
            chosen = chosen[np.linspace(0, len(chosen) - 1, self.max_frames).astype(np.int64)]
        missing = -len(chosen) % self.multiple_of
        if missing:
            evenly = np.linspace(times[chosen[0]], times[chosen[-1]], len(chosen) + missing)
            chosen = np.searchsorted(begins - 1e-9, evenly, side="right") - 1
        return chosen.astype(np.int64)


@dataclass(frozen=True)
class Indices:
    """Takes exactly these frames, in ascending order; repeats are allowed, frames beyond the end are an error."""

    frames: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.frames or list(self.frames) != sorted(self.frames) or self.frames[0] < 0:
            raise ValueError(f"frames: expected ascending, non-negative frame numbers, got {self.frames}")

    def indices(self, total: int, fps: float | None) -> npt.NDArray[np.int64]:
        """Returns the frame numbers.

        Raises:
          ValueError: the video has fewer frames.
        """
        if self.frames[-1] >= total:
            raise ValueError(f"frame {self.frames[-1]} was asked for, but the video has {total} frames")
        return np.array(self.frames, np.int64)


@dataclass(frozen=True)
class Within:
    """Takes frames of a part of a video, as another rule takes them from a video that has this part alone.

    Where the file gives times, the part has the frames that begin in it; where it gives none, its frame rate decides. A
    part that is shorter than a frame has the frame on display when it begins.

    Attributes:
      start: seconds from the video's first frame.
      end: seconds, later than `start`; None for the video's end.
      rule: of the part. A number of frames, or None, is for the processor, whose preset has a rule for it.
    """

    start: float = 0.0
    end: float | None = None
    rule: FrameSampling | int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.start < float("inf") or (self.end is not None and not self.start < self.end < float("inf")):
            raise ValueError(f"part of a video: expected 0 <= start < end in seconds, got {self.start} to {self.end}")

    @property
    def num_frames(self) -> int | None:
        """The number of frames, where the rule has one."""
        count = len(self.rule.frames) if isinstance(self.rule, Indices) else getattr(self.rule, "num_frames", None)
        return count if isinstance(count, int) else None

    def indices(self, total: int, fps: float | None) -> npt.NDArray[np.int64]:
        """Returns the chosen frame numbers (see `FrameSampling.indices`).

        Raises:
          ValueError: the file gives no frame rate, or the part begins after the video's end.
        """
        if fps is None:
            raise ValueError("a part of a video needs its frame rate, which this file does not give")
        return self._of_part(np.arange(total) / fps, fps, 0.0)

    def indices_at(self, times: npt.NDArray[np.float64], tick: float) -> npt.NDArray[np.int64]:
        """Returns the chosen frame numbers (see `TimedSampling.indices_at`).

        Raises:
          ValueError: the part begins after the video's end.
        """
        fps = (len(times) - 1) / float(times[-1]) if len(times) > 1 and times[-1] else None
        return self._of_part(times, fps, tick, timed=True)

    def _of_part(
        self, times: npt.NDArray[np.float64], fps: float | None, tick: float, *, timed: bool = False
    ) -> npt.NDArray[np.int64]:
        rule = self.rule
        if rule is None or isinstance(rule, int):
            raise ValueError(f"{self}: expected a rule for the part, such as Uniform(8)")
        last = float(times[-1]) + (1 / fps if fps else 0.0)
        if self.start > last:
            raise ValueError(f"the part begins at {self.start:g} s, and the video ends at {last:.3f} s")
        near = tick / 2 + 1e-9  # files round times to ticks
        end = float("inf") if self.end is None else self.end
        first = int(np.searchsorted(times, self.start - near))
        count = int(np.searchsorted(times, end + near, side="right")) - first
        if count < 1:
            first, count = max(0, first - 1), 1
        part = times[first : first + count]
        if timed and isinstance(rule, TimedSampling):
            return first + rule.indices_at(part - part[0], tick)
        return first + rule.indices(count, fps)


def _require_positive(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name}: expected at least 1, got {value}")
