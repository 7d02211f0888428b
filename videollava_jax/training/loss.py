"""Cross-entropy over the vocabulary that never holds the logits of more than a chunk of tokens."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from videollava_jax.segments import IGNORED_LABEL
from videollava_jax.sharding import like, resharded, spec_of


class LossSums(NamedTuple):
    """What micro-batches are summed by, so that their mean is that of all tokens together.

    Attributes:
      loss: float32 scalar, the sum over targets.
      tokens: int32 scalar, how many targets there are.
    """

    loss: jax.Array
    tokens: jax.Array


def cross_entropy_sums(hidden_BTD: jax.Array, head_VD: jax.Array, targets_BT: jax.Array, *, chunk: int) -> LossSums:
    """The cross-entropy of targets, summed.

    `loss / tokens` is the loss that transformers gives for `labels`, whose shift stands in the targets already. The
    logits of `chunk` tokens a row are made at a time, and made again for the gradient; the sum, its softmax and the
    gradient of the head are float32.

    Args:
      hidden_BTD: the decoder's hidden states.
      head_VD: float32; the vocabulary may be split over a mesh.
      targets_BT: int32, -100 where nothing is learnt.
      chunk: tokens of each row.
    """
    T = targets_BT.shape[1]
    chunks = -(-T // chunk)
    size = -(-T // chunks)
    filled = chunks * size - T
    hidden_BTD = jnp.pad(hidden_BTD, ((0, 0), (0, filled), (0, 0)))
    targets_BT = jnp.pad(targets_BT, ((0, 0), (0, filled)), constant_values=IGNORED_LABEL)

    @jax.checkpoint
    def of_chunk(head_VD: jax.Array, x_BCD: jax.Array, targets_BC: jax.Array) -> jax.Array:
        out = like(x_BCD, *spec_of(x_BCD)[:-1], spec_of(head_VD)[0])
        logits_BCV = jnp.einsum(
            "BCD,VD->BCV", x_BCD, head_VD.astype(x_BCD.dtype), preferred_element_type=jnp.float32, out_sharding=out
        )
        # A sum and no lookup: each device has its part of the vocabulary.
        is_target = jax.lax.broadcasted_iota(jnp.int32, logits_BCV.shape, 2, out_sharding=out) == targets_BC[..., None]
        losses_BC = jax.nn.logsumexp(logits_BCV, axis=-1) - jnp.where(is_target, logits_BCV, 0).sum(axis=-1)
        return jnp.where(targets_BC != IGNORED_LABEL, losses_BC, 0).sum()

    def in_chunks(x: jax.Array) -> jax.Array:
        """[chunks, B, C, ...] of [B, T, ...]."""
        return jnp.moveaxis(
            x.reshape(x.shape[0], chunks, size, *x.shape[2:], out_sharding=like(x, *spec_of(x)[:1])), 1, 0
        )

    def step(total: jax.Array, one: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        return total + of_chunk(head_VD, *one), None

    zero = resharded(jnp.zeros((), jnp.float32), like(hidden_BTD))
    loss, _ = jax.lax.scan(step, zero, (in_chunks(hidden_BTD), in_chunks(targets_BT)))
    return LossSums(loss, (targets_BT != IGNORED_LABEL).sum(dtype=jnp.int32))
