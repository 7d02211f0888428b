"""The answers of a batch on the device, and the step that appends a token to each."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from videollava_jax.generation.logprobs import Logprobs
from videollava_jax.generation.next_token import Sampling, drawn, drawn_from, next_tokens
from videollava_jax.generation.penalties import Penalties
from videollava_jax.generation.processors import Place, Processors, processed, renormalized
from videollava_jax.model.sharding import like, resharded, spec_of, whole


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Records:
    """What was computed at each step: zeros for rows that had ended, and for steps that were not taken.

    Attributes:
      scores_NBV: float32, what a token was chosen by: after all processors and filters; None where nobody asks.
      logits_NBV: float32, what the model computed; None where nobody asks.
    """

    scores_NBV: jax.Array | None
    logits_NBV: jax.Array | None

    @classmethod
    def empty(cls, shape: tuple[int, int, int], *, scores: bool, logits: bool) -> Records | None:
        """Returns arrays of zeros for what is asked for; None for nothing."""
        if not (scores or logits):
            return None
        return cls(jnp.zeros(shape) if scores else None, jnp.zeros(shape) if logits else None)

    def with_step(self, step: jax.Array, scores_BV: jax.Array, logits_BV: jax.Array, live_B: jax.Array) -> Records:
        """Returns the records with those of a step, int32 scalar."""

        def put(record_NBV: jax.Array | None, values_BV: jax.Array) -> jax.Array | None:
            if record_NBV is None:
                return None
            values_BV = jnp.where(live_B[:, None], values_BV.astype(jnp.float32), 0)
            record_NBV = resharded(record_NBV, like(values_BV, None, *spec_of(values_BV)))
            updated: jax.Array = jax.lax.dynamic_update_index_in_dim(record_NBV, values_BV, step, 0)
            return updated

        return Records(put(self.scores_NBV, scores_BV), put(self.logits_NBV, logits_BV))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Answers:
    """The answers of B rows so far, with everything that choosing their next tokens needs.

    Attributes:
      token_B: int32, the last token of each row; its keys and values are not in the cache yet.
      tokens_BN: int32, the answers; `pad` where nothing was written.
      count_B: int32, tokens of each answer.
      limit_B: int32, the number of tokens, at most N, that ends an answer.
      done_B: bool, rows that have ended; nothing more is written to them.
      finite_B: bool, rows whose logits have all been finite; a row ends at the first that are not.
      penalties: of the rows; None where no row has one.
      sampling: how each row's tokens are chosen.
      records: what the caller wants to know of each step; None for nothing.
      logprobs: those of the last tokens of rows that want them; None where no row may.
    """

    token_B: jax.Array
    tokens_BN: jax.Array
    count_B: jax.Array
    limit_B: jax.Array
    done_B: jax.Array
    finite_B: jax.Array
    penalties: Penalties | None
    sampling: Sampling
    records: Records | None = None
    logprobs: Logprobs | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Vocabulary:
    """The tokens that decoding treats specially.

    Attributes:
      eos_E: int32, tokens that end a row.
      suppressed_V: bool, tokens that are never chosen.
      pad: int32 scalar, written behind the end of an answer.
    """

    eos_E: jax.Array
    suppressed_V: jax.Array
    pad: jax.Array


def with_next_token(
    logits_BV: jax.Array, answers: Answers, vocabulary: Vocabulary, processors: Processors | None = None
) -> Answers:
    """Returns the answers with the next token of every row that has not ended.

    Args:
      processors: what changes scores besides penalties, suppressed tokens, top-k, top-p and min-p; None for nothing,
        which computes nothing.
    """
    live_B = ~answers.done_B
    records = answers.records
    if processors is not None:
        logits_BV = whole(logits_BV)  # they look at the whole of a row, and scores are recorded
    if processors is None:
        assert records is None, "scores are recorded on the processors' path alone"
        scores_BV = jnp.where(vocabulary.suppressed_V, -jnp.inf, logits_BV.astype(jnp.float32))
        finite_B = _finite(logits_BV, answers)
        token_B = next_tokens(scores_BV, answers.penalties, answers.sampling, answers.count_B, live_B)
    else:
        finite_B = _finite(logits_BV, answers) | processors.make_finite
        scores_BV, token_B = _chosen(logits_BV, answers, vocabulary, processors)
        if records is not None:
            # Rows that have not ended have equally many tokens, as they began together.
            records = records.with_step(answers.count_B.max(), scores_BV, logits_BV, live_B)
    token_B = jnp.where(live_B & finite_B, token_B, vocabulary.pad)
    write_BN = (jnp.arange(answers.tokens_BN.shape[1]) == answers.count_B[:, None]) & (live_B & finite_B)[:, None]
    count_B = answers.count_B + (live_B & finite_B)
    penalties = None if answers.penalties is None else answers.penalties.with_tokens(token_B, live_B)
    logprobs = answers.logprobs
    if logprobs is not None:
        logprobs = logprobs.with_tokens(logits_BV, token_B, answers.count_B, live_B)
    ended_B = (token_B[:, None] == vocabulary.eos_E).any(axis=-1) | (count_B >= answers.limit_B) | ~finite_B
    return Answers(
        token_B=token_B,
        tokens_BN=jnp.where(write_BN, token_B[:, None], answers.tokens_BN),
        count_B=count_B,
        limit_B=answers.limit_B,
        done_B=answers.done_B | ended_B,
        finite_B=finite_B,
        penalties=penalties,
        sampling=answers.sampling,
        records=records,
        logprobs=logprobs,
    )


def _finite(logits_BV: jax.Array, answers: Answers) -> jax.Array:
    """Returns bool [B], rows whose logits have all been finite until they ended."""
    return answers.finite_B & (answers.done_B | jnp.isfinite(logits_BV).all(axis=-1))


def _chosen(
    logits_BV: jax.Array, answers: Answers, vocabulary: Vocabulary, processors: Processors
) -> tuple[jax.Array, jax.Array]:
    """Returns the scores after all processors and filters, float32 [B, V], and the token of each row, int32 [B]."""
    sampling = answers.sampling
    place = Place(
        tokens_BN=answers.tokens_BN,
        count_B=answers.count_B,
        limit_B=answers.limit_B,
        penalties=answers.penalties,
        eos_E=vocabulary.eos_E,
        suppressed_V=vocabulary.suppressed_V,
        pad=vocabulary.pad,
    )
    scores_BV = processed(logits_BV.astype(jnp.float32), place, processors)
    if not sampling.draw:
        scores_BV = renormalized(scores_BV, processors)
        return scores_BV, jnp.argmax(scores_BV, axis=-1).astype(jnp.int32)
    scores_BV = renormalized(drawn_from(scores_BV, sampling, processors.filters), processors)
    return scores_BV, drawn(scores_BV, sampling, answers.count_B)
