"""Orbax directories: written group by group in little memory, read tensor by tensor or straight onto a mesh.

Importing Orbax takes as long as importing JAX: whoever opens other checkpoints imports this module when it is needed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
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
from videollava_jax.weights.files import PARAMETERS, StoredTensor, drop_from_cache
from videollava_jax.weights.memory import GROUP_BYTES, empty
from videollava_jax.weights.orbax_errors import OrbaxErrors

_ITEM = "state"  # what Orbax calls the one tree of a checkpoint


def write_orbax(
    directory: Path, tensors: Iterable[StoredTensor], groups: Iterable[Mapping[str, npt.NDArray[Any]]]
) -> None:
    """Writes arrays by name into a directory, each group before the next is asked for.

    Args:
      directory: exists.
      tensors: names, shapes and dtypes of all.
      groups: the arrays by name, in any order.
    """
    path = directory / PARAMETERS
    handler_of_groups = _GroupsHandler(groups, path)
    handler = v0.PyTreeCheckpointHandler(
        use_zarr3=True,
        use_compression=False,  # weights do not compress
        type_handler_registry=type_handlers.create_type_handler_registry(
            (jax.Array, type_handlers.ArrayHandler()), (np.ndarray, handler_of_groups)
        ),
    )
    items = v0.handlers.DefaultCheckpointHandlerRegistry()
    items.add(_ITEM, v0.args.PyTreeSave, handler)
    # Made by a thread, a directory that cannot be made keeps whoever writes into it waiting for five minutes.
    options = v0.CompositeOptions(async_options=v0.AsyncOptions(create_directories_asynchronously=False))
    tree = {tensor.name: _placeholder(tensor.shape, tensor.dtype) for tensor in tensors}
    try:
        with (
            OrbaxErrors(path, "write"),
            v0.Checkpointer(
                v0.CompositeCheckpointHandler(handler_registry=items, composite_options=options)
            ) as checkpointer,
        ):
            checkpointer.save(path, v0.args.Composite(**{_ITEM: v0.args.PyTreeSave(tree)}))
    except WeightsError:
        if handler_of_groups.error is not None:  # the groups raised it, not Orbax
            raise handler_of_groups.error from None
        raise


class _GroupsHandler(type_handlers.NumpyHandler):  # type: ignore[misc]
    """A handler that gives NumPy arrays to Orbax a group at a time; Orbax's own needs all of them in memory.

    `ocp.partial.save` takes groups as well, but compares every name with every other after each group: for a thousand
    tensors that takes longer than writing them.
    """

    def __init__(self, groups: Iterable[Mapping[str, npt.NDArray[Any]]], path: Path):
        super().__init__()
        self.groups, self.path = iter(groups), path
        self.error: Exception | None = None

    async def serialize(
        self, values: Sequence[Any], infos: Sequence[Any], args: Sequence[Any] | None = None
    ) -> list[Any]:
        """Writes the groups; ignores `values`, which are placeholders."""
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
    """Opens the tensors of a directory that `convert_to_orbax` wrote; reads none.

    Args:
      directory: an absolute path.

    Raises:
      WeightsError: Orbax cannot read it.
    """
    path = directory / PARAMETERS
    stored = _metadata(path)
    with OrbaxErrors(path):
        opened = _Opened(path)
        return {name: opened.tensor(name, tuple(leaf.shape), np.dtype(leaf.dtype)) for name, leaf in stored.items()}


def open_layers(checkpoint: Path, inside: str, stacked: str) -> dict[str, StoredTensor]:
    """Opens the arrays of one dictionary in a tree that Orbax has written as "state"; reads none.

    Args:
      checkpoint: the directory that holds "state", an absolute path.
      inside: the dictionary's key in the tree.
      stacked: the part of a name, ".*.", that says that the array holds a layer at each index of its first axis; each
        layer becomes a tensor of its own, with its number in that part.

    Raises:
      WeightsError: there is no such tree, or Orbax cannot read it.
    """
    with OrbaxErrors(checkpoint):
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
    """Restores arrays with the dtype and the sharding of their targets; each process reads only its own shards.

    Raises:
      WeightsError: Orbax cannot read it.
    """
    with _context(), OrbaxErrors(directory / PARAMETERS):
        loaded: dict[str, jax.Array] = ocp.load(directory / PARAMETERS, dict(targets))
    return loaded


class _Opened:
    """An Orbax directory that is read tensor by tensor, through TensorStore, into given arrays."""

    def __init__(self, path: Path):
        self.path = path
        self.state = path / _ITEM
        self.driver = "zarr3" if json.loads((self.state / "_METADATA").read_bytes()).get("use_zarr3") else "zarr"
        self.context = ts.Context({"cache_pool": {"total_bytes_limit": 10**8}})  # for the nodes of OCDBT's tree
        self.unsynced = 0

    def tensor(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> StoredTensor:
        return StoredTensor(name, shape, dtype, self.path, _Reader(self.path, name, shape, dtype, self))

    def array(self, name: str) -> Any:
        """Returns TensorStore's handle of an array."""
        spec = {
            "driver": self.driver,
            "kvstore": {"driver": "ocdbt", "base": f"file://{quote(str(self.state))}/", "path": f"{name}/"},
            "fill_missing_data_reads": False,  # missing data are an error, not zeros
        }
        with OrbaxErrors(self.path):
            return ts.open(spec, read=True, context=self.context).result()

    def read_into(self, name: str, index: int | None, array: npt.NDArray[Any]) -> None:
        whole = self.array(name)
        with OrbaxErrors(self.path):
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


def _placeholder(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """Returns an array of a shape and dtype that takes no memory, for Orbax's metadata."""
    return np.broadcast_to(np.zeros((), dtype), shape)


def _metadata(path: Path) -> dict[str, Any]:
    with _context(), OrbaxErrors(path) as errors:
        stored = ocp.metadata(path).metadata
        if not isinstance(stored, dict) or not all(hasattr(leaf, "shape") for leaf in stored.values()):
            raise WeightsError(f"{path}: Orbax cannot read it ({errors.log() or 'expected arrays by name'})")
    return stored


def _context() -> Any:
    context = ocp.Context()
    context.memory.read_concurrent_bytes = 2 * GROUP_BYTES
    context.pytree.loading.partial_load = True
    return context
