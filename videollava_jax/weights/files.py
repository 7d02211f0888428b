"""Files of tensors, opened without reading a tensor: safetensors, and torch's `.bin` files.

A safetensors file, as the library documents it:

    8 bytes   length n of the header, little endian
    n bytes   JSON: name → {"dtype": "BF16", "shape": [4096, 11008], "data_offsets": [start, stop]}, "__metadata__"
    the rest  the tensors' bytes, little endian, row after row, without gaps
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import math
import os
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from videollava_jax.extras import installs
from videollava_jax.weights.errors import WeightsError, cause
from videollava_jax.weights.memory import empty

INDEX = "model.safetensors.index.json"
BIN_INDEX = "pytorch_model.bin.index.json"
PARAMETERS = "params"  # the Orbax checkpoint inside the directory that `convert_to_orbax` writes

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
      name: in its file, or by our names.
      shape, dtype: of the array that `read` returns.
      file: that holds it.
      read: reads or computes it; returns an array with memory of its own.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    file: Path
    read: Callable[[], npt.NDArray[Any]]

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all values."""
        return self.size * self.dtype.itemsize

    def cast(self, dtype: np.dtype[Any]) -> StoredTensor:
        """Returns the tensor in another dtype, cast when it is read; itself where it has the dtype already."""
        if self.dtype == dtype:
            return self

        def read() -> npt.NDArray[Any]:
            with np.errstate(all="ignore"):  # what overflows float16 is counted when it is written
                return self.read().astype(dtype)

        return dataclasses.replace(self, dtype=dtype, read=read)


def open_safetensors(path: Path) -> dict[str, StoredTensor]:
    """Opens a safetensors file; checks its whole header and reads no tensor.

    Raises:
      WeightsError: not a whole safetensors file, or a dtype that is not in `DTYPES`.
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
    """Makes a dict of a JSON object; refuses one with a key twice, since readers differ in which they take."""
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
        # Read and not mapped: mapped pages would count as memory of this process.
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
    """Reads from a file until the array is full; returns False where the file ends before."""
    rest = memoryview(array.reshape(-1).view(np.uint8))
    while rest:
        count = file.readinto(rest)  # a system call reads 2 GiB at the most
        if not count:
            return False
        rest = rest[count:]
    return True


def open_bin(path: Path) -> dict[str, StoredTensor]:
    """Opens a torch `.bin` file with the loader that cannot run code (`weights_only`).

    Raises:
      WeightsError: torch is not installed, the file holds more than tensors, or it is damaged.
    """
    try:
        import torch
    except ImportError:
        raise WeightsError(
            f"{path}: reading .bin files needs torch ({installs('torch')}); better: fetch the checkpoint as "
            "safetensors, which cannot carry code"
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
        # Sparse tensors and those on "meta" have no bytes in row order.
        if tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise WeightsError(f"{path}: tensor {name}: {tensor.layout} on {tensor.device}, expected values row by row")

    def stored(name: str, tensor: Any) -> StoredTensor:
        dtype = DTYPES.get(_TORCH_NAMES.get(str(tensor.dtype), ""))
        if dtype is None:
            raise WeightsError(f"{path}: tensor {name}: dtype {tensor.dtype}, expected one of {', '.join(DTYPES)}")

        def read() -> npt.NDArray[Any]:
            try:
                raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
            except (RuntimeError, MemoryError) as error:  # a file can declare one value repeated any number of times
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


def drop_from_cache(path: Path) -> None:
    """Drops a file, or all files below a directory, from the page cache, as far as the disk has them.

    One pass over a large checkpoint would fill the memory with its pages, and the kernel takes longer to free them one
    by one than the disk takes to read.
    """
    if not hasattr(os, "posix_fadvise"):
        return
    for file in [path] if path.is_file() else [below for below in path.rglob("*") if below.is_file()]:
        with contextlib.suppress(OSError), open(file, "rb") as opened:  # it is only advice
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
