"""What a session gives for a request: tickets, whose results come later, and pins, which keep prefixes."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Generic, Self, TypeVar, cast

import numpy as np
import numpy.typing as npt

from videollava_jax.engine.preparation import Question
from videollava_jax.engine.request import Outcome, Pinned, Request, Result, Scored, TokenLogprob
from videollava_jax.generation.text import TextStream

OnText = Callable[[str], None]
OnTokens = Callable[[tuple[TokenLogprob, ...]], None]
R = TypeVar("R", Result, Scored, Pinned)


class SessionClosed(RuntimeError):
    """The session takes no more requests: it was closed, or its thread has ended by an error, the cause."""


class QueueFull(RuntimeError):
    """As many requests as `max_requests` have no result yet."""


@dataclasses.dataclass(frozen=True)
class Moments:
    """When things happened to a request, in seconds of `time.monotonic`; None for what has not happened.

    Attributes:
      submitted: it was given to the session.
      begun: the device began with it: with its prefix, where that was computed just before its row, or else its row.
      first_token: the first token of its answer was there.
      ended: its result was there.
    """

    submitted: float
    begun: float | None = None
    first_token: float | None = None
    ended: float | None = None


class Ticket(Generic[R]):
    """A submitted request, whose result comes later. Any thread may use it.

    Attributes:
      moments: when it was submitted, begun and answered, as far as that has happened.
    """

    def __init__(
        self,
        request: Request,
        cancel: Callable[[Ticket[Any], str, str], None],
        on_text: OnText | None = None,
        on_tokens: OnTokens | None = None,
    ):
        self.request = request
        self.moments = Moments(time.monotonic())
        self._cancel, self._on_text, self._on_tokens = cancel, on_text, on_tokens
        self._stream: TextStream | None = None
        self._seen = 0
        self._sent = ""
        self._logprobs: Sequence[TokenLogprob] = ()
        self._passed_on = 0
        self._future: Future[R] = Future()
        self._question: Question | None = None

    def result(self, timeout: float | None = None) -> R:
        """Waits for the result; that of a cancelled request has the cause "cancelled" or "deadline".

        Raises:
          TimeoutError: it has not come within `timeout` seconds. The request goes on.
          SessionClosed: the session has ended by an error.
          Exception: what `on_text` or `on_tokens` raised, which has cancelled the request.
        """
        return self._future.result(timeout)

    @property
    def done(self) -> bool:
        """Whether the result is there."""
        return self._future.done()

    def add_done_callback(self, call: Callable[[Ticket[R]], None]) -> None:
        """Calls a function with this ticket when the result is there, in the thread that gives it."""
        self._future.add_done_callback(lambda _: call(self))

    def cancel(self) -> None:
        """Says that nobody wants the answer: what the request holds is freed within a few steps of decoding."""
        self._cancel(self, "the request was cancelled", "cancelled")

    # ── for the session ──

    def _begin(self, when: float) -> None:
        """Notes when the device began with the request."""
        self.moments = dataclasses.replace(self.moments, begun=when)

    def _take(self, tokens: npt.NDArray[np.int32], logprobs: Sequence[TokenLogprob], tokenizer: Any) -> None:
        """Passes on the text of new tokens, and their log-probabilities."""
        if len(tokens) and self.moments.first_token is None:
            self.moments = dataclasses.replace(self.moments, first_token=time.monotonic())
        if (self._on_text is None and self._on_tokens is None) or self.done:
            return
        if self._stream is None:
            self._stream = TextStream(tokenizer, self._send)
        if len(tokens) > self._seen:
            new, self._seen, self._logprobs = tokens[None, self._seen :].astype(np.int64), len(tokens), logprobs
            self._stream(new)

    def _send(self, piece: str) -> None:
        if not piece:
            return
        self._pass_on(self._logprobs[: self._seen])
        if self._on_text is not None:
            self._on_text(piece)
        self._sent += piece

    def _pass_on(self, logprobs: Sequence[TokenLogprob]) -> None:
        new, self._passed_on = tuple(logprobs[self._passed_on :]), len(logprobs)
        if new and self._on_tokens is not None:
            self._on_tokens(new)

    def _finish(self, outcome: Outcome) -> None:
        """Gives the result, after the rest of its text: a character may have been held back."""
        if self.done:
            return
        self.moments = dataclasses.replace(self.moments, ended=time.monotonic())
        try:
            if isinstance(outcome, Result) and outcome.error is None:
                self._pass_on(outcome.logprobs)
                self._send(outcome.text.removeprefix(self._sent))
        except Exception as error:
            self._future.set_exception(error)
        else:
            self._future.set_result(cast(R, dataclasses.replace(outcome, id=self.request.id)))


class PinError(RuntimeError):
    """A prefix cannot be kept.

    Attributes:
      cause: as in `Result`; "too_many_pins" where as many prefixes are pinned as a session allows.
    """

    def __init__(self, message: str, cause: str | None):
        super().__init__(message)
        self.cause = cause


class Pin:
    """A prefix that a session computes and keeps on the device until it is released. Any thread may use it.

    It is a context, which waits for the prefix and releases it on leaving.
    """

    def __init__(self, ticket: Ticket[Pinned], release: Callable[[Ticket[Pinned]], None]):
        self._ticket, self._release = ticket, release

    def result(self, timeout: float | None = None) -> Pinned:
        """Waits until the prefix is on the device.

        Raises:
          PinError: its media cannot be read, it does not fit, too many prefixes are pinned, or it was released.
          TimeoutError: it is not there within `timeout` seconds. The request goes on.
          SessionClosed: the session has ended by an error.
        """
        pinned = self._ticket.result(timeout)
        if pinned.error is not None:
            raise PinError(pinned.error, pinned.cause)
        return pinned

    @property
    def done(self) -> bool:
        """Whether the prefix is on the device, or an error came instead."""
        return self._ticket.done

    def release(self) -> None:
        """Lets the prefix go: it stays until its memory is needed for another. A second call does nothing."""
        self._release(self._ticket)

    def __enter__(self) -> Self:
        self.result()
        return self

    def __exit__(self, *_: Any) -> None:
        self.release()
