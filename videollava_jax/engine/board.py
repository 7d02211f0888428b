"""The host's side of a grid: which slots and rows are taken, and what rows that begin are told."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from videollava_jax.engine.grid import Grid, GridShape
from videollava_jax.engine.groups import Group
from videollava_jax.engine.preparation import Question
from videollava_jax.generation.answers import Answers
from videollava_jax.generation.decoding import row_keys
from videollava_jax.generation.next_token import Sampling


@dataclass
class Slot:
    """A slot of the grid.

    Attributes:
      group: that it was given to, until all its questions are answered.
      holds: the key of the prefix that is in it.
      length: tokens of that prefix.
    """

    group: Group | None = None
    holds: Hashable = None
    length: int = 0


@dataclass
class Row:
    """A row of the grid: the question that it answers, and how many of its tokens were looked at for its end."""

    question: Question | None = None
    looked_at: int = 0


@dataclass
class Board:
    """The host's side of a grid."""

    shape: GridShape
    draw: bool
    penalise: bool
    device: Grid
    slots: list[Slot] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)

    def shard_slots(self, index: int) -> list[int]:
        """The slots of one index, one in each shard."""
        return [shard * self.shape.slots + index for shard in range(self.shape.shards)]

    def rows_of(self, slot: int) -> range:
        """The rows of a slot."""
        return range(slot * self.shape.rows, (slot + 1) * self.shape.rows)

    def takes(self, question: Question) -> bool:
        """Whether its rows have room for a question and its answer, and its programs what they need."""
        options = question.options
        return (
            len(question.ids) <= self.shape.question
            and options.max_new_tokens <= self.shape.answer
            and (self.draw or not options.do_sample)
            and (self.penalise or options.repetition_penalty == 1.0)
        )

    @property
    def live(self) -> int:
        """Rows that are answering."""
        return sum(row.question is not None for row in self.rows)


def unwritten_answers(board: Board, questions: Sequence[Question | None], rows: Sequence[int], V: int) -> Answers:
    """Answers without a token for rows that begin, on the host; those of rows without a question have ended.

    Args:
      rows: the numbers of these rows on the board.
      V: size of the vocabulary.
    """
    seen = None
    if board.penalise:
        seen = np.zeros((len(rows), V), bool)
        for i, (row, question) in enumerate(zip(rows, questions, strict=True)):
            if question is not None:
                group = board.slots[row // board.shape.rows].group
                assert group is not None
                seen[i, np.concatenate([group.read.ids, question.ids])] = True
    limits = [0 if question is None else question.options.max_new_tokens for question in questions]
    arrays: dict[str, Any] = {
        "token_B": np.zeros(len(rows), np.int32),
        "tokens_BN": np.zeros((len(rows), board.shape.answer), np.int32),
        "count_B": np.zeros(len(rows), np.int32),
        "limit_B": np.array(limits, np.int32),
        "done_B": np.array([question is None for question in questions]),
        "finite_B": np.ones(len(rows), bool),
        "seen_BV": seen,
    }
    return Answers(**arrays, sampling=sampling_of(questions, board.draw, board.penalise))


def sampling_of(questions: Sequence[Question | None], draw: bool, penalise: bool) -> Sampling:
    """How the rows of these questions are sampled; of nobody's, one row."""
    rows: Sequence[Question | None] = questions or [None]

    def each(value: Any, otherwise: Any, dtype: Any) -> Any:
        return np.array([otherwise if q is None else value(q.options) for q in rows], dtype)

    return Sampling(
        keys_B=row_keys([0 if q is None else q.options.seed for q in rows], len(rows)),
        draw_B=each(lambda o: o.do_sample, False, bool),
        temperature_B=each(lambda o: o.temperature, 1, np.float32),
        top_k_B=each(lambda o: o.top_k, 0, np.int32),
        top_p_B=each(lambda o: o.top_p, 1, np.float32),
        repetition_penalty_B=each(lambda o: o.repetition_penalty, 1, np.float32),
        draw=draw,
        penalise=penalise,
    )
