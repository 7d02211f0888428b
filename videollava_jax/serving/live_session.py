"""What a server needs of the engine's session, whichever process that is in. No JAX."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from videollava_jax.engine.request import Request
from videollava_jax.engine.sizes import GridShape
from videollava_jax.engine.tickets import Moments, OnText, OnTokens
from videollava_jax.engine.usage import Usage


class LiveTicket(Protocol):
    """A request that was submitted; see `engine.tickets.Ticket`."""

    @property
    def moments(self) -> Moments:
        """When it was submitted, begun and answered."""

    @property
    def done(self) -> bool:
        """Whether the result is there."""

    @property
    def cancel(self) -> Callable[[], None]:
        """Says that nobody wants the answer."""

    def result(self, timeout: float | None = None) -> Any:
        """Waits for the result, or raises what came instead: `QueueFull` and `SessionClosed` too."""

    def add_done_callback(self, call: Callable[[Any], None]) -> None:
        """Calls a function with this ticket when the result is there."""


class LivePin(Protocol):
    """A prefix that is kept; see `engine.tickets.Pin`."""

    @property
    def release(self) -> Callable[[], None]:
        """Lets the prefix go."""


class LiveSession(Protocol):
    """The session of the engine: `engine.session.Session`, or `http_process.remote_session.RemoteSession`."""

    after_callbacks: Callable[[], None]

    @property
    def shape(self) -> GridShape:
        """The sizes of its grid."""

    @property
    def unanswered(self) -> int:
        """The number of requests that have no result yet."""

    @property
    def usage(self) -> Usage:
        """Counts for metrics."""

    @property
    def steps(self) -> int:
        """A count of what its thread has done."""

    @property
    def error(self) -> BaseException | None:
        """What has ended it; None while all is well."""

    def warm_up(self) -> int:
        """Compiles all programs."""

    def submit(
        self,
        request: Request,
        *,
        on_text: OnText | None = None,
        on_tokens: OnTokens | None = None,
        timeout: float | None = None,
    ) -> LiveTicket:
        """Takes a request."""

    def score(self, request: Request, *, timeout: float | None = None) -> LiveTicket:
        """Takes a request with choices."""

    def pin(self, request: Request, *, timeout: float | None = None) -> LivePin:
        """Computes a request's prefix and keeps it."""

    def close(self, drain_seconds: float | None = None, stop_seconds: float | None = None) -> None:
        """Takes no more requests, and ends."""
