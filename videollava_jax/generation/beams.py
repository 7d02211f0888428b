"""Beam search on the device: the beams of each prompt, its ended answers, and one step of both.

The arithmetic is that of transformers' `_beam_search`, whose answers and scores these equal.

    running     n beams of a prompt, equally long, each with the sum of its tokens' log-probabilities
    candidates  the best K continuations of all running beams, more than n, since those that end do not run on
    finished    the best n ended answers so far, by their sum divided by length ** length_penalty
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from videollava_jax.generation.answers import Records, Vocabulary
from videollava_jax.generation.next_token import Sampling, drawn_from
from videollava_jax.generation.penalties import Penalties
from videollava_jax.generation.processors import Place, Processors, processed, renormalized
from videollava_jax.model.sharding import whole

_NEVER = -1.0e9
"""The score of what is not there, as in transformers."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BeamRules:
    """How a search goes.

    Attributes:
      divisor_N: float32, length ** length_penalty for every length from 0.
      limit: int32 scalar, the most tokens of an answer.
      full_ends: bool scalar, `early_stopping=True`: a prompt with n ended answers is done.
      longest: bool scalar, whether the best that may come is judged by the longest answer ("never" with a
        length_penalty above 0), else by the present length.
      beams: n.
      candidates: K.
    """

    divisor_N: jax.Array
    limit: jax.Array
    full_ends: jax.Array
    longest: jax.Array
    beams: int = field(metadata={"static": True})
    candidates: int = field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Beams:
    """The search of B prompts with n beams each. Tokens and rows of an answer are written side by side, pad behind.

    Attributes:
      step: int32 scalar, tokens of each running beam.
      tokens_BnN: int32, the running beams.
      rows_BnN: int32, the row of the batch that each token was chosen from; -1 behind them.
      sums_Bn: float32.
      finished_BnN, finished_rows_BnN, scores_Bn: the ended answers, best first.
      ended_Bn: bool, which of them are answers.
      hopeful_B: bool, prompts that a running beam may still improve.
      over: bool scalar, whether the search has ended.
      finite_B: bool, prompts whose logits have all been finite.
      penalties: of the B × n beams; None for none.
      records: what the caller wants to know of each step.
    """

    step: jax.Array
    tokens_BnN: jax.Array
    rows_BnN: jax.Array
    sums_Bn: jax.Array
    finished_BnN: jax.Array
    finished_rows_BnN: jax.Array
    scores_Bn: jax.Array
    ended_Bn: jax.Array
    hopeful_B: jax.Array
    over: jax.Array
    finite_B: jax.Array
    penalties: Penalties | None
    records: Records | None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Candidates:
    """The best K continuations of each prompt's beams, best first.

    Attributes:
      tokens_BKN, rows_BKN: the beams with their new token.
      beam_BK: int32, which of the n beams each continues.
      sums_BK: float32.
      ends_BK: bool, whether a continuation is an ended answer.
    """

    tokens_BKN: jax.Array
    rows_BKN: jax.Array
    beam_BK: jax.Array
    sums_BK: jax.Array
    ends_BK: jax.Array


def new_beams(
    B: int, N: int, rules: BeamRules, fill: jax.Array, penalties: Penalties | None, records: Records | None
) -> Beams:
    """Returns a search that has not begun: only the first beam of each prompt counts in the first step.

    Args:
      B: prompts.
      N: the most tokens of an answer.
      rules: how the search goes.
      fill: int32 scalar, stands behind answers.
      penalties, records: as in `Beams`.
    """
    n = rules.beams
    blank = jnp.full((B, n, N), fill, jnp.int32)
    nowhere = jnp.full((B, n, N), -1, jnp.int32)
    return Beams(
        step=jnp.asarray(0, jnp.int32),
        tokens_BnN=blank,
        rows_BnN=nowhere,
        sums_Bn=jnp.full((B, n), _NEVER).at[:, 0].set(0),
        finished_BnN=blank,
        finished_rows_BnN=nowhere,
        scores_Bn=jnp.full((B, n), _NEVER),
        ended_Bn=jnp.zeros((B, n), bool),
        hopeful_B=jnp.ones((B,), bool),
        over=jnp.asarray(False),
        finite_B=jnp.ones((B,), bool),
        penalties=penalties,
        records=records,
    )


def candidates(
    logits_RV: jax.Array,
    beams: Beams,
    rules: BeamRules,
    vocabulary: Vocabulary,
    sampling: Sampling,
    processors: Processors,
) -> tuple[Candidates, Beams]:
    """Chooses the continuations of all beams by the logits [B × n, V] of their next tokens.

    Returns:
      The candidates, and the beams with the records of the step.
    """
    B, n, N = beams.tokens_BnN.shape
    R, V = logits_RV.shape
    logits_RV = whole(logits_RV.astype(jnp.float32))  # beams of a prompt compete with each other
    finite_B = beams.finite_B & (jnp.isfinite(logits_RV).reshape(B, -1).all(axis=1) | processors.make_finite)
    count_R = jnp.full((R,), beams.step)
    place = Place(
        tokens_BN=beams.tokens_BnN.reshape(R, N),
        count_B=count_R,
        limit_B=jnp.full((R,), rules.limit),
        penalties=beams.penalties,
        eos_E=vocabulary.eos_E,
        suppressed_V=vocabulary.suppressed_V,
        pad=vocabulary.pad,
    )
    scores_RV = processed(jax.nn.log_softmax(logits_RV, axis=-1), place, processors)
    if sampling.draw:
        scores_RV = drawn_from(scores_RV, sampling, processors.filters)
    scores_RV = renormalized(scores_RV, processors)
    records = beams.records
    if records is not None:
        records = records.with_step(beams.step, scores_RV, logits_RV, jnp.ones((R,), bool))
    sums_BX = (scores_RV.reshape(B, n, V) + beams.sums_Bn[:, :, None]).reshape(B, n * V)
    if sampling.draw:
        # The largest of the scores with Gumbel noise are a draw without replacement from their softmax.
        keys_B = jax.vmap(jax.random.fold_in)(sampling.keys_B[::n], count_R[::n])
        noise_BX = jax.vmap(lambda key: jax.random.gumbel(key, (n * V,)))(keys_B)
        _, chosen_BK = jax.lax.top_k(sums_BX + noise_BX, rules.candidates)
        sums_BK = jnp.take_along_axis(sums_BX, chosen_BK, axis=1)
        order_BK = jnp.argsort(sums_BK, axis=1, descending=True)
        chosen_BK, sums_BK = (jnp.take_along_axis(x, order_BK, axis=1) for x in (chosen_BK, sums_BK))
    else:
        sums_BK, chosen_BK = jax.lax.top_k(sums_BX, rules.candidates)
    beam_BK, token_BK = chosen_BK // V, chosen_BK % V
    row_BK = beam_BK + jnp.arange(B)[:, None] * n
    here_N = jnp.arange(N) == beams.step
    found = Candidates(
        tokens_BKN=jnp.where(here_N, token_BK[:, :, None], _of_beams(beams.tokens_BnN, beam_BK)),
        rows_BKN=jnp.where(here_N, row_BK[:, :, None], _of_beams(beams.rows_BnN, beam_BK)),
        beam_BK=beam_BK,
        sums_BK=sums_BK,
        ends_BK=(token_BK[:, :, None] == vocabulary.eos_E).any(axis=-1) | (beams.step + 1 >= rules.limit),
    )
    return found, dataclasses.replace(beams, records=records, finite_B=finite_B)


def advanced(found: Candidates, beams: Beams, rules: BeamRules) -> tuple[Beams, jax.Array]:
    """Takes a step: candidates that end join the ended answers, the best of the others run on.

    Returns:
      The beams, and int32 [B × n], the row of the cache that each running beam continues.
    """
    B, n, _ = beams.tokens_BnN.shape
    step = beams.step + 1
    # Only the best n candidates can become answers: the others are there so that n run on.
    joins_BK = found.ends_BK & (jnp.arange(rules.candidates) < n)
    closed_B1 = (beams.ended_Bn.all(axis=1) & rules.full_ends)[:, None] | ~beams.hopeful_B[:, None]
    scores_BK = found.sums_BK / rules.divisor_N[step]
    scores_BK = scores_BK + jnp.where(closed_B1, _NEVER, 0) + jnp.where(joins_BK, 0, _NEVER)
    scores_Bn, best_Bn = jax.lax.top_k(jnp.concatenate([beams.scores_Bn, scores_BK], axis=1), n)

    def best(old: jax.Array, new: jax.Array) -> jax.Array:
        return _of_beams(jnp.concatenate([old, new], axis=1), best_Bn)

    sums_BK = found.sums_BK + jnp.where(found.ends_BK, _NEVER, 0)
    sums_Bn, next_Bn = jax.lax.top_k(sums_BK, n)
    ended_Bn = best(beams.ended_Bn, joins_BK)
    length = jnp.where(rules.longest, rules.limit, step)
    worst_Bn = jnp.where(ended_Bn, scores_Bn.min(axis=1, keepdims=True), _NEVER)
    hopeful_B = beams.hopeful_B & (sums_Bn[:, :1] / rules.divisor_N[length] > worst_Bn).any(axis=1)
    over = ~hopeful_B.any() | (ended_Bn.all() & rules.full_ends) | found.ends_BK.all()
    row_R = (jnp.take_along_axis(found.beam_BK, next_Bn, axis=1) + jnp.arange(B)[:, None] * n).reshape(-1)
    penalties = beams.penalties
    tokens_BnN = _of_beams(found.tokens_BKN, next_Bn)
    if penalties is not None:
        token_R = jax.lax.dynamic_index_in_dim(tokens_BnN, beams.step, 2).reshape(-1)
        penalties = penalties.of_rows(row_R).with_tokens(token_R)
    moved = dataclasses.replace(
        beams,
        step=step,
        tokens_BnN=tokens_BnN,
        rows_BnN=_of_beams(found.rows_BKN, next_Bn),
        sums_Bn=sums_Bn,
        finished_BnN=best(beams.finished_BnN, found.tokens_BKN),
        finished_rows_BnN=best(beams.finished_rows_BnN, found.rows_BKN),
        scores_Bn=scores_Bn,
        ended_Bn=ended_Bn,
        hopeful_B=hopeful_B,
        over=over | ~beams.finite_B.all(),
        penalties=penalties,
    )
    return moved, row_R


def _of_beams(x: jax.Array, index_Bk: jax.Array) -> jax.Array:
    """Takes the beams of each prompt that `index_Bk` names: [B, m, …] to [B, k, …]."""
    return jnp.take_along_axis(x, index_Bk.reshape(*index_Bk.shape, *(1,) * (x.ndim - 2)), axis=1)
