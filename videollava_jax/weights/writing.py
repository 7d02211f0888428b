"""Directories of safetensors written tensor by tensor, in shards with an index as transformers writes them."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from videollava_jax.weights.errors import WeightsError
from videollava_jax.weights.files import DTYPE_NAMES, INDEX, StoredTensor, drop_from_cache

SYNC_BYTES = 256 * 2**20
"""Bytes that are written between two syncs with the disk."""


def write_safetensors_directory(
    directory: Path, specs: Iterable[StoredTensor], arrays: Iterator[npt.NDArray[Any]], *, max_shard_bytes: int
) -> None:
    """Writes tensors in shards with an index, as transformers does; holds one array at a time.

    Args:
      directory: exists.
      specs: names, shapes and dtypes.
      arrays: yields the arrays in the same order; each is taken when the one before it is written.
      max_shard_bytes: of one file; a tensor that is larger gets a file of its own.
    """
    shards: list[list[StoredTensor]] = [[]]
    for spec in specs:
        if shards[-1] and sum(other.nbytes for other in shards[-1]) + spec.nbytes > max_shard_bytes:
            shards.append([])
        shards[-1].append(spec)
    single = len(shards) == 1
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = "model.safetensors" if single else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_safetensors(directory / name, shard, arrays)
        weight_map |= {spec.name: name for spec in shard}
    for _ in arrays:  # A stream checks its tensors until its end, after the last array.
        raise WeightsError(f"{directory}: more arrays than names to write them under")
    if not single:
        total = sum(spec.nbytes for shard in shards for spec in shard)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _write_safetensors(path: Path, specs: list[StoredTensor], arrays: Iterator[npt.NDArray[Any]]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for spec in specs:
        header[spec.name] = {
            "dtype": DTYPE_NAMES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [offset, offset + spec.nbytes],
        }
        offset += spec.nbytes
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)  # tensors begin at a multiple of 8, as the library writes them
    with open(path, "wb") as file, ThreadPoolExecutor(1) as syncer:
        syncing: Future[None] | None = None
        file.write(struct.pack("<Q", len(raw)) + raw)
        unsynced = 0
        for spec in specs:
            array = next(arrays)
            if array.shape != spec.shape or array.dtype != spec.dtype:
                raise WeightsError(
                    f"{path}: tensor {spec.name}: expected {spec.dtype} {spec.shape}, got {array.dtype} {array.shape}"
                )
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
            unsynced += spec.nbytes
            if unsynced >= SYNC_BYTES:
                file.flush()
                if syncing is not None:
                    syncing.result()
                syncing = syncer.submit(_sync, file.fileno(), path)
                unsynced = 0
        if syncing is not None:
            syncing.result()
        file.flush()
        os.fsync(file.fileno())


def _sync(descriptor: int, path: Path) -> None:
    """Waits until the disk has what was written; runs in a thread of its own, while more is being written."""
    os.fdatasync(descriptor)
    drop_from_cache(path)
