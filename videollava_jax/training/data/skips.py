"""Samples that are left out: named, counted, and never too many. No JAX in here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class BadSample:
    """A sample that is left out, and why; `index` and `id` as in `samples.Sample`."""

    index: int
    id: str
    reason: str

    def __str__(self) -> str:
        return f"sample {self.index}{f' ({self.id})' if self.id else ''}: {self.reason}"


class SampleError(ValueError):
    """Nothing can be learnt from this sample; the message is the reason of a `BadSample`."""


class TooManyBadSamples(ValueError):
    """So many samples had to be left out that something other than the samples must be wrong."""


class SkipCounter:
    """Counts and names the samples that are left out, and stops a run in which they are too many.

    Attributes:
        seen: samples so far, bad ones included.
        skipped: how many of them were left out.
        bad: those that were named to this counter, in order.
    """

    def __init__(self, *, max_rate: float = 0.01, least: int = 1000, seen: int = 0, skipped: int = 0):
        """
        Args:
            max_rate: how many of the samples seen may be left out, from 0 to 1.
            least: samples to see before the rate means anything.
            seen, skipped: where an earlier run stopped.
        """
        if not 0 <= max_rate <= 1:
            raise ValueError(f"max_rate: expected a share from 0 to 1, got {max_rate}")
        self._max_rate, self._least = max_rate, least
        self.seen, self.skipped = seen, skipped
        self.bad: list[BadSample] = []

    def add(self, seen: int, bad: Iterable[BadSample] = (), *, elsewhere: int = 0) -> None:
        """Counts samples that were met, and those of them that were left out.

        Args:
            seen: in all processes together.
            bad: left out in this one.
            elsewhere: how many were left out in others, which name them.

        Raises:
            TooManyBadSamples: more than the rate, of at least `least` samples.
        """
        before = len(self.bad)
        self.bad += bad
        self.seen += seen
        self.skipped += len(self.bad) - before + elsewhere
        if self.seen >= self._least:
            self.check()

    def check(self) -> None:
        """The same check, however few samples were seen: for the end of the data.

        Raises:
            TooManyBadSamples: more than the rate.
        """
        if self.skipped > self._max_rate * self.seen:
            told = "".join(f"\n  {bad}" for bad in self.bad[:5])
            more = f"\n  and {len(self.bad) - 5} more" if len(self.bad) > 5 else ""
            raise TooManyBadSamples(
                f"{self.skipped} of {self.seen} samples had to be left out, over the rate of {self._max_rate:.2%} that "
                f"is allowed; mend the data, or allow more{':' if told else ''}{told}{more}"
            )
