"""Runs the two sides of a measurement in separate processes with deadlines, and prints their results as a table.

program ──▶ a process with JAX, then one with torch, as each would take all the memory of a device
                each runs its sections in order and appends every result to a file
        ◀── the results in the files, even if a side failed or ran out of memory or time
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
"""The ways of using transformers, in the order of the table's columns."""
GRACE = 5.0
"""Seconds for a side to end by itself after its time is up."""
KEPT = 5.0
"""Seconds reserved for the table."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The rates of one way of doing some work.

    Attributes:
      work: the name of the work, with the unit: `"prefill, tokens/s"`. Equal names of both sides share a row.
      way: `OURS`, `THEIRS`, or the way of using transformers: `ONE`, `MANY`, `STATIC`.
      rates: one for each round.
      limit: the rate that the device cannot exceed; None if unknown.
      note: a short remark for the table.
    """

    work: str
    way: str
    rates: tuple[float, ...]
    limit: float | None = None
    note: str = ""

    @property
    def median(self) -> float:
        """The median of the rates."""
        return statistics.median(self.rates)


@dataclass
class Report:
    """The results of a side.

    Attributes:
      facts: about its device and its versions.
      measured: in the order of measuring.
      missing: a sentence for each section, or for the whole side, that ended without all its results.
    """

    facts: dict[str, Any] = field(default_factory=dict)
    measured: list[Measured] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


# ── in the process of a side ────────────────────────────────────────────────────────────────────────────────

Section = Callable[[], Iterator[Measured]]
Begin = Callable[[], tuple[dict[str, Any], Mapping[str, Section]]]
"""Returns facts about the device, and the sections by name; raises `CannotRun` if it cannot run here."""


class CannotRun(Exception):
    """A side cannot run on this machine; the message says why."""


class Results:
    """The file to which a side appends its results, as lines of JSON, so that they survive the process."""

    def __init__(self, path: Path):
        self._path = path

    def append(self, kind: str, value: Any) -> None:
        """Appends a line."""
        with open(self._path, "a") as file:
            file.write(json.dumps({kind: value}) + "\n")

    def run(self, begin: Begin, wanted: Sequence[str]) -> None:
        """Runs the wanted sections one after the other. If one fails, the others still run."""
        try:
            facts, sections = begin()
        except CannotRun as error:
            self.append("missing", str(error))
            return
        self.append("facts", facts)
        for name in wanted:
            if name not in sections:
                continue
            self.append("began", name)
            try:
                for measured in sections[name]():
                    self.append("measured", dataclasses.asdict(measured))
                    print(f"  {measured.work}: {measured.way} {spread(measured.rates)}", file=sys.stderr, flush=True)
            except Exception as error:  # such as out of memory; other sections may need less
                self.append("missing", f"{name}: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}")
            self.append("ended", name)
            gc.collect()  # frees its memory on the device for the next section


# ── in the program ──────────────────────────────────────────────────────────────────────────────────────────


def parser_of(description: str | None, sections: Sequence[str]) -> argparse.ArgumentParser:
    """Returns a parser of the arguments that all such programs have; `--side` and `--results` are internal."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", nargs="+", choices=sections, default=list(sections), help="only these")
    parser.add_argument("--rounds", type=int, default=3, help="after one that is not counted; %(default)s")
    parser.add_argument("--minutes", type=float, default=8.8, help="time limit for everything; %(default)s")
    parser.add_argument("--out", type=Path, help="a JSON file for all results")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to try the program, even on a CPU")
    parser.add_argument("--chip", choices=CHIPS, help="the chip whose rates give the limits; default: the device's own")
    parser.add_argument("--side", choices=(OURS, THEIRS), help=argparse.SUPPRESS)
    parser.add_argument("--results", type=Path, help=argparse.SUPPRESS)
    return parser


def compare(program: str, arguments: argparse.Namespace, sides: Mapping[str, Begin], *, share: float) -> int:
    """Runs a program: starts both sides and publishes their results, or, with `--side`, is one of the sides.

    Args:
      program, share: as in `run_both`.
      arguments: parsed.
      sides: a function for each side that begins it. Each imports its library itself, so that JAX does not take the
        memory that torch needs.

    Returns:
      The exit status.
    """
    if arguments.side is None:
        return publish(run_both(program, arguments, share=share), arguments.out)
    Results(arguments.results).run(sides[arguments.side], arguments.sections)
    return 0


def run_both(program: str, arguments: argparse.Namespace, *, share: float) -> dict[str, Report]:
    """Runs both sides, one after the other.

    Args:
      program: the program's file, which is run for each side, with its own arguments, `--side` and `--results`.
      arguments: parsed.
      share: the share of the time that our side may take; the rest, and what it leaves, is for the other.
    """
    # At SIGTERM, exit through the `finally` that ends the running side, which would otherwise go on.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    end = time.monotonic() + 60 * arguments.minutes - KEPT
    # Our side may take nearly all memory. The other side imports JAX too, for the engine's requests, and must not let
    # it use the device.
    environments = {OURS: {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92"}, THEIRS: {"JAX_PLATFORMS": "cpu"}}
    found = {}
    for side, part in ((OURS, share), (THEIRS, 1.0)):
        seconds = part * (end - time.monotonic())
        print(f"{side}: at most {seconds:.0f} s", file=sys.stderr, flush=True)
        command = [sys.executable, program, *sys.argv[1:], "--side", side]
        found[side] = run_side(command, seconds, os.environ | environments[side])
    return found


def run_side(command: list[str], seconds: float, environment: Mapping[str, str]) -> Report:
    """Runs one side in a separate process, ends it when its time is up, and returns its results until then."""
    with tempfile.TemporaryDirectory() as directory:
        results = Path(directory) / "results.jsonl"
        # In a new session, so that processes started by torch's compiler can be ended with it.
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
    """Reads the results that a side has written.

    Args:
      results: the file.
      ended: how its process ended, if it failed or was ended; else "".
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
        report.missing.append(f"{ended}{where}; nothing after it was measured")
    return report


# ── tables ──────────────────────────────────────────────────────────────────────────────────────────────────


def rate(run: Callable[[], object], amount: float) -> float:
    """Runs a function and returns `amount` per second."""
    started = time.perf_counter()
    run()
    return amount / (time.perf_counter() - started)


def spread(rates: Sequence[float]) -> str:
    """Formats the median and the range of rates."""
    return f"{statistics.median(rates):.2f} ({min(rates):.2f}-{max(rates):.2f})"


def table(reports: Mapping[str, Report]) -> str:
    """Returns a table in Markdown: a row for each work, with our rate, the limit, and each way of transformers."""
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
    """Prints facts, the table and what is missing, and writes them as JSON. Returns 1 if our side measured nothing."""
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
