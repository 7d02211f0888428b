"""Output directories that appear whole or not at all, and that one run at a time writes."""

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
    """Yields an empty directory to write into; it becomes `target` when the block ends without an error.

        .target.partial/    written here by the run that holds its lock, flushed to the disk, then renamed to target

    The lock is on the directory itself and goes with it: after the rename nothing is left to tidy up, so that a run can
    be killed at any moment. A killed run's lock is released, and the next run empties the directory. On a network file
    system the lock may hold only among the runs of one host.

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
            # It may name the partial directory, which is gone.
            raise WeightsError(str(error).replace(str(partial), str(target))) from error
        except BaseException:
            _remove(partial)
            raise
    finally:
        os.close(lock)


def is_there(target: StrPath) -> bool:
    """Returns whether `target` exists, if only as a link that leads nowhere.

    Raises:
      WeightsError: it cannot be a path.
    """
    try:
        return os.path.lexists(local_path(target))
    except ValueError as error:
        raise WeightsError(f"{target}: cannot be made here ({cause(error)})") from None


def require_absent(target: StrPath) -> None:
    """Raises a WeightsError where `target` exists."""
    if is_there(target):
        raise WeightsError(f"{target} exists: choose another path, or remove it first")


def _take(lock: int, partial: Path, target: Path) -> None:
    """Locks an opened directory, and makes sure that `partial` still names it."""
    busy = f"{target}: another run is writing it: wait for it, or choose another path"
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
    """Removes a directory; retries for a second, since threads of the writer that failed may still write to it."""
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
