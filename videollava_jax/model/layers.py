"""The small parts that towers and decoder share: projections, norms, activations, rotary embedding.

Weights keep PyTorch's orientation, `[out, in]`, and are contracted on their last axis: a checkpoint loads
without a transpose, and the compiler picks the layout. Compute runs in the dtype of the weights; norms, softmax,
activations and rotary embedding run in float32 inside.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import AxisType, PartitionSpec
from jax.typing import DTypeLike

from videollava_jax.config import RopeKind
from videollava_jax.model.sharding import like, reduced_over, resharded, spec_of


def quick_gelu(x: jax.Array) -> jax.Array:
    """OpenAI CLIP's sigmoid approximation of GELU (transformers' `QuickGELUActivation`)."""
    return x * jax.nn.sigmoid(1.702 * x)


Quantization = Literal["int8", "w8a8"]
Activation: TypeAlias = Callable[[jax.Array], jax.Array]


def _rounded_once(activation: Activation) -> Activation:
    """Computes in float32 and rounds once, as PyTorch's kernels do: in bfloat16 every step of the formula rounds."""
    return lambda x: activation(x.astype(jnp.float32)).astype(x.dtype)


ACTIVATIONS: dict[str, Activation] = {
    "quick_gelu": _rounded_once(quick_gelu),
    "gelu": _rounded_once(lambda x: jax.nn.gelu(x, approximate=False)),
    "gelu_pytorch_tanh": _rounded_once(lambda x: jax.nn.gelu(x, approximate=True)),
    "gelu_new": _rounded_once(lambda x: jax.nn.gelu(x, approximate=True)),
    "relu": jax.nn.relu,
    "silu": _rounded_once(jax.nn.silu),
}


class Linear(nnx.Module):
    """`y = x Wᵀ + b`, mirroring `torch.nn.Linear`: `weight` [out, in], `bias` [out] or none.

    With `quantization`, `weight` is int8 and `weight_scale` float32 [out] multiplies the product (`weights.quantize`).
    "int8" multiplies the weight with floats. "w8a8" also quantizes the inputs of more than one token, each token with
    its own scale, and multiplies int8 with int8 into int32: for prefill on devices with units for that.
    A weight sharded along its inputs gives one all-reduce; one sharded along its outputs gives sharded outputs.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
        std: float = 0.02,
        quantization: Quantization | None = None,
    ):
        shape = (out_features, in_features)
        self.weight = nnx.Param(jnp.zeros(shape, jnp.int8) if quantization else normal(rngs, shape, std, dtype))
        self.weight_scale = nnx.Param(jnp.ones((out_features,), jnp.float32)) if quantization else None
        self.quantization = quantization
        self.bias = nnx.Param(jnp.zeros((out_features,), dtype)) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., in] to [..., out]; rows keep their sharding."""
        weight = self.weight[...]
        rows, (outputs, inputs) = spec_of(x)[:-1], spec_of(weight)
        out = like(weight, *rows, outputs)
        if self.bias is None and self.weight_scale is None:
            return jnp.einsum("...i,oi->...o", x, weight, out_sharding=out)
        # Scale and bias come before the product is rounded to the dtype of the weights, as PyTorch adds its bias.
        # Devices with partial sums scale and round their own before the all-reduce: half as much to send.
        partial_over = None if self.bias is not None else inputs
        if self.weight_scale is None:
            y = jnp.einsum("...i,oi->...o", x, weight, preferred_element_type=jnp.float32, out_sharding=out)
        elif self.quantization == "w8a8" and x.shape[-2] > 1:
            x8, scale = quantize_rows(x)
            product = like(weight, *rows, outputs, summed_over=partial_over)
            y = jnp.einsum("...i,oi->...o", x8, weight, preferred_element_type=jnp.int32, out_sharding=product)
            y = y.astype(jnp.float32) * reduced_over(scale[..., None], partial_over)
        else:
            y = _with_int8(x, weight, partial_over, x.dtype)
        if self.weight_scale is not None:
            y = y * reduced_over(self.weight_scale[...], partial_over)
        if self.bias is not None:
            y = y + self.bias[...]
        return resharded(y.astype(jnp.result_type(x, weight)), out)


JOINED = 128
"""Outputs of a device: the GPU compiler's products take blocks of up to as many, each of them from one weight."""


def reads_in_place(linear: Linear) -> bool:
    """Returns whether the GPU compiler's products read this weight together with others without copying it."""
    weight = linear.weight[...]
    mesh, outputs = jax.typeof(weight).sharding.mesh, spec_of(weight)[0]
    shards = 1 if mesh.empty or outputs is None else int(mesh.shape[outputs])
    return bool(weight.shape[0] // shards % JOINED == 0)


def in_one_product(x: jax.Array, first: Linear, second: Linear) -> tuple[jax.Array, jax.Array] | None:
    """Computes two projections of one width, without biases, by one product; None for others.

    None also if the GPU compiler would copy them next to each other (`reads_in_place`).
    """
    a, b = first.weight[...], second.weight[...]
    scales = [linear.weight_scale for linear in (first, second) if linear.weight_scale is not None]
    plain = first.bias is None and second.bias is None and len(scales) in (0, 2)
    outputs, inputs = spec_of(a)
    mesh = jax.typeof(x).sharding.mesh
    if not reads_in_place(first):
        return None
    if not plain or a.shape != b.shape or a.dtype != b.dtype or spec_of(b) != (outputs, inputs) or inputs is not None:
        return None

    def both(x: jax.Array, *operands: jax.Array) -> tuple[jax.Array, ...]:
        weight = jnp.concatenate(operands[:2]).astype(x.dtype)
        y = jnp.einsum("...i,oi->...o", x, weight, preferred_element_type=jnp.float32 if scales else None)
        if scales:
            y = (y * jnp.concatenate(operands[2:])).astype(x.dtype)
        return tuple(jnp.split(y, 2, axis=-1))

    operands = (x, a, b, *(scale[...] for scale in scales))
    if not mesh.empty and AxisType.Manual not in mesh.axis_types:
        # On each device: joined weights of several would be sharded otherwise than each of them.
        out = PartitionSpec(*spec_of(x)[:-1], outputs)  # type: ignore[no-untyped-call]
        specs = tuple(PartitionSpec(*spec_of(y)) for y in operands)  # type: ignore[no-untyped-call]
        both = jax.shard_map(both, mesh=mesh, in_specs=specs, out_specs=(out, out))
    gate, up = both(*operands)
    return gate, up


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _with_int8(x: jax.Array, weight: jax.Array, summed_over: Any, dtype: DTypeLike) -> jax.Array:
    """Computes `x Wᵀ` in float32 with int8 `W`; the gradient is in `dtype`, where JAX's own would be a float32 product.

    Args:
      summed_over: mesh axes left unreduced: each device keeps a partial sum.
      dtype: that of `x`.
    """
    out = like(weight, *spec_of(x)[:-1], spec_of(weight)[0], summed_over=summed_over)
    return jnp.einsum("...i,oi->...o", x, weight.astype(dtype), preferred_element_type=jnp.float32, out_sharding=out)


def _with_int8_forward(
    x: jax.Array, weight: jax.Array, summed_over: Any, dtype: DTypeLike
) -> tuple[jax.Array, jax.Array]:
    return _with_int8(x, weight, summed_over, dtype), weight


def _with_int8_backward(summed_over: Any, dtype: DTypeLike, weight: jax.Array, y: jax.Array) -> tuple[jax.Array, None]:
    y = resharded(y.astype(dtype), like(y, *spec_of(y)))
    out = like(weight, *spec_of(y)[:-1], spec_of(weight)[1])
    return jnp.einsum("...o,oi->...i", y, weight.astype(dtype), out_sharding=out), None


_with_int8.defvjp(_with_int8_forward, _with_int8_backward)


class Embedding(nnx.Module):
    """A table of vectors, `weight` [rows, features]."""

    def __init__(self, rows: int, features: int, *, dtype: DTypeLike, rngs: nnx.Rngs, std: float = 0.02):
        self.weight = nnx.Param(normal(rngs, (rows, features), std, dtype))

    def __call__(self, ids: jax.Array) -> jax.Array:
        """Looks up int32 [...]: [..., features]. Ids out of range give NaN."""
        return embedded(self.weight[...], ids)


def embedded(weight_VD: jax.Array, ids: jax.Array) -> jax.Array:
    """Looks up rows of a table: [..., D] of ids [...], sharded like the ids. Ids out of range give NaN."""
    out = like(weight_VD, *spec_of(ids), None)
    return weight_VD.at[resharded(ids, like(weight_VD, *spec_of(ids)))].get(mode="fill", out_sharding=out)


class LayerNorm(nnx.Module):
    """Mirrors `torch.nn.LayerNorm`: mean and variance in two passes, in float32 for any input."""

    def __init__(self, features: int, *, eps: float, dtype: DTypeLike):
        self.weight = nnx.Param(jnp.ones((features,), dtype))
        self.bias = nnx.Param(jnp.zeros((features,), dtype))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises the last axis of [..., features]; the dtype is kept."""
        x32 = x.astype(jnp.float32)
        centred = x32 - x32.mean(-1, keepdims=True)
        normed = centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + self.eps)
        return (normed * self.weight[...] + self.bias[...]).astype(x.dtype)


class RMSNorm(nnx.Module):
    """Mirrors transformers' `LlamaRMSNorm`: normalised in float32, cast back, then scaled."""

    def __init__(self, features: int, *, eps: float, dtype: DTypeLike):
        self.weight = nnx.Param(jnp.ones((features,), dtype))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises the last axis of [..., features]."""
        x32 = x.astype(jnp.float32)
        normed = x32 * jax.lax.rsqrt(jnp.square(x32).mean(-1, keepdims=True) + self.eps)
        return self.weight[...] * normed.astype(x.dtype)


def quantize_rows(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Quantizes each vector: float [..., H] to int8 [..., H] and its scale, float32 [...], largest magnitude / 127."""
    x32 = x.astype(jnp.float32)
    scale = jnp.abs(x32).max(axis=-1) / 127
    return jnp.rint(x32 / jnp.where(scale > 0, scale, 1)[..., None]).astype(jnp.int8), scale


@dataclass(frozen=True)
class RotaryScaling:
    """The stretching of a rotary embedding (`config.RopeScaling`), with the positions of the decoder's training."""

    kind: RopeKind
    factor: float
    trained_positions: int


def rotary(
    x_BTNH: jax.Array, positions_BT: jax.Array, *, theta: float, scaling: RotaryScaling | None = None
) -> jax.Array:
    """Rotates queries or keys by their positions, halves paired as Llama pairs them (`rotate_half`).

    Args:
      x_BTNH: queries or keys, any float dtype; rotated in float32, returned in the input's dtype.
      positions_BT: int32, the position of each token in its sequence.
      theta: the base of the frequencies, 10000 for Vicuna.
      scaling: "dynamic" takes the length of each row from its largest position here: a row's tokens have the
        frequencies that transformers gives them in a batch of this row alone, whatever was computed before.

    Source: transformers' `LlamaRotaryEmbedding`, `dynamic_frequency_update` and `apply_rotary_pos_emb`; Su et al. 2021,
    equation 34.
    """
    head_dim = x_BTNH.shape[-1]
    exponents = -jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim
    frequencies = theta**exponents
    if scaling is not None and scaling.kind == "linear":
        frequencies = frequencies / scaling.factor
    elif scaling is not None:
        lengths_B = jnp.maximum(positions_BT.max(axis=1) + 1, scaling.trained_positions).astype(jnp.float32)
        stretched_B = scaling.factor * lengths_B / scaling.trained_positions - (scaling.factor - 1)
        bases_B = theta * stretched_B ** (head_dim / (head_dim - 2))
        frequencies = bases_B[:, None, None, None] ** exponents
    angles = positions_BT[:, :, None, None].astype(jnp.float32) * frequencies
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    first, second = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_BTNH.dtype)


def normal(rngs: nnx.Rngs, shape: tuple[int, ...], std: float, dtype: DTypeLike) -> jax.Array:
    """Draws initial values from N(0, std²)."""
    return std * jax.random.normal(rngs.params(), shape, dtype)
