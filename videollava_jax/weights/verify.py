"""Proof: a checkpoint against its own manifest, and one checkpoint against another, in any layouts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from videollava_jax.weights.checkpoint import Checkpoint, open_checkpoint, stored_tensors
from videollava_jax.weights.errors import WeightsError
from videollava_jax.weights.files import StoredTensor
from videollava_jax.weights.manifest import Manifest, Verify, check_arrays, check_files, read_manifest, require
from videollava_jax.weights.memory import reused_memory


def verify_checkpoint(directory: Path, level: Verify = "full") -> list[str]:
    """What differs between a checkpoint and the manifest beside it; empty if nothing does.

    Args:
      level: "full" reads and hashes every tensor, at the speed of the disk or of SHA-256; "fast" looks at the
        files, names, shapes and dtypes, in milliseconds; "off" looks at nothing.

    Raises:
      WeightsError: there is no manifest, or the checkpoint cannot even be opened.
    """
    if level == "off":
        return []
    manifest = read_manifest(directory)
    if manifest is None:
        raise WeightsError(
            f"{directory}: expected a manifest.json beside the checkpoint, as `convert` and `export` write"
        )
    tensors = stored_tensors(directory)
    problems = check_files(directory, manifest, tensors)
    return problems + check_tensors(manifest, tensors) if level == "full" else problems


def check_tensors(manifest: Manifest, tensors: Mapping[str, StoredTensor]) -> list[str]:
    """Reads tensors and says which are not what the manifest says; empty if all are."""
    return check_arrays(manifest, _read(tensors, "verify"))


def require_intact(directory: Path, level: Verify = "full") -> None:
    """Raises a WeightsError with all that `verify_checkpoint` finds; a checkpoint without a manifest is let pass."""
    if level != "off" and read_manifest(directory) is not None:
        require(directory, verify_checkpoint(directory, level))


@dataclass(frozen=True)
class Difference:
    """A tensor that two checkpoints hold differently.

    Attributes:
      what: "only in the first", "only in the second", "shape", "dtype" or "values".
      detail: the two shapes or dtypes; of values, how many differ and by how much at most.
    """

    name: str
    what: str
    detail: str = ""


@dataclass(frozen=True)
class Comparison:
    """Two checkpoints side by side: how many tensors are equal to the bit, and what differs."""

    equal: int
    differences: tuple[Difference, ...]


def compare_checkpoints(first: Checkpoint, second: Checkpoint) -> Comparison:
    """Compares two checkpoints tensor by tensor, by our names; the layouts may differ."""
    differences = [Difference(n, "only in the first") for n in first.tensors if n not in second.tensors]
    differences += [Difference(n, "only in the second") for n in second.tensors if n not in first.tensors]
    common = {name: tensor for name, tensor in first.tensors.items() if name in second.tensors}
    equal = 0
    for name, array in _read(common, "compare"):
        difference = _difference(name, array, second.tensors[name])
        if difference is None:
            equal += 1
        else:
            differences.append(difference)
    return Comparison(equal, tuple(differences))


def compare_directories(first: Path, second: Path) -> Comparison:
    """`compare_checkpoints` of two directories."""
    return compare_checkpoints(open_checkpoint(first), open_checkpoint(second))


def _difference(name: str, array: npt.NDArray[Any], stored: StoredTensor) -> Difference | None:
    if array.shape != stored.shape:
        return Difference(name, "shape", f"{array.shape} and {stored.shape}")
    other = stored.read()
    if array.dtype == other.dtype and array.tobytes() == other.tobytes():
        return None
    gap = np.abs(array.astype(np.float32) - other.astype(np.float32))
    most = "NaN on one side" if np.isnan(gap).any() else f"by up to {gap.max(initial=0):.3g}"
    detail = f"{int(np.count_nonzero(gap)):,} of {gap.size:,} values, {most}"
    if array.dtype != other.dtype:
        return Difference(name, "dtype", f"{array.dtype.name} and {other.dtype.name}; {detail}")
    return Difference(name, "values", detail)


def _read(tensors: Mapping[str, StoredTensor], title: str) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """Every tensor in turn; the next is read while one is looked at."""
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
