"""Merging an adapter into a checkpoint: W + scale · B @ A, computed when the tensor is read."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from videollava_jax.weights.adapters.bases import require_base
from videollava_jax.weights.adapters.config import compiles, listed
from videollava_jax.weights.adapters.names import ADAPTER_LAYOUTS, WEIGHT, module_name
from videollava_jax.weights.adapters.opening import Adapter, LowRank
from videollava_jax.weights.checkpoint import Checkpoint
from videollava_jax.weights.errors import WeightsError
from videollava_jax.weights.files import StoredTensor
from videollava_jax.weights.layouts import TEMPORAL, VOCABULARY

Array = npt.NDArray[Any]


def merge_adapter(checkpoint: Checkpoint, adapter: Adapter, *, trust_base: bool = False) -> Checkpoint:
    """Returns the checkpoint with the adapter merged into it; each tensor is computed when it is read.

    As in PEFT's `merge_and_unload`, the sum is computed in float32, or float64 for weights of float64, and cast to the
    weight's dtype at the end. Whole tensors are cast to the dtype of those that they replace. The authors' vocabulary
    matrices have no rows for media and padding: those rows stay the base's.

    Args:
      trust_base: the checkpoint is what the adapter was trained on, whatever the names of both say.

    Raises:
      WeightsError: the adapter was trained on another base (`require_base`), changes a tensor that the checkpoint does
        not have, has other shapes, or lacks modules that its configuration names; all listed at once.
    """
    if not trust_base:
        require_base(checkpoint, adapter)
    problems = [*_misfits(checkpoint, adapter), *_left_out(checkpoint, adapter)]
    if problems:
        raise WeightsError(
            f"{adapter.directory}: {len(problems)} parts of this adapter do not fit {checkpoint.directory}:\n  "
            + listed(problems)
        )
    tensors = dict(checkpoint.tensors)
    for name, whole in adapter.replaced.items():
        tensors[name] = _replaced(tensors[name], whole)
    for name, pair in adapter.lora.items():
        tensors[name] = _added(tensors[name], pair)
    return dataclasses.replace(checkpoint, tensors=tensors)


def _replaced(base: StoredTensor, whole: StoredTensor) -> StoredTensor:
    def read() -> Array:
        with np.errstate(all="ignore"):  # what overflows float16 is counted when it is written
            new = whole.read().astype(base.dtype)
        return new if new.shape == base.shape else np.concatenate([new, base.read()[len(new) :]])

    return dataclasses.replace(base, read=read)


def _added(base: StoredTensor, pair: LowRank) -> StoredTensor:
    wide = np.dtype(np.float64) if base.dtype == np.float64 else np.dtype(np.float32)

    def read() -> Array:
        weight = base.read()
        with np.errstate(all="ignore"):  # what is not finite is counted when it is written
            changed = pair.b.read().astype(wide) @ pair.a.read().astype(wide)
            changed *= wide.type(pair.scale)
            changed += weight[: len(changed)]  # NumPy casts it block by block
            new = changed.astype(base.dtype)
        return new if new.shape == base.shape else np.concatenate([new, weight[len(new) :]])

    return dataclasses.replace(base, read=read)


def _misfits(checkpoint: Checkpoint, adapter: Adapter) -> Iterator[str]:
    """Yields a sentence for each part of the adapter that has no tensor of its shape in the checkpoint."""
    for name, tensor in adapter.replaced.items():
        expected = _shape(checkpoint, adapter, name)
        if expected is None:
            yield f"unknown: {tensor.name} ({name} in our names)"
        elif tensor.shape != expected:
            yield f"shape of {tensor.name}: expected {expected}, got {tensor.shape} in {tensor.file.name}"
    for name, pair in adapter.lora.items():
        expected = _shape(checkpoint, adapter, name)
        if expected is None:
            yield f"unknown: {pair.a.name} ({name} in our names)"
        elif len(expected) != 2:
            yield f"{pair.a.name}: expected to be added to a matrix, and {name} is {expected}"
        elif (pair.b.shape[0], pair.a.shape[1]) != expected:
            rank, (out, width) = pair.rank, expected
            yield (
                f"shape of {pair.a.name} and its B: expected {(rank, width)} and {(out, rank)}, "
                f"got {pair.a.shape} and {pair.b.shape}"
            )


def _shape(checkpoint: Checkpoint, adapter: Adapter, name: str) -> tuple[int, ...] | None:
    """Returns the shape that the adapter's part for a tensor must have; None where there is no such tensor."""
    if name not in checkpoint.tensors:
        return None
    shape = checkpoint.tensors[name].shape
    if name in VOCABULARY and not ADAPTER_LAYOUTS[adapter.layout].media_rows:
        return (min(checkpoint.config.image_token_id, checkpoint.config.video_token_id), *shape[1:])
    return shape


def _left_out(checkpoint: Checkpoint, adapter: Adapter) -> Iterator[str]:
    """Yields a sentence for each module that the configuration names and the adapter has no tensors for.

    Only parts of the model (a tower, the decoder) for which the adapter has tensors are searched: the authors' towers,
    for example, are not loaded yet when PEFT selects modules. Attention over time may be missing from the adapter.
    """
    if adapter.config.get("layers_to_transform") is not None:
        return
    targets = _modules(adapter.config.get("target_modules"))
    excluded = _modules(adapter.config.get("exclude_modules"))
    layout = ADAPTER_LAYOUTS[adapter.layout]
    parts = {name.split(".")[0] for name in adapter.lora}
    for name, tensor in checkpoint.tensors.items():
        if name in adapter.lora or name in adapter.replaced or TEMPORAL in name or name.split(".")[0] not in parts:
            continue
        if name.endswith(WEIGHT) and len(tensor.shape) == 2:
            module = module_name(layout, name)
            if targets(module) and not excluded(module):
                yield f"missing: lora_A and lora_B of {module}, which target_modules names"


def _modules(named: Any) -> Callable[[str], bool]:
    """Returns a test of whether `target_modules` or `exclude_modules` names a module, as PEFT reads them."""
    if isinstance(named, str):
        if not compiles(named):
            return lambda module: False
        return lambda module: re.fullmatch(named, module) is not None
    if not isinstance(named, list):
        return lambda module: False
    ends = {str(end) for end in named}
    return lambda module: any(module[start:] in ends for start in _starts(module))


def _starts(module: str) -> Iterator[int]:
    """Yields the index where the module's name begins, and where each of its parts after a dot does."""
    yield 0
    yield from (match.end() for match in re.finditer(r"\.", module))
