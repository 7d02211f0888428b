"""One client's request to the engine: submitted by a thread, tokens passed to the event loop, cancelled at its end."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import Any

from videollava_jax.engine.request import Request, TokenLogprob
from videollava_jax.engine.tickets import Moments, QueueFull, SessionClosed
from videollava_jax.serving.errors import TOO_MANY, UNAVAILABLE, ApiError, of_cause
from videollava_jax.serving.live_session import LiveSession, LiveTicket
from videollava_jax.serving.mail import Mail
from videollava_jax.serving.media import HeldMedia, MediaStore
from videollava_jax.serving.settings import Settings


@dataclass(frozen=True)
class Written:
    """A part of an answer.

    Attributes:
      index: of the answer.
      text: that follows what was there.
      logprobs: of the tokens that have come.
      result: the whole answer, at its end; None before.
      moments: when the answer was begun and written, at its end; None before.
    """

    index: int
    text: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    result: Any = None
    moments: Moments | None = None


class Desk:
    """What requests to the engine have in common: its session, the media, threads that wait for both, and the mail."""

    def __init__(self, session: LiveSession, media: MediaStore, settings: Settings):
        self.session, self.media, self.settings = session, media, settings
        self.mail = Mail()
        session.after_callbacks = self.mail.settled
        # Fetching waits for hosts, and must not hold up requests that need none.
        self.fetching = ThreadPoolExecutor(8, thread_name_prefix="fetch-media")
        self.submitting = ThreadPoolExecutor(2, thread_name_prefix="submit")

    def close(self) -> None:
        """Stops the threads; nobody waits for them."""
        for pool in (self.fetching, self.submitting):
            pool.shutdown(wait=False, cancel_futures=True)


class Asking:
    """The requests of one client's request. `close` gives up what has not ended; it may be called at any time."""

    def __init__(self, desk: Desk):
        self._desk = desk
        self._loop = asyncio.get_running_loop()
        self._come: list[Written | Exception] = []
        self._woken: asyncio.Future[None] | None = None
        self._held: HeldMedia = desk.media.hold()
        self._lock = Lock()
        self._tickets: list[LiveTicket] = []
        self._answers = 0
        self._submitting: Future[None] | None = None
        self._submitted = self._closed = False
        self._ends = time.monotonic() + desk.settings.request_timeout

    def submit(self, requests: Sequence[Request], *, pieces: bool, media_there: Callable[[], None]) -> None:
        """Gets the media and gives the requests to the engine, in a thread; `written` raises what goes wrong.

        Args:
          requests: about the same media.
          pieces: whether answers are wanted while they are written.
          media_there: called by that thread when the media are files.
        """
        self._answers = len(requests)
        self._begin(requests[0], functools.partial(self._submit, requests, pieces, media_there))

    def score(self, request: Request, *, media_there: Callable[[], None]) -> None:
        """Does what `submit` does, for the likelihoods of a request's choices."""
        self._answers = 1
        self._begin(request, functools.partial(self._score, request, media_there))

    async def written(self, seconds: float | None = None) -> AsyncIterator[list[Written]]:
        """Yields the parts of the answers as they come; an empty list whenever none has come for `seconds`.

        Raises:
          ApiError: an answer has ended by an error, the media cannot be had, or the engine takes no more requests.
        """
        left = self._answers
        while left:
            parts, error = self._without_error(await self._next(seconds))
            left -= sum(part.result is not None for part in parts)
            if parts or error is None:
                yield _joined(parts)
            if error is not None:
                raise error

    def close(self) -> None:
        """Cancels the requests that have no answer, and lets go of the media when the engine has."""
        with self._lock:
            self._closed, tickets = True, list(self._tickets)
        if self._submitting is not None:
            self._submitting.cancel()
        for ticket in tickets:
            if not ticket.done:
                ticket.cancel()
        self._release_if_done()

    # ── in the event loop ──

    def take(self, part: Written | Exception) -> None:
        """Takes what `Mail` brings."""
        self._come.append(part)
        self._wake()

    def _wake(self) -> None:
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)

    async def _next(self, seconds: float | None) -> list[Written | Exception]:
        """Waits for parts, for `seconds` at most; the time to submit ends too."""
        if not self._come:
            least = seconds if self._submitted else min(seconds or self._left(), self._left())
            timer = None if least is None else self._loop.call_later(least, self._wake)
            self._woken = self._loop.create_future()
            try:
                await self._woken
            finally:
                if timer is not None:
                    timer.cancel()
            if not self._come and not self._submitted:
                self._left()
        parts, self._come = self._come, []
        return parts

    def _without_error(self, come: list[Written | Exception]) -> tuple[list[Written], Exception | None]:
        """Returns the parts before the first error, and that."""
        parts: list[Written] = []
        for part in come:
            if isinstance(part, Exception):
                return parts, part
            if part.result is not None and (error := self._error_of(part.result)) is not None:
                return parts, error
            parts.append(part)
        return parts, None

    # ── in threads ──

    def _begin(self, request: Request, submit: Callable[[], None]) -> None:
        pool = self._desk.submitting if self._desk.media.are_here(request) else self._desk.fetching

        def run() -> None:
            try:
                submit()
                self._submitted = True
            except Exception as error:
                self._desk.mail.put(self._loop, self.take, error)

        self._submitting = pool.submit(run)

    def _submit(self, requests: Sequence[Request], pieces: bool, media_there: Callable[[], None]) -> None:
        first = self._held.fill(requests[0])
        media_there()
        media: dict[str, Any] = {"conversation": first.conversation, "images": first.images, "videos": first.videos}
        for index, request in enumerate(requests):
            whole = dataclasses.replace(request, **media)
            calls: dict[str, Any] = {"on_text": self._passer(index, "text")} if pieces else {}
            if pieces and request.logprobs is not None:
                calls["on_tokens"] = self._passer(index, "logprobs")
            self._add(index, functools.partial(self._desk.session.submit, whole, **calls))

    def _score(self, request: Request, media_there: Callable[[], None]) -> None:
        whole = self._held.fill(request)
        media_there()
        self._add(0, functools.partial(self._desk.session.score, whole))

    def _add(self, index: int, submit: Callable[..., LiveTicket]) -> None:
        """Submits a request, unless the client has gone."""
        if self._closed:
            return
        try:
            ticket = submit(timeout=self._left())
        except QueueFull:
            raise self._full() from None
        except SessionClosed:
            raise _closed() from None
        with self._lock:
            self._tickets.append(ticket)
        if self._closed:
            ticket.cancel()
        ticket.add_done_callback(functools.partial(self._ended, index))

    def _passer(self, index: int, field: str) -> Callable[[Any], None]:
        """What the engine's thread calls with new text or new tokens."""

        def hand_on(value: Any) -> None:
            self._put(Written(index, **{field: value}))

        return hand_on

    def _ended(self, index: int, ticket: LiveTicket) -> None:
        try:
            result: Any = ticket.result(0)
        except Exception as error:
            result = error
        self._put(Written(index, result=result, moments=ticket.moments))
        self._release_if_done()

    def _release_if_done(self) -> None:
        """Lets go of the media when nobody waits for them, neither the client nor the engine."""
        with self._lock:
            done = self._closed and all(ticket.done for ticket in self._tickets)
        if done:
            self._held.release()

    def _put(self, part: Written) -> None:
        self._desk.mail.put(self._loop, self.take, part)

    # ── errors ──

    def _error_of(self, result: Any) -> ApiError | None:
        if isinstance(result, SessionClosed):
            return _closed()
        if isinstance(result, QueueFull):
            return self._full()
        if isinstance(result, Exception):
            fault = ApiError(500, "a fault of the server's own", code="internal_error")
            fault.__cause__ = result
            return fault
        if result.error is not None:
            return of_cause(result.cause, self._held.named(result.error), self._desk.settings.request_timeout)
        return None

    def _full(self) -> ApiError:
        return ApiError(
            TOO_MANY,
            "as many requests as the engine takes are waiting: come again later",
            code="queue_full",
            retry_after=self._desk.settings.retry_seconds,
        )

    def _left(self) -> float:
        left = self._ends - time.monotonic()
        if left <= 0:
            raise self._late()
        return left

    def _late(self) -> ApiError:
        return of_cause("deadline", "", self._desk.settings.request_timeout)


def _joined(parts: Sequence[Written]) -> list[Written]:
    """Returns parts with neighbours of one answer as one: a text and its tokens come one after the other."""
    found: list[Written] = []
    for part in parts:
        last = found[-1] if found else None
        if last is not None and last.index == part.index and last.result is None and part.result is None:
            found[-1] = Written(part.index, last.text + part.text, last.logprobs + part.logprobs)
        else:
            found.append(part)
    return found


def _closed() -> ApiError:
    return ApiError(UNAVAILABLE, "the engine has stopped, or the server is going down", code="closed", retry_after=5)
