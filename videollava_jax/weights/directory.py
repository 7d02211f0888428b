"""A directory that appears whole or not at all, and that one run at a time writes."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from videollava_jax.hub import StrPath, local_path
from videollava_jax.weights.errors import WeightsError, cause


@contextmanager
def whole_directory(target: StrPath) -> Iterator[Path]:
    """Gives an empty directory to write into; it becomes `target` when the block ends without an error.

        .target.partial/    written here by the run that holds its lock, flushed to the disk, then renamed to target

    The lock is the directory's own, and goes with it: behind the rename nothing is left to be tidied up, so that no
    moment is a bad one to be killed in. A killed run's lock is free, and the next run empties what it left. On a
    network's file system it may hold among the runs of one host only.

    Raises:
      WeightsError: `target` exists, another run is writing it, or the disk does not take it.
    """
    try:
        target = local_path(target)
        partial = target.parent / f".{target.name}.partial"
        require_absent(target)
        partial.mkdir(parents=True, exist_ok=True)
        lock = os.open(partial, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except (OSError, ValueError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(f"{target}: cannot be made here ({cause(error)})") from None
    try:
        _take(lock, partial, target)
        try:
            _empty(partial)
            yield partial
            _flush(partial)
            require_absent(target)
            os.rename(partial, target)
            _flush_entry(target.parent)
        except OSError as error:
            _remove(partial)
            raise WeightsError(f"{target}: cannot be written ({cause(error)})") from error
        except WeightsError as error:
            _remove(partial)
            # The place that it may name is gone.
            raise WeightsError(str(error).replace(str(partial), str(target))) from error
        except BaseException:
            _remove(partial)
            raise
    finally:
        os.close(lock)


def is_there(target: StrPath) -> bool:
    """Returns whether something is in the place of `target`, if only a link that leads nowhere.

    Raises:
      WeightsError: no path at all.
    """
    try:
        return os.path.lexists(local_path(target))
    except ValueError as error:
        raise WeightsError(f"{target}: cannot be made here ({cause(error)})") from None


def require_absent(target: StrPath) -> None:
    """Raises a WeightsError where something is in the place of `target`."""
    if is_there(target):
        raise WeightsError(f"{target} exists: choose another place, or remove it first")


def _take(lock: int, partial: Path, target: Path) -> None:
    """Locks a directory that has been opened, and makes sure that it is still the one of that name."""
    busy = f"{target}: another run is writing it: wait for it, or choose another place"
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(lock), os.stat(partial)):
            raise WeightsError(busy)
    except (BlockingIOError, FileNotFoundError):  # the other run has just renamed or removed it
        raise WeightsError(busy) from None
    except OSError as error:
        raise WeightsError(f"{target}: cannot be locked against other runs ({cause(error)})") from None


def _empty(directory: Path) -> None:
    for path in directory.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _remove(directory: Path) -> None:
    """Removes a directory in which threads of a writer that has failed may still be at work, for a moment."""
    for _ in range(10):
        shutil.rmtree(directory, ignore_errors=True)
        if not os.path.lexists(directory):
            return
        time.sleep(0.1)


def _flush(directory: Path) -> None:
    for path in (directory, *directory.rglob("*")):
        _flush_entry(path)


def _flush_entry(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
