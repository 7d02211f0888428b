"""One client's request to the engine: submitted by a thread, tokens passed to the event loop, cancelled at its end."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import Any, TypeVar

from videollava_jax.engine.request import Request, Scored, TokenLogprob
from videollava_jax.engine.session import QueueFull, Session, SessionClosed
from videollava_jax.engine.tickets import Moments, Ticket
from videollava_jax.serving.errors import TOO_MANY, UNAVAILABLE, ApiError, of_cause
from videollava_jax.serving.media import HeldMedia, MediaStore
from videollava_jax.serving.settings import Settings

Made = TypeVar("Made")


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
    """What requests to the engine have in common: its session, the media, threads that wait for both."""

    def __init__(self, session: Session, media: MediaStore, settings: Settings):
        self.session, self.media, self.settings = session, media, settings
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
        self._inbox: asyncio.Queue[Written] = asyncio.Queue()
        self._held: HeldMedia = desk.media.hold()
        self._lock = Lock()
        self._tickets: list[Ticket[Any]] = []
        self._closed = False
        self._ends = time.monotonic() + desk.settings.request_timeout

    async def submit(self, requests: Sequence[Request], *, pieces: bool, media_there: Callable[[], None]) -> None:
        """Gets the media and gives the requests to the engine.

        Args:
          requests: about the same media.
          pieces: whether answers are wanted while they are written.
          media_there: called when the media are files.

        Raises:
          ApiError: the media cannot be had, or the engine takes no more requests.
        """
        first = await self._in(self._desk.fetching, self._held.fill, requests[0])
        media_there()
        media = {"conversation": first.conversation, "images": first.images, "videos": first.videos}
        for index, request in enumerate(requests):
            await self._in(self._desk.submitting, self._submit, index, request, media, pieces)

    async def score(self, request: Request) -> Scored:
        """Returns the likelihoods of a request's choices.

        Raises:
          ApiError: they cannot be had.
        """
        whole = await self._in(self._desk.fetching, self._held.fill, request)
        await self._in(self._desk.submitting, self._add, 0, functools.partial(self._desk.session.score, whole))
        async for part in self.written():
            assert part is not None
            scored: Scored = part.result
            return scored
        raise AssertionError("a request has one result")

    async def written(self, seconds: float | None = None) -> AsyncIterator[Written | None]:
        """Yields the parts of the answers as they come; None whenever none has come for `seconds`.

        Raises:
          ApiError: an answer has ended by an error.
        """
        left = len(self._tickets)
        while left:
            try:
                async with asyncio.timeout(seconds):
                    parts = [await self._inbox.get()]
            except TimeoutError:
                yield None
                continue
            while not self._inbox.empty():
                parts.append(self._inbox.get_nowait())
            for part in _joined(parts):
                if part.result is not None:
                    left -= 1
                    self._require_answer(part.result)
                yield part

    def close(self) -> None:
        """Cancels the requests that have no answer, and lets go of the media when the engine has."""
        with self._lock:
            self._closed, tickets = True, list(self._tickets)
        for ticket in tickets:
            if not ticket.done:
                ticket.cancel()
        self._release_if_done()

    # ── in threads ──

    async def _in(self, pool: ThreadPoolExecutor, call: Callable[..., Made], *arguments: Any) -> Made:
        try:
            async with asyncio.timeout_at(self._loop.time() + self._left()):
                return await self._loop.run_in_executor(pool, call, *arguments)
        except TimeoutError:
            raise self._late() from None

    def _submit(self, index: int, request: Request, media: dict[str, Any], pieces: bool) -> None:
        whole = dataclasses.replace(request, **media)
        calls: dict[str, Any] = {"on_text": self._passer(index, "text")} if pieces else {}
        if pieces and request.logprobs is not None:
            calls["on_tokens"] = self._passer(index, "logprobs")
        self._add(index, functools.partial(self._desk.session.submit, whole, **calls))

    def _add(self, index: int, submit: Callable[..., Ticket[Any]]) -> None:
        """Submits a request, unless the client has gone."""
        if self._closed:
            return
        try:
            ticket = submit(timeout=self._left())
        except QueueFull:
            raise ApiError(
                TOO_MANY,
                "as many requests as the engine takes are waiting: come again later",
                code="queue_full",
                retry_after=self._desk.settings.retry_seconds,
            ) from None
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

    def _ended(self, index: int, ticket: Ticket[Any]) -> None:
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
        try:
            self._loop.call_soon_threadsafe(self._inbox.put_nowait, part)
        except RuntimeError:  # the event loop has ended, and the process with it
            return

    # ── errors ──

    def _require_answer(self, result: Any) -> None:
        if isinstance(result, SessionClosed):
            raise _closed() from None
        if isinstance(result, Exception):
            raise ApiError(500, "a fault of the server's own", code="internal_error") from result
        if result.error is not None:
            raise of_cause(result.cause, self._held.named(result.error), self._desk.settings.request_timeout)

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
