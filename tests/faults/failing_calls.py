"""Lets the Nth call of a child process that changes a file fail, and shifts its wall clock (`failing_calls.c`).

The library is compiled when the server of children starts, and loaded into it. It does nothing until a child asks.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import random
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SOURCE = Path(__file__).with_name("failing_calls.c")
_FILE, _VARIABLE = "failing_calls.so", "LD_PRELOAD"

# ── the library ──


class _Library:
    """The compiled library's file, in a directory that is deleted when this process ends."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="failing-calls-")
        self.file = Path(self._directory.name) / _FILE


@functools.cache
def _compiled() -> _Library | str:
    """Compiles the library; returns the reason where that cannot be done."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return "no C compiler is here, which makes the library that lets calls fail"
    made = _Library()
    command = [compiler, "-shared", "-fPIC", "-O2", "-o", str(made.file), str(_SOURCE), "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return f"{compiler} cannot make the library that lets calls fail: {done.stderr[-300:]}"
    return made


def why_not() -> str:
    """Returns why no call can be made to fail on this machine; an empty string where it can."""
    made = _compiled()
    return made if isinstance(made, str) else ""


@contextmanager
def preloaded() -> Iterator[None]:
    """Gives the library to processes that are started in the block, where it can be made."""
    made, before = _compiled(), os.environ.get(_VARIABLE)
    if isinstance(made, _Library):
        os.environ[_VARIABLE] = ":".join(filter(None, [str(made.file), before or ""]))
    try:
        yield
    finally:
        if before is not None:
            os.environ[_VARIABLE] = before
        else:
            os.environ.pop(_VARIABLE, None)


def forget() -> None:
    """Keeps the library from the processes that this one starts, which has it loaded."""
    kept = [name for name in os.environ.pop(_VARIABLE, "").split(":") if name and Path(name).name != _FILE]
    if kept:
        os.environ[_VARIABLE] = ":".join(kept)


# ── what fails ──

WRITES, TAKES_SPACE, WAITS, SYNCS, NAMES, CLOSES, OPENS, READS, MAKES = (1 << i for i in range(9))
"""The kinds of calls, as in `failing_calls.c`."""
CHANGES = WRITES | TAKES_SPACE | SYNCS | NAMES | CLOSES | OPENS
SHORT = -1


@dataclass(frozen=True)
class Failure:
    """One way in which calls fail.

    Attributes:
      name: in the table.
      error: the number of the error; `SHORT` for calls that do half of what they were asked.
      kinds: of the calls that are counted and can fail.
      lasting: whether every call after the first that failed does so too.
      causes: a message about it has one of these; empty where nobody may notice it.
    """

    name: str
    error: int
    kinds: int
    lasting: bool = False
    causes: tuple[str, ...] = ()


# SQLite does not say why it cannot open a file, and a fault that has passed cannot be asked for again.
_FULL = ("no space left", "disk is full", "unable to open database file")
_BROKEN = ("input/output error", "disk i/o error", "unable to open database file")
FAILURES = (
    Failure("ENOSPC once", errno.ENOSPC, TAKES_SPACE, causes=_FULL),
    Failure("ENOSPC from then on", errno.ENOSPC, TAKES_SPACE, lasting=True, causes=_FULL),
    Failure("EIO once", errno.EIO, CHANGES, causes=_BROKEN),
    Failure("EIO from then on", errno.EIO, CHANGES, lasting=True, causes=_BROKEN),
    Failure("EINTR", errno.EINTR, WAITS),
    Failure("short write", SHORT, WRITES),
    Failure("only short writes", SHORT, WRITES, lasting=True),
)
NO_DIRECTORY = Failure("EIO making a directory", errno.EIO, MAKES, causes=_BROKEN)
READING = (
    Failure("EIO reading", errno.EIO, READS, causes=_BROKEN),
    Failure("EINTR reading", errno.EINTR, READS),
    Failure("short read", SHORT, READS),
    Failure("only short reads", SHORT, READS, lasting=True),
)


def under(failure: Failure, nth: int, below: Path, log: Path, function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function while the `nth` call of this process below a directory fails, from 1. For children only.

    Args:
      failure: how.
      nth: 0 only counts.
      below: the directory.
      log: gets a line for each counted call; `calls` reads it.
    """
    library = ctypes.CDLL(None)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    library.fail_call(
        os.fsencode(below), ctypes.c_long(nth), failure.error, int(failure.lasting), failure.kinds, descriptor
    )
    try:
        return function(*arguments)
    finally:
        library.fail_call(b"", ctypes.c_long(0), 0, 0, 0, -1)
        os.close(descriptor)


def calls(log: Path) -> list[tuple[bool, str]]:
    """Returns, for every counted call, whether it failed, and its name and path."""
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return [(line.startswith("!"), line.split(" ", 2)[2]) for line in lines]


@contextmanager
def jumping_clock(days: int = 3) -> Iterator[None]:
    """Lets the wall clock jump forward and backward by days, some fifty times a second. For children only."""
    ended = threading.Event()

    def jump() -> None:
        while not ended.wait(0.02):
            shift_clock(random.randint(-days, days) * 86400)

    thread = threading.Thread(target=jump, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        shift_clock(0)


def shift_clock(seconds: int) -> None:
    """Sets the wall clock of this process this number of seconds ahead, or behind. For children only."""
    ctypes.CDLL(None).shift_clock(ctypes.c_long(seconds))
