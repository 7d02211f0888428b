"""Loading checkpoints onto devices: each tensor is read once, cast and placed; Orbax restores straight onto a mesh."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from tqdm import tqdm

from videollava_jax.config import ModelConfig
from videollava_jax.hub import StrPath
from videollava_jax.model.layers import quantize_rows
from videollava_jax.model.sharding import put
from videollava_jax.weights.checkpoint import ORBAX, Checkpoint, open_checkpoint
from videollava_jax.weights.files import StoredTensor
from videollava_jax.weights.manifest import Verify
from videollava_jax.weights.quantize import SCALE, is_quantizable, pairs, quantize_tensors
from videollava_jax.weights.source import Source

Parameters = dict[str, jax.Array]
Place = Callable[[str, tuple[int, ...]], jax.sharding.Sharding]
"""Gives the sharding of a parameter by its name and shape."""


def load_checkpoint(
    directory: StrPath,
    dtype: DTypeLike | None = None,
    *,
    placement: Callable[[ModelConfig], Place] | None = None,
    int8: bool = False,
    verify: Verify = "fast",
) -> tuple[ModelConfig, Parameters]:
    """Loads a checkpoint in any known layout; returns its configuration, and its parameters by our names.

    Args:
      directory: in one of transformers' layouts, the authors', or what `convert_to_orbax` wrote.
      dtype: of the parameters; None keeps each tensor's own.
      placement: gives the sharding of each parameter for a configuration; None puts all on the first device. Of an
        Orbax directory, each process reads only its own shards.
      int8: load the decoder's projections as int8 with their scales, whatever the checkpoint holds; otherwise int8
        weights become floats.
      verify: how a directory with a manifest is checked: "full" hashes every tensor, in one more pass over the
        bytes; "fast" compares files, names, shapes and dtypes; "off" checks nothing.

    Raises:
      WeightsError: what does not fit or differs from the manifest, all listed at once.
    """
    source = Source.open(directory)
    checkpoint = open_checkpoint(source)
    source.require_intact(verify)
    first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    place = (lambda name, shape: first) if placement is None else placement(checkpoint.config)
    if checkpoint.layout == ORBAX:
        return checkpoint.config, _from_orbax(checkpoint, source.stored, dtype, place, int8)
    return checkpoint.config, _from_files(checkpoint, dtype, place, int8)


def _from_orbax(
    checkpoint: Checkpoint, stored: Mapping[str, StoredTensor], dtype: DTypeLike | None, place: Place, int8: bool
) -> Parameters:
    from videollava_jax.weights.orbax import restore_orbax

    scales = pairs(stored)

    def target(name: str, tensor: StoredTensor) -> jax.ShapeDtypeStruct:
        # An int8 weight is cast after it was multiplied by its scale.
        kept = name in scales or name in scales.values() or dtype is None
        return jax.ShapeDtypeStruct(  # type: ignore[no-untyped-call]
            tensor.shape, tensor.dtype if kept else dtype, sharding=place(name, tensor.shape)
        )

    restored = restore_orbax(checkpoint.directory, {name: target(name, tensor) for name, tensor in stored.items()})
    if int8:
        for name in [name for name in restored if is_quantizable(name) and name not in scales]:
            restored[name], factors = quantize_rows(restored.pop(name))
            restored[name + SCALE] = jax.device_put(factors, place(name + SCALE, factors.shape))
        return restored
    for name, scale in scales.items():
        as_dtype = checkpoint.tensors[name].dtype if dtype is None else dtype
        restored[name] = _dequantize(restored[name], restored.pop(scale), jnp.dtype(as_dtype))
    return restored


@partial(jax.jit, static_argnums=2)
def _dequantize(weight: jax.Array, scale: jax.Array, dtype: np.dtype[Any]) -> jax.Array:
    return (weight.astype(jnp.float32) * scale[:, None]).astype(dtype)


def _from_files(checkpoint: Checkpoint, dtype: DTypeLike | None, place: Place, int8: bool) -> Parameters:
    parameters: Parameters = {}
    tensors = list(checkpoint.tensors.values())
    tensors = quantize_tensors(tensors) if int8 else tensors
    scaled = {tensor.name + SCALE for tensor in tensors if tensor.dtype == np.int8}
    for tensor in tqdm(tensors, desc="loading", unit="tensor", disable=None, leave=False):
        name, array = tensor.name, tensor.read()
        if dtype is not None and array.dtype != np.int8 and name not in scaled:
            array = array.astype(np.dtype(dtype))
        parameters[name] = put(array, place(name, tensor.shape))
    return parameters
