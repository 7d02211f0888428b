"""The answers of a batch on the device, and the step that appends a token to each."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from videollava_jax.generation.next_token import Sampling, next_tokens


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
      seen_BV: bool, tokens that the repetition penalty applies to; None where no row has a penalty.
      sampling: how each row's tokens are chosen.
    """

    token_B: jax.Array
    tokens_BN: jax.Array
    count_B: jax.Array
    limit_B: jax.Array
    done_B: jax.Array
    finite_B: jax.Array
    seen_BV: jax.Array | None
    sampling: Sampling


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


def with_next_token(logits_BV: jax.Array, answers: Answers, vocabulary: Vocabulary) -> Answers:
    """Returns the answers with the next token of every row that has not ended."""
    live_B = ~answers.done_B
    scores_BV = jnp.where(vocabulary.suppressed_V, -jnp.inf, logits_BV.astype(jnp.float32))
    finite_B = answers.finite_B & (answers.done_B | jnp.isfinite(logits_BV).all(axis=-1))
    token_B = next_tokens(scores_BV, answers.seen_BV, answers.sampling, answers.count_B)
    token_B = jnp.where(live_B & finite_B, token_B, vocabulary.pad)
    write_BN = (jnp.arange(answers.tokens_BN.shape[1]) == answers.count_B[:, None]) & (live_B & finite_B)[:, None]
    count_B = answers.count_B + (live_B & finite_B)
    seen_BV = answers.seen_BV
    if seen_BV is not None:
        chosen_BV = jnp.arange(seen_BV.shape[1]) == token_B[:, None]
        seen_BV = seen_BV | (chosen_BV & live_B[:, None])
    ended_B = (token_B[:, None] == vocabulary.eos_E).any(axis=-1) | (count_B >= answers.limit_B) | ~finite_B
    return Answers(
        token_B=token_B,
        tokens_BN=jnp.where(write_BN, token_B[:, None], answers.tokens_BN),
        count_B=count_B,
        limit_B=answers.limit_B,
        done_B=answers.done_B | ended_B,
        finite_B=finite_B,
        seen_BV=seen_BV,
        sampling=answers.sampling,
    )
