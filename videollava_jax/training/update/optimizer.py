"""AdamW with a learning rate for each group of parameters, a warm-up and a cosine, and clipping over all of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import optax

from videollava_jax.model.sharding import STACKED
from videollava_jax.training.update.parameters import GROUPS, Group, Parameters, group_of


@dataclass(frozen=True, kw_only=True)
class Rates:
    """The peak learning rate of each group of parameters; None freezes it.

    Attributes:
      projector: between towers and decoder.
      decoder: with its embedding and its head.
      lora: the decoder's low-rank adapters; the decoder itself is frozen beside them.
      image_tower, video_tower: as their names say.
    """

    projector: float | None = None
    decoder: float | None = None
    lora: float | None = None
    image_tower: float | None = None
    video_tower: float | None = None

    def __post_init__(self) -> None:
        for group in GROUPS:
            rate = self.of(group)
            if rate is not None and not rate > 0:
                raise ValueError(f"rates.{group}: expected a learning rate above 0, or null to freeze it; got {rate}")
        if all(self.of(group) is None for group in GROUPS):
            raise ValueError(f"rates: expected a learning rate for one of {', '.join(GROUPS)} at least")
        if self.lora is not None and self.decoder is not None:
            raise ValueError("rates: expected lora or decoder, got both: adapters are trained beside a frozen decoder")

    def of(self, group: Group) -> float | None:
        """The rate of a group."""
        rate: float | None = getattr(self, group)
        return rate

    def trains(self, name: str) -> bool:
        """Whether a parameter is trained."""
        return self.of(group_of(name)) is not None


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """AdamW as transformers' Trainer runs it, which the authors train with.

    Attributes:
      b1, b2, eps: of Adam.
      weight_decay: of matrices; the authors take 0.
      clip: the largest norm of all gradients together.
      warmup: share of the steps in which the rate rises from 0, rounded up to whole steps.
      schedule: "cosine" falls to 0 at the last step, "constant" stays.
      moments: dtype of the first moments; the second are as the parameters are.
    """

    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip: float = 1.0
    warmup: float = 0.03
    schedule: Literal["cosine", "constant"] = "cosine"
    moments: Literal["float32", "bfloat16"] = "float32"

    def build(self, rates: Rates, steps: int) -> optax.GradientTransformation:
        """The transformation for parameters by name.

        Args:
          steps: of the whole run.
        """

        def at_its_rate(updates: Parameters, _: Parameters | None) -> Parameters:
            return {name: -(rates.of(group_of(name)) or 0.0) * update for name, update in updates.items()}

        return optax.chain(
            optax.clip_by_global_norm(self.clip),
            optax.scale_by_adam(self.b1, self.b2, self.eps, mu_dtype=self.moments),
            optax.add_decayed_weights(self.weight_decay, mask=_matrices),
            optax.scale_by_schedule(self.shape(steps)),
            optax.stateless(at_its_rate),
        )

    def shape(self, steps: int) -> optax.Schedule:
        """The share of the peak rates, 0 to 1, after so many updates."""
        rising = math.ceil(self.warmup * steps)
        if self.schedule == "constant":
            return optax.linear_schedule(0.0, 1.0, rising) if rising else optax.constant_schedule(1.0)
        if not rising:
            return optax.cosine_decay_schedule(1.0, steps)
        return optax.warmup_cosine_decay_schedule(0.0, 1.0, rising, max(steps, rising + 1))


def _matrices(parameters: Parameters) -> dict[str, bool]:
    """What is decayed: no biases and no norms, as transformers' Trainer does it."""
    return {name: x.ndim > 1 + (STACKED in name) for name, x in parameters.items()}
