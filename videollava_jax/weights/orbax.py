"""Orbax directories: written group by group in little memory, read tensor by tensor or straight onto a mesh."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
import numpy.typing as npt
from orbax.checkpoint import v1 as ocp

from videollava_jax.weights.errors import WeightsError
from videollava_jax.weights.files import StoredTensor, drop_from_cache

PARAMETERS = "params"  # the Orbax checkpoint inside a directory of ours
GROUP_BYTES = 256 * 2**20
"""Tensors are written, and read for conversion, in groups of so many bytes: few calls, little memory."""


def is_orbax(directory: Path) -> bool:
    """Whether a directory is one of ours."""
    return os.path.isdir(directory / PARAMETERS)  # not is_dir(), which raises where the directory may not be entered


def write_orbax(directory: Path, groups: Iterable[Mapping[str, npt.NDArray[Any]]]) -> None:
    """Writes arrays by name into a directory, each group before the next is asked for."""
    path = directory / PARAMETERS
    for group in groups:
        with _context(), _told(path, "write"):
            ocp.partial.save(path, dict(group))
        drop_from_cache(directory)
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
            drop_from_cache(self.path)
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
    with _context(), _told(path) as told:
        stored = ocp.metadata(path).metadata
        if not isinstance(stored, dict) or not all(hasattr(leaf, "shape") for leaf in stored.values()):
            raise WeightsError(f"{path}: Orbax cannot read it ({told.log() or 'expected arrays by name'})")
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
    """Orbax's errors, of many kinds, as one of ours that says it all.

    Orbax logs much about an error as well, in tracebacks, and TensorStore's threads write theirs when they come to an
    event loop that the error has closed. What is logged meanwhile is kept back until it is known that all went well.
    """

    def __init__(self, path: Path, doing: str = "read"):
        self.path, self.doing = path, doing
        self.records: list[logging.LogRecord] = []

    def __enter__(self) -> _told:
        logging.getLogger("absl").addFilter(self._keep)
        self.unraisable = sys.unraisablehook
        if not isinstance(sys.unraisablehook, _OfOpenLoops):
            sys.unraisablehook = _OfOpenLoops(self.unraisable)
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        logger = logging.getLogger("absl")
        logger.removeFilter(self._keep)
        if error is None:
            sys.unraisablehook = self.unraisable
            for record in self.records:
                logger.handle(record)
        elif isinstance(error, Exception) and not isinstance(error, WeightsError):
            why = f"{type(error).__name__}: {_shortened(str(error))}"
            raise WeightsError(f"{self.path}: Orbax cannot {self.doing} it ({why})") from error

    def log(self) -> str:
        """The last that was logged: of damaged metadata, Orbax tells the cause there alone."""
        return _shortened(self.records[-1].getMessage().split("Error details:")[-1]) if self.records else ""

    def _keep(self, record: logging.LogRecord) -> bool:
        if record.levelno >= logging.WARNING:
            self.records.append(record)
        return record.levelno < logging.WARNING


@dataclass(frozen=True)
class _OfOpenLoops:
    """A `sys.unraisablehook` that passes over the event loops that were closed; it stays when an error has come, since
    threads may still be on their way."""

    otherwise: Callable[[sys.UnraisableHookArgs], object]

    def __call__(self, unraisable: sys.UnraisableHookArgs) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            self.otherwise(unraisable)


def _shortened(text: str) -> str:
    """On one line, without TensorStore's specification: the tensor is told at its beginning, the cause at its end."""
    line = " ".join(text.split()).split(" [tensorstore_spec")[0]
    return line if len(line) <= 400 else f"{line[:200]} … {line[-200:]}"
