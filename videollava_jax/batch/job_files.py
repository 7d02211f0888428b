"""The files of a job, and the lock that one run at a time holds. No JAX.

OUTPUT.partial/
  lock        held by the current run; the kernel releases it when the run dies
  ledger.db   the job's identity, and a row for each line that is done: `ledger.py`
  media/      files from data: URLs and from hosts
OUTPUT        appears complete, in the input's order, when every line is done: `output.py`
OUTPUT.job.json   the receipt: the job's identity, counts, and the output's SHA-256
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_ATTEMPTS = 100


class LedgerError(OSError):
    """The ledger cannot be written or read: a full disk, a damaged file, another run."""


class Paths:
    """The paths of a job's files, as drawn at the top of this module."""

    def __init__(self, output: Path):
        self.output = output
        self.directory = output.with_name(f"{output.name}.partial")
        self.lock = self.directory / "lock"
        self.ledger = self.directory / "ledger.db"
        self.media = self.directory / "media"
        self.receipt = output.with_name(f"{output.name}.job.json")


def no_space(paths: Paths) -> str:
    """Returns what a user reads when the disk of a job is full."""
    return (
        f"{paths.directory}: no space left on the disk; what was committed is kept: make room and run the same command "
        "again"
    )


@contextmanager
def locked(paths: Paths) -> Iterator[None]:
    """Makes the job's directory and locks it against other runs.

    A directory that is there must be one that a job made: it has a lock, or it is empty.

    Raises:
      LedgerError: another run holds the lock, the directory is somebody else's, or it cannot be made.
    """
    descriptor = _take_lock(paths)
    try:
        yield
    finally:
        with suppress(OSError):  # it would hide the error of the run; the next one tidies up
            if not paths.ledger.exists():  # nothing was begun, or everything is done
                remove(paths)
        with suppress(OSError):  # a disk that fails; the lock is released all the same
            os.close(descriptor)


def _take_lock(paths: Paths) -> int:
    """Locks the job's directory, which is made if it is not there; returns the lock's descriptor."""
    for _ in range(_ATTEMPTS):
        try:
            paths.directory.mkdir(exist_ok=True)
            descriptor = _open_lock(paths)
        except FileNotFoundError:
            if not paths.output.parent.is_dir():
                raise LedgerError(f"{paths.output.parent}: no such directory for the output") from None
            time.sleep(0.01)  # the previous run is just removing its directory
            continue
        except FileExistsError:
            raise _not_ours(paths) from None
        except OSError as error:
            if isinstance(error, LedgerError):
                raise
            raise LedgerError(f"{paths.directory}: cannot be made ({os.strerror(error.errno or 0).lower()})") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise LedgerError(f"{paths.output}: another run is at work on it; expected one at a time") from None
        except OSError as error:
            os.close(descriptor)
            raise LedgerError(
                f"{paths.lock}: this file system has no locks ({os.strerror(error.errno or 0)}); "
                "write to a local disk and copy the output"
            ) from None
        try:
            if os.stat(paths.lock, follow_symlinks=False).st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        except FileNotFoundError:
            pass
        os.close(descriptor)  # the previous run removed the file before we locked it
    raise LedgerError(f"{paths.directory}: cannot be made: choose another directory for the output")


def _open_lock(paths: Paths) -> int:
    """Opens the lock of a directory that is ours: neither it nor its lock is a link, and it holds a lock or nothing."""
    try:
        directory = os.open(paths.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except NotADirectoryError:
        raise _not_ours(paths) from None
    try:
        if paths.lock.name not in (names := os.listdir(directory)) and names:
            raise _not_ours(paths)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(paths.lock.name, flags, 0o666, dir_fd=directory)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _not_ours(paths) from None
        raise
    finally:
        os.close(directory)


def _not_ours(paths: Paths) -> LedgerError:
    return LedgerError(
        f"{paths.directory} is there already and was not made by a job, which keeps its answers there: choose another "
        "output, or move it away"
    )


def remove(paths: Paths) -> None:
    """Removes what a job keeps, the lock last, and its directory unless it holds files of others."""
    paths.ledger.unlink(missing_ok=True)  # first, because a ledger without its log has lost records
    if not paths.media.is_symlink():
        shutil.rmtree(paths.media, ignore_errors=True)
    kept = (f"{paths.ledger.name}-wal", f"{paths.ledger.name}-shm", f"{paths.ledger.name}-journal", "output.new")
    for name in (*kept, f"{paths.receipt.name}.new", paths.lock.name):
        (paths.directory / name).unlink(missing_ok=True)
    with suppress(OSError):
        paths.directory.rmdir()
