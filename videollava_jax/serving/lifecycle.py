"""What state a server is in, and how many requests it has: who may come in, and when it ends. No JAX."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum

from videollava_jax.serving.errors import TOO_MANY, UNAVAILABLE, ApiError
from videollava_jax.serving.settings import Settings


class State(Enum):
    """The states of a server, in their order."""

    STARTING = "starting"  # programs are compiled
    READY = "ready"
    STUCK = "stuck"  # the engine does nothing, while requests are open; it may come back
    DRAINING = "draining"  # no more requests are taken; those that are there have some seconds
    FAILED = "failed"  # the engine has stopped


class Watchdog:
    """Finds an engine that hangs, in a call of the device for instance: requests are open, and it does nothing.

    Args:
      seconds: for which it may do nothing; longer than any request may take, as the end of its time is done too.
    """

    def __init__(self, seconds: float):
        self._seconds, self._steps, self._since = seconds, -1, time.monotonic()

    def idle_for(self, steps: int, unanswered: int) -> float | None:
        """Returns for how many seconds an engine that hangs has done nothing; None if it does not hang.

        Args:
          steps: what it has done so far, a count.
          unanswered: the requests that it has.
        """
        now = time.monotonic()
        if steps != self._steps or not unanswered:
            self._steps, self._since = steps, now
        idle = now - self._since
        return idle if idle > self._seconds else None


class Lifecycle:
    """The state of a server, and its open requests. For the thread of the event loop.

    Attributes:
      state: what the server does now.
      open: answers that were asked for and not given.
      body_bytes: of the bodies of open requests.
      refused: requests that were turned away, by the reason.
    """

    def __init__(self, settings: Settings):
        self._settings = settings
        self.state = State.STARTING
        self.open = 0
        self.body_bytes = 0
        self.refused: dict[str, int] = dict.fromkeys(
            ("starting", "stuck", "draining", "failed", "queue_full", "bodies_full"), 0
        )

    def require_ready(self) -> None:
        """Raises an ApiError, 503, unless requests are taken, and one, 429, where no answer more may be asked for."""
        if self.state is not State.READY:
            self.refused[self.state.value] += 1
            said = {
                State.STARTING: "the server is starting: its programs are being compiled",
                State.STUCK: "the engine has not moved for longer than a request may take",
                State.DRAINING: "the server is going down",
                State.FAILED: "the engine has stopped, and the server with it",
            }[self.state]
            raise ApiError(UNAVAILABLE, said, code=self.state.value, retry_after=5)
        if self.open >= self._settings.max_queue:
            raise self._full(1)

    @contextmanager
    def place_for(self, answers: int) -> Iterator[None]:
        """Counts answers as asked for, before their media are looked at.

        Raises:
          ApiError: 429, there are too many.
        """
        if self.open + answers > self._settings.max_queue:
            raise self._full(answers)
        self.open += answers
        try:
            yield
        finally:
            self.open -= answers

    def _full(self, answers: int) -> ApiError:
        self.refused["queue_full"] += 1
        return ApiError(
            TOO_MANY,
            f"{self.open} of {self._settings.max_queue} answers are being waited for, and there is no place for "
            f"{answers} more: come again later",
            code="queue_full",
            retry_after=self._settings.retry_seconds,
        )

    @contextmanager
    def body(self) -> Iterator[Callable[[int], None]]:
        """Counts the bytes of a body while its request is open: gives what is called with those that have come.

        They are counted as they come: a client that announces many and sends none takes nothing from others.

        Raises:
          ApiError: 429, from that call: the bodies of all requests are too large together.
        """
        counted = 0

        def come(size: int) -> None:
            nonlocal counted
            if self.body_bytes + size > self._settings.max_bodies_bytes and self.body_bytes > counted:
                self.refused["bodies_full"] += 1
                raise ApiError(
                    TOO_MANY,
                    "the bodies of open requests are too large together: come again later, or upload files",
                    code="bodies_full",
                    retry_after=self._settings.retry_seconds,
                )
            counted += size
            self.body_bytes += size

        try:
            yield come
        finally:
            self.body_bytes -= counted
