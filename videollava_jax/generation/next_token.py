"""From logits to the next token of each row: the likeliest one or a drawn one."""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sampling:
    """How the tokens of each row are chosen. All but `draw` and `penalise` are traced: other values compile nothing.

    Attributes:
      keys_B: a key for each row. Token `i` is drawn with `fold_in(key, i)`, so the draws of a row depend neither on
        the other rows nor on its index.
      draw_B: bool, rows whose tokens are drawn; the others take the likeliest token.
      temperature_B: float32; above 0.
      top_k_B: int32, the number of likeliest tokens to draw from; 0 for all.
      top_p_B: float32, the probability mass to draw from; 1 for all.
      repetition_penalty_B: float32, 1 for none (Keskar et al. 2019, as transformers applies it).
      draw: whether any row may be drawn; without it drawing is not compiled.
      penalise: whether any row may have a repetition penalty, likewise.
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
    """Returns the next token of each row, int32 [B].

    The filters come in transformers' order: repetition penalty, temperature, top-k, top-p.

    Args:
      logits_BV: of any float dtype.
      seen_BV: bool, tokens that the repetition penalty applies to; None where no row has a penalty.
      sampling: how each row is sampled.
      count_B: int32, the number of tokens that each row has so far.
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
    """Sets to -inf all scores of a row but the `top_k` highest, and of these the ones beyond a mass of `top_p`."""
    V = scores_BV.shape[-1]
    top_k_B1, top_p_B1 = top_k_B[:, None], top_p_B[:, None]
    ranked_BV = jnp.sort(scores_BV, axis=-1, descending=True)
    # Whatever ties with the k-th stays, as in transformers: bfloat16 logits are full of ties.
    last_B1 = jnp.where((top_k_B1 > 0) & (top_k_B1 < V), top_k_B1, V) - 1
    kth_B1 = jnp.take_along_axis(ranked_BV, last_B1, axis=-1)
    ranked_BV = jnp.where(ranked_BV >= kth_B1, ranked_BV, -jnp.inf)
    probabilities_BV = jax.nn.softmax(ranked_BV, axis=-1)
    before_BV = jnp.cumsum(probabilities_BV, axis=-1) - probabilities_BV
    # The likeliest token always stays; another one stays if the mass of the likelier ones is below top_p. Rounding can
    # bring the cumulative sum to 1 before its end, so top_p = 1 keeps all of them without a look at the sum.
    inside_BV = (((before_BV < top_p_B1) | (top_p_B1 >= 1)) & (ranked_BV > -jnp.inf)).at[:, 0].set(True)
    threshold_B1 = jnp.min(jnp.where(inside_BV, ranked_BV, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(scores_BV >= threshold_B1, scores_BV, -jnp.inf)
