"""What a run has done, and whether the rest of it is worth its time. No JAX in here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

LEAST_FAILED = 20
"""Media of lines that have failed, before their errors are a rate; a line without media counts as one."""


@dataclass
class Summary:
    """What a run has done.

    Attributes:
      lines: of the input.
      before: done by earlier runs.
      answered: by this one.
      errors: of this one, by cause.
      videos: media that this run's answers are about, each counted once.
      seconds: of this run, without loading the model.
    """

    lines: int
    before: int = 0
    answered: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    videos: int = 0
    seconds: float = 0.0

    @property
    def done(self) -> int:
        """Lines that have a record."""
        return self.before + self.answered + self.errors.total()

    def record(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {**vars(self), "errors": dict(self.errors), "done": self.done}

    def __str__(self) -> str:
        if self.before == self.lines:
            return f"nothing to do: all {self.lines} lines are done"
        rate = f"{self.answered / self.seconds:.2f} answers/s, {self.videos / self.seconds:.2f} media/s"
        told = f"{self.done} of {self.lines} lines done, {self.before} of them before: {self.answered} answers"
        causes = ", ".join(f"{count} {cause}" for cause, count in self.errors.most_common())
        return f"{told}, {self.errors.total()} errors{f' ({causes})' if causes else ''}, {self.seconds:.1f} s, {rate}"


class TooManyErrors(ValueError):
    """So many lines have failed that the rest is not worth its time."""


@dataclass
class Step:
    """What a step of the job (finding media, answering) has done, for the rate of its errors.

    Attributes:
      lines: that had come to it when the last of those came that went through it; of errors, which are told sooner than
        answers are ready, the rate is that among all that were looked at.
      causes: of its errors.
      failed: what the first lines that have failed are about: many questions about one bad file are one misfortune.
    """

    lines: int = 0
    causes: Counter[str] = field(default_factory=Counter)
    failed: set[Hashable] = field(default_factory=set)

    def add(self, number: int, about: Hashable, cause: str | None) -> None:
        """Counts a line that went through, the `number`-th that came; without a cause it has not failed."""
        self.lines = max(self.lines, number)
        if cause is not None:
            self.causes[cause] += 1
            if len(self.failed) < LEAST_FAILED:
                self.failed.add(about)

    def require_hope(self, most: float, last: str | None) -> None:
        """Raises TooManyErrors when more than this share of the lines have failed, and with enough media.

        Args:
          last: what was wrong with the last line.
        """
        failed = self.causes.total()
        if len(self.failed) < LEAST_FAILED or failed <= most * self.lines:
            return
        causes = ", ".join(f"{count} {name}" for name, count in self.causes.most_common())
        raise TooManyErrors(
            f"{failed} of {self.lines} lines have failed ({causes}), more than --max-error-rate {most:g}; the last: "
            f"{last}. What is done is kept: mend the cause and run the same command with --retry-errors"
        )
