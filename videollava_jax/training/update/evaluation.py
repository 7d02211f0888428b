"""Held-out samples while a run goes on: their loss, and how many answers come out whole."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax

from videollava_jax.model.sharding import whole
from videollava_jax.processing.segments import IGNORED_LABEL
from videollava_jax.training.update.model import Batch, TrainingModel
from videollava_jax.training.update.parameters import Parameters


@dataclass(frozen=True)
class Evaluation:
    """What held-out samples say.

    Attributes:
      loss: the mean over their targets.
      exact: samples whose every target is the likeliest token: those that greedy decoding answers word for word.
      samples: how many there are.
    """

    loss: float
    exact: int
    samples: int

    @property
    def accuracy(self) -> float:
        """The share of samples that are answered exactly."""
        return self.exact / max(1, self.samples)


class Evaluator:
    """The compiled function that evaluates micro-batches.

    Args:
      samples: the most in a row.
    """

    def __init__(self, model: TrainingModel, samples: int):
        self._model, self._samples = model, samples
        self._run = jax.jit(self._of_batch)

    def __call__(self, parameters: Parameters, batches: Iterable[Batch]) -> Evaluation:
        """Evaluates micro-batches together."""
        sums = np.zeros(4)
        for batch in batches:
            sums += np.asarray(self._run(parameters, batch), np.float64)
        loss, tokens, exact, samples = sums
        return Evaluation(float(loss / max(1, tokens)), int(exact), int(samples))

    def _of_batch(self, parameters: Parameters, batch: Batch) -> tuple[jax.Array, ...]:
        """float32 and int32 scalars: the loss's sum, targets, exact samples, samples that have a target."""
        logits = whole(self._model.logits(parameters, batch), axis=-1)
        learnt = batch.targets != IGNORED_LABEL
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(batch.targets, 0))
        wrong = learnt & (logits.argmax(axis=-1) != batch.targets)

        def in_sample(flags: jax.Array) -> jax.Array:
            """bool [R, samples]: whether any token of the sample is so."""
            of = batch.segments[:, :, None] == 1 + jnp.arange(self._samples)
            return (of & flags[:, :, None]).any(axis=1)

        asked, failed = in_sample(learnt), in_sample(wrong)
        return jnp.where(learnt, losses, 0).sum(), learnt.sum(), (asked & ~failed).sum(), asked.sum()
