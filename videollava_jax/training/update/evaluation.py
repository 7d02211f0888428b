"""Evaluation on held-out samples during a run: their loss, and how many answers are exactly right."""

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
    """The result on held-out samples.

    Attributes:
      loss: the mean over all targets.
      exact: samples whose every target is the likeliest token: greedy decoding answers them word for word.
      samples: the number of samples.
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
      samples: the most samples in one row.
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
        """Returns scalars: the summed loss, the numbers of targets, of exact samples and of samples with a target."""
        logits = whole(self._model.logits(parameters, batch), axis=-1)
        learnt = batch.targets != IGNORED_LABEL
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(batch.targets, 0))
        wrong = learnt & (logits.argmax(axis=-1) != batch.targets)

        def in_sample(flags: jax.Array) -> jax.Array:
            """Says for each sample of a row whether any of its tokens has the flag: [R, samples]."""
            of = batch.segments[:, :, None] == 1 + jnp.arange(self._samples)
            return (of & flags[:, :, None]).any(axis=1)

        asked, failed = in_sample(learnt), in_sample(wrong)
        return jnp.where(learnt, losses, 0).sum(), learnt.sum(), (asked & ~failed).sum(), asked.sum()
