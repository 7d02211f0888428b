"""The arrays with which rows of a grid begin: answers without a token, and how their tokens are chosen."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from videollava_jax.engine.preparation import Ids, Question
from videollava_jax.engine.request import MOST_LOGPROBS
from videollava_jax.engine.sizes import Branches
from videollava_jax.generation.answers import Answers
from videollava_jax.generation.decoding import row_keys
from videollava_jax.generation.logprobs import WINDOW, Logprobs
from videollava_jax.generation.next_token import Sampling
from videollava_jax.generation.penalties import penalties_of


def unwritten_answers(
    questions: Sequence[Question | None],
    prefixes: Sequence[Ids],
    width: int,
    V: int,
    branches: Branches,
    positions: int,
) -> Answers:
    """Returns answers without a token, on the host. Rows without a question have ended.

    Args:
      questions: of each row.
      prefixes: the ids of each row's prefix.
      width: the most tokens of an answer.
      V: size of the vocabulary.
      branches: what is compiled.
      positions: of the model; an answer ends where there are no more.
    """
    rows = len(questions)
    penalties = None
    if branches.penalise:
        prompts = [
            _NOTHING if question is None else np.concatenate([prefix, question.ids])
            for question, prefix in zip(questions, prefixes, strict=True)
        ]
        penalties = penalties_of(prompts, [None if question is None else question.options for question in questions], V)
    limits = [
        0 if question is None else min(question.options.max_new_tokens, positions - len(prefix) - len(question.ids))
        for question, prefix in zip(questions, prefixes, strict=True)
    ]
    arrays: dict[str, Any] = {
        "token_B": np.zeros(rows, np.int32),
        "tokens_BN": np.zeros((rows, width), np.int32),
        "count_B": np.zeros(rows, np.int32),
        "limit_B": np.array(limits, np.int32),
        "done_B": np.array([question is None for question in questions]),
        "finite_B": np.ones(rows, bool),
        "penalties": penalties,
        "logprobs": _logprobs(questions, V) if branches.logprobs else None,
    }
    return Answers(**arrays, sampling=_sampling(questions, branches.draw))


def idle_answers(rows: int, width: int, V: int, branches: Branches) -> Answers:
    """Returns the answers of idle rows, on the host; arguments as in `unwritten_answers`."""
    return unwritten_answers([None] * rows, [_NOTHING] * rows, width, V, branches, 0)


def _logprobs(questions: Sequence[Question | None], V: int) -> Logprobs:
    rows, K = len(questions), min(MOST_LOGPROBS, V)
    arrays: dict[str, Any] = {
        "wanted_B": np.array([question is not None and question.wants_logprobs for question in questions]),
        "chosen_BW": np.zeros((rows, WINDOW), np.float32),
        "ids_BWK": np.zeros((rows, WINDOW, K), np.int32),
        "top_BWK": np.zeros((rows, WINDOW, K), np.float32),
    }
    return Logprobs(**arrays)


def _sampling(questions: Sequence[Question | None], draw: bool) -> Sampling:
    """Stacks the sampling options of questions; None is an idle row."""

    def each(value: Any, otherwise: Any, dtype: Any) -> Any:
        return np.array([otherwise if q is None else value(q.options) for q in questions], dtype)

    return Sampling(
        keys_B=_keys(questions),
        draw_B=each(lambda o: o.do_sample, False, bool),
        temperature_B=each(lambda o: o.temperature, 1, np.float32),
        top_k_B=each(lambda o: o.top_k, 0, np.int32),
        top_p_B=each(lambda o: o.top_p, 1, np.float32),
        min_p_B=each(lambda o: o.min_p, 0, np.float32),
        draw=draw,
    )


def _keys(questions: Sequence[Question | None]) -> Any:
    """The keys of rows; of questions that draw nothing any key will do, and none is computed."""
    if any(q is not None for q in questions) and not any(q is not None and q.options.do_sample for q in questions):
        return _some_keys(len(questions))
    return row_keys([0 if q is None else q.options.seed for q in questions], len(questions))


@functools.cache
def _some_keys(rows: int) -> Any:
    return row_keys(0, rows)


_NOTHING: Ids = np.zeros(0, np.int32)
