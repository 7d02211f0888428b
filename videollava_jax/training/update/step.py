"""A training step: sums the gradients of micro-batches, then updates once.

    accumulate   a micro-batch   ▶ the gradients of its summed loss are added to the sums
    update       the sums        ▶ divided by the number of targets, clipped, applied; the sums are zero again

A step has as many micro-batches as its samples fill. Sums are divided once, at the end: the result is that of one large
batch, however many targets each micro-batch has.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from videollava_jax.model.sharding import like, put, resharded, spec_of
from videollava_jax.training.update.loss import LossSums
from videollava_jax.training.update.model import Batch, TrainingModel
from videollava_jax.training.update.parameters import Parameters


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sums:
    """The sums over the micro-batches of a step so far.

    Attributes:
      gradients: float32, of the summed loss, by name.
      loss: the summed loss and the number of targets.
    """

    gradients: Parameters
    loss: LossSums


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """The state of training after an update; a run resumes from it.

    Attributes:
      trained: the trained parameters, in their stored dtype.
      optimizer: their optax state.
      step: int32 scalar, the number of updates.
      skipped: int32 scalar, the number of updates left out because their gradients were not finite.
    """

    trained: Parameters
    optimizer: Any
    step: jax.Array
    skipped: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class StepReport:
    """The metrics of a step.

    Attributes:
      loss: float32, the mean over the targets of the step.
      tokens: int32, the number of targets.
      gradient_norm: float32, before clipping.
      finite: bool; if False, the update was skipped.
    """

    loss: jax.Array
    tokens: jax.Array
    gradient_norm: jax.Array
    finite: jax.Array


class Trainer:
    """The compiled functions of a model and an optimiser.

    Args:
      seed: of the dropout; a micro-batch's key is derived from the seed, the step and its index in the step.
    """

    def __init__(self, model: TrainingModel, optimizer: optax.GradientTransformation, *, seed: int = 0):
        self.model, self.optimizer = model, optimizer
        self._dropout = model.lora is not None and model.lora.dropout > 0
        self._seed = seed
        self.accumulate = jax.jit(self._accumulate, donate_argnums=0)
        self.update = jax.jit(self._update, donate_argnums=(0, 1))

    def begin(self, trained: Parameters) -> TrainState:
        """Returns the state before the first step; moments are sharded like their parameters."""
        # A state of zeros depends on no parameter, so its shardings have to be given.
        state = jax.jit(self.optimizer.init, out_shardings=self.optimizer_shardings(trained))(trained)
        return TrainState(trained, state, self._scalar(0), self._scalar(0))

    def no_sums(self, trained: Parameters) -> Sums:
        """Returns the sums before the first micro-batch: zeros."""

        def zeros(x: jax.Array) -> jax.Array:
            return jnp.zeros(x.shape, jnp.float32, device=x.sharding)

        return Sums(jax.tree.map(zeros, trained), LossSums(self._scalar(0.0), self._scalar(0)))

    def optimizer_shardings(self, trained: Parameters) -> Any:
        """Returns the shardings of the optimiser's state: moments like their parameters, counts on all devices.

        Args:
          trained: parameters, or their shapes, on the placement's mesh.

        Returns:
          A sharding for each array of the state; None where the model has no placement.
        """
        placement = self.model.placement
        if placement is None:
            return None
        return optax.tree.map_params(
            self.optimizer,
            lambda _, parameter: parameter.sharding,
            jax.eval_shape(self.optimizer.init, trained),
            trained,
            transform_non_params=lambda _: placement.replicated,
        )

    def _accumulate(
        self, sums: Sums, trained: Parameters, frozen: Parameters, batch: Batch, step: jax.Array, index: jax.Array
    ) -> Sums:
        key = None
        if self._dropout:
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(self._seed), step), index)

        def loss(trained: Parameters) -> tuple[jax.Array, LossSums]:
            found = self.model.loss(frozen | trained, batch, key)
            return found.loss, found

        gradients, found = jax.grad(loss, has_aux=True)(trained)
        return Sums(
            jax.tree.map(lambda total, new: total + new.astype(jnp.float32), sums.gradients, gradients),
            LossSums(sums.loss.loss + found.loss, sums.loss.tokens + found.tokens),
        )

    def _update(self, state: TrainState, sums: Sums) -> tuple[TrainState, Sums, StepReport]:
        tokens = jnp.maximum(sums.loss.tokens, 1).astype(jnp.float32)
        gradients = jax.tree.map(lambda x: x / tokens, sums.gradients)
        norm = optax.tree.norm(gradients)
        finite = jnp.isfinite(norm) & jnp.isfinite(sums.loss.loss)
        updates, optimizer = self.optimizer.update(gradients, state.optimizer, state.trained)
        trained = optax.apply_updates(state.trained, updates)

        def if_finite(new: Any, old: Any) -> Any:
            return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)

        done = finite.astype(jnp.int32)
        after = TrainState(
            if_finite(trained, state.trained),
            if_finite(optimizer, state.optimizer),
            state.step + 1,
            state.skipped + 1 - done,
        )
        report = StepReport(sums.loss.loss / tokens, sums.loss.tokens, norm, finite)
        return after, jax.tree.map(_zeros, sums), report

    def _scalar(self, value: int | float) -> jax.Array:
        """Puts a number on all devices."""
        number = jnp.asarray(value, jnp.int32 if isinstance(value, int) else jnp.float32)
        placement = self.model.placement
        return number if placement is None else put(number, placement.replicated)


def _zeros(x: jax.Array) -> jax.Array:
    """Returns zeros with the sharding of `x`."""
    return resharded(jnp.zeros_like(x), like(x, *spec_of(x)))
