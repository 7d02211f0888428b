"""A directory that appears whole or not at all, and that one run at a time writes."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from videollava_jax.weights.errors import WeightsError


@contextmanager
def whole_directory(target: Path) -> Iterator[Path]:
    """Gives an empty directory to write into; it becomes `target` when the block ends without an error.

        .target.partial/lock      held by the run that writes; a killed run's lock is free, its leavings are removed
        .target.partial/whole/    written here, flushed to the disk, then renamed to target

    Raises:
      WeightsError: `target` exists, another run is writing it, or the disk does not take it.
    """
    require_absent(target)
    partial = target.parent / f".{target.name}.partial"
    try:
        partial.mkdir(parents=True, exist_ok=True)
        lock = os.open(partial / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise WeightsError(f"{target}: cannot be made here ({error.strerror})") from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise WeightsError(f"{target}: another run is writing it: wait for it, or choose another place") from None
        whole = partial / "whole"
        shutil.rmtree(whole, ignore_errors=True)
        try:
            whole.mkdir()
            yield whole
            _flush(whole)
            os.rename(whole, target)
            _flush_entry(target.parent)
        except OSError as error:
            shutil.rmtree(whole, ignore_errors=True)
            raise WeightsError(f"{target}: cannot be written ({error.strerror or error})") from error
        except BaseException:
            shutil.rmtree(whole, ignore_errors=True)
            raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    finally:
        os.close(lock)


def require_absent(target: Path) -> None:
    """Raises a WeightsError where something is in the place of `target`."""
    if target.exists() or target.is_symlink():
        raise WeightsError(f"{target} exists: choose another place, or remove it first")


def _flush(directory: Path) -> None:
    for path in (directory, *directory.rglob("*")):
        _flush_entry(path)


def _flush_entry(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
