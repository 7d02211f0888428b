"""Comparing a checkpoint with its manifest, and two checkpoints of any layouts with each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from videollava_jax.hub import StrPath
from videollava_jax.weights.checkpoint import Checkpoint
from videollava_jax.weights.errors import WeightsError
from videollava_jax.weights.files import StoredTensor
from videollava_jax.weights.manifest import Verify
from videollava_jax.weights.reading import read_ahead
from videollava_jax.weights.source import Source


def verify_checkpoint(directory: StrPath | Source, level: Verify = "full") -> list[str]:
    """Compares a checkpoint with its manifest; returns a sentence for each difference.

    Args:
      directory: of a checkpoint or an adapter, or what `Source.open` returned for it.
      level: "full" reads and hashes every tensor, at the speed of the disk or of SHA-256; "fast" compares files,
        names, shapes and dtypes, in milliseconds; "off" compares nothing.

    Raises:
      WeightsError: there is no manifest, or the checkpoint cannot even be opened.
    """
    if level == "off":
        return []
    source = Source.open(directory)
    if source.manifest is None:
        raise WeightsError(
            f"{directory}: expected a manifest.json in the checkpoint's directory, as `convert` and `export` write it"
        )
    return source.problems(level)


@dataclass(frozen=True)
class Difference:
    """A difference between two checkpoints in one tensor.

    Attributes:
      name: of the tensor, by our names.
      what: "only in the first", "only in the second", "shape", "dtype" or "values".
      detail: the two shapes or dtypes; for values, how many differ and by how much at most.
    """

    name: str
    what: str
    detail: str = ""


@dataclass(frozen=True)
class Comparison:
    """The result of comparing two checkpoints.

    Attributes:
      equal: number of tensors that are equal to the bit.
      differences: of all others.
    """

    equal: int
    differences: tuple[Difference, ...]


def compare_checkpoints(first: Checkpoint, second: Checkpoint) -> Comparison:
    """Compares two checkpoints tensor by tensor, by our names; the layouts may differ."""
    differences = [Difference(n, "only in the first") for n in first.tensors if n not in second.tensors]
    differences += [Difference(n, "only in the second") for n in second.tensors if n not in first.tensors]
    common = {name: tensor for name, tensor in first.tensors.items() if name in second.tensors}
    equal = 0
    for name, array in read_ahead(common, "compare"):
        difference = _difference(name, array, second.tensors[name])
        if difference is None:
            equal += 1
        else:
            differences.append(difference)
    return Comparison(equal, tuple(differences))


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
