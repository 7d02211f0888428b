"""Tensors read one after the other, the next one while the last one is used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy.typing as npt
from tqdm import tqdm

from videollava_jax.weights.files import StoredTensor
from videollava_jax.weights.memory import reused_memory


def read_ahead(tensors: Mapping[str, StoredTensor], title: str) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """Reads tensors in order, each while its predecessor is in use.

    Args:
      tensors: by any names.
      title: of the progress bar.

    Yields:
      the names with the arrays.
    """
    total = sum(tensor.nbytes for tensor in tensors.values())
    with (
        reused_memory(),
        ThreadPoolExecutor(1) as reader,
        tqdm(total=total, desc=title, unit="B", unit_scale=True, disable=None, leave=False) as bar,
    ):
        reads = (reader.submit(tensor.read) for tensor in tensors.values())
        ahead = next(reads, None)
        for name, tensor in tensors.items():
            assert ahead is not None
            array = ahead.result()
            ahead = next(reads, None)
            yield name, array
            bar.update(tensor.nbytes)
