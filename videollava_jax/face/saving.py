"""Saves a model as transformers' `save_pretrained` does: also into a directory that has the processor's files."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

from videollava_jax.hub import local_path
from videollava_jax.weights import WeightsError
from videollava_jax.weights.convert import SHARD_BYTES, SIDE_FILES

_UNITS: dict[str, int] = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_NEXT_TO_WEIGHTS = {*SIDE_FILES, "README.md", ".gitattributes"}


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

    The weights appear under their names when all of them are written, the configuration last.

    Args:
      write: called with a path. It makes a directory there, or raises a WeightsError where one is in its way.

    Raises:
      WeightsError: writing fails, or the directory holds something else.
    """
    target = local_path(directory)
    if not target.is_dir() or not _NEXT_TO_WEIGHTS.issuperset(os.listdir(target)):
        write(target)
        return
    with tempfile.TemporaryDirectory(dir=target, prefix=".saving-") as place:
        made = Path(place) / "model"
        write(made)
        names = sorted(os.listdir(made), key=lambda name: name == "config.json")
        if there := [name for name in names if (target / name).exists()]:
            raise WeightsError(f"{target} has a file {there[0]} of its own: choose another directory")
        for name in names:
            os.rename(made / name, target / name)
