"""What tokens are drawn from: the scores of all others are set to -inf (transformers' logits warpers)."""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Filters:
    """Filters of generation that few calls ask for. Their values are traced; the neutral ones keep every token.

    Attributes:
      top_h: float32 scalar, the share of the entropy of the 100 likeliest tokens; above 1 for none.
      typical_p: float32 scalar, the probability mass of the most typical tokens; 1 for none.
      epsilon_cutoff, eta_cutoff: float32 scalars, probabilities; 0 for none.
      keep: the number of tokens that every filter keeps: one, and in a beam search one that ends no answer.
    """

    top_h: jax.Array
    typical_p: jax.Array
    epsilon_cutoff: jax.Array
    eta_cutoff: jax.Array
    keep: int = field(metadata={"static": True})


def of_entropy(scores_BV: jax.Array, top_h: jax.Array) -> jax.Array:
    """Keeps the likeliest tokens with a share of the entropy of the 100 likeliest (`TopHLogitsWarper`)."""
    top_BK, ids_BK = jax.lax.top_k(scores_BV, min(100, scores_BV.shape[-1]))
    log_BK = jax.nn.log_softmax(top_BK, axis=-1)
    terms_BK = -jnp.exp(log_BK) * jnp.where(top_BK > -jnp.inf, log_BK, 0)
    kept_BK = (jnp.cumsum(terms_BK, axis=-1) <= top_h * terms_BK.sum(axis=-1, keepdims=True)).at[:, 0].set(True)
    rows = jnp.arange(len(scores_BV))[:, None]
    kept_BV = jnp.zeros(scores_BV.shape, bool).at[rows, ids_BK].set(kept_BK)
    return jnp.where(kept_BV | (top_h > 1), scores_BV, -jnp.inf)


def likeliest(scores_BV: jax.Array, top_k_B: jax.Array, top_p_B: jax.Array, keep: int = 1) -> jax.Array:
    """Sets to -inf all scores of a row but the `top_k` highest, and of these the ones beyond a mass of `top_p`.

    Args:
      keep: tokens that stay in any case.
    """
    V = scores_BV.shape[-1]
    top_k_B1, top_p_B1 = top_k_B[:, None], top_p_B[:, None]
    ranked_BV = jnp.sort(scores_BV, axis=-1, descending=True)
    # Whatever ties with the k-th stays, as in transformers: bfloat16 logits are full of ties.
    last_B1 = jnp.where((top_k_B1 > 0) & (top_k_B1 < V), jnp.minimum(jnp.maximum(top_k_B1, keep), V), V) - 1
    kth_B1 = jnp.take_along_axis(ranked_BV, last_B1, axis=-1)
    ranked_BV = jnp.where(ranked_BV >= kth_B1, ranked_BV, -jnp.inf)
    probabilities_BV = jax.nn.softmax(ranked_BV, axis=-1)
    before_BV = jnp.cumsum(probabilities_BV, axis=-1) - probabilities_BV
    # The likeliest token always stays; another one stays if the mass of the likelier ones is below top_p. Rounding can
    # bring the cumulative sum to 1 before its end, so top_p = 1 keeps all of them without a look at the sum.
    inside_BV = (((before_BV < top_p_B1) | (top_p_B1 >= 1)) & (ranked_BV > -jnp.inf)).at[:, :keep].set(True)
    threshold_B1 = jnp.min(jnp.where(inside_BV, ranked_BV, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(scores_BV >= threshold_B1, scores_BV, -jnp.inf)


def of_share(scores_BV: jax.Array, min_p_B: jax.Array, keep: int = 1) -> jax.Array:
    """Keeps tokens with a share of the likeliest one's probability (`MinPLogitsWarper`); 0 keeps all.

    Args:
      keep: tokens that stay in any case.
    """
    p_BV = jax.nn.softmax(scores_BV, axis=-1)
    return _kept(scores_BV, p_BV >= min_p_B[:, None] * p_BV.max(axis=-1, keepdims=True), keep)


def rare_ones_removed(scores_BV: jax.Array, filters: Filters) -> jax.Array:
    """Applies `typical_p`, `epsilon_cutoff` and `eta_cutoff` in transformers' order."""
    scores_BV = jnp.where(filters.typical_p < 1, _typical(scores_BV, filters.typical_p, filters.keep), scores_BV)
    scores_BV = _kept(scores_BV, jax.nn.softmax(scores_BV, axis=-1) >= filters.epsilon_cutoff, filters.keep)
    p_BV = jax.nn.softmax(scores_BV, axis=-1)
    entropy_B1 = -jnp.where(p_BV > 0, p_BV * jnp.log(p_BV), 0).sum(axis=-1, keepdims=True)
    eta_B1 = jnp.minimum(filters.eta_cutoff, jnp.sqrt(filters.eta_cutoff) * jnp.exp(-entropy_B1))
    return _kept(scores_BV, p_BV >= eta_B1, filters.keep)


def _kept(scores_BV: jax.Array, keep_BV: jax.Array, least: int) -> jax.Array:
    """Keeps the tokens of a mask, and in any case the `least` likeliest of those that are left."""
    kth_B1 = jax.lax.top_k(scores_BV, min(least, scores_BV.shape[-1]))[0][:, -1:]
    return jnp.where(keep_BV | (scores_BV >= kth_B1), scores_BV, -jnp.inf)


def _typical(scores_BV: jax.Array, mass: jax.Array, keep: int) -> jax.Array:
    """Keeps the tokens with this mass whose surprise is nearest to the entropy (`TypicalLogitsWarper`)."""
    log_BV = jax.nn.log_softmax(scores_BV, axis=-1)
    entropy_B1 = -jnp.where(log_BV > -jnp.inf, jnp.exp(log_BV) * log_BV, 0).sum(axis=-1, keepdims=True)
    distance_BV = jnp.abs(-log_BV - entropy_B1)
    order_BV = jnp.argsort(distance_BV, axis=-1)
    sorted_BV = jnp.take_along_axis(distance_BV, order_BV, axis=-1)
    ranked_BV = jnp.take_along_axis(jnp.exp(log_BV), order_BV, axis=-1)
    last_B1 = (jnp.cumsum(ranked_BV, axis=-1) < mass).sum(axis=-1, keepdims=True)
    last_B1 = jnp.minimum(last_B1, scores_BV.shape[-1] - 1)
    limit_B1 = jnp.take_along_axis(sorted_BV, jnp.maximum(last_B1, keep - 1), axis=-1)
    return jnp.where(distance_BV <= limit_B1, scores_BV, -jnp.inf)
