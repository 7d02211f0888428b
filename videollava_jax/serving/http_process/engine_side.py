"""The engine's end: does with the session what the process of HTTP asks for, and passes on what comes of it."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

from videollava_jax.engine.request import TokenLogprob
from videollava_jax.engine.tickets import QueueFull, SessionClosed
from videollava_jax.serving.http_process.channel import Channel
from videollava_jax.serving.http_process.messages import (
    Ask,
    Close,
    Closed,
    Ended,
    GiveUp,
    MediumRead,
    News,
    Piece,
    Say,
    Stopped,
    WarmedUp,
    WarmUp,
)
from videollava_jax.serving.live_session import LivePin, LiveSession, LiveTicket
from videollava_jax.serving.process import COMPILING

_LOOK = 0.2
"""Seconds after which the counts of a session are passed on, where they have changed and no answer was written."""


class EngineSide:
    """Carries out messages on a session.

    Pieces and ends that one call of the device gives reason to are sent together, once the engine's thread has said
    them all; so the other process is woken once.

    Attributes:
      closed: whether the session was closed by the other process.
      error: by which the session has ended or would not end, or its programs do not compile; None while all is well.
    """

    def __init__(
        self,
        channel: Channel,
        session: LiveSession,
        said: Callable[[dict[str, Any]], None],
        warmed: Callable[[], None] = lambda: None,
    ):
        """Takes over the session's `after_callbacks`.

        Args:
          said: called with each record of what the server does.
          warmed: called when the programs are compiled.
        """
        self.error: BaseException | None = None
        self.closed = False
        self._channel, self._session, self._said, self._warmed = channel, session, said, warmed
        self._tickets: dict[int, LiveTicket] = {}
        self._pins: dict[int, LivePin] = {}
        self._lock = threading.Lock()
        self._news: list[Piece | Ended] = []
        self._last: News | None = None
        self._engine: int | None = None
        self._over = threading.Event()
        session.after_callbacks = self._settled

    def serve(self) -> None:
        """Carries out messages until the other process has closed the channel, or has ended."""
        looking = threading.Thread(target=self._look, name="look-at-session", daemon=True)
        looking.start()
        try:
            for message in self._channel.receive():
                match message:
                    case Ask():
                        self._ask(message)
                    case GiveUp(number):
                        self._give_up(number)
                    case WarmUp():
                        threading.Thread(target=self._warm_up, name=COMPILING, daemon=True).start()
                    case Close():
                        threading.Thread(target=self._close, args=(message,), name="close", daemon=True).start()
                    case Say(record):
                        self._said(record)
                    case _:
                        raise ValueError(f"{type(message).__name__} is no message for the engine")
        finally:
            self._over.set()
            looking.join()

    def medium_read(self, seconds: float, size: int) -> None:
        """Passes on that a medium was read; any thread may call it."""
        self._channel.send(MediumRead(seconds, size))

    # ── what is asked for ──

    def _ask(self, asked: Ask) -> None:
        number, request = asked.number, asked.request
        try:
            if asked.task == "pin":
                self._pins[number] = self._session.pin(request, timeout=asked.timeout)
                return
            if asked.task == "score":
                ticket = self._session.score(request, timeout=asked.timeout)
            else:
                calls: dict[str, Any] = {"on_text": functools.partial(self._text, number)} if asked.text else {}
                if asked.tokens:
                    calls["on_tokens"] = functools.partial(self._tokens, number)
                ticket = self._session.submit(request, timeout=asked.timeout, **calls)
        except Exception as error:  # a fault in one request is that request's alone
            if asked.task != "pin":
                self._say(Ended(number, None, _why(error), None))
            return
        self._tickets[number] = ticket
        ticket.add_done_callback(functools.partial(self._ended, number))

    def _give_up(self, number: int) -> None:
        pin, ticket = self._pins.pop(number, None), self._tickets.pop(number, None)
        if pin is not None:
            pin.release()
        if ticket is not None and not ticket.done:
            ticket.cancel()

    def _warm_up(self) -> None:
        try:
            programs = self._session.warm_up()
            self._warmed()
            self._channel.send(WarmedUp(programs, None))
        except Exception as error:
            self.error = error
            self._channel.send(WarmedUp(0, str(error)))

    def _close(self, asked: Close) -> None:
        error: str | None = None
        try:
            self._session.close(asked.drain_seconds, asked.stop_seconds)
        except TimeoutError as raised:
            self.error, error = raised, str(raised)
        self.closed = True
        self._send_news()
        self._channel.send(Closed(error))

    # ── what comes of it ──

    def _text(self, number: int, text: str) -> None:
        self._say(Piece(number, text, ()))

    def _tokens(self, number: int, logprobs: tuple[TokenLogprob, ...]) -> None:
        self._say(Piece(number, "", logprobs))

    def _ended(self, number: int, ticket: Any) -> None:
        self._tickets.pop(number, None)
        try:
            ended = Ended(number, ticket.result(0), None, ticket.moments)
        except Exception as error:
            ended = Ended(number, None, _why(error), ticket.moments)
        self._say(ended)

    def _say(self, said: Piece | Ended) -> None:
        """Passes it on: that of the engine's thread when it has said everything for now, that of others at once."""
        with self._lock:
            self._news.append(said)
        if threading.get_ident() != self._engine:
            self._send_news()

    def _settled(self) -> None:
        """Is called by the engine's thread when it has said everything for now."""
        self._engine = threading.get_ident()
        if self._news:
            self._send_news()

    def _send_news(self) -> None:
        """Sends what was said, or the session's counts if they have changed."""
        with self._lock:
            news = News(self._news, self._session.usage, self._session.steps)
            if news.said or news != self._last:
                self._last = News([], news.usage, news.steps)
                self._news = []
                self._channel.send(news)

    def _look(self) -> None:
        """Passes on the session's counts while no answer is written, and its end by an error."""
        while not self._over.wait(_LOOK):
            self._send_news()
            if self._session.error is not None and self.error is None:
                self.error = self._session.error
                self._channel.send(Stopped(str(self.error)))


def _why(error: Exception) -> str:
    """Why a request has no result, as `Ended` says it."""
    if isinstance(error, QueueFull):
        return "queue_full"
    return "closed" if isinstance(error, SessionClosed) else type(error).__name__
