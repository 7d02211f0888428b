"""What the parts of `make faults` found, as one table in Markdown."""

from __future__ import annotations

import datetime
import os
import platform
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults.tables import BAD, Tally

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
COLUMNS = {"crash": "crashes", "hang": "hangs", "lost": "lost", "doubled": "doubled", "silent": "silent"}
"""The bad outcomes that have a column each; the last column, other, has the rest."""
HEAD = ("part", "what was tried", "inputs", *COLUMNS.values(), "other", "worst", "peak", "what came of it")
LONGEST = 8
"""Outcomes that are listed; the rest is summed."""


@dataclass(frozen=True)
class Finding:
    """What a part found.

    Attributes:
      name, tries: as its `Part` has them.
      seed: of everything that it drew.
      tallies: its rows.
      seconds: that it took.
      memory: bytes, the most that one of its processes held, as the kernel counted them.
    """

    name: str
    tries: str
    seed: int
    tallies: list[Tally]
    seconds: float
    memory: int

    @property
    def inputs(self) -> int:
        return sum(tally.outcomes.total() for tally in self.tallies)

    @property
    def violations(self) -> list[str]:
        return [f"{self.name}: {tally.name}: {text}" for tally in self.tallies for text in tally.violations]

    def cells(self) -> list[str]:
        """Returns its cells of the table."""
        outcomes: Counter[str] = Counter()
        for tally in self.tallies:
            outcomes.update(tally.outcomes)
        bad = [outcomes[kind] for kind in COLUMNS]
        slowest = [tally.seconds for tally in self.tallies if tally.seconds is not None]
        largest = max((tally.memory or 0 for tally in self.tallies), default=0) or self.memory
        good = [(name, count) for name, count in outcomes.most_common() if name not in BAD]
        listed = [f"{count:,} {name}" for name, count in good[:LONGEST]]
        if good[LONGEST:]:
            listed.append(f"{sum(count for _, count in good[LONGEST:]):,} others")
        notes = {tally.note: None for tally in self.tallies if tally.note}
        if len(notes) > 2:  # they are about the rows, which `--rows` prints
            notes = {}
        return [
            self.name, self.tries, f"{self.inputs:,}", *map(str, bad), str(outcomes["violation"]),
            f"{max(slowest):.1f} s" if slowest else "", f"{largest / 2**20:,.0f} MiB",
            ", ".join(listed) + "".join(f"; {note}" for note in notes),
        ]  # fmt: skip


def markdown(findings: list[Finding]) -> str:
    """Returns the table: a row for each part, and one of sums."""
    rows = [finding.cells() for finding in findings]
    sums = [f"{sum(int(row[2].replace(',', '')) for row in rows):,}"]
    sums += [str(sum(int(row[column]) for row in rows)) for column in range(3, 4 + len(COLUMNS))]
    rows.append(["in all", "", *sums, "", "", ""])
    rule = ["---", "---", *["---:"] * (len(HEAD) - 3), "---"]
    return _table([HEAD, rule, *rows])


def by_row(tallies: list[Tally], what: str) -> str:
    """Returns the rows of one part as a table: `what` heads the names."""
    good = Counter[str]()
    for tally in tallies:
        good.update({name: count for name, count in tally.outcomes.items() if name not in BAD})
    names = [name for name, _ in good.most_common()]
    rows = [
        [
            tally.name, f"{tally.outcomes.total():,}", *(f"{tally.outcomes[name]:,}" for name in names),
            *(str(tally.outcomes[kind]) for kind in BAD), f"{tally.seconds or 0:.2f} s",
            f"{(tally.memory or 0) / 2**20:,.0f} MiB",
        ]
        for tally in tallies
    ]  # fmt: skip
    sums = [f"{sum(int(row[at].replace(',', '')) for row in rows):,}" for at in range(1, 2 + len(names) + len(BAD))]
    seconds, memory = max(tally.seconds or 0 for tally in tallies), max(tally.memory or 0 for tally in tallies)
    rows.append(["in all", *sums, f"{seconds:.2f} s", f"{memory / 2**20:,.0f} MiB"])
    head = [what, "inputs", *names, *COLUMNS.values(), "other", "worst", "peak"]
    return _table([head, ["---", *["---:"] * (len(head) - 1)], *rows])


def _table(rows: Iterable[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in row) + " |" for row in rows)


def dated() -> str:
    """Returns today's date and this machine: system, processor, cores, memory, Python."""
    pages, page = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGESIZE")
    cpus = Path("/proc/cpuinfo")
    lines = cpus.read_text().splitlines() if cpus.exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    system = f"{platform.system()} {platform.release().split('-')[0]}"
    memory = f"{pages * page / 2**30:.0f} GiB"
    cores = f"{os.cpu_count()} cores ({model})"
    return f"{datetime.date.today().isoformat()}; {system}, {cores}, {memory}, Python {platform.python_version()}"


def into_page(page: Path, section: str, text: str) -> None:
    """Replaces what stands between two marks of a page, `<!-- NAME -->` and `<!-- end of NAME -->`.

    Raises:
      ValueError: the page has no such marks.
    """
    begins, ends = f"<!-- {section} -->\n", f"<!-- end of {section} -->"
    before, found, rest = page.read_text(encoding="utf-8").partition(begins)
    _, ended, after = rest.partition(ends)
    if not (found and ended):
        raise ValueError(f"{page}: expected the marks {begins.strip()} and {ends}")
    page.write_text(before + begins + text.strip() + "\n" + ends + after, encoding="utf-8")


def to_json(tallies: list[Tally]) -> list[dict[str, Any]]:
    """Returns tallies as JSON has them."""
    return [vars(tally) | {"outcomes": dict(tally.outcomes)} for tally in tallies]


def from_json(raw: list[dict[str, Any]]) -> list[Tally]:
    """Returns tallies from JSON."""
    return [Tally(**tally | {"outcomes": Counter(tally["outcomes"])}) for tally in raw]
