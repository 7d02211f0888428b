"""Questions about one prefix packed into one sequence, without the padding that rows of one length have. No JAX."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

STEPS_OF_A_DOUBLING = 4
"""Lengths of packed sequences between N and 2 N: each is one more program, and padding is at most a quarter."""
COMPUTED_FROM = 256
"""Tokens from which on they cost what their products cost, so that lengths have twice as many steps. In the time for
fewer a device does not even read the weights."""
LEAST_PACKED = 32

Ids = npt.NDArray[np.int32]


def packed_length(tokens: int) -> int:
    """Returns the length to which a sequence of packed questions is padded: 32, 40, 48, 56, 64, 80, 96 and so on."""
    if tokens <= LEAST_PACKED:
        return LEAST_PACKED
    steps = STEPS_OF_A_DOUBLING if tokens <= COMPUTED_FROM else 2 * STEPS_OF_A_DOUBLING
    step = (1 << (tokens - 1).bit_length() - 1) // steps
    return -(-tokens // step) * step


def tokens_of_slot(counts: Sequence[int], shards: int) -> int:
    """Returns the length of the packed sequences of one index's slots.

    Args:
      counts: the tokens of the question in each row, those of the first shard first; 0 for none.
    """
    each = len(counts) // shards
    return packed_length(max(sum(counts[first : first + each]) for first in range(0, len(counts), each)))


@dataclass(frozen=True)
class PackedQuestions:
    """Arrays of the questions that begin in the slots of one index, as `model.cache.Packing` describes them.

    Attributes:
      ids_WN: int32, the tokens of each slot's questions, one after the other.
      index_WP, place_WN, mask_ET: as in `Packing`.
    """

    ids_WN: Ids
    index_WP: Ids
    place_WN: Ids
    mask_ET: npt.NDArray[np.bool_]


def packed(rows: Sequence[Ids | None], shards: int, length: int) -> PackedQuestions:
    """Packs the questions of each shard's rows.

    Args:
      rows: the tokens of each row, those of the first shard first; None for a row without a question.
      length: positions of a row, at least the tokens of the longest.
    """
    each = len(rows) // shards
    counts = [0 if row is None else len(row) for row in rows]
    N = tokens_of_slot(counts, shards)
    ids, place = np.zeros((shards, N), np.int32), np.zeros((shards, N), np.int32)
    index, mask = np.zeros((shards, each, length), np.int32), np.zeros((len(rows), length), bool)
    for shard in range(shards):
        at = 0
        for r in range(each):
            row, count = rows[shard * each + r], counts[shard * each + r]
            if row is None:
                continue
            ids[shard, at : at + count] = row
            place[shard, at : at + count] = np.arange((r + 1) * length - count, (r + 1) * length)
            index[shard, r, length - count :] = np.arange(at, at + count)
            mask[shard * each + r, length - count :] = True
            at += count
    return PackedQuestions(ids, index.reshape(shards, each * length), place, mask)
