"""Conversions onto disks that are full, or closed to this user."""

from __future__ import annotations

import ctypes
import os
import random
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.faults.children import command, run
from tests.faults.tables import Tally
from tests.faults.workshop import COMMANDS, command_line, complaint_about, snapshot, verified, workshop
from tests.weights.checkpoints import read_all

# ── full disks ──────────────────────────────────────────────────────────────────────────────────────────────


def fill(number: int, seed: int) -> list[Tally]:
    """Converts `number` times onto a disk that fills up on the way, and into files that may not grow."""
    disk, files = Tally("full disk: tmpfs"), Tally("full disk: RLIMIT_FSIZE")
    with workshop() as place:
        for what in COMMANDS:
            run(command, *command_line(what, place / "source", place / f"whole-{what}"))
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
    """Converts onto a disk with room for a share of the bytes, or of the inodes; returns what is wrong afterwards."""
    disk = place / "disk"
    disk.mkdir(exist_ok=True)
    whole = list((place / f"whole-{what}").rglob("*"))
    need = len(whole) if inodes else sum(-(-path.stat().st_size // 4096) * 4096 + 4096 for path in whole)
    room = int(share * 0.9 * need)  # a file system takes a little less than its files' pages
    mount(disk, f"nr_inodes={2 * len(whole) + 100}" if not inodes else "size=1g")
    shutil.copytree(place / f"whole-{what}", disk / "old")
    old = snapshot(disk / "old")
    usage = os.statvfs(disk)
    if inodes:
        room += usage.f_files - usage.f_ffree
        mount(disk, f"remount,nr_inodes={room}")
    else:
        room += (usage.f_blocks - usage.f_bfree) * usage.f_frsize
        mount(disk, f"remount,size={room}")
    status, said = command(*command_line(what, place / "source", disk / "new"))
    if complaint := complaint_about(status, said, disk / "new"):
        return complaint
    if left := sorted(path.name for path in disk.iterdir() if path.name != "old"):
        return f"left behind: {left}"
    if snapshot(disk / "old") != old:
        return "the old output was touched"
    mount(disk, "remount,size=1g,nr_inodes=100000")
    status, said = command(*command_line(what, place / "source", disk / "new"))
    return said if status else verified(disk / "new")


def mount(directory: Path, options: str) -> None:
    """Mounts or remounts a tmpfs that only this process sees, and that ends with it."""
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
    """Converts when no file may grow beyond a share of the largest tensor; returns what is wrong afterwards."""
    target = place / "short"
    longest = max(array.nbytes for array in read_all(place / "source").values())
    old = snapshot(place / f"whole-{what}")
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(share * longest), resource.RLIM_INFINITY))
    status, said = command(*command_line(what, place / "source", target))
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    if complaint := complaint_about(status, said, target):
        return complaint
    if left := sorted(path.name for path in place.iterdir() if "short" in path.name):
        return f"left behind: {left}"
    return "" if snapshot(place / f"whole-{what}") == old else "the old output was touched"


def part(seed: int, scale: float) -> list[Tally]:
    """Fills `16 * scale` disks, and converts into every closed place; see `tests.faults.parts`."""
    return fill(max(8, round(16 * scale)), seed) + forbid(COMMANDS if scale >= 1 else COMMANDS[:1])


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
    """Converts where the user may not read or write; returns a row for the command, and one for its Python function."""
    by_command, raised = Tally("no permission: command"), Tally("no permission: from Python")
    for what in commands:
        for case in CLOSED:
            if case == OF_ANOTHER and os.geteuid():
                continue  # which takes another user
            with workshop(64) as place:
                problem, kind = run(_forbidden, place, what, case)
            by_command.add("violation" if problem else "refused", f"{what}: {case}: {problem}")
            raised.add("refused" if kind == "WeightsError" else "violation", f"{what}: {case}: it raises {kind}")
    return [by_command, raised]


def _forbidden(place: Path, what: str, case: str) -> tuple[str, str]:
    """Returns what is wrong with the command's failure, and the type of error that a Python caller gets."""
    source, home = place / "source", place / "home"
    home.mkdir()
    home.chmod(0o777)
    target = about = home / "target"
    closed = home
    if case.startswith("a target"):
        command(*command_line(what, source, target))
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
    before = snapshot(home)
    closed.chmod({"a place that may not be written": 0o555, OF_ANOTHER: 0o755}.get(case, 0))
    with _nobody():
        status, said = command(*command_line(what, source, target))
        kind = _raised(what, source, target)
    closed.chmod(0o755)
    problem = complaint_about(status, said, about)
    if not problem and "permission" not in said.lower():
        problem = f"an error that does not say why: {said}"
    if not problem and snapshot(home) != before:
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
