"""Low-rank adaptation (LoRA): two narrow projections are added to each of the decoder's, and only they are trained.

Source: Hu et al. 2021; numbers and names are those of PEFT's `LoraConfig` and `lora.Linear`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from videollava_jax.model.decoder import LlamaLayer
from videollava_jax.model.layers import Linear
from videollava_jax.model.sharding import like, spec_of
from videollava_jax.training.update.options import PROJECTIONS, Lora


class LoraLinear(Linear):
    """`y = x Wᵀ + b + scale · (dropout(x) Aᵀ) Bᵀ`, with `lora_A.weight` [rank, in] and `lora_B.weight` [out, rank].

    Replaces an abstract `Linear`, and is abstract too: its parameters are shapes.

    Attributes:
      key: the random key of the present step's dropout; None for no dropout.
    """

    def __init__(self, base: Linear, lora: Lora):
        self.weight, self.weight_scale, self.bias = base.weight, base.weight_scale, base.bias
        self.quantization = base.quantization
        out_features, in_features = base.weight.shape
        dtype = jnp.float32 if base.weight_scale is not None else base.weight.dtype

        def narrow(into: int, out: int) -> Linear:
            found: Linear = nnx.eval_shape(lambda: Linear(into, out, bias=False, dtype=dtype, rngs=nnx.Rngs(0)))
            return found

        self.lora_A, self.lora_B = narrow(in_features, lora.rank), narrow(lora.rank, out_features)
        self.scale, self.dropout = lora.scale, lora.dropout
        self.key: jax.Array | None = nnx.data(None)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., in] to [..., out]."""
        y = super().__call__(x)
        if self.key is not None and self.dropout:
            kept = jax.random.bernoulli(self.key, 1 - self.dropout, x.shape, out_sharding=like(x, *spec_of(x)))
            x = jnp.where(kept, x / (1 - self.dropout), 0)
        return y + (self.lora_B(self.lora_A(x)) * self.scale).astype(y.dtype)


def adapt(layer: LlamaLayer, lora: Lora) -> None:
    """Replaces the targeted projections of an abstract layer by `LoraLinear`."""
    for module, name, linear in list(_projections(layer)):
        if name in lora.targets:
            setattr(module, name, LoraLinear(linear, lora))


def set_dropout(layer: LlamaLayer, key: jax.Array) -> None:
    """Gives each adapted projection of a layer its random key for one step."""
    for i, (_, _, linear) in enumerate(_projections(layer)):
        if isinstance(linear, LoraLinear):
            linear.key = jax.random.fold_in(key, i)


def _projections(layer: LlamaLayer) -> Iterator[tuple[nnx.Module, str, Linear]]:
    for module in (layer.self_attn, layer.mlp):
        for name in PROJECTIONS:
            if hasattr(module, name):
                yield module, name, getattr(module, name)


def initial_lora(shapes: Mapping[str, tuple[int, ...]], key: jax.Array) -> dict[str, jax.Array]:
    """Draws initial values as PEFT does: A uniform within ±1/√in (Kaiming's rule with a = √5), B zero.

    Args:
      shapes: of the narrow projections' weights by name, layers stacked.

    Returns:
      float32 arrays on the default device.
    """

    def draw(i: int, name: str, shape: tuple[int, ...]) -> jax.Array:
        if ".lora_B." in name:
            return jnp.zeros(shape, jnp.float32)
        bound = 1 / math.sqrt(shape[-1])
        return jax.random.uniform(jax.random.fold_in(key, i), shape, jnp.float32, -bound, bound)

    return {name: draw(i, name, shape) for i, (name, shape) in enumerate(sorted(shapes.items()))}
