"""Tallies of outcomes, and how they are printed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Tally:
    """A row of the table: what was tried, and how often each outcome came.

    Attributes:
      name: of the row.
      outcomes: how often each came.
      violations: what each violation was.
      note: what a reader has to know.
    """

    name: str
    outcomes: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    note: str = ""

    def add(self, outcome: str, detail: str = "") -> None:
        """Counts an outcome; "violation" is one that must not happen."""
        self.outcomes[outcome] += 1
        if outcome == "violation":
            self.violations.append(detail)


def table(tallies: list[Tally]) -> str:
    """Returns the rows, one a line, and a line of sums."""
    lines = [f"{'':<44} {'tried':>7} {'violations':>10}  outcomes"]
    for tally in tallies:
        outcomes = ", ".join(f"{count} {name}" for name, count in tally.outcomes.most_common() if name != "violation")
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
