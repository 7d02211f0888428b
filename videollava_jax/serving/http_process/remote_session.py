"""The session of the engine's process, as the process of HTTP sees it. No JAX."""

from __future__ import annotations

import itertools
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from videollava_jax.engine.events import Task
from videollava_jax.engine.request import Outcome, Request, Result, Scored
from videollava_jax.engine.sizes import GridShape
from videollava_jax.engine.tickets import Moments, OnText, OnTokens, QueueFull, SessionClosed
from videollava_jax.engine.usage import Usage
from videollava_jax.serving.http_process.channel import Channel
from videollava_jax.serving.http_process.messages import (
    Ask,
    Close,
    Closed,
    Drain,
    Ended,
    GiveUp,
    MediumRead,
    Message,
    News,
    Piece,
    Stopped,
    WarmedUp,
    WarmUp,
)

_ANSWERING = 5.0
"""Seconds beyond those that a session has to end, in which the engine's process has to say that it has."""
_GONE = "the engine's process has ended"


def _refused(task: Task, error: Exception) -> Outcome:
    said = f"the request holds what no request may hold ({type(error).__name__})"
    if task == "score":
        return Scored(id="", error=said)
    return Result(id="", finish_reason="error", error=said)


class RemoteTicket:
    """A request to the other process, whose result comes later; see `Ticket`."""

    def __init__(self, cancel: Callable[[], None], on_text: OnText | None, on_tokens: OnTokens | None):
        self.moments = Moments(time.monotonic())
        self.cancel = cancel
        self._on_text, self._on_tokens = on_text, on_tokens
        self._future: Future[Any] = Future()

    def result(self, timeout: float | None = None) -> Any:
        """Waits for the result, as that of a `Ticket`."""
        return self._future.result(timeout)

    @property
    def done(self) -> bool:
        """Whether the result is there."""
        return self._future.done()

    def add_done_callback(self, call: Callable[[Any], None]) -> None:
        """Calls a function with this ticket when the result is there, in the thread that gives it."""
        self._future.add_done_callback(lambda _: call(self))

    # ── for the session ──

    def take(self, piece: Piece) -> None:
        """Passes on a part of the answer."""
        if piece.logprobs and self._on_tokens is not None:
            self._on_tokens(tuple(piece.logprobs))
        if piece.text and self._on_text is not None:
            self._on_text(piece.text)

    def end(self, outcome: Outcome | BaseException, moments: Moments | None = None) -> None:
        """Gives the result, or the exception that comes instead."""
        if moments is not None:
            self.moments = moments
        if isinstance(outcome, BaseException):
            self._future.set_exception(outcome)
        else:
            self._future.set_result(outcome)


class RemotePin:
    """A prefix that the other process keeps until it is released."""

    def __init__(self, release: Callable[[], None]):
        self.release = release


class RemoteSession:
    """Has what the server calls of `Session`; a thread takes what comes from the other process.

    Attributes:
      shape: of the grid.
      after_callbacks: as in `Session`.
      observe: called with the seconds and the bytes of each medium that was read.
    """

    def __init__(self, channel: Channel, shape: GridShape):
        self.shape = shape
        self.after_callbacks: Callable[[], None] = lambda: None
        self.observe: Callable[[float, int], None] = lambda seconds, size: None
        self._drain: Callable[[], None] | None = None
        self._signals = 0
        self._channel = channel
        self._numbers = itertools.count()
        self._tickets: dict[int, RemoteTicket] = {}
        self._lock = threading.Lock()
        self._usage, self._steps = Usage(), 0
        self._ended: SessionClosed | None = None
        self._error: BaseException | None = None
        self._warmed_up: Future[int] = Future()
        self._closed: Future[None] = Future()
        self._closing = False
        threading.Thread(target=self._take_messages, name="engine-messages", daemon=True).start()

    def warm_up(self) -> int:
        """Compiles all programs in the other process; see `Session.warm_up`.

        Raises:
          RuntimeError: they do not compile, or that process has ended.
        """
        self._channel.send(WarmUp())
        return self._warmed_up.result()

    def submit(
        self,
        request: Request,
        *,
        on_text: OnText | None = None,
        on_tokens: OnTokens | None = None,
        timeout: float | None = None,
    ) -> RemoteTicket:
        """Takes a request, and returns at once; see `Session.submit`.

        Where the other process takes none, the ticket's result is that exception.
        """
        return self._ask("answer", request, timeout, on_text, on_tokens)

    def score(self, request: Request, *, timeout: float | None = None) -> RemoteTicket:
        """Takes a request with choices; see `Session.score`."""
        return self._ask("score", request, timeout)

    def pin(self, request: Request, *, timeout: float | None = None) -> RemotePin:
        """Has a request's prefix computed and kept until it is released; see `Session.pin`."""
        self._require_open()
        number = next(self._numbers)
        self._channel.send(Ask(number, "pin", request, timeout, False, False))
        return RemotePin(lambda: self._channel.send(GiveUp(number)))

    def _ask(
        self,
        task: Task,
        request: Request,
        timeout: float | None,
        on_text: OnText | None = None,
        on_tokens: OnTokens | None = None,
    ) -> RemoteTicket:
        number = next(self._numbers)
        ticket = RemoteTicket(lambda: self._channel.send(GiveUp(number)), on_text, on_tokens)
        with self._lock:
            self._require_open()
            self._tickets[number] = ticket
        try:
            self._channel.send(Ask(number, task, request, timeout, on_text is not None, on_tokens is not None))
        except (TypeError, ValueError, RecursionError) as error:  # it holds what the engine would refuse
            self._take_said(Ended(number, _refused(task, error), None, None))
        return ticket

    def _require_open(self) -> None:
        if self._ended is not None:
            raise self._ended
        if self._closing:
            raise SessionClosed("the session was closed")

    @property
    def unanswered(self) -> int:
        """The number of requests that have no result yet."""
        return len(self._tickets)

    @property
    def usage(self) -> Usage:
        """Counts for metrics, as they were a moment ago."""
        return self._usage

    @property
    def steps(self) -> int:
        """A count of what the engine's thread has done; see `Session.steps`."""
        return self._steps

    @property
    def error(self) -> BaseException | None:
        """What has ended the session, and every request with it; None while all is well."""
        return self._error

    def on_drain(self, call: Callable[[], None]) -> None:
        """Has a function called for each signal that comes, or has come."""
        self._drain = call
        self._pass_signals_on()

    def close(self, drain_seconds: float | None = None, stop_seconds: float | None = None) -> None:
        """Ends the session; see `Session.close`.

        Raises:
          TimeoutError: it has not ended in that time.
        """
        self._closing = True
        self._channel.send(Close(drain_seconds, stop_seconds))
        limit = None if stop_seconds is None else (drain_seconds or 0) + stop_seconds + _ANSWERING
        try:
            self._closed.result(limit)
        except TimeoutError as error:
            raise TimeoutError(str(error) or "the engine's process has not answered") from None
        finally:
            self._end(SessionClosed("the session was closed"))

    # ── the thread that takes messages ──

    def _take_messages(self) -> None:
        why = _GONE
        try:
            for message in self._channel.receive():
                self._take(message)
        except Exception as error:  # nobody takes messages any more: the server has to end, and says so
            traceback.print_exc()
            why = str(error)
        if not self._closed.done():
            self._error = self._error or RuntimeError(why)
            self._closed.set_result(None)
        if not self._warmed_up.done():
            self._warmed_up.set_exception(RuntimeError(why))
        self._end(SessionClosed(why))

    def _take(self, message: Message) -> None:
        match message:
            case News(said, usage, steps):
                self._usage, self._steps = usage, steps
                for each in said:
                    self._take_said(each)
                self.after_callbacks()
            case MediumRead(seconds, size):
                self.observe(seconds, size)
            case WarmedUp(programs, error):
                self._warmed_up.set_result(programs) if error is None else self._warmed_up.set_exception(
                    RuntimeError(error)
                )
            case Stopped(error):
                self._error = RuntimeError(error)
                self._end(SessionClosed(f"the engine has stopped: {error}"))
            case Closed(error):
                if not self._closed.done():
                    self._closed.set_result(None) if error is None else self._closed.set_exception(TimeoutError(error))
            case Drain():
                with self._lock:
                    self._signals += 1
                self._pass_signals_on()
            case _:
                raise ValueError(f"{type(message).__name__} is no message for the server")

    def _pass_signals_on(self) -> None:
        with self._lock:
            if self._drain is not None:
                while self._signals:
                    self._signals -= 1
                    self._drain()

    def _take_said(self, said: Piece | Ended) -> None:
        if isinstance(said, Piece):
            if (ticket := self._tickets.get(said.number)) is not None:
                ticket.take(said)
            return
        with self._lock:
            ticket = self._tickets.pop(said.number, None)
        if ticket is None:
            return
        outcome: Any = said.outcome
        if outcome is None:
            kinds = {"queue_full": QueueFull("the engine takes no more"), "closed": SessionClosed(_GONE)}
            outcome = kinds.get(said.refused or "", RuntimeError(said.refused))
        ticket.end(outcome, said.moments)

    def _end(self, ended: SessionClosed) -> None:
        """Ends all requests that have no result, and takes no more."""
        with self._lock:
            self._ended = self._ended or ended
            left = list(self._tickets.values())
            self._tickets.clear()
        for ticket in left:
            if not ticket.done:
                ticket.end(ended)
        self.after_callbacks()
