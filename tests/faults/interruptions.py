"""Conversions that are killed, that find the disk full or closed to them, or that meet another run."""

from __future__ import annotations

import ctypes
import hashlib
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.faults.children import Child, Died, command, run, timed
from tests.faults.tables import Tally
from tests.small_models import random_parameters, small_config
from tests.weights.checkpoints import read_all, write_checkpoint

Snapshot = dict[str, tuple[int, int, str]]


@contextmanager
def _workshop(width: int = 256) -> Iterator[Path]:
    """A directory with two checkpoints of some megabytes, `source` and `other`, alike in all but values."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        place.chmod(0o755)  # another user works here as well
        vision = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 2}
        config = small_config(vision=vision, text={"hidden_size": width, "intermediate_size": 4 * width})
        for seed, directory in enumerate(("source", "other")):
            write_checkpoint(place / directory, config, random_parameters(config, seed), "hub", shards=2)
            (place / directory / "tokenizer.json").write_text("{}\n")
            for path in (place / directory).iterdir():  # its library makes them for the one user alone
                path.chmod(0o644)
        yield place


def _arguments(what: str, source: Path, target: Path) -> tuple[str, ...]:
    return (what, str(source), str(target))


def _snapshot(directory: Path) -> Snapshot:
    """Every file: inode, time of its last change, SHA-256."""
    return {
        path.relative_to(directory).as_posix(): (
            path.stat().st_ino,
            path.stat().st_mtime_ns,
            hashlib.sha256(path.read_bytes()).hexdigest(),
        )
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def _complaint(status: int, said: str, about: Path) -> str:
    """What is wrong with how a run that had to fail has failed."""
    if status != 1:
        return f"exit status {status}: {said[-300:]}"
    if not said.startswith("videollava: ") or "Traceback" in said or str(about) not in said:
        return f"an error that is not one, or names no file: {said[-500:]}"
    return ""


# ── kills ───────────────────────────────────────────────────────────────────────────────────────────────────

SITUATIONS = {
    "nothing there": "the target does not exist",
    "killed before": "it does not exist, and another run was killed there",
    "same there": "it holds the same already",
    "other there": "it holds another checkpoint",
}
COMMANDS = ("convert", "export")


def kill(number: int, seed: int) -> list[Tally]:
    """Kills `number` runs, half at a random moment, half at a random system call; returns a row for each situation."""
    tallies = {name: Tally(f"kills: {name}") for name in SITUATIONS}
    with _workshop() as place:
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
                outcome, detail = "violation", str(error)
            tallies[situation].add(outcome, f"kill {i} of seed {seed} ({what}, at {at}): {detail}")
    return list(tallies.values())


def _length(place: Path, what: str, there: bool) -> tuple[float, int]:
    """(seconds, steps) of a run, with or without the same target there."""
    target = place / "measured"
    arguments = _arguments(what, place / "source", target)
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
    """(outcome, detail) of a run that is killed, and of the one behind it."""
    target = place / "target"
    arguments = _arguments(what, place / "source", target)
    if situation == "killed before":
        _run_and_kill(arguments, before)
    elif situation == "same there":
        run(command, *arguments)
    elif situation == "other there":
        run(command, *_arguments(what, place / "other", target))
    old = _snapshot(target) if situation.endswith("there") and situation != "nothing there" else None
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
    if old is not None and _snapshot(target) != old:
        return "violation", "the old target was touched"
    if target.exists() and (complaint := run(_verified, target)):
        return "violation", f"a target that is not whole: {complaint}"
    status, said = run(command, *arguments)
    if situation == "other there":
        if complaint := _complaint(status, said, target):
            return "violation", f"a run over another target: {complaint}"
        if _snapshot(target) != old:
            return "violation", "the old target was touched by the next run"
        shutil.rmtree(target)
        status, said = run(command, *arguments)
    if status:
        return "violation", f"the next run failed: {said}"
    if complaint := run(_verified, target):
        return "violation", f"the next run's target is not whole: {complaint}"
    if situation == "same there" and _snapshot(target) != old:
        return "violation", "the same target was written again"
    if leavings := {path.name for path in place.iterdir()} - {"source", "other", "target"}:
        return "violation", f"left behind: {sorted(leavings)}"
    return ("killed, half of it left" if left else "killed") if died else "had ended before", ""


def _run_and_kill(arguments: tuple[str, ...], seconds: float) -> bool:
    """Whether it was still at work when it was killed."""
    child = Child(command, *arguments)
    time.sleep(seconds)
    died = child.kill()
    child.close()
    return died


def _stepped(arguments: tuple[str, ...], step: int) -> int:
    """Runs a command that kills itself at a step of the file system, counted from 1; the number of steps without."""
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


def _verified(target: Path) -> str:
    status, said = command("verify", str(target))
    return said if status else ""


# ── full disks ──────────────────────────────────────────────────────────────────────────────────────────────


def fill(number: int, seed: int) -> list[Tally]:
    """Converts `number` times onto a disk that fills up on the way, and into files that may not grow."""
    disk, files = Tally("full disk: tmpfs"), Tally("full disk: RLIMIT_FSIZE")
    with _workshop() as place:
        for what in COMMANDS:
            run(command, *_arguments(what, place / "source", place / f"whole-{what}"))
        for i in range(number):
            rng = random.Random(f"{seed}/{i}")
            what = COMMANDS[i % 2]
            share = rng.random()
            if not disk.note:
                try:
                    problem = run(_onto_full_disk, place, what, share, i % 8 >= 6)
                    disk.add("violation" if problem else "refused", f"{what} at {share:.3f}: {problem}")
                except RuntimeError as error:
                    if "PermissionError" not in str(error):
                        raise
                    disk.note = "skipped: this user may not mount one"
            problem = run(_into_short_files, place, what, share)
            files.add("violation" if problem else "refused", f"{what} at {share:.3f}: {problem}")
    return [disk, files]


def _onto_full_disk(place: Path, what: str, share: float, inodes: bool) -> str:
    """What goes wrong, or is left, when the disk has room for a share of what is written (bytes, or inodes)."""
    disk = place / "disk"
    disk.mkdir(exist_ok=True)
    whole = list((place / f"whole-{what}").rglob("*"))
    need = len(whole) if inodes else sum(-(-path.stat().st_size // 4096) * 4096 + 4096 for path in whole)
    room = int(share * 0.9 * need)  # a file system takes a little less than its files' pages
    _mount(disk, f"nr_inodes={2 * len(whole) + 100}" if not inodes else "size=1g")
    shutil.copytree(place / f"whole-{what}", disk / "old")
    old = _snapshot(disk / "old")
    usage = os.statvfs(disk)
    if inodes:
        room += usage.f_files - usage.f_ffree
        _mount(disk, f"remount,nr_inodes={room}")
    else:
        room += (usage.f_blocks - usage.f_bfree) * usage.f_frsize
        _mount(disk, f"remount,size={room}")
    status, said = command(*_arguments(what, place / "source", disk / "new"))
    if complaint := _complaint(status, said, disk / "new"):
        return complaint
    if left := sorted(path.name for path in disk.iterdir() if path.name != "old"):
        return f"left behind: {left}"
    if _snapshot(disk / "old") != old:
        return "the old output was touched"
    _mount(disk, "remount,size=1g,nr_inodes=100000")
    status, said = command(*_arguments(what, place / "source", disk / "new"))
    return said if status else _verified(disk / "new")


def _mount(directory: Path, options: str) -> None:
    """Mounts, or mounts again, a tmpfs that this process alone sees, and that goes with it."""
    libc = ctypes.CDLL(None, use_errno=True)

    def call(function: Any, *arguments: Any) -> None:
        if function(*arguments) != 0:
            raise PermissionError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    remount = options.startswith("remount,")
    new_namespace, new_user, private, again = 0x00020000, 0x10000000, 1 << 18 | 1 << 14, 1 << 5
    if not remount:
        user, group = os.geteuid(), os.getegid()
        call(libc.unshare, new_namespace if user == 0 else new_namespace | new_user)
        if user:
            for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
                Path(f"/proc/self/{name}").write_text(text)
        call(libc.mount, b"none", b"/", None, private, None)
    data = options.removeprefix("remount,").encode()
    call(libc.mount, b"none", str(directory).encode(), b"tmpfs", again if remount else 0, data)


def _into_short_files(place: Path, what: str, share: float) -> str:
    """What goes wrong, or is left, when no file may become longer than a share of the largest tensor."""
    target = place / "short"
    longest = max(array.nbytes for array in read_all(place / "source").values())
    old = _snapshot(place / f"whole-{what}")
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(share * longest), resource.RLIM_INFINITY))
    status, said = command(*_arguments(what, place / "source", target))
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    if complaint := _complaint(status, said, target):
        return complaint
    if left := sorted(path.name for path in place.iterdir() if "short" in path.name):
        return f"left behind: {left}"
    return "" if _snapshot(place / f"whole-{what}") == old else "the old output was touched"


# ── permissions ─────────────────────────────────────────────────────────────────────────────────────────────

OF_ANOTHER = "what a killed run of another user left"
CLOSED = (
    "a place that may not be written",
    "a place that may not be entered",
    "a source that may not be listed",
    "weights that may not be read",
    "a config.json that may not be read",
    "a tokenizer that may not be read",
    OF_ANOTHER,
    "a target that may not be read",
    "a target's manifest that may not be read",
)


def forbid(commands: tuple[str, ...] = COMMANDS) -> list[Tally]:
    """Converts where the user may not read or write; a row for the command, and one for the function behind it."""
    by_command, raised = Tally("no permission: command"), Tally("no permission: from Python")
    for what in commands:
        for case in CLOSED:
            if case == OF_ANOTHER and os.geteuid():
                continue  # which takes another user
            with _workshop(64) as place:
                problem, kind = run(_forbidden, place, what, case)
            by_command.add("violation" if problem else "refused", f"{what}: {case}: {problem}")
            raised.add("refused" if kind == "WeightsError" else "violation", f"{what}: {case}: it raises {kind}")
    return [by_command, raised]


def _forbidden(place: Path, what: str, case: str) -> tuple[str, str]:
    """What is wrong with how the command fails, and the kind of error that a caller from Python gets."""
    source, home = place / "source", place / "home"
    home.mkdir()
    home.chmod(0o777)
    target = about = home / "target"
    closed = home
    if case.startswith("a target"):
        command(*_arguments(what, source, target))
        closed = target if case == "a target that may not be read" else target / "manifest.json"
    elif case == OF_ANOTHER:
        closed = home / ".target.partial"
        (closed / "params").mkdir(parents=True)
        (closed / "params" / "data").write_text("half")
    elif "place" not in case:
        closed = {
            "a source that may not be listed": source,
            "weights that may not be read": source / "model-00002-of-00002.safetensors",
            "a config.json that may not be read": source / "config.json",
            "a tokenizer that may not be read": source / "tokenizer.json",
        }[case]
        about = closed
    before = _snapshot(home)
    closed.chmod({"a place that may not be written": 0o555, OF_ANOTHER: 0o755}.get(case, 0))
    with _nobody():
        status, said = command(*_arguments(what, source, target))
        kind = _raised(what, source, target)
    closed.chmod(0o755)
    problem = _complaint(status, said, about)
    if not problem and "permission" not in said.lower():
        problem = f"an error that does not say why: {said}"
    if not problem and _snapshot(home) != before:
        problem = "files were touched"
    return problem, kind


def _raised(what: str, source: Path, target: Path) -> str:
    from videollava_jax.weights import convert_to_orbax, export

    try:
        if what == "convert":
            convert_to_orbax(source, target)
        else:
            export(source, target, "hub")
    except Exception as error:
        return type(error).__name__
    return "nothing"


@contextmanager
def _nobody() -> Iterator[None]:
    """Makes this process an unprivileged user's where it runs as root."""
    if os.geteuid():
        yield
        return
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(65534)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


# ── two runs ────────────────────────────────────────────────────────────────────────────────────────────────


def meet(number: int, seed: int) -> list[Tally]:
    """Starts two runs on one target: the second while the first stands still on its way, and at a random distance."""
    halted, racing = Tally("two runs: the first is halted"), Tally("two runs: a race")
    with _workshop() as place:
        target = place / "target"
        for i in range(number):
            rng = random.Random(f"{seed}/{i}")
            what = COMMANDS[i % 2]
            arguments = _arguments(what, place / "source", target)
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
            problem = problem or run(_verified, target)
            for status, said in ended:
                problem = problem or (_complaint(status, said, target) if status else "")
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
    complaint = _complaint(status, said, target) or ("" if "another run" in said else f"it says {said}")
    status, words = first.result()
    if complaint or status:
        return complaint or f"the first failed: {words}"
    return run(_verified, target) or ("" if not partial.exists() else "left behind: .target.partial")
