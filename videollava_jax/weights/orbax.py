"""Orbax directories: written group by group in little memory, read tensor by tensor or straight onto a mesh."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jax
import numpy as np
import numpy.typing as npt
import orbax.checkpoint as v0
import tensorstore as ts
from orbax.checkpoint import type_handlers
from orbax.checkpoint import v1 as ocp

from videollava_jax.weights.errors import WeightsError
from videollava_jax.weights.files import StoredTensor, drop_from_cache
from videollava_jax.weights.memory import empty

PARAMETERS = "params"  # the Orbax checkpoint inside a directory of ours
_ITEM = "state"  # what Orbax calls the one tree of a checkpoint
GROUP_BYTES = 256 * 2**20
"""Tensors are written, and read for conversion, in groups of so many bytes: few calls, little memory."""


def write_orbax(
    directory: Path, tensors: Iterable[StoredTensor], groups: Iterable[Mapping[str, npt.NDArray[Any]]]
) -> None:
    """Writes arrays by name into a directory, each group before the next is asked for.

    Args:
      directory: exists.
      tensors: names, shapes and dtypes of all.
      groups: the arrays themselves, in any order.
    """
    path = directory.absolute() / PARAMETERS
    feeding = _Feeding(groups, path)
    handler = v0.PyTreeCheckpointHandler(
        use_zarr3=True,
        use_compression=False,  # weights do not compress
        type_handler_registry=type_handlers.create_type_handler_registry(
            (jax.Array, type_handlers.ArrayHandler()), (np.ndarray, feeding)
        ),
    )
    items = v0.handlers.DefaultCheckpointHandlerRegistry()
    items.add(_ITEM, v0.args.PyTreeSave, handler)
    tree = {tensor.name: _of_no_memory(tensor.shape, tensor.dtype) for tensor in tensors}
    try:
        with (
            _told(path, "write"),
            v0.Checkpointer(v0.CompositeCheckpointHandler(handler_registry=items)) as checkpointer,
        ):
            checkpointer.save(path, v0.args.Composite(**{_ITEM: v0.args.PyTreeSave(tree)}))
    except WeightsError:
        if feeding.error is not None:  # what the groups raised is not Orbax's
            raise feeding.error from None
        raise


class _Feeding(type_handlers.NumpyHandler):  # type: ignore[misc]
    """Orbax's handler of NumPy arrays, which takes them a group at a time, where Orbax's own wants to hold them all.

    `ocp.partial.save` takes them so as well, and compares every name with every other after each group: of a thousand
    tensors, that takes longer than to write them.
    """

    def __init__(self, groups: Iterable[Mapping[str, npt.NDArray[Any]]], path: Path):
        super().__init__()
        self.groups, self.path = iter(groups), path
        self.error: Exception | None = None

    async def serialize(
        self, values: Sequence[Any], infos: Sequence[Any], args: Sequence[Any] | None = None
    ) -> list[Any]:
        """Writes the groups; `values` are placeholders and are not looked at."""
        assert args is not None
        places = {info.name: (info, arg) for info, arg in zip(infos, args, strict=True)}
        dropped: set[Path] = set()
        while (group := self._next()) is not None:
            of_group = [places.pop(name) for name in group]
            for future in await super().serialize(
                list(group.values()), [info for info, _ in of_group], [arg for _, arg in of_group]
            ):
                future.result()
            new = {path for path in self.path.parent.rglob("d/*") if path not in dropped}
            for path in new:
                drop_from_cache(path)
            dropped |= new
        assert not places, f"no arrays came for {list(places)[:5]}"
        return []

    def _next(self) -> Mapping[str, npt.NDArray[Any]] | None:
        try:
            return next(self.groups, None)
        except Exception as error:
            self.error = error
            raise


def open_orbax(directory: Path) -> dict[str, StoredTensor]:
    """The tensors of a directory of ours, none of them read.

    Raises:
      WeightsError: Orbax cannot read it.
    """
    path = directory / PARAMETERS
    stored = _metadata(path)
    with _told(path):
        opened = _Opened(path)
        return {name: opened.tensor(name, tuple(leaf.shape), np.dtype(leaf.dtype)) for name, leaf in stored.items()}


def open_layers(checkpoint: Path, inside: str, stacked: str) -> dict[str, StoredTensor]:
    """The arrays of a dictionary inside a tree that Orbax has written as "state", layers one by one; none is read.

    Args:
      checkpoint: the directory that holds "state".
      inside: the dictionary's key in the tree.
      stacked: what in a name stands for all layers, ".*.": such an array has its layers along the first axis, and each
        becomes a tensor with its number there.

    Raises:
      WeightsError: there is no such tree, or Orbax cannot read it.
    """
    with _told(checkpoint):
        opened = _Opened(checkpoint)
        leaves = json.loads((opened.state / "_METADATA").read_bytes())["tree_metadata"].values()
    found: dict[str, StoredTensor] = {}
    for leaf in leaves:
        root, *keys = (key["key"] for key in leaf["key_metadata"])
        if root != inside or len(keys) != 1:
            continue
        (name,) = keys
        array = opened.array(f"{inside}.{name}")
        shape, dtype = tuple(array.shape), array.dtype.numpy_dtype
        if stacked not in name:
            found[name] = StoredTensor(
                name, shape, dtype, checkpoint, _Reader(checkpoint, f"{inside}.{name}", shape, dtype, opened)
            )
            continue
        for i in range(shape[0]):
            layer = name.replace(stacked, f".{i}.")
            read = _Reader(checkpoint, f"{inside}.{name}", shape[1:], dtype, opened, i)
            found[layer] = StoredTensor(layer, shape[1:], dtype, checkpoint, read)
    if not found:
        raise WeightsError(f"{checkpoint}: expected a checkpoint with arrays under {inside!r}, found none")
    return found


def restore_orbax(directory: Path, targets: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """Restores arrays with the dtype and the sharding that each target says; a process reads its own shards alone.

    Raises:
      WeightsError: Orbax cannot read it.
    """
    with _context(), _told(directory / PARAMETERS):
        loaded: dict[str, jax.Array] = ocp.load(directory / PARAMETERS, dict(targets))
    return loaded


class _Opened:
    """An Orbax directory that is read tensor by tensor, through TensorStore, into arrays of ours."""

    def __init__(self, path: Path):
        self.path = path
        self.state = path.absolute() / _ITEM
        self.driver = "zarr3" if json.loads((self.state / "_METADATA").read_bytes()).get("use_zarr3") else "zarr"
        self.context = ts.Context({"cache_pool": {"total_bytes_limit": 10**8}})  # for the nodes of OCDBT's tree
        self.unsynced = 0

    def tensor(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> StoredTensor:
        return StoredTensor(name, shape, dtype, self.path, _Reader(self.path, name, shape, dtype, self))

    def array(self, name: str) -> Any:
        """TensorStore's view of an array."""
        spec = {
            "driver": self.driver,
            "kvstore": {"driver": "ocdbt", "base": f"file://{quote(str(self.state))}/", "path": f"{name}/"},
            "fill_missing_data_reads": False,  # what is not there is an error, not zeros
        }
        with _told(self.path):
            return ts.open(spec, read=True, context=self.context).result()

    def read_into(self, name: str, index: int | None, array: npt.NDArray[Any]) -> None:
        whole = self.array(name)
        with _told(self.path):
            ts.array(array).write(whole if index is None else whole[index]).result()
        self.unsynced += array.nbytes
        if self.unsynced >= GROUP_BYTES:
            drop_from_cache(self.path)
            self.unsynced = 0


@dataclass(frozen=True)
class _Reader:
    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    opened: _Opened = field(compare=False)
    layer: int | None = None

    def __call__(self) -> npt.NDArray[Any]:
        array = empty(self.shape, self.dtype)
        self.opened.read_into(self.name, self.layer, array)
        return array


def _of_no_memory(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """Tells Orbax of an array: one of no memory, of that shape and dtype."""
    return np.broadcast_to(np.zeros((), dtype), shape)


def _metadata(path: Path) -> dict[str, Any]:
    with _context(), _told(path) as told:
        stored = ocp.metadata(path).metadata
        if not isinstance(stored, dict) or not all(hasattr(leaf, "shape") for leaf in stored.values()):
            raise WeightsError(f"{path}: Orbax cannot read it ({told.log() or 'expected arrays by name'})")
    return stored


def _context() -> Any:
    context = ocp.Context()
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
