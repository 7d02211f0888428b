"""Files of tensors, one tensor at a time: safetensors directories in and out, and torch's `.bin` files in.

A safetensors file, as the library documents it:

    8 bytes   length n of the header, little endian
    n bytes   JSON: name → {"dtype": "BF16", "shape": [4096, 11008], "data_offsets": [start, stop]}, "__metadata__"
    the rest  the tensors' bytes, little endian, row after row, without gaps
"""

from __future__ import annotations

import contextlib
import fnmatch
import io
import json
import math
import os
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from videollava_jax.weights.errors import WeightsError, cause
from videollava_jax.weights.memory import empty

INDEX = "model.safetensors.index.json"
BIN_INDEX = "pytorch_model.bin.index.json"

SYNC_BYTES = 256 * 2**20
"""So much is written between two syncs with the disk."""

DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that has not been read yet.

    Attributes:
      name: as its file names it.
      shape, dtype: as the file says.
      file: where it lies.
      read: reads it into memory of its own, an array of `shape` and `dtype`.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    file: Path
    read: Callable[[], npt.NDArray[Any]]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize


def open_directory(directory: Path) -> dict[str, StoredTensor]:
    """Every tensor of a checkpoint directory, by name.

    Safetensors are preferred where both kinds lie side by side, as on the hub.

    Raises:
      WeightsError: no tensor files, a file that is damaged or not what it claims, or an index that does not agree
        with the files it names.
    """
    try:
        # Not is_dir() and glob(): they take a directory that may not be read for one that is not there, or is empty.
        there = sorted(path.name for path in directory.iterdir() if not path.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        raise WeightsError(f"{directory}: no such directory; expected one with a checkpoint in it") from None
    except (OSError, ValueError) as error:  # ValueError: no name of a file, such as one with a null byte
        raise WeightsError(f"{directory}: cannot be read ({cause(error)})") from None
    for index, pattern, opener in (
        (INDEX, "*.safetensors", open_safetensors),
        (BIN_INDEX, "pytorch_model*.bin", open_bin),
    ):
        if index in there:
            return _open_indexed(directory, _inside(directory, index, directory), opener)
        if files := fnmatch.filter(there, pattern):
            return _merged(opener(_inside(directory, file, directory)) for file in files)
    found = ", ".join(there[:8]) or "an empty directory"
    raise WeightsError(f"{directory}: expected *.safetensors or pytorch_model*.bin, found {found}")


def open_safetensors(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one safetensors file; the whole header is checked, no tensor is read.

    Raises:
      WeightsError: not a whole safetensors file, or dtypes that this project does not know.
    """
    try:
        with open(path, "rb") as file:
            # The library checks that the header is sound and that the tensors cover the file without gap or overlap.
            with safe_open(path, "np"):
                pass
            (length,) = struct.unpack("<Q", file.read(8))
            header: dict[str, Any] = json.loads(file.read(length), object_pairs_hook=_without_repeats)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({cause(error)})") from None
    except (SafetensorError, ValueError, RecursionError, struct.error) as error:
        raise WeightsError(f"{path}: not a whole safetensors file ({cause(error)}); fetch or copy it again") from None
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        if entry["dtype"] not in DTYPES:
            raise WeightsError(f"{path}: tensor {name}: dtype {entry['dtype']}, expected one of {', '.join(DTYPES)}")
        dtype, shape = DTYPES[entry["dtype"]], tuple(entry["shape"])
        start, stop = entry["data_offsets"]
        tensors[name] = StoredTensor(
            name, shape, dtype, path, _Reader(path, name, 8 + length + start, stop - start, dtype, shape)
        )
    return tensors


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object in which no key comes twice: two readers could take different ones."""
    entries = dict(pairs)
    if len(entries) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"{twice} is there twice")
    return entries


@dataclass(frozen=True)
class _Reader:
    path: Path
    name: str
    offset: int
    nbytes: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    def __call__(self) -> npt.NDArray[Any]:
        # Not mapped but read: pages of a map would count as memory of this process.
        try:
            array = empty(self.shape, self.dtype)
            with open(self.path, "rb", buffering=0) as file:
                file.seek(self.offset)
                whole = _fill(file, array)
        except (OSError, MemoryError) as error:
            raise WeightsError(f"{self.path}: tensor {self.name} cannot be read ({cause(error)})") from None
        if not whole:
            raise WeightsError(f"{self.path}: ends inside tensor {self.name}: it was cut short while being read")
        return array


def _fill(file: io.FileIO, array: npt.NDArray[Any]) -> bool:
    """Reads on into an array; whether the file held so much."""
    rest = memoryview(array.reshape(-1).view(np.uint8))
    while rest:
        count = file.readinto(rest)  # a system call reads 2 GiB at the most
        if not count:
            return False
        rest = rest[count:]
    return True


def open_bin(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a torch `.bin` file, through the loader that cannot run code (`weights_only`).

    Raises:
      WeightsError: torch is not installed, the file holds more than tensors, or it is damaged.
    """
    try:
        import torch
    except ImportError:
        raise WeightsError(
            f"{path}: reading .bin files needs torch (pip install 'videollava-jax[torch]'); better: fetch the "
            "checkpoint as safetensors, which cannot carry code"
        ) from None
    try:
        held = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # pickle's, zip's and torch's own, of many kinds
        raise WeightsError(
            f"{path}: torch's safe loader refuses it ({type(error).__name__}): damaged, or it holds more than tensors; "
            "ask its author for safetensors"
        ) from None
    if not isinstance(held, dict):
        raise WeightsError(f"{path}: expected names and tensors, got a {type(held).__name__}")
    for name, tensor in held.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise WeightsError(f"{path}: expected names and tensors, got a {type(tensor).__name__} for {name!r}")
        # What is sparse, or has a shape without values, does not hold its bytes as a tensor of this project does.
        if tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise WeightsError(f"{path}: tensor {name}: {tensor.layout} on {tensor.device}, expected values row by row")

    def stored(name: str, tensor: Any) -> StoredTensor:
        dtype = DTYPES.get(_TORCH_NAMES.get(str(tensor.dtype), ""))
        if dtype is None:
            raise WeightsError(f"{path}: tensor {name}: dtype {tensor.dtype}, expected one of {', '.join(DTYPES)}")

        def read() -> npt.NDArray[Any]:
            try:
                raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
            except (RuntimeError, MemoryError) as error:  # a file can say that one value is repeated without an end
                raise WeightsError(f"{path}: tensor {name} cannot be read ({cause(error)})") from None
            return np.array(raw.view(dtype)).reshape(tensor.shape)

        return StoredTensor(name, tuple(tensor.shape), dtype, path, read)

    return {name: stored(name, tensor) for name, tensor in held.items()}


_TORCH_NAMES = {
    "torch.float64": "F64",
    "torch.float32": "F32",
    "torch.float16": "F16",
    "torch.bfloat16": "BF16",
    "torch.int64": "I64",
    "torch.int32": "I32",
    "torch.int16": "I16",
    "torch.int8": "I8",
    "torch.uint8": "U8",
    "torch.bool": "BOOL",
}


def _open_indexed(
    directory: Path, index: Path, opener: Callable[[Path], dict[str, StoredTensor]]
) -> dict[str, StoredTensor]:
    try:
        weight_map = json.loads(index.read_bytes())["weight_map"]
        by_file: dict[str, set[str]] = {}
        for name, file in weight_map.items():
            by_file.setdefault(file, set()).add(name)
        if not all(isinstance(file, str) for file in by_file):
            raise TypeError("file names that are not text")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{index}: expected an index with a weight_map of names to files ({cause(error)})") from None
    paths, problems = {}, []
    for file in by_file:
        try:
            paths[file] = _inside(directory, file, index)
        except WeightsError as error:
            problems.append(str(error))
    if problems:
        raise WeightsError("\n".join(problems))
    opened = {file: opener(path) for file, path in paths.items()}
    for file, names in by_file.items():
        problems += [f"{file} lacks {name}" for name in sorted(names - opened[file].keys())]
        problems += [f"the index lacks {name} of {file}" for name in sorted(opened[file].keys() - names)]
    if problems:
        raise WeightsError(f"{index}: does not agree with its files:\n  " + "\n  ".join(problems))
    return _merged(opened.values())


def _inside(directory: Path, file: str, told_by: Path) -> Path:
    """The path of a file that lies in the checkpoint's directory or where the hub's cache keeps those of its snapshots.

    Raises:
      WeightsError: it lies elsewhere, is not there, or is no file: a pipe or a device could be read without an end.
    """
    path = directory / file
    try:
        real, home = path.resolve(), directory.resolve()
        homes = [home, home.parents[1] / "blobs"] if home.parent.name == "snapshots" else [home]
        inside, there = path.parent == directory and real.parent in homes, path.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # a name too long, a null byte, links in a circle
        raise WeightsError(f"{told_by}: {path} cannot be opened ({cause(error)})") from None
    if not inside:
        raise WeightsError(f"{told_by}: {path} lies outside the checkpoint's directory")
    if not there:
        raise WeightsError(f"{told_by}: {path} is not there, or is not a file")
    return path


def _merged(opened: Iterable[Mapping[str, StoredTensor]]) -> dict[str, StoredTensor]:
    merged: dict[str, StoredTensor] = {}
    for tensors in opened:
        for name, tensor in tensors.items():
            if name in merged:
                raise WeightsError(f"tensor {name} is in two files: {merged[name].file} and {tensor.file}")
            merged[name] = tensor
    return merged


def drop_from_cache(path: Path) -> None:
    """Lets go of what the page cache holds of a file, or of all files below a directory, that is on the disk.

    Who passes over a large checkpoint once would else fill the memory with it, and the kernel takes longer to make
    room, page by page, than the disk to read.
    """
    if not hasattr(os, "posix_fadvise"):
        return
    for file in [path] if path.is_file() else [below for below in path.rglob("*") if below.is_file()]:
        with contextlib.suppress(OSError), open(file, "rb") as opened:  # advice, and no more
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


# ── writing ─────────────────────────────────────────────────────────────────────────────────────────────────


def write_safetensors_directory(
    directory: Path, specs: Iterable[StoredTensor], arrays: Iterator[npt.NDArray[Any]], *, max_shard_bytes: int
) -> None:
    """Writes tensors, each asked for when its turn comes, as transformers shards them: an index beside them.

    Args:
      directory: exists.
      specs: names, shapes and dtypes.
      arrays: the arrays themselves, in the same order.
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
    for _ in arrays:  # to its end: what comes behind its last array, the checks of a stream, is part of the writing
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
    """Waits, beside the writing of what comes next, until the disk has what was written."""
    os.fdatasync(descriptor)
    drop_from_cache(path)
