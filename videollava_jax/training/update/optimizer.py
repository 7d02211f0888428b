"""AdamW with a learning rate for each group of parameters, a warm-up and a cosine, and clipping over all of them."""

from __future__ import annotations

import math

import optax

from videollava_jax.model.sharding import STACKED
from videollava_jax.training.update.options import GROUPS, Optimizer, Rates, group_of
from videollava_jax.training.update.parameters import Parameters


def build_optimizer(optimizer: Optimizer, rates: Rates, steps: int) -> optax.GradientTransformation:
    """Returns the gradient transformation for parameters by name.

    Args:
      optimizer: AdamW's options.
      rates: the peak learning rate of each group; a group without one is not changed.
      steps: of the whole run.
    """

    def at_its_rate(updates: Parameters, _: Parameters | None) -> Parameters:
        return {name: -(rates.of(group_of(name)) or 0.0) * update for name, update in updates.items()}

    return optax.chain(
        optax.clip_by_global_norm(optimizer.clip) if optimizer.clip else optax.identity(),
        optax.scale_by_adam(optimizer.b1, optimizer.b2, optimizer.eps, mu_dtype=optimizer.moments),
        optax.add_decayed_weights(optimizer.weight_decay, mask=_matrices),
        optax.scale_by_schedule(rate_schedule(optimizer, steps)),
        optax.stateless(at_its_rate),
    )


def rate_schedule(optimizer: Optimizer, steps: int) -> optax.Schedule:
    """Returns the share of the peak rates, 0 to 1, as a function of the number of updates done."""
    rising = math.ceil(optimizer.warmup * steps)
    if optimizer.schedule == "constant":
        return optax.linear_schedule(0.0, 1.0, rising) if rising else optax.constant_schedule(1.0)
    if not rising:
        return optax.cosine_decay_schedule(1.0, steps)
    return optax.warmup_cosine_decay_schedule(0.0, 1.0, rising, max(steps, rising + 1))


def learning_rates(optimizer: Optimizer, rates: Rates, steps: int, *, done: int) -> dict[str, float]:
    """Returns the learning rate of each trained group in the next update, as `learning_rate_` and the group's name.

    Args:
      steps: of the whole run.
      done: updates so far.
    """
    share = float(rate_schedule(optimizer, steps)(done))
    return {f"learning_rate_{group}": peak * share for group in GROUPS if (peak := rates.of(group)) is not None}


def _matrices(parameters: Parameters) -> dict[str, bool]:
    """Selects what is decayed: no biases and no norms, as in today's Trainer of transformers.

    That of the authors' version, 4.31, decays Llama's norms too.
    """
    return {name: x.ndim > 1 + (STACKED in name) for name, x in parameters.items()}
