"""Attention of many queries on a CPU: one row and one key head at a time, so that scores stay in its caches.

XLA's CPU backend writes the scores of all heads to memory before it reads them again, and its products with batch axes
are slower than plain ones: this takes half to a third of the time of the reference.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from videollava_jax.model.kernels.kernel import AttentionKernel
from videollava_jax.model.kernels.operands import MASKED, Operands, queries_by_key_head, rows_again

QUERY_BLOCK = 256
FEWEST_QUERIES = 513
"""It is chosen from this many on: the scores of up to 512 queries fit the caches of a CPU together."""


def attend(operands: Operands) -> tuple[jax.Array, jax.Array]:
    """Computes attention in float32, as the reference does.

    Returns:
      float32 [B, T, N, H] and [B, T, N].
    """
    q_BTNH, order, offset = operands.q_BTNH, operands.order, operands.causal_offset
    (B, T, N, H), G, S, K = q_BTNH.shape, operands.size("G"), operands.size("S"), operands.size("K")
    heads = N // K

    def by_head(x: jax.Array | None) -> jax.Array | None:
        """Reorders keys, values or their scales to [G × K, S, ...]."""
        if x is None:
            return None
        return jnp.einsum(f"{order[: x.ndim]}->{'GKSH'[: x.ndim]}", x).reshape(G * K, *(S, H)[: x.ndim - 2])

    def by_row(x_GS: jax.Array | None) -> jax.Array | None:
        return None if x_GS is None else jnp.repeat(x_GS, K, axis=0)

    def one(share: tuple[jax.Array | None, ...]) -> tuple[jax.Array, jax.Array]:
        q_QH, keys_SH, values_SH, key_scale_S, value_scale_S, mask_S, segment_S = share
        assert q_QH is not None
        q_QH, keys_SH, values_SH = q_QH.astype(jnp.float32) * H**-0.5, _floats(keys_SH), _floats(values_SH)
        token_Q = jnp.arange(len(q_QH)) // heads % T
        parts = []
        for start in range(0, len(q_QH), QUERY_BLOCK):
            block = slice(start, start + QUERY_BLOCK)
            # With a static offset, keys beyond the diagonal are never read.
            last = min(start + QUERY_BLOCK, len(q_QH)) - 1
            seen = min(offset + last // heads + 1, S) if isinstance(offset, int) and B == G else S
            scores = q_QH[block] @ keys_SH[:seen].T
            if key_scale_S is not None:
                scores = scores * key_scale_S[:seen]
            if mask_S is not None:
                scores = jnp.where(mask_S[:seen], scores, MASKED)
            if offset is not None:
                scores = jnp.where(jnp.arange(seen) <= offset + token_Q[block, None], scores, MASKED)
            if segment_S is not None:
                scores = jnp.where(segment_S[:seen] == segment_S[token_Q[block], None], scores, MASKED)
            top_Q1 = scores.max(axis=-1, keepdims=True)
            weights = jnp.exp(scores - top_Q1)
            total_Q1 = weights.sum(axis=-1, keepdims=True)
            if value_scale_S is not None:
                weights = weights * value_scale_S[:seen]
            # As the reference rounds them.
            weights = weights.astype(q_BTNH.dtype).astype(jnp.float32)
            parts.append((weights @ values_SH[:seen] / total_Q1, (top_Q1 + jnp.log(total_Q1))[:, 0]))
        outs, sums = zip(*parts, strict=True)
        return jnp.concatenate(outs), jnp.concatenate(sums)

    shares = (
        queries_by_key_head(operands).reshape(G * K, -1, H),
        *map(by_head, (operands.keys, operands.values, operands.key_scale, operands.value_scale)),
        *map(by_row, (operands.mask_GS, operands.segments_GS)),
    )
    out, lse = jax.lax.map(one, shares)
    return rows_again(out.reshape(G, K, -1, H), q_BTNH), rows_again(lse.reshape(G, K, -1), q_BTNH)


def _floats(x: jax.Array | None) -> jax.Array:
    assert x is not None
    return x.astype(jnp.float32)


KERNEL = AttentionKernel(
    run=lambda operands, *, lse, interpret: attend(operands), platforms=("cpu",), chosen_from={"cpu": FEWEST_QUERIES}
)
