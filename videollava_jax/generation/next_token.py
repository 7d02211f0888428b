"""From logits to the next token of each row: the likeliest one or a drawn one."""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from videollava_jax.generation.filters import Filters, likeliest, of_entropy, of_share, rare_ones_removed
from videollava_jax.generation.penalties import Penalties


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sampling:
    """How the tokens of each row are chosen. All but `draw` are traced: other values compile nothing.

    Attributes:
      keys_B: a key for each row. Token `i` is drawn with `fold_in(key, i)`, so the draws of a row depend neither on
        the other rows nor on its index.
      draw_B: bool, rows whose tokens are drawn; the others take the likeliest token.
      temperature_B: float32; above 0.
      top_k_B: int32, the number of likeliest tokens to draw from; 0 for all.
      top_p_B: float32, the probability mass to draw from; 1 for all.
      min_p_B: float32, the least share of the likeliest token's probability; 0 for any.
      draw: whether any row may be drawn; without it drawing is not compiled.
    """

    keys_B: jax.Array
    draw_B: jax.Array
    temperature_B: jax.Array
    top_k_B: jax.Array
    top_p_B: jax.Array
    min_p_B: jax.Array
    draw: bool = field(metadata={"static": True})


def next_tokens(
    logits_BV: jax.Array,
    penalties: Penalties | None,
    sampling: Sampling,
    count_B: jax.Array,
    live_B: jax.Array | None = None,
) -> jax.Array:
    """Returns the next token of each row, int32 [B].

    Penalties come first, then the temperature and the filters in transformers' order: top-k, top-p, min-p.

    Args:
      logits_BV: of any float dtype.
      penalties: of the rows; None where no row has one.
      sampling: how each row is sampled.
      count_B: int32, the number of tokens that each row has so far.
      live_B: bool, rows that want a token; None for all. Where none of these draws, nothing is sorted.
    """
    scores_BV = logits_BV.astype(jnp.float32)
    if penalties is not None:
        scores_BV = penalties.applied(scores_BV)
    likeliest_B = jnp.argmax(scores_BV, axis=-1).astype(jnp.int32)
    if not sampling.draw:
        return likeliest_B

    def with_drawn(likeliest_B: jax.Array) -> jax.Array:
        drawn_B = drawn(drawn_from(scores_BV, sampling), sampling, count_B)
        return jnp.where(sampling.draw_B, drawn_B, likeliest_B)

    draws_B = sampling.draw_B if live_B is None else sampling.draw_B & live_B
    chosen_B: jax.Array = jax.lax.cond(draws_B.any(), with_drawn, lambda likeliest_B: likeliest_B, likeliest_B)
    return chosen_B


def drawn_from(scores_BV: jax.Array, sampling: Sampling, filters: Filters | None = None) -> jax.Array:
    """Divides scores by the temperature, and sets those to -inf that no token is drawn from.

    The filters come in transformers' order.
    """
    scores_BV = scores_BV / sampling.temperature_B[:, None]
    if filters is not None:
        scores_BV = of_entropy(scores_BV, filters.top_h)
    keep = 1 if filters is None else filters.keep
    scores_BV = likeliest(scores_BV, sampling.top_k_B, sampling.top_p_B, keep)
    scores_BV = of_share(scores_BV, sampling.min_p_B, keep)
    return scores_BV if filters is None else rare_ones_removed(scores_BV, filters)


def drawn(scores_BV: jax.Array, sampling: Sampling, count_B: jax.Array) -> jax.Array:
    """Draws a token of each row, int32 [B]."""
    keys_B = jax.vmap(jax.random.fold_in)(sampling.keys_B, count_B)
    return jax.vmap(jax.random.categorical)(keys_B, scores_BV).astype(jnp.int32)
