"""Tokens of rows to results: where answers end, and their text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from videollava_jax.engine.device import Report
from videollava_jax.engine.events import EndedRow
from videollava_jax.engine.preparation import Question
from videollava_jax.engine.request import Result
from videollava_jax.generation.text import answer_text, ended


class Ends:
    """Finds the rows whose answers have ended: the device reports some, stop strings in the text end others."""

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self._looked_at: dict[Question, int] = {}  # tokens already searched for stop strings

    def of(self, report: Report, rows: Mapping[int, Question]) -> tuple[EndedRow, ...]:
        """Returns the rows that have ended since the last report.

        Args:
          rows: the questions that are being answered, by their rows.
        """
        found = []
        for row, question in rows.items():
            answer = report.tokens_BN[row, : report.count_B[row]]
            end = None
            if question.stops:
                end = ended(answer, self._looked_at.pop(question, 0), question.options, self._tokenizer)
            if report.done_B[row] or end is not None:
                by_host = not report.done_B[row]
                found.append(EndedRow(row, answer[:end], bool(report.finite_B[row]), by_host))
            elif question.stops:
                self._looked_at[question] = len(answer)
        return tuple(found)


def result_of(question: Question, tokens: npt.NDArray[np.int32], prefix: int, tokenizer: Any) -> Result:
    """Returns the result of a question.

    Args:
      tokens: of its answer.
      prefix: tokens of its prefix.
    """
    options = question.options
    token_ids = tuple(tokens.tolist())
    at_end = bool(token_ids) and token_ids[-1] in options.eos_token_id
    at_string = question.stops and ended(tokens, 0, options, tokenizer) is not None
    return Result(
        id=question.id,
        text=answer_text(tokenizer, token_ids),
        token_ids=token_ids,
        finish_reason="stop" if at_end or at_string else "length",
        prompt_tokens=prefix + question.tokens,
        shared_tokens=prefix,
    )
