"""Makes every call fail, one after the other, that writes or reads a job's files, a checkpoint or a training save.

    python -m tests.faults.failing_io --every 1 --seed 0

A run is repeated with its first call failing, then its second, and so on until it has no more calls, for each way in
which a call can fail. A run must end in time, well or with one line that names a file and the cause, and nothing that
was there before may change. The next run, which nothing disturbs, must end with the bytes of one that was never
disturbed. Interrupted calls and short writes must not be noticed. `--every 7` tries every seventh call.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.faults.children import Died, run
from tests.faults.disks import mount
from tests.faults.failing_calls import FAILURES, Failure, calls, under, why_not
from tests.faults.failing_reads import READ_TRIALS
from tests.faults.failing_trials import LEFT, TRIALS, Ended, Problem, Trial
from tests.faults.tables import Tally, said, table

SECONDS = 60
"""That a run may take: one that hangs is killed then."""
SETTLING = 0.5
"""Between two runs in one process, which alone sees its tmpfs: threads of the first may still make files."""


def fail_calls(
    trial: Trial, failures: Sequence[Failure] = (), every: int = 1, seed: int = 0, numbers: Sequence[int] = ()
) -> list[Tally]:
    """Repeats a trial with each of its calls failing, or with every few of them; returns a row for each failure.

    Args:
      failures: the trial's own where none are given.
      every: how many calls further the next one fails; the first is drawn from the seed.
      numbers: of the calls that fail, from 1, in the place of `every`.
    """
    if reason := why_not():
        return [Tally(trial.name, note=f"skipped: {reason}")]
    tallies = []
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        trial.make(home / "source")
        ended = run(trial.run, _place(trial, home), seconds=2 * SECONDS)
        if ended[0]:
            raise RuntimeError(f"{trial.name}: the run that nothing disturbs ends with {ended}")
        expected, numbers_of = trial.result(home / "place"), dict[int, int]()
        for failure in failures or trial.failures:
            if failure.kinds not in numbers_of:
                numbers_of[failure.kinds] = _number_of_calls(trial, failure, home)
            number = numbers_of[failure.kinds]
            tally = Tally(f"{trial.name}: {failure.name}", note=f"of {number} calls")
            tallies.append(tally)
            first = 1 + random.Random(f"{seed}/{trial.name}/{failure.name}").randrange(max(1, min(every, number)))
            for nth in numbers or itertools.count(first, every):
                if not _tried(trial, failure, nth, home, tally, expected):
                    break
    return tallies


def _place(trial: Trial, home: Path) -> Path:
    """Makes a fresh place for a run."""
    place = home / "place"
    shutil.rmtree(place, ignore_errors=True)
    (home / "log").unlink(missing_ok=True)
    (place / "out").mkdir(parents=True)
    trial.prepare(place / "out")
    return place


def _number_of_calls(trial: Trial, failure: Failure, home: Path) -> int:
    place = _place(trial, home)
    run(under, failure, 0, trial.below(place), home / "log", trial.run, place, seconds=SECONDS)
    return len(calls(home / "log"))


def _tried(trial: Trial, failure: Failure, nth: int, home: Path, tally: Tally, expected: dict[str, Any]) -> bool:
    """Makes one call fail and counts what came of it; returns whether the run has that call."""
    place, begun = _place(trial, home), time.monotonic()
    try:
        arguments = (under, failure, nth, trial.below(place), home / "log", trial.run, place)
        status, words = run(_heard, *arguments, seconds=SECONDS)
    except (Died, RuntimeError) as error:
        tally.add(_how(error), f"call {nth}: {str(error)[-1500:]}", seconds=time.monotonic() - begun)
        return True
    seconds = time.monotonic() - begun
    failed = [call for failed, call in calls(home / "log") if failed]
    if not failed and status == 0:
        return False
    if status == 0:
        problem = _problem_with_success(trial, words, place, expected)
        if problem and failure.lasting and problem[1].startswith(LEFT):  # nothing could be removed: the next run does
            problem = _problem_with_next(trial, place, expected, words)
    else:
        problem = _problem_with_error(trial, failure, status, words, place) or trial.disturbed(place, expected)
        problem = problem or _problem_with_next(trial, place, expected, words)
    outcome, detail = problem or ("said" if status else "not noticed", "")
    tally.add(outcome, f"call {nth} ({failed[0] if failed else 'none'}): {detail}", seconds=seconds)
    return True


def _heard(function: Callable[..., Ended], *arguments: Any) -> Ended:
    """Calls a run, and adds what libraries print without Python's `sys.stderr`: to a child's file."""
    status, words = function(*arguments)
    return status, words + Path("/proc/self/fd/2").read_text(errors="replace")


def _how(error: Exception) -> str:
    return error.outcome if isinstance(error, Died) else "crash"


def _problem_with_success(trial: Trial, words: str, place: Path, expected: dict[str, Any]) -> Problem:
    if words.strip() and not (trial.may_say and trial.may_say in words):
        return "violation", f"it ends well and says {words[-500:]}"
    if problem := trial.resumed(place):
        return problem
    found = trial.result(place)
    if found == expected:
        return None
    return "silent", f"it ends well and left something else: {_difference(found, expected)}"


def _problem_with_error(trial: Trial, failure: Failure, status: int, words: str, place: Path) -> Problem:
    if not failure.causes and not trial.may_be_interrupted:
        return "violation", f"it was noticed: status {status}, {words[-500:]}"
    if status != 1 or not words.startswith("videollava: ") or "Traceback" in words or words.count("\n") != 1:
        return "violation", f"status {status}, and not one line: {words[-1500:]}"
    causes = failure.causes or ("interrupted system call",)
    names_a_file = str(place) in words or str(trial.below(place)) in words
    if not names_a_file or not any(cause in words.lower() for cause in causes):
        return "violation", f"it does not say which file, or why: {words}"
    return None


def _problem_with_next(trial: Trial, place: Path, expected: dict[str, Any], words: str) -> Problem:
    """Runs it again, undisturbed; returns what is wrong with that."""
    try:
        status, said = run(_heard, trial.run, place, seconds=SECONDS)
    except (Died, RuntimeError) as error:
        return _how(error), f"the next run: {str(error)[-1500:]}"
    if status:
        return "lost", f"the next run fails: {said[-500:]} (the first: {words})"
    problem = _problem_with_success(trial, said, place, expected)
    return problem and (problem[0], f"the next run: {problem[1]} (the first: {words})")


def _difference(found: dict[str, Any], expected: dict[str, Any]) -> str:
    differing = [name for name in {**found, **expected} if found.get(name) != expected.get(name)]
    return ", ".join(sorted(differing)[:5])


# ── full disks ──


def fill_disks(trial: Trial, number: int, seed: int = 0) -> Tally:
    """Runs a trial on `number` tmpfs that fill up on the way, then with room; returns its row."""
    tally = Tally(f"{trial.name}: full tmpfs")
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        trial.make(home / "source")
        try:
            expected, need = run(_on_disk, trial, _new(home, "whole"), 2**30, None, seconds=2 * SECONDS)
        except RuntimeError as error:
            if "PermissionError" not in str(error):
                raise
            tally.note = "skipped: this user may not mount one"
            return tally
        for i in range(number):
            share = random.Random(f"{seed}/{trial.name}/{i}").uniform(0, 1)
            begun = time.monotonic()
            try:
                # At least one page: a size of 0 is none.
                room = max(4096, int(share * need))
                outcome, detail = run(_on_disk, trial, _new(home, str(i)), room, expected, seconds=2 * SECONDS)
            except (Died, RuntimeError) as error:
                outcome, detail = _how(error), str(error)[-1500:]
            tally.add(outcome, f"{share:.3f} of {need} bytes: {detail}", seconds=time.monotonic() - begun)
    return tally


def _new(home: Path, name: str) -> Path:
    place = home / name
    (place / "out").mkdir(parents=True)
    return place


def _on_disk(trial: Trial, place: Path, room: int, expected: dict[str, Any] | None) -> Any:
    """Runs a trial on a tmpfs of this process with `room` bytes more than what was there before, and again with more.

    Returns:
      (outcome, detail); without `expected`, the result and the bytes that a run takes.
    """
    out = place / "out"
    mount(out, "size=1g")
    trial.prepare(out)
    before = _taken(out)
    if expected is not None:
        mount(out, f"remount,size={before + room}")
    status, words = _heard(trial.run, place)
    if expected is None:
        assert status == 0, words
        return trial.result(place), _taken(out) - before
    if status == 0:
        problem = _problem_with_success(trial, words, place, expected)
    else:
        problem = _problem_with_error(trial, FAILURES[1], status, words, place) or trial.disturbed(place, expected)
    mount(out, "remount,size=1g")
    if not problem and status:
        time.sleep(SETTLING)
        again, said = trial.run(place)
        problem = ("lost", f"the next run fails: {said[-500:]} (the first: {words})") if again else None
        problem = problem or _problem_with_success(trial, said, place, expected)
    return problem or ("said" if status else "not noticed", "")


def _taken(directory: Path) -> int:
    usage = os.statvfs(directory)
    return (usage.f_blocks - usage.f_bfree) * usage.f_frsize


def part(seed: int, scale: float) -> list[Tally]:
    """Tries every twelfth call at scale 1, every one from scale 12 on; returns a row for each trial and failure."""
    every = max(1, round(12 / scale))
    calls_of = [tally for trial in (*TRIALS, *READ_TRIALS) for tally in fail_calls(trial, every=every, seed=seed)]
    return calls_of + [fill_disks(trial, max(1, round(6 * scale)), seed) for trial in TRIALS]


def main() -> int:
    names = [trial.name for trial in (*TRIALS, *READ_TRIALS)]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, help="try every such call; default: all")
    parser.add_argument("--only", action="append", choices=names, help="of the trials; can be given several times")
    parser.add_argument("--seed", type=int, default=0, help="where counting by --every begins; default: %(default)s")
    wanted = parser.parse_args()
    started = time.perf_counter()
    tallies: list[Tally] = []
    for trial in (*TRIALS, *READ_TRIALS):
        if wanted.only is None or trial.name in wanted.only:
            begun = time.perf_counter()
            tallies += fail_calls(trial, every=wanted.every, seed=wanted.seed)
            if trial in TRIALS:
                tallies.append(fill_disks(trial, max(1, 36 // wanted.every), wanted.seed))
            print(f"{trial.name}: {time.perf_counter() - begun:.0f} s", flush=True)
    print(f"\nseed {wanted.seed}, {time.perf_counter() - started:.0f} s\n\n{table(tallies)}")
    return said(tallies)


if __name__ == "__main__":
    sys.exit(main())
