"""Tallies of outcomes, and how they are printed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

BAD = ("crash", "hang", "lost", "doubled", "silent", "violation")
"""Outcomes that must not be.

A crash: a process that dies, or an exception that is none of ours. A hang: it takes longer than it may. Lost: something
was promised or saved, and is gone. Doubled: done or recorded twice. Silent: wrong, and no error says so. A violation:
whatever else must not be, such as an error of two lines or a process that is left behind.
"""


@dataclass
class Tally:
    """A row of outcomes: what was tried, and how often each came.

    Attributes:
      name: of the row.
      outcomes: how often each came; those of `BAD` must not be.
      violations: what each bad outcome was.
      note: what a reader has to know.
      seconds: that the slowest took; None if nobody measured it.
      memory: bytes that the largest took; None if nobody measured it.
    """

    name: str
    outcomes: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    note: str = ""
    seconds: float | None = None
    memory: int | None = None

    def add(self, outcome: str, detail: str = "", seconds: float | None = None, memory: int | None = None) -> None:
        """Counts an outcome, with what it took: wall seconds, bytes.

        Args:
          outcome: one of `BAD`, or any other word: that is a good one.
          detail: what a bad outcome was, and how to make it again.
        """
        self.outcomes[outcome] += 1
        if outcome in BAD:
            self.violations.append(detail if outcome == "violation" else f"{outcome}: {detail}")
        if seconds is not None:
            self.seconds = max(self.seconds or 0.0, seconds)
        if memory is not None:
            self.memory = max(self.memory or 0, memory)
        if listener is not None:
            listener()

    def of(self, bad: str) -> int:
        """Returns how often one of `BAD` came."""
        return self.outcomes[bad]


listener: Callable[[], None] | None = None
"""Called for every outcome: by it a program shows its progress."""


def table(tallies: list[Tally]) -> str:
    """Returns the rows, one a line, and a line of sums."""
    lines = [f"{'':<44} {'tried':>7} {'violations':>10}  outcomes"]
    for tally in tallies:
        outcomes = ", ".join(f"{count} {name}" for name, count in tally.outcomes.most_common() if name not in BAD)
        note = f"  ({tally.note})" if tally.note else ""
        lines.append(f"{tally.name:<44} {tally.outcomes.total():>7} {len(tally.violations):>10}  {outcomes}{note}")
    tried = sum(tally.outcomes.total() for tally in tallies)
    lines.append(f"{'in all':<44} {tried:>7} {sum(len(tally.violations) for tally in tallies):>10}")
    return "\n".join(lines)


def said(tallies: list[Tally]) -> int:
    """Prints each violation; returns the exit status of a program, 1 if there was any."""
    violations = [f"{tally.name}: {violation}" for tally in tallies for violation in tally.violations]
    for violation in violations:
        print(f"\n{violation}")
    return 1 if violations else 0
