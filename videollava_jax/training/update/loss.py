"""Cross-entropy over the vocabulary, which holds the logits of one chunk of tokens at a time."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from videollava_jax.model.sharding import like, resharded, spec_of
from videollava_jax.processing.segments import IGNORED_LABEL


class LossSums(NamedTuple):
    """The sums of micro-batches: the loss of a step is their total loss over their total tokens.

    Attributes:
      loss: float32 scalar, summed over targets, each with its weight.
      tokens: int32 scalar, the number of targets.
    """

    loss: jax.Array
    tokens: jax.Array


def cross_entropy_sums(
    hidden_BTD: jax.Array,
    head_VD: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array | None = None,
    *,
    chunk: int,
    vocabulary: int | None = None,
) -> LossSums:
    """Sums the cross-entropy of targets.

    `loss / tokens` is transformers' loss for `labels`; targets are labels that are shifted already. The logits of
    `chunk` tokens of each row are computed at a time, and again for the gradient. Logits, their softmax and the sum of
    the head's gradient over chunks are float32.

    Args:
      hidden_BTD: the decoder's hidden states.
      head_VD: the head's weight; its vocabulary may be sharded.
      targets_BT: int32, -100 where nothing is learnt.
      weights_BT: float32, what each target's loss is multiplied by; None for 1.
      chunk: tokens of each row whose logits are held at a time.
      vocabulary: rows of the head, from 0, that have a share in the softmax; None for all. Targets are below it.
    """
    T = targets_BT.shape[1]
    chunks = -(-T // chunk)
    size = -(-T // chunks)
    filled = chunks * size - T
    hidden_BTD = jnp.pad(hidden_BTD, ((0, 0), (0, filled), (0, 0)))
    targets_BT = jnp.pad(targets_BT, ((0, 0), (0, filled)), constant_values=IGNORED_LABEL)

    def in_chunks(x: jax.Array) -> jax.Array:
        """Splits [B, T, ...] into [chunks, B, C, ...]."""
        return jnp.moveaxis(
            x.reshape(x.shape[0], chunks, size, *x.shape[2:], out_sharding=like(x, *spec_of(x)[:1])), 1, 0
        )

    weights_NBC = None
    if weights_BT is not None:
        weights_NBC = in_chunks(jnp.pad(weights_BT, ((0, 0), (0, filled))))
    loss = _summed(in_chunks(hidden_BTD), head_VD, in_chunks(targets_BT), weights_NBC, vocabulary)
    return LossSums(loss, (targets_BT != IGNORED_LABEL).sum(dtype=jnp.int32))


# The gradient is written by hand: JAX's own keeps a float32 copy of the head, and two of its gradient.
@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _summed(
    x_NBCD: jax.Array,
    head_VD: jax.Array,
    targets_NBC: jax.Array,
    weights_NBC: jax.Array | None,
    vocabulary: int | None,
) -> jax.Array:
    """Sums the losses of all chunks, float32."""

    def step(total: jax.Array, chunk: tuple[jax.Array, jax.Array, jax.Array | None]) -> tuple[jax.Array, None]:
        x_BCD, targets_BC, weights_BC = chunk
        logits_BCV, is_target_BCV = _logits(x_BCD, head_VD, targets_BC, vocabulary)
        losses_BC = jax.nn.logsumexp(logits_BCV, axis=-1) - jnp.where(is_target_BCV, logits_BCV, 0).sum(axis=-1)
        if weights_BC is not None:
            losses_BC = losses_BC * weights_BC
        return total + jnp.where(targets_BC != IGNORED_LABEL, losses_BC, 0).sum(), None

    return jax.lax.scan(step, _zeros((), x_NBCD), (x_NBCD, targets_NBC, weights_NBC))[0]


Kept = tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]


def _forward(
    x_NBCD: jax.Array,
    head_VD: jax.Array,
    targets_NBC: jax.Array,
    weights_NBC: jax.Array | None,
    vocabulary: int | None,
) -> tuple[jax.Array, Kept]:
    kept = (x_NBCD, head_VD, targets_NBC, weights_NBC)
    return _summed(*kept, vocabulary), kept


def _backward(vocabulary: int | None, kept: Kept, gradient: jax.Array) -> tuple[jax.Array, jax.Array, None, None]:
    """Returns the gradients; that of the logits is their softmax, less 1 at the target. Weights have none."""
    x_NBCD, head_VD, targets_NBC, weights_NBC = kept

    def step(total_VD: jax.Array, chunk: tuple[jax.Array, jax.Array, jax.Array | None]) -> tuple[jax.Array, jax.Array]:
        x_BCD, targets_BC, weights_BC = chunk
        logits_BCV, is_target_BCV = _logits(x_BCD, head_VD, targets_BC, vocabulary)
        of_logits_BCV = gradient * (jax.nn.softmax(logits_BCV, axis=-1) - is_target_BCV)
        if weights_BC is not None:
            of_logits_BCV = of_logits_BCV * weights_BC[..., None]
        of_logits_BCV = jnp.where(targets_BC[..., None] != IGNORED_LABEL, of_logits_BCV, 0).astype(x_BCD.dtype)
        of_x_BCD = jnp.einsum("BCV,VD->BCD", of_logits_BCV, head_VD, out_sharding=like(x_BCD, *spec_of(x_BCD)))
        of_head_VD = jnp.einsum(
            "BCV,BCD->VD",
            of_logits_BCV,
            x_BCD,
            preferred_element_type=jnp.float32,
            out_sharding=like(head_VD, *spec_of(head_VD)),
        )
        return total_VD + of_head_VD, of_x_BCD

    zeros_VD = _zeros(head_VD.shape, head_VD, *spec_of(head_VD))
    of_head_VD, of_x_NBCD = jax.lax.scan(step, zeros_VD, (x_NBCD, targets_NBC, weights_NBC))
    return of_x_NBCD, of_head_VD.astype(head_VD.dtype), None, None


_summed.defvjp(_forward, _backward)


def _logits(
    x_BCD: jax.Array, head_VD: jax.Array, targets_BC: jax.Array, vocabulary: int | None
) -> tuple[jax.Array, jax.Array]:
    """Returns float32 logits [B, C, V] and bool [B, C, V], true at the target; both sharded over the vocabulary.

    Logits from `vocabulary` on are -inf.
    """
    out = like(x_BCD, *spec_of(x_BCD)[:-1], spec_of(head_VD)[0])
    logits_BCV = jnp.einsum("BCD,VD->BCV", x_BCD, head_VD, preferred_element_type=jnp.float32, out_sharding=out)
    token_BCV = jax.lax.broadcasted_iota(jnp.int32, logits_BCV.shape, 2, out_sharding=out)
    if vocabulary is not None and vocabulary < head_VD.shape[0]:
        logits_BCV = jnp.where(token_BCV < vocabulary, logits_BCV, -jnp.inf)
    return logits_BCV, token_BCV == targets_BC[..., None]


def _zeros(shape: tuple[int, ...], other: jax.Array, *spec: Any) -> jax.Array:
    """Returns float32 zeros on the mesh of another array."""
    return resharded(jnp.zeros(shape, jnp.float32), like(other, *spec))
