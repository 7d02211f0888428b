"""From logits to the next token: greedy or drawn, each row by itself."""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen; the numbers are traced, so that changing them compiles nothing anew.

    Attributes:
      keys_B: a key for each row. Token `i` is drawn with `fold_in(key, i)`: what a row draws does not depend on
        its neighbours or on its place.
      temperature: float32; above 0.
      top_k: int32, the number of likeliest tokens to draw from; 0 for all.
      top_p: float32, the probability mass to draw from; 1 for all.
      repetition_penalty: float32, 1 for none (Keskar et al. 2019, as transformers applies it).
      draw, penalise: whether these are used at all.
    """

    keys_B: jax.Array
    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    repetition_penalty: jax.Array
    draw: bool = field(metadata={"static": True})
    penalise: bool = field(metadata={"static": True})


def next_tokens(logits_BV: jax.Array, seen_BV: jax.Array | None, sampling: Sampling, step: jax.Array) -> jax.Array:
    """The next token of each row, int32 [B]; filters in transformers' order: penalty, temperature, top-k, top-p."""
    scores_BV = logits_BV.astype(jnp.float32)
    if sampling.penalise:
        assert seen_BV is not None
        penalised = jnp.where(
            scores_BV < 0, scores_BV * sampling.repetition_penalty, scores_BV / sampling.repetition_penalty
        )
        scores_BV = jnp.where(seen_BV, penalised, scores_BV)
    if not sampling.draw:
        return jnp.argmax(scores_BV, axis=-1).astype(jnp.int32)
    scores_BV = filtered(scores_BV / sampling.temperature, sampling.top_k, sampling.top_p)
    keys_B = jax.vmap(jax.random.fold_in, (0, None))(sampling.keys_B, step)
    return jax.vmap(jax.random.categorical)(keys_B, scores_BV).astype(jnp.int32)


def filtered(scores_BV: jax.Array, top_k: jax.Array, top_p: jax.Array) -> jax.Array:
    """Scores with all but the `top_k` likeliest, and then all beyond a mass of `top_p`, set to -inf."""
    V = scores_BV.shape[-1]
    ranked_BV = jnp.sort(scores_BV, axis=-1, descending=True)
    # Whatever ties with the k-th stays, as in transformers: bfloat16 logits are full of ties.
    kth_B1 = jnp.take(ranked_BV, jnp.where((top_k > 0) & (top_k < V), top_k, V) - 1, axis=-1)[:, None]
    ranked_BV = jnp.where(ranked_BV >= kth_B1, ranked_BV, -jnp.inf)
    probabilities_BV = jax.nn.softmax(ranked_BV, axis=-1)
    before_BV = jnp.cumsum(probabilities_BV, axis=-1) - probabilities_BV
    # The likeliest always stays; of the others, those that begin within the mass. A sum of probabilities can round
    # to 1 before its end, so that a mass of 1 is no bound of its own.
    inside_BV = (((before_BV < top_p) | (top_p >= 1)) & (ranked_BV > -jnp.inf)).at[:, 0].set(True)
    threshold_B1 = jnp.min(jnp.where(inside_BV, ranked_BV, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(scores_BV >= threshold_B1, scores_BV, -jnp.inf)
