"""Tokens of rows to results: where answers end, and their text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from videollava_jax.engine.device import LastLogprobs, Report
from videollava_jax.engine.events import EndedRow, Fail, HeldPrefix, Task
from videollava_jax.engine.preparation import Question, with_own_paths
from videollava_jax.engine.request import Outcome, Pinned, Result, Scored, TokenLogprob
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


class Logprobs:
    """Collects the log-probabilities of answers, which the device keeps for a few tokens."""

    def __init__(self) -> None:
        self._found: dict[Question, list[TokenLogprob]] = {}

    def take(self, last: LastLogprobs, report: Report, rows: Mapping[int, Question]) -> None:
        """Takes those of the tokens that were written since the last report.

        Args:
          rows: the questions that are being answered, by their rows.
        """
        before, self._found = self._found, {}  # those of cancelled questions go
        for row, question in rows.items():
            if (most := question.request.logprobs) is None:
                continue
            found = self._found[question] = before.get(question, [])
            for number in range(len(found), int(report.count_B[row])):
                at = number % last.chosen_BW.shape[1]
                top = zip(last.ids_BWK[row, at, :most].tolist(), last.top_BWK[row, at, :most].tolist(), strict=True)
                token, chosen = report.tokens_BN[row, number], last.chosen_BW[row, at]
                found.append(TokenLogprob(int(token), float(chosen), tuple(top)))

    def of(self, question: Question, tokens: int) -> tuple[TokenLogprob, ...]:
        """Returns those of the first tokens of an answer."""
        return tuple(self._found.get(question, ())[:tokens])


def result_of(
    question: Question,
    tokens: npt.NDArray[np.int32],
    prefix: HeldPrefix,
    tokenizer: Any,
    logprobs: tuple[TokenLogprob, ...] = (),
) -> Result:
    """Returns the result of a question.

    Args:
      tokens: of its answer.
      prefix: of the question.
      logprobs: of the tokens.
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
        prompt_tokens=prefix.tokens + question.tokens,
        shared_tokens=prefix.tokens,
        cached_tokens=prefix.tokens if prefix.cached else 0,
        frames=prefix.frames,
        logprobs=logprobs,
    )


def scored_of(
    question: Question, totals: npt.NDArray[np.float32], greedy: npt.NDArray[np.bool_], prefix: HeldPrefix
) -> Scored:
    """Returns the likelihoods of a question's choices.

    Args:
      totals: float32 [N], the sum of the log-probabilities of each choice.
      greedy: bool [N], whether each of its tokens was the likeliest.
      prefix: of the question.
    """
    if not np.isfinite(totals).all():
        error = "log-likelihoods are not finite: the weights or pixels hold NaN or infinity"
        return Scored(id=question.id, error=error, cause="not_finite")
    return Scored(
        id=question.id,
        log_likelihoods=tuple(totals.tolist()),
        tokens=tuple(len(choice) for choice in question.choices),
        greedy=tuple(greedy.tolist()),
        prompt_tokens=prefix.tokens + len(question.ids),
        cached_tokens=prefix.tokens if prefix.cached else 0,
        frames=prefix.frames,
    )


def failed(action: Fail) -> Outcome:
    """Returns the result of a question that has failed, of the kind that it asks for."""
    error = action.error
    question, read_for = cast(Question | None, action.question), cast(Question | None, action.read_for)
    if question is not None and read_for is not None:
        error = with_own_paths(error, question.prefix, read_for.prefix)
    return _error(action.id, error, action.cause, "answer" if question is None else question.task)


def refused(id: str, error: Exception, task: Task) -> Outcome:
    """Returns the result of a request that cannot be carried out."""
    return _error(id, str(error), getattr(error, "cause", None), task)


def _error(id: str, error: str, cause: str | None, task: Task) -> Outcome:
    error = " ".join(error.split())
    match task:
        case "score":
            return Scored(id=id, error=error, cause=cause)
        case "pin":
            return Pinned(id=id, error=error, cause=cause)
    return Result(id=id, finish_reason="error", error=error, cause=cause)
