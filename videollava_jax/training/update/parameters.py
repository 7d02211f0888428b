"""The model's parameters in the form of training: by name, layers stacked, sharded over all devices of a mesh."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Container, Mapping
from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from videollava_jax.model.sharding import STACKED, Placement, put, resharded
from videollava_jax.training.update.options import Rates

Parameters = dict[str, jax.Array]

_LAYER = re.compile(r"(?<=\.layers)\.(\d+)\.")


def stacked_names(names: Mapping[str, object]) -> dict[str, list[str]]:
    """Maps each name in training to the model's own: those of the layers in order, or the one name."""
    found: dict[str, dict[int, str]] = defaultdict(dict)
    for name in names:
        layer = _LAYER.search(name)
        found[_LAYER.sub(STACKED, name)][int(layer[1]) if layer else 0] = name
    return {name: [layers[i] for i in sorted(layers)] for name, layers in found.items()}


def stack(parameters: Parameters, placement: Placement | None = None) -> Parameters:
    """Stacks layers along a first axis, name by name, and removes the single layers from `parameters`.

    Args:
      parameters: by the model's names. Emptied: otherwise memory would hold the weights twice.
      placement: shards the result (`Placement.stored`); None where there is no mesh.
    """

    def together(name: str, layers: list[str]) -> jax.Array:
        arrays = [parameters.pop(layer) for layer in layers]
        shape = (len(arrays), *arrays[0].shape) if STACKED in name else arrays[0].shape
        sharding = None if placement is None else placement.stored(name, shape)
        if STACKED not in name:
            return resharded(arrays[0], sharding)
        stacked: jax.Array = jax.jit(jnp.stack, out_shardings=sharding)(arrays)
        return stacked

    return {name: together(name, layers) for name, layers in stacked_names(dict(parameters)).items()}


def kept_dtype(name: str, names: Container[str], rates: Rates, *, trained: DTypeLike, frozen: DTypeLike) -> jnp.dtype:
    """Returns the dtype that training keeps a parameter in: int8 weights and their float32 scales keep theirs.

    Args:
      names: of all parameters; a weight whose scale is among them is int8.
      trained, frozen: the dtypes of parameters with and without a learning rate.
    """
    if f"{name}_scale" in names:
        dtype: DTypeLike = jnp.int8
    elif name.endswith("_scale"):
        dtype = jnp.float32
    else:
        dtype = trained if rates.trains(name) else frozen
    found: jnp.dtype = jnp.dtype(dtype)
    return found


def placed(parameters: Parameters, placement: Placement | None) -> Parameters:
    """Moves stacked parameters to where training keeps them."""
    if placement is None:
        return parameters
    return {name: put(value, placement.stored(name, value.shape)) for name, value in parameters.items()}


def unstack(parameters: Parameters) -> Parameters:
    """Undoes `stack`: parameters by the model's names, each layer an array of its own."""
    single: Parameters = {}
    for name, array in parameters.items():
        if STACKED in name:
            single |= {name.replace(STACKED, f".{i}."): _layer(array, i) for i in range(len(array))}
        else:
            single[name] = array
    return single


@partial(jax.jit, static_argnums=1)
def _layer(array: jax.Array, index: int) -> jax.Array:
    return array[index]
