"""Counts what a run has done, and ends a run in which too many lines fail. No JAX."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

LEAST_FAILED = 20
"""How many different media must have failed before the error rate counts; a line without media is one."""


@dataclass
class Summary:
    """The counts of a run.

    Attributes:
      lines: lines of the input.
      before: lines done by earlier runs.
      answered: answers of this run.
      errors: errors of this run, by cause.
      videos: media that this run's lines are about, each counted once.
      seconds: duration of this run, without loading the model.
    """

    lines: int
    before: int = 0
    answered: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    videos: int = 0
    seconds: float = 0.0

    @property
    def done(self) -> int:
        """How many lines have a record."""
        return self.before + self.answered + self.errors.total()

    def record(self) -> dict[str, Any]:
        """Returns all counts as a dictionary for JSON."""
        return {**vars(self), "errors": dict(self.errors), "done": self.done}

    def __str__(self) -> str:
        if self.before == self.lines:
            return f"nothing to do: all {self.lines} lines are done"
        rate = f"{self.answered / self.seconds:.2f} answers/s, {self.videos / self.seconds:.2f} media/s"
        counts = f"{self.done} of {self.lines} lines done, {self.before} of them before: {self.answered} answers"
        causes = ", ".join(f"{count} {cause}" for cause, count in self.errors.most_common())
        return f"{counts}, {self.errors.total()} errors{f' ({causes})' if causes else ''}, {self.seconds:.1f} s, {rate}"


class TooManyErrors(ValueError):
    """More lines have failed than `max_error_rate` allows, so the run has ended early."""


@dataclass
class ErrorRate:
    """The rate of errors in one step of a job: finding media, or answering.

    Attributes:
      lines: lines that had entered the step when the latest finished line entered it. Errors are known before answers
        are ready, so a rate among finished lines alone would be too high.
      causes: how often each cause of error occurred.
      failed: the media of the first failed lines. Many questions about one bad file count once.
    """

    lines: int = 0
    causes: Counter[str] = field(default_factory=Counter)
    failed: set[Hashable] = field(default_factory=set)

    def add(self, number: int, about: Hashable, cause: str | None) -> None:
        """Counts a finished line, the `number`-th to enter the step.

        Args:
          number: from 1.
          about: its media, as `PendingLine.about`.
          cause: of its error; None if it did not fail.
        """
        self.lines = max(self.lines, number)
        if cause is not None:
            self.causes[cause] += 1
            if len(self.failed) < LEAST_FAILED:
                self.failed.add(about)

    def check(self, most: float, last: str | None) -> None:
        """Raises TooManyErrors if too many lines have failed, about at least `LEAST_FAILED` different media.

        Args:
          most: the largest share of lines that may fail.
          last: the error of the last line, for the message.
        """
        failed = self.causes.total()
        if len(self.failed) < LEAST_FAILED or failed <= most * self.lines:
            return
        causes = ", ".join(f"{count} {name}" for name, count in self.causes.most_common())
        raise TooManyErrors(
            f"{failed} of {self.lines} lines have failed ({causes}), more than --max-error-rate {most:g}; the last: "
            f"{last}. What is done is kept: mend the cause and run the same command with --retry-errors"
        )
