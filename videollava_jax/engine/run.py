"""One run of the engine: joins requests, reader threads, schedule and device. Only this module waits for anything.

requests ──▶ Preparer ──▶ ┌──────────┐ ──▶ Device: encode, prefill, begin, decode
                          │ Schedule │
 Readers: hash, read ◀──▶ └──────────┘ ──▶ results
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from videollava_jax.engine.device import Report
from videollava_jax.engine.events import (
    Action,
    Answer,
    Arrived,
    Begin,
    Decode,
    EndedRow,
    EndRows,
    Event,
    Exhausted,
    Fail,
    Finish,
    Identify,
    MakeGrid,
    Prefill,
    ReadMedia,
    Refused,
    RowsEnded,
    TakeRequest,
    Wait,
)
from videollava_jax.engine.preparation import Preparer, Question, ReadPrefix, with_own_paths
from videollava_jax.engine.readers import Readers
from videollava_jax.engine.request import Request, Result
from videollava_jax.engine.results import Ends, result_of
from videollava_jax.engine.schedule import Schedule
from videollava_jax.engine.sizes import GridShape

Written = Callable[[Question, npt.NDArray[np.int32]], None]
"""Called with a question and all tokens of its answer so far."""


class GridDevice(Protocol):
    """What carries out actions on a grid: `device.Device`, which documents the methods, or a fake one."""

    def make_grid(self, shape: GridShape, draw: bool, penalise: bool) -> None:
        """Makes an empty grid."""

    def prefill(self, slot: int, prefixes: Sequence[ReadPrefix]) -> None:
        """Computes prefixes in the slots of one index."""

    def begin(self, slot: int, questions: Sequence[Question | None]) -> None:
        """Puts questions into rows of the slots of one index."""

    def decode(self, steps: int, enough: int) -> Report:
        """Decodes all rows, and returns their answers so far."""

    def end_rows(self, rows: Sequence[int]) -> None:
        """Ends rows."""


class Run:
    """Answers requests: carries out the schedule's actions, and gives it the events that follow."""

    def __init__(self, preparer: Preparer, schedule: Schedule, device: GridDevice, tokenizer: Any, readers: Readers):
        """Takes what works together.

        Args:
          readers: closed at the end of `results`.
        """
        self._preparer, self._schedule, self._device = preparer, schedule, device
        self._tokenizer, self._ends = tokenizer, Ends(tokenizer)
        self._readers = readers
        self._ids: set[str] = set()

    def results(self, requests: Iterable[Request] = (), written: Written | None = None) -> Iterator[Result]:
        """Yields each request's result when it is known; see `Engine.run`.

        Args:
          requests: of a schedule that takes them; to a live one they come as events.
          written: called with each answer's tokens so far, after every call of the device.
        """
        schedule, incoming = self._schedule, iter(requests)
        try:
            while not isinstance(action := self._next_action(), Finish):
                match action:
                    case Answer(question, tokens, prefix):
                        yield result_of(cast(Question, question), tokens, prefix, self._tokenizer)
                    case Fail():
                        yield _failed(action)
                    case TakeRequest():
                        schedule.take(self._next_request(incoming))
                    case Decode(steps, enough, rows):
                        questions = cast(Mapping[int, Question], rows)
                        report = self._device.decode(steps, enough)
                        ended = self._ends.of(report, questions)
                        if written is not None:
                            _pass_on(report, questions, ended, written)
                        schedule.take(RowsEnded(ended))
                    case _:
                        self._carry_out(action)
        finally:
            self._readers.close()

    def _next_action(self) -> Action:
        for event in self._readers.finished():
            self._schedule.take(event)
        return self._schedule.next()

    def _carry_out(self, action: Action) -> None:
        match action:
            case Identify(question):
                self._readers.identify(cast(Question, question))
            case ReadMedia(key, question):
                self._readers.read(key, cast(Question, question))
            case Wait():
                self._schedule.take(cast(Event, self._readers.wait()))
            case MakeGrid(shape, draw, penalise):
                self._device.make_grid(shape, draw, penalise)
            case Prefill(slot, prefixes):
                self._device.prefill(slot, cast(Sequence[ReadPrefix], prefixes))
            case Begin(slot, questions):
                self._device.begin(slot, cast(Sequence[Question | None], questions))
            case EndRows(rows):
                self._device.end_rows(rows)

    def _next_request(self, incoming: Iterator[Request]) -> Event:
        request = next(incoming, None)
        if request is None:
            return Exhausted()
        if request.id in self._ids:
            raise ValueError(f"request {request.id!r} was there before: expected an id of its own for each")
        self._ids.add(request.id)
        try:
            return Arrived(self._preparer.question(request))
        except (ValueError, TypeError, OSError) as error:
            return Refused(request.id, error)


def _pass_on(report: Report, rows: Mapping[int, Question], ended: Sequence[EndedRow], written: Written) -> None:
    """Passes on the tokens of each row, which end where its answer has ended."""
    ends = {each.row: each.tokens for each in ended}
    for row, question in rows.items():
        written(question, ends.get(row, report.tokens_BN[row, : report.count_B[row]]))


def _failed(action: Fail) -> Result:
    error = action.error
    if action.question is not None and action.read_for is not None:
        own, read = cast(Question, action.question), cast(Question, action.read_for)
        error = with_own_paths(error, own.prefix, read.prefix)
    return Result(id=action.id, finish_reason="error", error=" ".join(error.split()), cause=action.cause)
