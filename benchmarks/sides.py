"""Two sides of one measurement, each in a process of its own: its deadline, its results as they come, their table.

program ──▶ a process with JAX, then one with torch: both would take all the memory of a device
                each runs its sections in order and appends every result to a file
        ◀── what is in the files, also of a side that failed, ran out of memory or of time
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from videollava_jax.costs.chips import CHIPS

OURS, THEIRS = "ours", "transformers"
ONE, MANY, STATIC = "transformers, batch 1", "batched", "static cache"
"""How transformers is used, in the order of a table's columns."""
GRACE = 5.0
"""Seconds that a side has, after its time is up, to end by itself."""
KEPT = 5.0
"""Seconds that are left for the table."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The rates that one way of doing some work reached.

    Attributes:
      work: what was done, with the unit: `"prefill, tokens/s"`. What two sides did of the same name stands in one row.
      way: who did it: `OURS`, `THEIRS`, or how that was used: `ONE`, `MANY`, `STATIC`.
      rates: one a round.
      limit: the rate that the device cannot exceed; None where nobody knows it.
      note: what else is to be known of it, in a few words.
    """

    work: str
    way: str
    rates: tuple[float, ...]
    limit: float | None = None
    note: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.rates)


@dataclass
class Report:
    """What a side has told.

    Attributes:
      facts: of its device and its versions.
      measured: in the order in which it was.
      missing: why sections, or the whole side, gave nothing more, a sentence each.
    """

    facts: dict[str, Any] = field(default_factory=dict)
    measured: list[Measured] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


# ── in the process of a side ────────────────────────────────────────────────────────────────────────────────

Section = Callable[[], Iterator[Measured]]
Begin = Callable[[], tuple[dict[str, Any], Mapping[str, Section]]]
"""Facts about the device, and the sections by name; raises `CannotRun` where there are none."""


class CannotRun(Exception):
    """A side cannot run on this machine at all, and why."""


class Results:
    """The file that a side appends to, a JSON object a line; what is in it stays when the process is ended."""

    def __init__(self, path: Path):
        self._path = path

    def tell(self, kind: str, value: Any) -> None:
        with open(self._path, "a") as file:
            file.write(json.dumps({kind: value}) + "\n")

    def run(self, begin: Begin, wanted: Sequence[str]) -> None:
        """Runs the sections of these names one after the other, those that fail beside the others."""
        try:
            facts, sections = begin()
        except CannotRun as error:
            self.tell("missing", str(error))
            return
        self.tell("facts", facts)
        for name in wanted:
            if name not in sections:
                continue
            self.tell("began", name)
            try:
                for measured in sections[name]():
                    self.tell("measured", dataclasses.asdict(measured))
                    print(f"  {measured.work}: {measured.way} {spread(measured.rates)}", file=sys.stderr, flush=True)
            except Exception as error:  # out of memory, say: the other sections may still have room
                self.tell("missing", f"{name}: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}")
            self.tell("ended", name)
            gc.collect()  # what it had on the device is for the next


# ── in the program ──────────────────────────────────────────────────────────────────────────────────────────


def parser_of(description: str | None, sections: Sequence[str]) -> argparse.ArgumentParser:
    """The arguments that both programs have; `--side` and `--results` are for their own processes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", nargs="+", choices=sections, default=list(sections), help="only these")
    parser.add_argument("--rounds", type=int, default=3, help="that count, after one that does not; %(default)s")
    parser.add_argument("--minutes", type=float, default=8.8, help="for all of it; %(default)s")
    parser.add_argument("--out", type=Path, help="a JSON file for all results")
    parser.add_argument("--small", action="store_true", help="everything tiny, to try the program, also on a CPU")
    parser.add_argument("--chip", choices=CHIPS, help="by whose figures limits are reckoned; default: the device's")
    parser.add_argument("--side", choices=(OURS, THEIRS), help=argparse.SUPPRESS)
    parser.add_argument("--results", type=Path, help=argparse.SUPPRESS)
    return parser


def compare(program: str, arguments: argparse.Namespace, sides: Mapping[str, Begin], *, share: float) -> int:
    """What a program does with its arguments: it has both sides run and publishes what they found, or is one of them.

    Args:
      program, share: as in `run_both`.
      sides: how each begins. What it needs it imports there: JAX would take the memory that torch needs.

    Returns:
      The exit status.
    """
    if arguments.side is None:
        return publish(run_both(program, arguments, share=share), arguments.out)
    Results(arguments.results).run(sides[arguments.side], arguments.sections)
    return 0


def run_both(program: str, arguments: argparse.Namespace, *, share: float) -> dict[str, Report]:
    """Both sides, one after the other.

    Args:
      program: its file, which is run again for each side, with its own arguments, `--side` and `--results`.
      arguments: these, parsed.
      share: of the time that ours may take; what it leaves is for the other.
    """
    # Told to end, the program ends the side that runs, which would go on by itself.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    end = time.monotonic() + 60 * arguments.minutes - KEPT
    # Ours may have nearly all of the memory. The other side imports JAX with the engine's requests, and it is to keep
    # off the device.
    environments = {OURS: {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92"}, THEIRS: {"JAX_PLATFORMS": "cpu"}}
    found = {}
    for side, part in ((OURS, share), (THEIRS, 1.0)):
        seconds = part * (end - time.monotonic())
        print(f"{side}: at most {seconds:.0f} s", file=sys.stderr, flush=True)
        command = [sys.executable, program, *sys.argv[1:], "--side", side]
        found[side] = run_side(command, seconds, os.environ | environments[side])
    return found


def run_side(command: list[str], seconds: float, environment: Mapping[str, str]) -> Report:
    """One side in a process of its own, ended when its time is up; what it has told until then."""
    with tempfile.TemporaryDirectory() as directory:
        results = Path(directory) / "results.jsonl"
        # A session of its own: torch's compiler starts processes that would outlive it.
        process = subprocess.Popen([*command, "--results", str(results)], env=environment, start_new_session=True)
        ended = ""
        try:
            if status := process.wait(timeout=max(1.0, seconds)):
                ended = f"its process ended with status {status}"
        except subprocess.TimeoutExpired:
            ended = f"its {seconds:.0f} seconds were over"
        finally:
            _end_group(process)
        return read_report(results, ended)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
            process.wait(timeout=GRACE)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def read_report(results: Path, ended: str) -> Report:
    """What a side has written.

    Args:
      ended: how its process ended, where that was not by itself and well.
    """
    report, began, done = Report(), [], set()
    for line in results.read_text().splitlines() if results.exists() else ():
        ((kind, value),) = json.loads(line).items()
        if kind == "facts":
            report.facts = value
        elif kind == "measured":
            report.measured.append(Measured(**value | {"rates": tuple(value["rates"])}))
        elif kind == "missing":
            report.missing.append(value)
        elif kind == "began":
            began.append(value)
        else:
            done.add(value)
    if ended:
        unfinished = [name for name in began if name not in done]
        where = f" in the section {unfinished[0]}" if unfinished else "" if began else " before its first section"
        report.missing.append(f"{ended}{where}; what would have come after it was not measured")
    return report


# ── tables ──────────────────────────────────────────────────────────────────────────────────────────────────


def rate(run: Callable[[], object], amount: float) -> float:
    """So much a second."""
    started = time.perf_counter()
    run()
    return amount / (time.perf_counter() - started)


def spread(rates: Sequence[float]) -> str:
    """Median and range."""
    return f"{statistics.median(rates):.2f} ({min(rates):.2f}-{max(rates):.2f})"


def table(reports: Mapping[str, Report]) -> str:
    """Markdown: a row for each work, ours beside the limit and beside every way of transformers'."""
    rows: dict[str, dict[str, Measured]] = {}
    for report in reports.values():
        for measured in report.measured:
            rows.setdefault(measured.work, {})[measured.way] = measured
    used = {measured.way for measured in reports[THEIRS].measured}
    ways = [way for way in (THEIRS, ONE, MANY, STATIC) if way in used]
    lines = [["", OURS, "limit", "of the limit", *ways, "ours to its best"]]
    for work, by_way in rows.items():
        ours, others = by_way.get(OURS), [by_way[way].median for way in ways if way in by_way]
        limit = None if ours is None else ours.limit
        lines.append(
            [
                work,
                _cell(ours),
                "" if limit is None else f"{limit:,.{_decimals(limit)}f}",
                "" if limit is None or ours is None else f"{ours.median / limit:.0%}",
                *(_cell(by_way.get(way)) for way in ways),
                f"{ours.median / max(others):.1f}" if ours and others else "",
            ]
        )
    head, *body = [f"| {' | '.join(cells)} |" for cells in lines]
    return "\n".join([head, "|---" * len(lines[0]) + "|", *body])


def _cell(measured: Measured | None) -> str:
    if measured is None:
        return ""
    decimals = _decimals(measured.median)
    low, middle, high = (f"{x:,.{decimals}f}" for x in (min(measured.rates), measured.median, max(measured.rates)))
    return f"{middle} ({low}-{high})" + (f"; {measured.note}" if measured.note else "")


def _decimals(number: float) -> int:
    return 0 if number >= 1000 else 1 if number >= 100 else 2


def publish(reports: Mapping[str, Report], out: Path | None) -> int:
    """Prints facts, the table and what is missing, and writes all of it as JSON; 1 where ours measured nothing."""
    for side, report in reports.items():
        print(f"{side}: {', '.join(f'{name} {value}' for name, value in report.facts.items()) or 'not run'}")
    print(f"\n{table(reports)}\n")
    for side, report in reports.items():
        for sentence in report.missing:
            print(f"- {side}: {sentence}")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps({side: dataclasses.asdict(report) for side, report in reports.items()}, indent=2))
    return 0 if reports[OURS].measured else 1
