"""From logits to the next token: greedy or drawn, each row by itself."""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sampling:
    """How the tokens of each row are chosen; all but two are traced, so that changing them compiles nothing anew.

    Attributes:
      keys_B: a key for each row. Token `i` is drawn with `fold_in(key, i)`: what a row draws does not depend on
        its neighbours or on its place.
      draw_B: bool, rows that are drawn; the others take the likeliest token.
      temperature_B: float32; above 0.
      top_k_B: int32, the number of likeliest tokens to draw from; 0 for all.
      top_p_B: float32, the probability mass to draw from; 1 for all.
      repetition_penalty_B: float32, 1 for none (Keskar et al. 2019, as transformers applies it).
      draw, penalise: whether any row may need these at all.
    """

    keys_B: jax.Array
    draw_B: jax.Array
    temperature_B: jax.Array
    top_k_B: jax.Array
    top_p_B: jax.Array
    repetition_penalty_B: jax.Array
    draw: bool = field(metadata={"static": True})
    penalise: bool = field(metadata={"static": True})


def next_tokens(logits_BV: jax.Array, seen_BV: jax.Array | None, sampling: Sampling, count_B: jax.Array) -> jax.Array:
    """The next token of each row, int32 [B]; filters in transformers' order: penalty, temperature, top-k, top-p.

    Args:
      seen_BV: bool, tokens that the repetition penalty touches; None where no row has one.
      count_B: int32, tokens that each row has so far.
    """
    scores_BV = logits_BV.astype(jnp.float32)
    if sampling.penalise:
        assert seen_BV is not None
        penalty_B1 = sampling.repetition_penalty_B[:, None]
        penalised = jnp.where(scores_BV < 0, scores_BV * penalty_B1, scores_BV / penalty_B1)
        scores_BV = jnp.where(seen_BV, penalised, scores_BV)
    likeliest_B = jnp.argmax(scores_BV, axis=-1).astype(jnp.int32)
    if not sampling.draw:
        return likeliest_B
    scores_BV = filtered(scores_BV / sampling.temperature_B[:, None], sampling.top_k_B, sampling.top_p_B)
    keys_B = jax.vmap(jax.random.fold_in)(sampling.keys_B, count_B)
    drawn_B = jax.vmap(jax.random.categorical)(keys_B, scores_BV).astype(jnp.int32)
    return jnp.where(sampling.draw_B, drawn_B, likeliest_B)


def filtered(scores_BV: jax.Array, top_k_B: jax.Array, top_p_B: jax.Array) -> jax.Array:
    """Scores with all but a row's `top_k` likeliest, and then all beyond a mass of `top_p`, set to -inf."""
    V = scores_BV.shape[-1]
    top_k_B1, top_p_B1 = top_k_B[:, None], top_p_B[:, None]
    ranked_BV = jnp.sort(scores_BV, axis=-1, descending=True)
    # Whatever ties with the k-th stays, as in transformers: bfloat16 logits are full of ties.
    last_B1 = jnp.where((top_k_B1 > 0) & (top_k_B1 < V), top_k_B1, V) - 1
    kth_B1 = jnp.take_along_axis(ranked_BV, last_B1, axis=-1)
    ranked_BV = jnp.where(ranked_BV >= kth_B1, ranked_BV, -jnp.inf)
    probabilities_BV = jax.nn.softmax(ranked_BV, axis=-1)
    before_BV = jnp.cumsum(probabilities_BV, axis=-1) - probabilities_BV
    # The likeliest always stays; of the others, those that begin within the mass. A sum of probabilities can round
    # to 1 before its end, so that a mass of 1 is no bound of its own.
    inside_BV = (((before_BV < top_p_B1) | (top_p_B1 >= 1)) & (ranked_BV > -jnp.inf)).at[:, 0].set(True)
    threshold_B1 = jnp.min(jnp.where(inside_BV, ranked_BV, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(scores_BV >= threshold_B1, scores_BV, -jnp.inf)
