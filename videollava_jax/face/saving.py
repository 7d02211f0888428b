"""Saves a model as transformers' `save_pretrained` does: also into a directory that has the processor's files."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from videollava_jax.hub import local_path
from videollava_jax.weights import WeightsError
from videollava_jax.weights.convert import SHARD_BYTES, SIDE_FILES
from videollava_jax.weights.errors import cause

_UNITS: dict[str, int] = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_NEXT_TO_WEIGHTS = {*SIDE_FILES, "README.md", ".gitattributes"}
_PLACE = ".saving"
"""The directory in which a model is written that goes into one that is there."""
CONFIG = "config.json"


def shard_bytes(size: int | str | None) -> int:
    """Returns the bytes of "5GB", "200MiB" or a number of them; None for the default.

    Raises:
      ValueError: no size.
    """
    if size is None:
        return SHARD_BYTES
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?I?B)?\s*", str(size).upper())
    most = 0 if found is None else int(float(found[1]) * _UNITS.get(found[2] or "B", 0))
    if most < 1:
        raise ValueError(f"max_shard_size: expected a size such as '5GB' or a number of bytes, got {size!r}")
    return most


def save_into(directory: str | os.PathLike[str], write: Callable[[Path], object]) -> None:
    """Lets `write` make a directory; adds its files to one that is there if that has a processor's files, or none.

    The weights appear under their names when all of them are written, the configuration last. What a save that was
    killed has left is written anew.

    Args:
      write: called with a path. It makes a directory there, or raises a WeightsError where one is in its way.

    Raises:
      WeightsError: writing fails, the directory holds something else, or another run saves into it.
    """
    target = local_path(directory)
    if not target.is_dir():
        write(target)
        return
    place = target / _PLACE
    try:
        names = set(os.listdir(target))
        # The configuration goes last, and the place after it: where only the place is there, a save was killed.
        half = place.name in names and CONFIG not in names
        if not half and not names <= {*_NEXT_TO_WEIGHTS, f".{_PLACE}.partial"}:
            write(target)
            return
        with _locked(target):
            shutil.rmtree(place, ignore_errors=True)
            write(place)
            _move(place, target, replace=half)
    except OSError as error:
        raise WeightsError(f"{target}: cannot be written ({cause(error)})") from error
    except WeightsError as error:
        raise WeightsError(str(error).replace(str(place), str(target))) from error


def _move(place: Path, target: Path, replace: bool) -> None:
    """Moves all files of a directory into another one, or none; the configuration last."""
    moved: list[Path] = []
    try:
        names = sorted(os.listdir(place), key=lambda name: name == CONFIG)
        if not replace and (there := [name for name in names if (target / name).exists()]):
            raise WeightsError(f"{target} has a file {there[0]} of its own: choose another directory")
        for name in names:
            os.rename(place / name, target / name)
            moved.append(target / name)
    except BaseException:
        for path in moved:
            with suppress(OSError):
                path.unlink()
        raise
    finally:
        shutil.rmtree(place, ignore_errors=True)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise WeightsError(f"{directory}: another run is writing it: wait for it, or choose another path") from None
        yield
    finally:
        os.close(descriptor)
