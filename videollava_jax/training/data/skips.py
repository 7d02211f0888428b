"""Samples that are left out: they are named and counted, and too many of them end the run. No JAX in here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class BadSample:
    """A sample that is left out, and the reason; `index` and `id` as in `samples.Sample`."""

    index: int
    id: str
    reason: str

    def __str__(self) -> str:
        return f"sample {self.index}{f' ({self.id})' if self.id else ''}: {self.reason}"


class SampleError(ValueError):
    """A sample that cannot be learnt from; the message becomes the reason of a `BadSample`."""


class TooManyBadSamples(ValueError):
    """More samples were left out than the run allows: probably something other than single samples is wrong."""


class SkipCounter:
    """Counts the samples that are left out, keeps their names, and ends a run in which they are too many.

    Attributes:
        seen: samples so far, bad ones included.
        skipped: the number of them that were left out.
        bad: the samples that this process left out, in order.

    Args:
        max_rate: the share of the samples seen that may be left out, from 0 to 1.
        least: the number of samples to see before the rate is checked.
        seen, skipped: the counts of an earlier start of the run.
    """

    def __init__(self, *, max_rate: float = 0.01, least: int = 1000, seen: int = 0, skipped: int = 0):
        if not 0 <= max_rate <= 1:
            raise ValueError(f"max_rate: expected a share from 0 to 1, got {max_rate}")
        self._max_rate, self._least = max_rate, least
        self.seen, self.skipped = seen, skipped
        self.bad: list[BadSample] = []

    def add(self, seen: int, bad: Iterable[BadSample] = (), *, elsewhere: int = 0) -> None:
        """Counts samples that were read, and those of them that were left out.

        Args:
            seen: the number of samples read, in all processes together.
            bad: the samples left out in this process.
            elsewhere: the number left out in other processes, which print their names.

        Raises:
            TooManyBadSamples: more than `max_rate` of at least `least` samples were left out.
        """
        before = len(self.bad)
        self.bad += bad
        self.seen += seen
        self.skipped += len(self.bad) - before + elsewhere
        if self.seen >= self._least:
            self.check()

    def check(self) -> None:
        """Checks the rate, however few samples were seen: for the end of the data.

        Raises:
            TooManyBadSamples: more than `max_rate` of the samples were left out.
        """
        if self.skipped > self._max_rate * self.seen:
            told = "".join(f"\n  {bad}" for bad in self.bad[:5])
            more = f"\n  and {len(self.bad) - 5} more" if len(self.bad) > 5 else ""
            raise TooManyBadSamples(
                f"{self.skipped} of {self.seen} samples had to be left out, over the rate of {self._max_rate:.2%} that "
                f"is allowed; mend the data, or allow more{':' if told else ''}{told}{more}"
            )
