"""A session of the engine: requests from any thread, answered as they come, with their text while it is written.

submit, cancel ──events──▶ ┌─────────────────────────────┐ ──tokens──▶ on_text
(any thread)               │ one thread: Run, which waits │
Readers, Deadlines ──────▶ │ for events and owns the device│ ──result──▶ Ticket
└─────────────────────────────┘
"""

from __future__ import annotations

import dataclasses
import itertools
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from videollava_jax.engine.compilations import compilations
from videollava_jax.engine.deadlines import Deadlines
from videollava_jax.engine.device import Device
from videollava_jax.engine.events import Arrived, Cancelled, Exhausted, Released, Task
from videollava_jax.engine.preparation import Preparer, Question
from videollava_jax.engine.readers import Readers
from videollava_jax.engine.request import Outcome, Pinned, Request, Result, Scored, TokenLogprob
from videollava_jax.engine.results import refused
from videollava_jax.engine.run import Run
from videollava_jax.engine.schedule import Limits, Schedule
from videollava_jax.engine.sizes import Branches, GridShape
from videollava_jax.engine.tickets import OnText, OnTokens, Pin, QueueFull, SessionClosed, Ticket
from videollava_jax.engine.usage import Usage


class Session:
    """Answers requests that come while others are answered, on a grid whose sizes are fixed.

    `Engine.session` makes one. It is a context: on leaving it waits for all results, or cancels what is left if an
    exception leaves it. One thread owns the device; it starts with the first request.

    Attributes:
      shape: of the grid.
      after_callbacks: called by the session's thread when it has called what a call of the device gave reason to
        (`on_text`, `on_tokens` and those of results), and before it goes on: whoever collects what they say passes it
        on here.
    """

    def __init__(
        self,
        preparer: Preparer,
        device: Device,
        tokenizer: Any,
        shape: GridShape,
        *,
        ahead: int,
        positions: int,
        readers: int,
        max_requests: int | None,
    ):
        """Makes the grid; nothing is compiled yet.

        Args:
          ahead: prefixes whose media are read ahead.
          positions: of the model.
          readers: threads that read media.
          max_requests: without a result at a time; None for any number.
        """
        self.shape = shape
        self._preparer, self._device, self._tokenizer = preparer, device, tokenizer
        self._readers = Readers(preparer, readers)
        limits = Limits(shards=shape.shards, window=1, ahead=ahead, positions=positions, grid=shape)
        self._run = Run(preparer, Schedule(limits), device, tokenizer, self._readers)
        self._max_requests, self._numbers = max_requests, itertools.count()
        self._tickets: dict[str, Ticket[Any]] = {}
        self._lock = threading.Lock()
        self._deadlines = Deadlines()
        self._thread: threading.Thread | None = None
        self._closed: SessionClosed | bool = False
        self._error: BaseException | None = None
        self._compiled = compilations()
        self.after_callbacks: Callable[[], None] = lambda: None
        device.make_grid(shape, Branches())

    # ── what callers do ──

    def warm_up(self) -> int:
        """Compiles all programs that requests need, before the first request; returns their number.

        No program is compiled afterwards, but for videos that are pooled otherwise than the processor says.

        Raises:
          RuntimeError: a request was submitted before.
        """
        if self._thread is not None:
            raise RuntimeError("warm_up comes before the first request")
        before = compilations()
        example = self._preparer.question(Request(id="warm-up", prompt="USER: ? ASSISTANT:"))
        self._device.warm_up(example)
        self._compiled = compilations()
        return self._compiled - before

    def submit(
        self,
        request: Request,
        *,
        on_text: OnText | None = None,
        on_tokens: OnTokens | None = None,
        timeout: float | None = None,
    ) -> Ticket[Result]:
        """Takes a request, and returns at once.

        Args:
          request: its id is only repeated in its result, and may be that of another.
          on_text: called by the session's thread with each new piece of the answer's text; the pieces joined are the
            result's text. It must return quickly: no other request goes on meanwhile.
          on_tokens: where the request asks for `logprobs`, called likewise with those of the tokens of a piece, just
            before `on_text` is; and at the end with those of tokens without text. All joined are the result's.
          timeout: seconds after which the request is cancelled.

        Returns:
          A ticket. A request that cannot be carried out has a result with the error, as in `Engine.run`.

        Raises:
          QueueFull: too many requests have no result yet.
          SessionClosed: the session takes no more requests.
        """
        ticket = Ticket[Result](request, self._cancel, on_text, on_tokens)
        self._enter(ticket, "answer", timeout)
        return ticket

    def score(self, request: Request, *, timeout: float | None = None) -> Ticket[Scored]:
        """Takes a request with `choices`, whose result says how likely each is as the answer. It needs no row.

        Arguments, results and errors are as in `submit`.
        """
        ticket = Ticket[Scored](request, self._cancel)
        self._enter(ticket, "score", timeout)
        return ticket

    def pin(self, request: Request, *, timeout: float | None = None) -> Pin:
        """Computes a request's prefix, and keeps it on the device until `Pin.release`, whoever else asks about it.

        At most one prefix less than the session has slots can be pinned at a time.

        Args:
          request: with the media; what follows the last of them is of no account.
          timeout: seconds after which the request is cancelled, if the prefix is not there.

        Raises:
          QueueFull: too many requests have no result yet.
          SessionClosed: the session takes no more requests.
        """
        ticket = Ticket[Pinned](request, self._cancel)
        self._enter(ticket, "pin", timeout)
        return Pin(ticket, self._release)

    def _enter(self, ticket: Ticket[Any], task: Task, timeout: float | None) -> None:
        with self._lock:
            self._require_open()
            if self._max_requests is not None and len(self._tickets) >= self._max_requests:
                raise QueueFull(f"{len(self._tickets)} requests have no result yet: expected fewer than max_requests")
            name = str(next(self._numbers))
            self._tickets[name] = ticket
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="engine", daemon=True)
                self._thread.start()
        try:
            ticket._question = self._preparer.question(dataclasses.replace(ticket.request, id=name), task)
        except (ValueError, TypeError, OSError) as error:
            self._deliver(refused(name, error, task))
            return
        except BaseException:
            with self._lock:
                del self._tickets[name]
            raise
        self._readers.put(Arrived(ticket._question))
        if timeout is not None:
            error_text = f"there was no answer within {timeout:g} s"
            forget = self._deadlines.after(timeout, lambda: self._cancel(ticket, error_text, "deadline"))
            ticket.add_done_callback(lambda _: forget())

    @property
    def unanswered(self) -> int:
        """The number of requests that have no result yet."""
        return len(self._tickets)

    @property
    def usage(self) -> Usage:
        """Counts for metrics, as they were a few steps of decoding ago at most."""
        now, unanswered = self._run.usage, self.unanswered
        waiting = max(0, unanswered - now.reading - now.running)
        return dataclasses.replace(now, waiting=waiting, compiled=compilations() - self._compiled)

    @property
    def steps(self) -> int:
        """A count of what the session's thread has done.

        If it stays the same while requests are open and none waits for its media, the thread hangs in a call of the
        device.
        """
        return self._run.steps

    @property
    def error(self) -> BaseException | None:
        """The exception that has ended the session's thread, and every request with it; None while all is well."""
        return self._error

    def close(self, drain_seconds: float | None = None, stop_seconds: float | None = None) -> None:
        """Takes no more requests, waits for the results of those that are there, and ends the thread.

        Args:
          drain_seconds: after which requests without a result are cancelled; None to wait for all.
          stop_seconds: that the thread has to end after that; None for any time.

        Raises:
          TimeoutError: it has not ended in that time, as a call of the device has not returned. Requests without a
            result have ended with `SessionClosed`.
        """
        with self._lock:
            self._closed = self._closed or True
            tickets = list(self._tickets.values())
        end = None if drain_seconds is None else time.monotonic() + drain_seconds
        for ticket in tickets:
            try:
                ticket._future.exception(None if end is None else max(0.0, end - time.monotonic()))
            except TimeoutError:
                self._cancel(ticket, "the engine has been closed", "closed")
        self._deadlines.close()
        self._readers.put(Exhausted())
        if self._thread is None:
            self._readers.close()
        else:
            self._thread.join(stop_seconds)
            if self._thread.is_alive():
                error = f"a call of the device has not returned within {stop_seconds:g} s of the end"
                self._end_tickets(SessionClosed(error))
                raise TimeoutError(error)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        self.close(drain_seconds=None if kind is None else 0)

    # ── the thread ──

    def _serve(self) -> None:
        ended = SessionClosed("the session was closed")
        try:
            for outcome in self._run.results(written=self._written, begun=self._begun, settled=self._settled):
                self._deliver(outcome)
        except BaseException as error:
            ended = SessionClosed(f"the engine has stopped: {error}")
            ended.__cause__ = self._error = error
        self._end_tickets(ended)
        self._settled()

    def _settled(self) -> None:
        self.after_callbacks()

    def _end_tickets(self, ended: SessionClosed) -> None:
        """Ends all requests that have no result."""
        with self._lock:
            self._closed = ended
            left = list(self._tickets.values())
            self._tickets.clear()
        for ticket in left:
            if not ticket.done:
                ticket._future.set_exception(ended)

    def _begun(self, question: Question, when: float) -> None:
        ticket = self._tickets.get(question.id)
        if ticket is not None:
            ticket._begin(when)

    def _written(self, question: Question, tokens: npt.NDArray[np.int32], logprobs: Sequence[TokenLogprob]) -> None:
        ticket = self._tickets.get(question.id)
        if ticket is None:
            return
        try:
            ticket._take(tokens, logprobs, self._tokenizer)
        except Exception as error:
            ticket._future.set_exception(error)
            self._cancel(ticket, str(error), "on_text")

    def _deliver(self, outcome: Outcome) -> None:
        with self._lock:
            ticket = self._tickets.pop(outcome.id, None)
        if ticket is not None:  # otherwise it came too late: the session was closed without this thread
            ticket._finish(outcome)

    def _cancel(self, ticket: Ticket[Any], error: str, cause: str) -> None:
        if ticket._question is not None:
            self._readers.put(Cancelled(ticket._question, error, cause))

    def _release(self, ticket: Ticket[Pinned]) -> None:
        if ticket._question is not None:
            self._readers.put(Released(ticket._question))

    def _require_open(self) -> None:
        if isinstance(self._closed, SessionClosed):
            raise self._closed
        if self._closed:
            raise SessionClosed("the session was closed")
