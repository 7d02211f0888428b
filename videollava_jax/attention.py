"""Attention: a readable reference, and faster implementations of the same function behind one argument."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

Implementation = Literal["reference", "blocked"]

QUERY_BLOCK = 512
# Finite, so that a query which may see nothing (padding) averages instead of turning into NaN.
MASKED = -1e30


def attention(
    q_BTNH: jax.Array,
    k_BKSH: jax.Array,
    v_BKSH: jax.Array,
    *,
    key_mask_BS: jax.Array | None = None,
    causal_offset: int | jax.Array | None = None,
    implementation: Implementation | None = None,
) -> jax.Array:
    """Scaled dot-product attention, with grouped heads.

    Query `t` sees key `s` when `key_mask_BS[b, s]` and, if causal, `s <= causal_offset + t`. With left padding
    (`.`) and the causal rule, for T = S = 5 and offset 0:

        keys      . . a b c
        query .   . . . . .     sees nothing: its output is finite and unused
        query .   . . . . .
        query a   . . x . .
        query b   . . x x .
        query c   . . x x x

    Args:
      q_BTNH: queries, any float dtype.
      k_BKSH: keys, heads before positions as the cache keeps them; N is a multiple of K.
      v_BKSH: values, the same shape.
      key_mask_BS: bool, which keys hold a token; None for all.
      causal_offset: the key index that the first query stands at; None to see in both directions.
      implementation: None chooses by shape. `"reference"` makes all the scores at once, T × S of them a head;
        `"blocked"` makes those of 512 queries at a time, and only up to the diagonal where that is static.

    Returns:
      [B, T, N, H] in the dtype of the queries. Scores and softmax are float32.
    """
    if implementation is None:
        implementation = "blocked" if q_BTNH.shape[1] > QUERY_BLOCK else "reference"
    if implementation == "reference":
        return _reference(q_BTNH, k_BKSH, v_BKSH, key_mask_BS, causal_offset)
    if implementation == "blocked":
        return _blocked(q_BTNH, k_BKSH, v_BKSH, key_mask_BS, causal_offset)
    raise ValueError(f"attention implementation: expected 'reference' or 'blocked', got {implementation!r}")


def _reference(
    q_BTNH: jax.Array,
    k_BKSH: jax.Array,
    v_BKSH: jax.Array,
    key_mask_BS: jax.Array | None,
    causal_offset: int | jax.Array | None,
) -> jax.Array:
    B, T, N, H = q_BTNH.shape
    K, S = k_BKSH.shape[1:3]
    q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H)
    scores = jnp.einsum("BTKGH,BKSH->BKGTS", q_BTKGH, k_BKSH, preferred_element_type=jnp.float32) * H**-0.5
    if key_mask_BS is not None:
        scores = jnp.where(key_mask_BS[:, None, None, None, :], scores, MASKED)
    if causal_offset is not None:
        visible_TS = jnp.arange(S)[None, :] <= causal_offset + jnp.arange(T)[:, None]
        scores = jnp.where(visible_TS, scores, MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(q_BTNH.dtype)
    return jnp.einsum("BKGTS,BKSH->BTKGH", weights, v_BKSH).reshape(B, T, N, H)


def _blocked(
    q_BTNH: jax.Array,
    k_BKSH: jax.Array,
    v_BKSH: jax.Array,
    key_mask_BS: jax.Array | None,
    causal_offset: int | jax.Array | None,
) -> jax.Array:
    T, S = q_BTNH.shape[1], k_BKSH.shape[2]
    outputs = []
    for start in range(0, T, QUERY_BLOCK):
        stop = min(start + QUERY_BLOCK, T)
        # A static offset tells how far the block can see: keys beyond the diagonal are never read.
        seen = min(causal_offset + stop, S) if isinstance(causal_offset, int) else S
        outputs.append(
            _reference(
                q_BTNH[:, start:stop],
                k_BKSH[:, :, :seen],
                v_BKSH[:, :, :seen],
                None if key_mask_BS is None else key_mask_BS[:, :seen],
                None if causal_offset is None else causal_offset + start,
            )
        )
    return jnp.concatenate(outputs, axis=1)
