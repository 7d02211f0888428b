"""The arrays with which rows of a grid begin: answers without a token, and how their tokens are chosen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from videollava_jax.engine.preparation import Ids, Question
from videollava_jax.generation.answers import Answers
from videollava_jax.generation.decoding import row_keys
from videollava_jax.generation.next_token import Sampling


def unwritten_answers(
    questions: Sequence[Question | None], prefixes: Sequence[Ids], width: int, V: int, draw: bool, penalise: bool
) -> Answers:
    """Returns answers without a token, on the host. Rows without a question have ended.

    Args:
      questions: of each row.
      prefixes: the ids of each row's prefix.
      width: the most tokens of an answer.
      V: size of the vocabulary.
      draw, penalise: which branches are compiled, as in `Sampling`.
    """
    seen = None
    if penalise:
        seen = np.zeros((len(questions), V), bool)
        for i, (question, prefix) in enumerate(zip(questions, prefixes, strict=True)):
            if question is not None:
                seen[i, np.concatenate([prefix, question.ids])] = True
    limits = [0 if question is None else question.options.max_new_tokens for question in questions]
    arrays: dict[str, Any] = {
        "token_B": np.zeros(len(questions), np.int32),
        "tokens_BN": np.zeros((len(questions), width), np.int32),
        "count_B": np.zeros(len(questions), np.int32),
        "limit_B": np.array(limits, np.int32),
        "done_B": np.array([question is None for question in questions]),
        "finite_B": np.ones(len(questions), bool),
        "seen_BV": seen,
    }
    return Answers(**arrays, sampling=sampling_of(questions, draw, penalise))


def sampling_of(questions: Sequence[Question | None], draw: bool, penalise: bool) -> Sampling:
    """Stacks the sampling options of questions; None is an idle row. Without questions, one idle row."""
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
