"""Orbax directories: written group by group in little memory, read tensor by tensor or straight onto a mesh."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
import numpy.typing as npt
from orbax.checkpoint import v1 as ocp

from videollava_jax.weights.errors import WeightsError
from videollava_jax.weights.files import StoredTensor

PARAMETERS = "params"  # the Orbax checkpoint inside a directory of ours
GROUP_BYTES = 256 * 2**20
"""Tensors are written, and read for conversion, in groups of so many bytes: few calls, little memory."""


def is_orbax(directory: Path) -> bool:
    """Whether a directory is one of ours."""
    return (directory / PARAMETERS).is_dir()


def write_orbax(directory: Path, groups: Iterable[Mapping[str, npt.NDArray[Any]]]) -> None:
    """Writes arrays by name into a directory, each group before the next is asked for."""
    path = directory / PARAMETERS
    for group in groups:
        with _context(), _told(path, "write"):
            ocp.partial.save(path, dict(group))
    with _context(), _told(path, "write"):
        ocp.partial.finalize(path)


def open_orbax(directory: Path) -> dict[str, StoredTensor]:
    """The tensors of a directory of ours, none of them read.

    Raises:
      WeightsError: Orbax cannot read it.
    """
    path = directory / PARAMETERS
    stored = _metadata(path)
    reader = _GroupReader(path, stored)

    def tensor(name: str, leaf: Any) -> StoredTensor:
        return StoredTensor(name, tuple(leaf.shape), np.dtype(leaf.dtype), path, lambda: reader.read(name))

    with _told(path):
        return {name: tensor(name, leaf) for name, leaf in stored.items()}


def restore_orbax(directory: Path, targets: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """Restores arrays with the dtype and the sharding that each target says; a process reads its own shards alone.

    Raises:
      WeightsError: Orbax cannot read it.
    """
    with _context(), _told(directory / PARAMETERS):
        loaded: dict[str, jax.Array] = ocp.load(directory / PARAMETERS, dict(targets))
    return loaded


@dataclass
class _GroupReader:
    """Reads the group that a name is in, and keeps it until another is asked for: a pass in order reads each once."""

    path: Path
    stored: Mapping[str, Any]
    held: dict[str, npt.NDArray[Any]] = field(default_factory=dict)

    def read(self, name: str) -> npt.NDArray[Any]:
        if name not in self.held:
            self.held = {}
            names = next(group for group in self._groups() if name in group)
            with _context(), _told(self.path):
                loaded = ocp.load(self.path, {key: _on_host(self.stored[key]) for key in names})
            self.held = {key: np.asarray(value) for key, value in loaded.items()}
        return self.held[name]

    def _groups(self) -> Iterator[list[str]]:
        group: list[str] = []
        size = 0
        for name, leaf in self.stored.items():
            nbytes = int(np.prod(leaf.shape, dtype=np.int64)) * np.dtype(leaf.dtype).itemsize
            if group and size + nbytes > GROUP_BYTES:
                yield group
                group, size = [], 0
            group.append(name)
            size += nbytes
        yield group


def _on_host(leaf: Any) -> np.ndarray[Any, Any]:
    """What asks Orbax for a NumPy array: one of no memory, of that shape and dtype."""
    return np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)


def _metadata(path: Path) -> dict[str, Any]:
    with _context(), _told(path):
        stored = ocp.metadata(path).metadata
    if not isinstance(stored, dict) or not all(hasattr(leaf, "shape") for leaf in stored.values()):
        raise WeightsError(f"{path}: expected arrays by name, got something else")
    return stored


def _context() -> Any:
    context = ocp.Context()
    context.array.saving.use_compression = False  # weights do not compress
    context.array.saving.enable_post_merge_validation = False  # the manifest does more
    context.memory.deepcopy_host_arrays = False
    context.memory.read_concurrent_bytes = 2 * GROUP_BYTES
    context.pytree.loading.partial_load = True
    return context


class _told:
    """Orbax's errors, of many kinds, as one of ours."""

    def __init__(self, path: Path, doing: str = "read"):
        self.path, self.doing = path, doing

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, WeightsError):
            text = " ".join(str(error).split())[:160]
            raise WeightsError(f"{self.path}: Orbax cannot {self.doing} it ({type(error).__name__}: {text})") from error
