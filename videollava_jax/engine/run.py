"""One run of the engine: joins requests, reader threads, schedule and device. Only this module waits for anything.

requests ──▶ Preparer ──▶ ┌──────────┐ ──▶ Device: encode, prefill, begin, decode
                          │ Schedule │
 Readers: hash, read ◀──▶ └──────────┘ ──▶ results
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from videollava_jax.engine.device import LastLogprobs, Report
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
    KeepPrefix,
    MakeGrid,
    Prefill,
    ReadMedia,
    Refused,
    RowsEnded,
    Score,
    StopReading,
    TakeRequest,
    Wait,
)
from videollava_jax.engine.preparation import Preparer, Question, ReadPrefix
from videollava_jax.engine.readers import Readers
from videollava_jax.engine.request import Outcome, Pinned, Request, TokenLogprob
from videollava_jax.engine.results import Ends, Logprobs, failed, result_of, scored_of
from videollava_jax.engine.schedule import Schedule
from videollava_jax.engine.sizes import Branches, GridShape
from videollava_jax.engine.usage import Usage

Written = Callable[[Question, npt.NDArray[np.int32], Sequence[TokenLogprob]], None]
"""Called with a question, all tokens of its answer so far, and their log-probabilities if it wants them."""
Begun = Callable[[Question, float], None]
"""Called with a question that has got a row, and when the device began with it, in seconds of `time.monotonic`."""

_WORK = (Prefill, Begin, Decode, Score, Wait)
"""Actions that take time."""


class GridDevice(Protocol):
    """What carries out actions on a grid: `device.Device`, which documents the methods, or a fake one."""

    def make_grid(self, shape: GridShape, branches: Branches) -> None:
        """Makes an empty grid."""

    def prefill(self, slot: int, prefixes: Sequence[ReadPrefix]) -> None:
        """Computes prefixes in the slots of one index."""

    def begin(self, slot: int, questions: Sequence[Question | None]) -> None:
        """Puts questions into rows of the slots of one index."""

    def decode(self, steps: int, enough: int, rows: Collection[int]) -> Report:
        """Decodes rows, and returns the answers of all so far."""

    def logprobs(self) -> LastLogprobs:
        """Returns the log-probabilities of the last tokens of all rows."""

    def score(self, slot: int, shard: int, question: Question) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """Computes how likely a question's choices are after the prefix in a slot."""

    def end_rows(self, rows: Sequence[int]) -> None:
        """Ends rows."""


class Run:
    """Answers requests: carries out the schedule's actions, and gives it the events that follow.

    Attributes:
      steps: actions carried out so far; while it stays the same, the device or a wait has not returned.
      usage: of a live schedule, as it was when the device was last called or nothing was left to do.
    """

    def __init__(self, preparer: Preparer, schedule: Schedule, device: GridDevice, tokenizer: Any, readers: Readers):
        """Takes what works together.

        Args:
          readers: closed at the end of `results`.
        """
        self._preparer, self._schedule, self._device = preparer, schedule, device
        self._tokenizer, self._ends = tokenizer, Ends(tokenizer)
        self._readers = readers
        self._ids: set[str] = set()
        self._logprobs = Logprobs()
        self._counts: dict[Question, int] = {}
        self._generated = 0
        self._begun: Begun | None = None
        self._prefills: dict[int, float] = {}  # by slot, until its first questions begin
        self.usage = Usage()
        self.steps = 0

    def results(
        self,
        requests: Iterable[Request] = (),
        written: Written | None = None,
        begun: Begun | None = None,
        settled: Callable[[], None] | None = None,
    ) -> Iterator[Outcome]:
        """Yields each request's result when it is known; see `Engine.run`.

        Args:
          requests: of a schedule that takes them; to a live one they come as events.
          written: called with each answer's tokens so far, after every call of the device.
          begun: called with each question when it is begun.
          settled: called before the device works again, or nothing does.
        """
        self._begun = begun
        schedule, incoming = self._schedule, iter(requests)
        try:
            while not isinstance(action := self._next_action(), Finish):
                self.steps += 1
                if settled is not None and isinstance(action, _WORK):
                    settled()
                match action:
                    case Answer(question, tokens, prefix):
                        own = cast(Question, question)
                        yield result_of(own, tokens, prefix, self._tokenizer, self._logprobs.of(own, len(tokens)))
                    case Score(slot, shard, question, prefix):
                        own = cast(Question, question)
                        if begun is not None:
                            begun(own, time.monotonic())
                        yield scored_of(own, *self._device.score(slot, shard, own), prefix)
                    case KeepPrefix(question, prefix):
                        cached = prefix.tokens if prefix.cached else 0
                        yield Pinned(id=question.id, tokens=prefix.tokens, cached_tokens=cached, frames=prefix.frames)
                    case Fail():
                        yield failed(action)
                    case TakeRequest():
                        schedule.take(self._next_request(incoming))
                    case Decode():
                        self._publish()  # the rows that are decoded; afterwards, those that have not ended
                        schedule.take(RowsEnded(self._decode(action, written)))
                        self._publish()
                    case _:
                        self._carry_out(action)
        finally:
            self._readers.close()

    def _decode(self, action: Decode, written: Written | None) -> tuple[EndedRow, ...]:
        """Decodes, passes on what was written, and returns the rows that have ended."""
        rows = cast(Mapping[int, Question], action.rows)
        report = self._device.decode(action.steps, action.enough, rows)
        if any(question.wants_logprobs for question in rows.values()):
            self._logprobs.take(self._device.logprobs(), report, rows)
        ended = self._ends.of(report, rows)
        ends = {each.row: each.tokens for each in ended}
        counts = {}
        for row, question in rows.items():
            tokens = ends.get(row, report.tokens_BN[row, : report.count_B[row]])
            counts[question] = len(tokens)
            self._generated += len(tokens) - self._counts.get(question, 0)
            if written is not None:
                written(question, tokens, self._logprobs.of(question, len(tokens)))
        self._counts = counts
        return ended

    def _publish(self) -> None:
        if self._schedule.live:
            self.usage = replace(self._schedule.usage, generated_tokens=self._generated)

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
            case StopReading(key):
                self._readers.stop(key)
            case Wait():
                self._publish()
                self._schedule.take(cast(Event, self._readers.wait()))
            case MakeGrid(shape, branches):
                self._device.make_grid(shape, branches)
            case Prefill(slot, prefixes):
                self._prefills[slot] = time.monotonic()
                self._device.prefill(slot, cast(Sequence[ReadPrefix], prefixes))
            case Begin(slot, questions):
                self._begin(slot, cast(Sequence[Question | None], questions))
            case EndRows(rows):
                self._device.end_rows(rows)

    def _begin(self, slot: int, questions: Sequence[Question | None]) -> None:
        """Begins questions. The first ones after a prefill have been worked for since that began."""
        when = self._prefills.pop(slot, time.monotonic())
        if self._begun is not None:
            for question in questions:
                if question is not None:
                    self._begun(question, when)
        self._device.begin(slot, questions)

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
