"""Loads the model of a run onto its mesh, in the dtypes of the recipe, with trained and frozen parameters apart."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy.typing as npt
from jax.sharding import Mesh
from jax.typing import DTypeLike

from videollava_jax.config import ModelConfig
from videollava_jax.model.sharding import Placement, make_mesh
from videollava_jax.processing.processor import VideoLlavaProcessor
from videollava_jax.training.run.recipe import Compute, Recipe
from videollava_jax.training.update.lora import initial_lora
from videollava_jax.training.update.model import TrainingModel
from videollava_jax.training.update.options import is_lora, is_tower
from videollava_jax.training.update.parameters import Parameters, kept_dtype, placed, stack
from videollava_jax.weights.loading import load_checkpoint


@dataclass(frozen=True)
class Loaded:
    """A model on a mesh.

    Attributes:
      config: of the model.
      model: the functions of its parameters.
      trained, frozen: its parameters by name, layers stacked; together they have the names of `model.shapes`.
    """

    config: ModelConfig
    model: TrainingModel
    trained: Parameters
    frozen: Parameters

    def without_towers(self) -> Loaded:
        """Returns the model without the towers' parameters, for a run that reads features."""
        return replace(self, frozen={name: value for name, value in self.frozen.items() if not is_tower(name)})


def mesh_of(compute: Compute) -> Mesh:
    """Makes the mesh that a recipe asks for, from the devices of all processes.

    Raises:
      ValueError: the devices do not make this mesh, or devices of different processes would share rows.
    """
    devices, tensor = len(jax.devices()), compute.tensor
    data = compute.data or devices // tensor
    if data * tensor != devices and (jax.process_count() > 1 or compute.data is None):
        raise ValueError(f"compute: expected a mesh of all {devices} devices, got data × tensor = {data} × {tensor}")
    mesh = make_mesh(data, tensor)
    if any(len({device.process_index for device in shard}) > 1 for shard in mesh.devices):
        raise ValueError(
            f"compute.tensor: {tensor} devices of different processes would share rows; expected a number that divides "
            f"the {len(jax.local_devices())} devices of each process, which loads rows of its own"
        )
    return mesh


def load(directory: Path, recipe: Recipe, mesh: Mesh, processor: VideoLlavaProcessor) -> Loaded:
    """Loads a checkpoint in any layout; each process reads an Orbax directory's own shards only.

    Raises:
      WeightsError: what does not fit or is damaged, all listed at once.
    """
    compute = recipe.compute
    config, parameters = load_checkpoint(
        directory, placement=lambda config: Placement(config, mesh).stored, int8=compute.int8
    )
    placement = Placement(config, mesh)
    model = TrainingModel(
        config,
        preprocess=processor.preprocessors,
        placement=placement,
        dtype=compute.dtype,
        lora=recipe.lora,
        quantization="int8" if compute.int8 else None,
        remat=compute.remat,
        loss_chunk=compute.loss_chunk,
        loss_vocabulary=config.text_vocab_size if recipe.data.loss_vocabulary == "text" else None,
    )
    stacked = stack(parameters, placement)
    narrow = {name: shape for name, shape in model.shapes.items() if is_lora(name)}
    stacked |= placed(initial_lora(narrow, jax.random.key(recipe.seed)), placement)
    for name in list(stacked):
        dtype = kept_dtype(name, model.shapes, recipe.rates, trained=compute.trained_dtype, frozen=compute.dtype)
        if stacked[name].dtype != dtype:
            stacked[name] = _cast(stacked.pop(name), dtype)
    return Loaded(config, model, *recipe.rates.split(stacked))


def rows_on_devices(x: npt.NDArray[Any], placement: Placement, rows: int) -> jax.Array:
    """Shards an array over all devices by rows.

    Args:
      x: this process's rows.
      rows: of the whole array.
    """
    shape, sharding = (rows, *x.shape[1:]), placement.batch(rows)
    array: jax.Array = jax.make_array_from_process_local_data(sharding, x, shape)  # type: ignore[no-untyped-call]
    return array


@partial(jax.jit, static_argnums=1)
def _cast(x: jax.Array, dtype: DTypeLike) -> jax.Array:
    return x.astype(dtype)
