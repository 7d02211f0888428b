"""Guesses of the next tokens: what followed the last tokens where they stood before (prompt lookup decoding).

A pass of the decoder over a few guessed tokens costs hardly more than one over a single token, which waits for the
weights to be read. It checks every guess, so answers are the same: only passes are saved.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from videollava_jax.generation.answers import Answers, Vocabulary, with_next_token
from videollava_jax.generation.history import NOTHING, history
from videollava_jax.generation.processors import Processors
from videollava_jax.model.cache import TailCache


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Lookup:
    """How guesses are made.

    Attributes:
      prompt_1T: int32, the prompt, with `NOTHING` before it.
      tokens: the number of tokens that are guessed at a time.
      longest: the most last tokens that are looked up.
    """

    prompt_1T: jax.Array
    tokens: int = field(metadata={"static": True})
    longest: int = field(metadata={"static": True})


def guess(answers: Answers, lookup: Lookup) -> jax.Array:
    """Returns int32 [1, tokens]: what followed the first place where most of the last tokens stood; 0 for nothing."""
    so_far_S = history(lookup.prompt_1T, answers.tokens_BN, answers.count_B)[0]
    S = len(so_far_S)
    places = jnp.arange(S)
    same_S = so_far_S != NOTHING  # the places that the last j tokens stand before
    follows_S, any_found = same_S, jnp.asarray(False)
    for distance in range(1, min(lookup.longest, S - 1) + 1):
        before_S = jnp.roll(so_far_S, distance)
        same_S &= (places >= distance) & (before_S != NOTHING) & (before_S == so_far_S[S - distance])
        found = same_S.any()
        follows_S = jnp.where(found, same_S, follows_S)
        any_found |= found
    start = jnp.argmax(follows_S)
    place_K = start + jnp.arange(lookup.tokens)
    known_K = any_found & (place_K < S)
    return jnp.where(known_K, jnp.maximum(so_far_S[jnp.minimum(place_K, S - 1)], 0), 0)[None]


def with_guessed_tokens(
    logits_TV: jax.Array, guess_1K: jax.Array, answers: Answers, vocabulary: Vocabulary, processors: Processors | None
) -> Answers:
    """Returns the answer with every token up to the first that was guessed wrong, which is right itself.

    Args:
      logits_TV: after the last token and after each guess, T = K + 1.
      guess_1K: int32.
    """
    last = guess_1K.shape[1]

    def right(carry: tuple[jax.Array, jax.Array, Answers]) -> jax.Array:
        place, guessed, answers = carry
        return guessed & (place <= last) & ~answers.done_B[0]

    def body(carry: tuple[jax.Array, jax.Array, Answers]) -> tuple[jax.Array, jax.Array, Answers]:
        place, _, answers = carry
        logits_1V = jax.lax.dynamic_slice_in_dim(logits_TV, place, 1)
        answers = with_next_token(logits_1V, answers, vocabulary, processors)
        return place + 1, answers.token_B[0] == guess_1K[0, jnp.minimum(place, last - 1)], answers

    start = (jnp.asarray(0, jnp.int32), jnp.asarray(True), answers)
    found: Answers = jax.lax.while_loop(right, body, start)[2]
    return found


def without_wrong_guesses(before: TailCache, after: TailCache, right: jax.Array) -> TailCache:
    """Returns the tail of one row after the first `right` (int32 scalar) of the tokens that were written last."""
    write_at = before.write_at + right
    return dataclasses.replace(
        after,
        valid_BS=after.valid_BS & (jnp.arange(after.capacity) < write_at),
        next_position_B=before.next_position_B + right,
        write_at=write_at,
    )
