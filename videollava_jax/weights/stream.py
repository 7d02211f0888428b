"""Tensors on their way from a checkpoint to a writer: read ahead, checked for values that are not finite, hashed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from videollava_jax.weights.errors import WeightsError
from videollava_jax.weights.files import StoredTensor, drop_from_cache
from videollava_jax.weights.manifest import TensorHash, require, tensor_hash
from videollava_jax.weights.memory import GROUP_BYTES, reused_memory

Array = npt.NDArray[Any]


class Stream:
    """Reads tensors a group ahead of the writer, and checks and hashes each group while it is being written.

    reader     read 1 │ read 2        │ read 3        │ …
    checker           │ check, hash 1 │ check, hash 2 │ …
    writer            │ write 1       │ write 2       │ …

    Args:
      directory: that the tensors come from, for messages.
      tensors: to stream, in order.
      expected: hashes by the manifest of those that are copied unchanged.
      allow_nonfinite: let NaN and infinity pass.
      title: of the progress bar.

    Attributes:
      tensors: as given.
      hashes: of what has been read so far.
    """

    def __init__(
        self,
        directory: Path,
        tensors: list[StoredTensor],
        expected: Mapping[str, TensorHash],
        *,
        allow_nonfinite: bool,
        title: str,
    ):
        self._directory, self.tensors, self._expected = directory, tensors, expected
        self._allow_nonfinite, self._title = allow_nonfinite, title
        self.hashes: dict[str, TensorHash] = {}
        self._nonfinite: dict[str, tuple[int, int]] = {}

    def groups(self) -> Iterator[list[tuple[StoredTensor, Array]]]:
        """Yields the groups in order; when the last one has been taken, all hashes and counts are complete."""
        total = sum(tensor.nbytes for tensor in self.tensors)
        with (
            reused_memory(),
            ThreadPoolExecutor(1) as reader,
            ThreadPoolExecutor(1) as checker,
            tqdm(total=total, desc=self._title, unit="B", unit_scale=True, disable=None, leave=False) as bar,
        ):
            groups = _grouped(self.tensors, GROUP_BYTES)
            ahead = reader.submit(_read, next(groups, []))
            while group := ahead.result():
                ahead = reader.submit(_read, next(groups, []))
                checked = checker.submit(self._check, group)
                yield group
                checked.result()
                bar.update(sum(tensor.nbytes for tensor, _ in group))

    def _check(self, group: list[tuple[StoredTensor, Array]]) -> None:
        for tensor, array in group:
            if not self._allow_nonfinite and (counts := nonfinite(array)) != (0, 0):
                self._nonfinite[tensor.name] = counts
            self.hashes[tensor.name] = tensor_hash(array)

    def require_intact(self) -> None:
        """Raises a WeightsError with the tensors whose hashes are not those of the source's manifest."""
        wrong = [name for name, expected in self._expected.items() if self.hashes[name] != expected]
        require(self._directory, [f"tensor {name}: its SHA-256 is not the manifest's" for name in wrong])

    def require_finite(self) -> None:
        """Raises a WeightsError with the counts of NaN and infinite values, tensor by tensor."""
        if self._nonfinite:
            lines = [f"{name}: {nans} NaN, {infs} infinite" for name, (nans, infs) in self._nonfinite.items()]
            raise WeightsError(
                f"{self._directory}: {len(lines)} tensors hold values that are not finite (--allow-nonfinite lets them "
                "pass):\n  " + "\n  ".join(lines[:50])
            )


def _read(group: list[StoredTensor]) -> list[tuple[StoredTensor, Array]]:
    arrays = [(tensor, tensor.read()) for tensor in group]
    for file in {tensor.file for tensor in group if tensor.file.is_file()}:
        drop_from_cache(file)
    return arrays


_EXPONENT: dict[str, tuple[type[np.unsignedinteger[Any]], int]] = {
    "float16": (np.uint16, 0x7C00),
    "bfloat16": (np.uint16, 0x7F80),
    "float32": (np.uint32, 0x7F800000),
}
_BLOCK = 2**17  # values that stay in a core's cache while they are checked


def nonfinite(array: Array) -> tuple[int, int]:
    """Returns (how many values are NaN, how many are infinite)."""
    if np.issubdtype(array.dtype, np.integer):
        return 0, 0
    if array.dtype.name not in _EXPONENT:
        return int(np.isnan(array).sum()), int(np.isinf(array).sum())
    kind, exponent = _EXPONENT[array.dtype.name]
    bits = np.ascontiguousarray(array).reshape(-1).view(kind)
    masked = np.empty(min(len(bits), _BLOCK), kind)
    most = 0
    for start in range(0, len(bits), _BLOCK):
        block = bits[start : start + _BLOCK]
        most = max(most, int(np.bitwise_and(block, kind(exponent), out=masked[: len(block)]).max()))
    if most < exponent:
        return 0, 0
    values = array.astype(np.float32)
    return int(np.isnan(values).sum()), int(np.isinf(values).sum())


def _grouped(tensors: Iterable[StoredTensor], nbytes: int) -> Iterator[list[StoredTensor]]:
    """Groups neighbours, up to `nbytes` a group."""
    group: list[StoredTensor] = []
    size = 0
    for tensor in tensors:
        if group and size + tensor.nbytes > nbytes:
            yield group
            group, size = [], 0
        group.append(tensor)
        size += tensor.nbytes
    if group:
        yield group
