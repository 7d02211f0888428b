"""Compiles the two programs of a training step, with abstract arguments, for a mesh whose chips need not be here.

accumulate   forward and backward of a micro-batch    ┐ as `training/update/step.py` calls them: with the same
update       AdamW on the summed gradients            ┘ shapes, shardings and donation
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.typing import DTypeLike

from videollava_jax.model.sharding import Placement
from videollava_jax.planning.engine_programs import shard_bytes
from videollava_jax.planning.hlo.traffic import CompiledProgram, read_program
from videollava_jax.training.data.packing import RowShape
from videollava_jax.training.update.loss import LossSums
from videollava_jax.training.update.model import Batch, TrainingModel
from videollava_jax.training.update.optimizer import build_optimizer
from videollava_jax.training.update.options import Optimizer, Rates
from videollava_jax.training.update.parameters import kept_dtype
from videollava_jax.training.update.step import Sums, Trainer, TrainState

StepProgram = Literal["accumulate", "update"]


@dataclass(frozen=True, kw_only=True)
class CompiledStep:
    """A compiled program of the step, on one device.

    Attributes:
      resident: bytes that are held between programs, by kind: trained, frozen, optimizer, gradients.
      batch: bytes of the micro-batch.
      temporaries, code: bytes, by the compiler's memory analysis.
      flops: operations that the compiler counts; it does not count those in kernels.
      kernels: how many custom kernels it calls.
      text: its traffic and collectives, counted in its text.
    """

    resident: Mapping[str, int]
    batch: int
    temporaries: int
    code: int
    flops: float
    kernels: int
    text: CompiledProgram

    @property
    def total(self) -> int:
        """The bytes that a device needs while the program runs."""
        return sum(self.resident.values()) + self.batch + self.temporaries + self.code


def compile_step(
    program: StepProgram,
    model: TrainingModel,
    rates: Rates,
    row: RowShape,
    *,
    rows: int,
    frames: int = 8,
    optimizer: Optimizer | None = None,
    trained: DTypeLike = jnp.float32,
    frozen: DTypeLike = jnp.bfloat16,
) -> CompiledStep:
    """Compiles a program of the training step for the mesh of a model's placement.

    Args:
      program: "accumulate" or "update".
      model: with a placement.
      rates: learning rates, which say what is trained.
      row: the shape of a row.
      rows: rows of a micro-batch, on all devices together.
      frames: frames of each video.
      optimizer: its options; None for the default.
      trained, frozen: dtypes of parameters; int8 weights and their scales keep theirs.

    Raises:
      ValueError: the model has no placement.
      jax.errors.JaxRuntimeError: RESOURCE_EXHAUSTED if a device has too little memory.
    """
    placement = model.placement
    if placement is None:
        raise ValueError("compile_step: expected a model with a placement, to compile for its mesh")
    trainer = Trainer(model, build_optimizer(optimizer or Optimizer(), rates, 1000))
    parameters = abstract_parameters(model, rates, trained=trained, frozen=frozen)
    moving, still = rates.split(parameters)
    state, sums = abstract_state(trainer, placement, moving), abstract_sums(placement, moving)
    batch = abstract_batch(model, placement, row, rows, frames)
    number = _array((), jnp.int32, placement.replicated)
    compiled: Any
    if program == "accumulate":
        compiled = trainer.accumulate.lower(sums, moving, still, batch, number, number).compile()
    else:
        compiled = trainer.update.lower(state, sums).compile()
    memory, text = compiled.memory_analysis(), compiled.as_text()
    return CompiledStep(
        resident={
            "trained": shard_bytes(moving),
            "frozen": shard_bytes(still),
            "optimizer": shard_bytes(state.optimizer),
            "gradients": shard_bytes(sums.gradients),
        },
        batch=shard_bytes(batch) if program == "accumulate" else 0,
        temporaries=memory.temp_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        flops=float(compiled.cost_analysis().get("flops", 0.0)),
        kernels=text.count('custom_call_target="tpu_custom_call"'),
        text=read_program(text),
    )


def abstract_parameters(model: TrainingModel, rates: Rates, *, trained: DTypeLike, frozen: DTypeLike) -> dict[str, Any]:
    """Returns the parameters as shapes, with the shardings that training stores them in."""
    placement = model.placement
    assert placement is not None
    return {
        name: _array(
            shape,
            kept_dtype(name, model.shapes, rates, trained=trained, frozen=frozen),
            placement.stored(name, shape),
        )
        for name, shape in model.shapes.items()
    }


def abstract_state(trainer: Trainer, placement: Placement, trained: dict[str, Any]) -> TrainState:
    """Returns the state that `Trainer.begin` makes, as shapes with shardings."""
    shapes, shardings = jax.eval_shape(trainer.optimizer.init, trained), trainer.optimizer_shardings(trained)
    optimizer = jax.tree.map(lambda x, sharding: _array(x.shape, x.dtype, sharding), shapes, shardings)
    number = _array((), jnp.int32, placement.replicated)
    return TrainState(trained, optimizer, number, number)


def abstract_sums(placement: Placement, trained: dict[str, Any]) -> Sums:
    """Returns the sums that `Trainer.no_sums` makes, as shapes with shardings."""
    gradients = jax.tree.map(lambda x: _array(x.shape, jnp.float32, x.sharding), trained)
    zero, none = (_array((), dtype, placement.replicated) for dtype in (jnp.float32, jnp.int32))
    return Sums(gradients, LossSums(zero, none))


def abstract_batch(model: TrainingModel, placement: Placement, row: RowShape, rows: int, frames: int) -> Batch:
    """Returns a micro-batch as shapes with shardings."""
    S, split = model.config.vision_config.image_size, placement.batch(rows)
    ids = _array((rows, row.tokens), jnp.int32, split)
    return Batch(
        ids,
        ids,
        ids,
        ids,
        ids,
        images=_array((rows, row.images, S, S, 3), model.preprocess["image"].dtype, split),
        videos=_array((rows, row.videos, frames, S, S, 3), model.preprocess["video"].dtype, split),
    )


def _array(shape: tuple[int, ...], dtype: DTypeLike, sharding: NamedSharding | None) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)  # type: ignore[no-untyped-call]
