"""The parameters of training as a model for inference: each layer an array of its own, in the dtype of compute.

A stack of layers is taken apart, as decoding updates the cache of one layer at a time. That needs memory for a second
copy of the layers while the model is used; what has no layers is shared with training where dtype and sharding agree.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any

import jax
from flax import nnx
from jax.sharding import NamedSharding
from jax.typing import DTypeLike

from videollava_jax.config import ModelConfig
from videollava_jax.generation.loaded import LoadedModel
from videollava_jax.model.layers import Quantization
from videollava_jax.model.sharding import STACKED, Placement, resharded
from videollava_jax.model.structure import HashedGraph
from videollava_jax.model.video_llava import State, abstract_model, structure
from videollava_jax.training.update.lora import adapt
from videollava_jax.training.update.model import TrainingModel
from videollava_jax.training.update.options import Lora
from videollava_jax.training.update.parameters import Parameters


@contextmanager
def inference_model(
    model: TrainingModel, parameters: Parameters, placement: Placement, generation_config: dict[str, Any] | None
) -> Iterator[LoadedModel]:
    """Gives the model of these parameters, on the same mesh; its copies of parameters are deleted at the end.

    Low-rank adapters stay apart and are added to each product, so that int8 weights keep what they are.

    Args:
      model: whose parameters they are.
      parameters: all of `model.shapes`, layers stacked.
      placement: of the model.
      generation_config: of the checkpoint that the run began with.
    """
    shared, copied = unstacked(model, parameters, placement)
    module = adapted_structure(model.config, model.quantization, model.lora)
    try:
        yield LoadedModel(
            model.config,
            shared | copied,
            generation_config,
            mesh=placement.mesh,
            quantization=model.quantization,
            module=module,
        )
    finally:
        for array in copied.values():
            array.delete()


@lru_cache(maxsize=4)
def adapted_structure(config: ModelConfig, quantization: Quantization | None, lora: Lora | None) -> tuple[Any, State]:
    """Returns the module's structure and its state with shapes (`structure`), with low-rank adapters in the decoder."""
    if lora is None:
        return structure(config, quantization)
    module = abstract_model(config, quantization=quantization)
    for layer in module.language_model.layers:
        adapt(layer, lora)
    graph, state = nnx.split(module)
    return HashedGraph.of(graph), state


def unstacked(model: TrainingModel, parameters: Parameters, placement: Placement) -> tuple[Parameters, Parameters]:
    """Returns parameters by the names of inference, in the dtype of compute, where inference has them on the mesh.

    Returns:
      Those that share their memory with `parameters`, and those that are copies.
    """
    shared: Parameters = {}
    copied: Parameters = {}
    for name, array in parameters.items():
        dtype = model.used_dtype(name, array)
        if STACKED not in name:
            sharding = placement.parameter(name, array.shape)
            if array.dtype == dtype and array.sharding.is_equivalent_to(sharding, array.ndim):
                shared[name] = jax.device_put(array, sharding)  # the axes' names in its type may be other ones
            else:
                copied[name] = _moved(array, dtype, sharding)
            continue
        sharding = placement.parameter(name.replace(STACKED, ".0."), array.shape[1:])
        layers = _layers(array, dtype, sharding)
        copied |= {name.replace(STACKED, f".{i}."): layer for i, layer in enumerate(layers)}
    return shared, copied


@partial(jax.jit, static_argnums=(1, 2))
def _moved(array: jax.Array, dtype: DTypeLike, sharding: NamedSharding) -> jax.Array:
    return resharded(array.astype(dtype), sharding)


@partial(jax.jit, static_argnums=(1, 2))
def _layers(array: jax.Array, dtype: DTypeLike, sharding: NamedSharding) -> list[jax.Array]:
    return [resharded(array[i].astype(dtype), sharding) for i in range(len(array))]
