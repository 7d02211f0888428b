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
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from videollava_jax.engine.compilations import compilations
from videollava_jax.engine.deadlines import Deadlines
from videollava_jax.engine.device import Device
from videollava_jax.engine.events import Arrived, Cancelled, Exhausted
from videollava_jax.engine.preparation import Preparer, Question
from videollava_jax.engine.readers import Readers
from videollava_jax.engine.request import Request, Result
from videollava_jax.engine.run import Run
from videollava_jax.engine.schedule import Limits, Schedule
from videollava_jax.engine.sizes import GridShape
from videollava_jax.generation.text import TextStream

OnText = Callable[[str], None]


class SessionClosed(RuntimeError):
    """The session takes no more requests: it was closed, or its thread has ended by an error, the cause."""


class QueueFull(RuntimeError):
    """As many requests as `max_requests` have no result yet."""


class Ticket:
    """A submitted request, whose result comes later. Any thread may use it."""

    def __init__(self, request: Request, on_text: OnText | None, cancel: Callable[[Ticket, str, str], None]):
        self.request = request
        self._on_text, self._cancel = on_text, cancel
        self._stream: TextStream | None = None
        self._seen = 0
        self._sent = ""
        self._future: Future[Result] = Future()
        self._question: Question | None = None

    def result(self, timeout: float | None = None) -> Result:
        """Waits for the result; that of a cancelled request has the cause "cancelled" or "deadline".

        Raises:
          TimeoutError: it has not come within `timeout` seconds. The request goes on.
          SessionClosed: the session has ended by an error.
          Exception: what `on_text` raised, which has cancelled the request.
        """
        return self._future.result(timeout)

    @property
    def done(self) -> bool:
        """Whether the result is there."""
        return self._future.done()

    def add_done_callback(self, call: Callable[[Ticket], None]) -> None:
        """Calls a function with this ticket when the result is there, in the thread that gives it."""
        self._future.add_done_callback(lambda _: call(self))

    def cancel(self) -> None:
        """Says that nobody wants the answer: what the request holds is freed within a few steps of decoding."""
        self._cancel(self, "the request was cancelled", "cancelled")

    # ── for the session ──

    def _take(self, tokens: npt.NDArray[np.int32], tokenizer: Any) -> None:
        """Passes on the text of new tokens."""
        if self._on_text is None or self.done:
            return
        if self._stream is None:
            self._stream = TextStream(tokenizer, self._send)
        if len(tokens) > self._seen:
            self._stream(tokens[None, self._seen :].astype(np.int64))
            self._seen = len(tokens)

    def _send(self, piece: str) -> None:
        if piece and self._on_text is not None:
            self._on_text(piece)
            self._sent += piece

    def _finish(self, result: Result) -> None:
        """Gives the result, after the rest of its text: a character may have been held back."""
        if self.done:
            return
        try:
            if result.error is None:
                self._send(result.text.removeprefix(self._sent))
        except Exception as error:
            self._future.set_exception(error)
        else:
            self._future.set_result(dataclasses.replace(result, id=self.request.id))


class Session:
    """Answers requests that come while others are answered, on a grid whose sizes are fixed.

    `Engine.session` makes one. It is a context: on leaving it waits for all results, or cancels what is left if an
    exception leaves it. One thread owns the device; it starts with the first request.
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
        self._tickets: dict[str, Ticket] = {}
        self._lock = threading.Lock()
        self._deadlines = Deadlines()
        self._thread: threading.Thread | None = None
        self._closed: BaseException | bool = False
        device.make_grid(shape, draw=True, penalise=True)

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
        return compilations() - before

    def submit(self, request: Request, *, on_text: OnText | None = None, timeout: float | None = None) -> Ticket:
        """Takes a request, and returns at once.

        Args:
          request: its id is only repeated in its result, and may be that of another.
          on_text: called by the session's thread with each new piece of the answer's text; the pieces joined are the
            result's text. It must return quickly: no other request goes on meanwhile.
          timeout: seconds after which the request is cancelled.

        Returns:
          A ticket. A request that cannot be carried out has a result with the error, as in `Engine.run`.

        Raises:
          QueueFull: too many requests have no result yet.
          SessionClosed: the session takes no more requests.
        """
        ticket = Ticket(request, on_text, self._cancel)
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
            ticket._question = self._preparer.question(dataclasses.replace(request, id=name))
        except (ValueError, TypeError, OSError) as error:
            cause = getattr(error, "cause", None)
            self._deliver(Result(id=name, finish_reason="error", error=" ".join(str(error).split()), cause=cause))
            return ticket
        self._readers.put(Arrived(ticket._question))
        if timeout is not None:
            error_text = f"there was no answer within {timeout:g} s"
            self._deadlines.after(timeout, lambda: self._cancel(ticket, error_text, "deadline"))
        return ticket

    @property
    def unanswered(self) -> int:
        """The number of requests that have no result yet."""
        return len(self._tickets)

    def close(self, drain_seconds: float | None = None) -> None:
        """Takes no more requests, waits for the results of those that are there, and ends the thread.

        Args:
          drain_seconds: after which requests without a result are cancelled; None to wait for all.
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
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        self.close(drain_seconds=None if kind is None else 0)

    # ── the thread ──

    def _serve(self) -> None:
        ended: BaseException = SessionClosed("the session was closed")
        try:
            for result in self._run.results(written=self._written):
                self._deliver(result)
        except BaseException as error:
            ended = SessionClosed(f"the engine has stopped: {error}")
            ended.__cause__ = error
        with self._lock:
            self._closed = ended
            left = list(self._tickets.values())
            self._tickets.clear()
        for ticket in left:
            ticket._future.set_exception(ended)

    def _written(self, question: Question, tokens: npt.NDArray[np.int32]) -> None:
        ticket = self._tickets.get(question.id)
        if ticket is None:
            return
        try:
            ticket._take(tokens, self._tokenizer)
        except Exception as error:
            ticket._future.set_exception(error)
            self._cancel(ticket, str(error), "on_text")

    def _deliver(self, result: Result) -> None:
        with self._lock:
            ticket = self._tickets.pop(result.id)
        ticket._finish(result)

    def _cancel(self, ticket: Ticket, error: str, cause: str) -> None:
        if ticket._question is not None:
            self._readers.put(Cancelled(ticket._question, error, cause))

    def _require_open(self) -> None:
        if isinstance(self._closed, BaseException):
            raise self._closed
        if self._closed:
            raise SessionClosed("the session was closed")
