"""The tokens of prompts and answers so far, and the sequences that are looked for at their end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from videollava_jax.generation.buckets import bucket

NOTHING = -1
"""Stands where there is no token: before a prompt, and before a sequence."""


def history(prompt_BT: jax.Array, tokens_BN: jax.Array, count_B: jax.Array) -> jax.Array:
    """Returns int32 [B, T + N], the tokens of each row so far on the right, `NOTHING` before them.

        prompt   . . a b │ answer   c d _ _   count 2   ──▶   . . . . a b c d

    Args:
      prompt_BT: int32, padded on the left with `NOTHING`.
      tokens_BN: int32, the answers.
      count_B: int32, tokens of each answer.
    """
    whole_BS = jnp.concatenate([prompt_BT, tokens_BN], axis=1)
    N = tokens_BN.shape[1]
    from_BS = jnp.arange(whole_BS.shape[1]) - (N - count_B[:, None])
    moved_BS = jnp.take_along_axis(whole_BS, jnp.maximum(from_BS, 0), axis=1)
    return jnp.where(from_BS >= 0, moved_BS, NOTHING)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sequences:
    """Q sequences of tokens with a bias for each, of up to M + 1 tokens.

    Attributes:
      before_QM: int32, all tokens but the last, on the right; `NOTHING` before them matches any token.
      last_Q: int32, the last token.
      bias_Q: float32; 0 for a sequence that only fills the array.
    """

    before_QM: jax.Array
    last_Q: jax.Array
    bias_Q: jax.Array

    @classmethod
    def of(cls, biases: Sequence[tuple[Sequence[int], float]]) -> Sequences:
        """Makes the arrays; numbers of sequences and lengths are rounded up, so that few shapes are compiled."""
        Q = bucket(max(1, len(biases)), 8)
        M = bucket(max([1, *(len(ids) - 1 for ids, _ in biases)]), 4)
        before = np.full((Q, M), NOTHING, np.int32)
        last, bias = np.zeros(Q, np.int32), np.zeros(Q, np.float32)
        for row, (ids, value) in enumerate(biases):
            before[row, M - len(ids) + 1 :] = ids[:-1]
            last[row], bias[row] = ids[-1], value
        return cls(jnp.asarray(before), jnp.asarray(last), jnp.asarray(bias))

    def biased(self, scores_BV: jax.Array, history_BS: jax.Array) -> jax.Array:
        """Adds the bias of each sequence that its last token would complete (`SequenceBiasLogitsProcessor`)."""
        M = self.before_QM.shape[1]
        end_BS = jnp.pad(history_BS, ((0, 0), (M, 0)), constant_values=NOTHING)
        same_BQM = end_BS[:, None, -M:] == self.before_QM
        matches_BQ = (same_BQM | (self.before_QM == NOTHING)).all(axis=-1)
        return scores_BV.at[:, self.last_Q].add(jnp.where(matches_BQ, self.bias_Q, 0))


def repeated(history_BS: jax.Array, among_BS: jax.Array, size: jax.Array, V: int) -> jax.Array:
    """Returns bool [B, V], the tokens that would complete a run of `size` tokens that was there before.

    Args:
      history_BS: int32, as `history` returns it.
      among_BS: the same, or a part of it that looks the same: where the earlier runs are looked for.
      size: int32 scalar, traced; 0 for none.
      V: size of the vocabulary.
    """
    S = history_BS.shape[1]

    def longer(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        """Compares the tokens at a distance from the end of the history and before each place."""
        distance, same_BS = carry
        wanted_B1 = jax.lax.dynamic_slice_in_dim(history_BS, S - distance, 1, axis=1)
        found_BS = jnp.roll(among_BS, distance, axis=1)
        known = (jnp.arange(S) >= distance) & (found_BS != NOTHING)
        return distance + 1, same_BS & known & (found_BS == wanted_B1)

    start = (jnp.asarray(1, jnp.int32), among_BS != NOTHING)
    _, same_BS = jax.lax.while_loop(lambda carry: carry[0] < jnp.minimum(size, S + 1), longer, start)
    tokens_BS = jnp.where(same_BS & (size > 0), among_BS, V)
    rows = jnp.arange(len(history_BS))[:, None]
    return jnp.zeros((len(history_BS), V), bool).at[rows, tokens_BS].set(True, mode="drop")


def prompt_array(rows: Sequence[npt.NDArray[np.int32]], width: int) -> jax.Array:
    """Returns the tokens of prompts, int32 [B, width], with `NOTHING` before them."""
    found = np.full((len(rows), width), NOTHING, np.int32)
    for row, ids in enumerate(rows):
        found[row, width - len(ids) :] = ids
    return jnp.asarray(found)
