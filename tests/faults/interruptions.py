"""Conversions that are killed, or that meet another run on their target."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

from tests.faults.children import Child, Died, command, run, timed
from tests.faults.tables import Tally
from tests.faults.workshop import COMMANDS, command_line, complaint_about, snapshot, verified, workshop

SITUATIONS = {
    "nothing there": "the target does not exist",
    "killed before": "it does not exist, and another run was killed there",
    "same there": "it holds the same already",
    "other there": "it holds another checkpoint",
}


def kill(number: int, seed: int) -> list[Tally]:
    """Kills `number` runs, half at a random time, half at a step of the file system; a row for each situation."""
    tallies = {name: Tally(f"kills: {name}") for name in SITUATIONS}
    with workshop() as place:
        lengths = {(what, there): _length(place, what, there) for what in COMMANDS for there in (False, True)}
        for i in range(number):
            rng = random.Random(f"{seed}/{i}")
            situation = list(SITUATIONS)[i % 4]
            what = COMMANDS[i // 4 % 2]
            seconds, steps = lengths[what, situation in ("same there", "other there")]
            at = (rng.uniform(0, seconds), None) if i // 8 % 2 else (None, rng.randrange(1, steps + 1))
            for path in place.iterdir():
                if path.name not in ("source", "other"):
                    shutil.rmtree(path)
            try:
                outcome, detail = _killed(place, what, situation, at, rng.uniform(0, seconds))
            except (Died, RuntimeError) as error:
                outcome, detail = getattr(error, "outcome", "crash"), str(error)
            tallies[situation].add(outcome, f"kill {i} of seed {seed} ({what}, at {at}): {detail}")
    return list(tallies.values())


def _length(place: Path, what: str, there: bool) -> tuple[float, int]:
    """Returns (seconds, steps of the file system) of a run, with or without the same target there."""
    target = place / "measured"
    arguments = command_line(what, place / "source", target)
    seconds = []
    for _ in range(3):
        if not there:
            shutil.rmtree(target, ignore_errors=True)
        elif not target.exists():
            run(command, *arguments)
        seconds.append(timed(command, *arguments))
    if not there:
        shutil.rmtree(target, ignore_errors=True)
    steps = run(_stepped, arguments, 0)
    shutil.rmtree(target)
    return sorted(seconds)[1], steps


def _killed(
    place: Path, what: str, situation: str, at: tuple[float | None, int | None], before: float
) -> tuple[str, str]:
    """Kills a run and starts the next; returns (outcome, detail)."""
    target = place / "target"
    arguments = command_line(what, place / "source", target)
    if situation == "killed before":
        _run_and_kill(arguments, before)
    elif situation == "same there":
        run(command, *arguments)
    elif situation == "other there":
        run(command, *command_line(what, place / "other", target))
    old = snapshot(target) if situation.endswith("there") and situation != "nothing there" else None
    moment, step = at
    if moment is not None:
        died = _run_and_kill(arguments, moment)
    else:
        child = Child(_stepped, arguments, step)
        try:
            child.result()
            died = False
        except Died:
            died = True
    left = [path.name for path in place.iterdir() if path.name.endswith(".partial")]
    if old is not None and snapshot(target) != old:
        return "lost", "the old target was touched"
    if target.exists() and (complaint := run(verified, target)):
        return "silent", f"a target that is not whole: {complaint}"
    status, said = run(command, *arguments)
    if situation == "other there":
        if complaint := complaint_about(status, said, target):
            return "violation", f"a run over another target: {complaint}"
        if snapshot(target) != old:
            return "lost", "the old target was touched by the next run"
        shutil.rmtree(target)
        status, said = run(command, *arguments)
    if status:
        return "violation", f"the next run failed: {said}"
    if complaint := run(verified, target):
        return "silent", f"the next run's target is not whole: {complaint}"
    if situation == "same there" and snapshot(target) != old:
        return "doubled", "the same target was written again"
    if leavings := {path.name for path in place.iterdir()} - {"source", "other", "target"}:
        return "violation", f"left behind: {sorted(leavings)}"
    return ("killed, half of it left" if left else "killed") if died else "had ended before", ""


def _run_and_kill(arguments: tuple[str, ...], seconds: float) -> bool:
    """Starts a command and kills it after some seconds; returns whether it was still at work."""
    child = Child(command, *arguments)
    time.sleep(seconds)
    died = child.kill()
    child.close()
    return died


def _stepped(arguments: tuple[str, ...], step: int) -> int:
    """Runs a command that kills itself at a step of the file system, counted from 1.

    Returns:
      the number of steps, with `step` 0.
    """
    count = 0

    def step_taken(event: str, _: Any) -> None:
        nonlocal count
        if event.split(".")[0] in ("open", "os", "shutil", "fcntl"):
            count += 1
            if count == step:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(step_taken)
    command(*arguments)
    return count


def part(seed: int, scale: float) -> list[Tally]:
    """Kills `48 * scale` conversions, and lets `6 * scale` pairs meet; see `tests.faults.parts`."""
    return kill(max(8, round(48 * scale)), seed) + meet(max(2, round(6 * scale)), seed)


# ── two runs ────────────────────────────────────────────────────────────────────────────────────────────────


def meet(number: int, seed: int) -> list[Tally]:
    """Starts two runs on one target: the second while the first is halted, and a random time after its start."""
    halted, racing = Tally("two runs: the first is halted"), Tally("two runs: a race")
    with workshop() as place:
        target = place / "target"
        for i in range(number):
            rng = random.Random(f"{seed}/{i}")
            what = COMMANDS[i % 2]
            arguments = command_line(what, place / "source", target)
            problem = _halted(place, arguments)
            shutil.rmtree(target, ignore_errors=True)
            seconds = timed(command, *arguments)
            halted.add("violation" if problem else "the second is refused", f"{what}: {problem}")
            shutil.rmtree(target, ignore_errors=True)
            first = Child(command, *arguments)
            time.sleep(rng.uniform(0, 0.8 * seconds))
            second = Child(command, *arguments)
            ended = [first.result(), second.result()]
            won = sum(status == 0 for status, _ in ended)
            problem = "" if won else f"neither succeeded: {ended}"
            problem = problem or run(verified, target)
            for status, said in ended:
                problem = problem or (complaint_about(status, said, target) if status else "")
            if left := [path.name for path in place.iterdir() if path.name.endswith(".partial")]:
                problem = problem or f"left behind: {left}"
            outcome = "one is refused" if won == 1 else "the second finds it done"
            racing.add("violation" if problem else outcome, f"{what}: {problem}")
            shutil.rmtree(target, ignore_errors=True)
    return [halted, racing]


def _halted(place: Path, arguments: tuple[str, ...]) -> str:
    partial, target = place / ".target.partial", place / "target"
    first = Child(command, *arguments)
    deadline = time.monotonic() + 30
    while not (partial.exists() and any(partial.iterdir())):
        if time.monotonic() > deadline or target.exists():
            return "the first run was never seen at work"
        time.sleep(0.0005)
    os.kill(first.pid, signal.SIGSTOP)
    try:
        status, said = run(command, *arguments)
    finally:
        os.kill(first.pid, signal.SIGCONT)
    complaint = complaint_about(status, said, target) or ("" if "another run" in said else f"it says {said}")
    status, words = first.result()
    if complaint or status:
        return complaint or f"the first failed: {words}"
    return run(verified, target) or ("" if not partial.exists() else "left behind: .target.partial")
