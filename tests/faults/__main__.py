"""Tests everything to destruction, part by part, and prints one table of what was tried and what came of it.

    make faults
    python -m tests.faults --only media --only server --seed 7 --scale 0.2

Each part (`tests/faults/parts.py`) runs in a process of its own, two at a time. The exit status is 1 if anything came
that must not: a crash, a hang, an answer lost or doubled, something silently wrong, or another violation. What it was
is printed with the seed and the number that make it again. With `--write` the table goes into docs/reliability.md.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.memory import cpu_seconds, family, most_memory
from tests.faults.parts import PARTS, Part
from tests.faults.report import PAGE, Finding, by_row, dated, from_json, into_page, markdown
from tests.faults.tables import Tally

ROOT = Path(__file__).parents[2]
EVERY = 10.0
"""Seconds between two lines of progress."""


@dataclass
class Running:
    """A part that is being run: its process, and what is known of it.

    Attributes:
      limit: seconds.
      place: for its files.
      memory: bytes, the most that one of its processes has held, looked at ten times a second.
      used: seconds of the processor that all of them have used.
    """

    part: Part
    seed: int
    scale: float
    limit: float
    place: Path
    memory: int = 0
    used: float = 0.0
    started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        command = [sys.executable, "-m", "tests.faults.one_part", str(self.place), self.part.module, self.part.function]
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        (temporary := self.place / "tmp").mkdir()
        self.log = open(self.place / "log", "wb")  # noqa: SIM115  as long as the process
        self.process = subprocess.Popen(
            [*command, str(self.seed), str(self.scale)],
            cwd=ROOT,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            env={
                "JAX_PLATFORMS": "cpu",
                "HF_HUB_OFFLINE": "1",
                **os.environ,
                "PYTHONPATH": path,
                "TMPDIR": str(temporary),
            },
            start_new_session=True,
        )

    @property
    def tried(self) -> int:
        file = self.place / "tried"
        with suppress(ValueError, FileNotFoundError):
            return int(file.read_text())
        return 0

    def ended(self) -> Finding | None:
        """Returns what it found, if it has ended or has to."""
        late = self.process.poll() is None and time.monotonic() - self.started > self.limit
        if self.process.poll() is None and not late:
            self.memory = max(self.memory, *map(most_memory, family(self.process.pid)))
            self.used = max(self.used, cpu_seconds(self.process.pid))
            return None
        self.kill()
        self.process.wait()
        self.log.close()
        file = self.place / "tallies.json"
        if file.exists() and not late:
            tallies = from_json(json.loads(file.read_text()))
        else:
            why = f"was still at work after {self.limit:.0f} s" if late else f"ended with {self.process.returncode}"
            tally = Tally("the part itself")
            said = (self.place / "log").read_text(errors="replace")[-3000:]
            tally.add("hang" if late else "crash", f"{why} and {self.tried} inputs: {said}")
            tallies = [tally]
        seconds = time.monotonic() - self.started
        return Finding(self.part.name, self.part.tries, self.seed, tallies, seconds, self.memory)

    def kill(self) -> None:
        """Kills its processes."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)


def run_all(
    parts: list[Part], seed: int, scale: float, at_once: int, say: Callable[[str], None] = print
) -> list[Finding]:
    """Runs parts in processes of their own, `at_once` at a time; returns what they found, in their order."""
    waiting, running = deque(parts), list[Running]()
    found: dict[str, Finding] = {}
    spoken = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)  # some parts act as another user
        try:
            while waiting or running:
                while waiting and len(running) < at_once:
                    part = waiting.popleft()
                    place = Path(directory) / part.name
                    place.mkdir()
                    limit = 60 * part.minutes * max(scale, 1)
                    running.append(Running(part, seed, scale, limit, place))
                    say(f"{part.name}: {part.tries}: begun")
                for one in list(running):
                    if (finding := one.ended()) is not None:
                        running.remove(one)
                        found[one.part.name] = finding
                        wrong = f", {len(finding.violations)} WRONG" if finding.violations else ""
                        took = f"{finding.seconds:.0f} s, {one.used:.0f} s of the processor"
                        say(f"{one.part.name}: {finding.inputs:,} inputs in {took}{wrong}")
                if time.monotonic() - spoken > EVERY and running:
                    spoken = time.monotonic()
                    now = ", ".join(f"{one.part.name} {one.tried:,} inputs" for one in running)
                    say(f"  {now}; {len(found)} of {len(parts)} parts done")
                threading.Event().wait(0.1)
        finally:
            for one in running:
                one.kill()
                one.process.wait()
    return [found[part.name] for part in parts]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [part.name for part in PARTS]
    parser.add_argument("--only", action="append", choices=names, metavar="NAME", help=f"one of {', '.join(names)}")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn; default: %(default)s")
    parser.add_argument("--scale", type=float, default=1.0, help="times as many inputs; default: %(default)s")
    parser.add_argument("--at-once", type=int, default=2, metavar="N", help="parts at a time; default: %(default)s")
    parser.add_argument("--rows", action="store_true", help="print the rows of each part too: kinds, formats, paths")
    parser.add_argument("--write", action="store_true", help="write the table into docs/reliability.md")
    asked = parser.parse_args()
    if not asked.scale > 0 or asked.at_once < 1:
        parser.error("--scale and --at-once: expected more than 0")
    parts = [part for part in PARTS if not asked.only or part.name in asked.only]
    started = time.monotonic()
    findings = run_all(parts, asked.seed, asked.scale, asked.at_once, lambda text: print(text, flush=True))
    violations = [violation for finding in findings for violation in finding.violations]
    chosen = "".join(f" --only {part.name}" for part in parts) if asked.only else ""
    command = f"python -m tests.faults --seed {asked.seed} --scale {asked.scale:g}{chosen}"
    minutes = (time.monotonic() - started) / 60
    text = f"{minutes:.0f} minutes, {dated()}\n\n{markdown(findings)}"
    print(f"\n`{command}`, {text}")
    for finding in findings if asked.rows else ():
        print(f"\n{by_row(finding.tallies, finding.name)}")
    for violation in violations:
        print(f"\n{violation}")
    if asked.write:
        into_page(PAGE, "the last whole run", f"`{command}` <!-- not run: minutes -->, {text}")
        print(f"\nwritten to {PAGE}")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
