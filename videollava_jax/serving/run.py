"""Runs a server on a socket: compiles, answers, and ends by a signal or with its engine."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

from videollava_jax.processing.processor import VideoLlavaProcessor
from videollava_jax.serving.app import App, create_app
from videollava_jax.serving.lifecycle import State, Watchdog
from videollava_jax.serving.live_session import LiveSession
from videollava_jax.serving.process import COMPILING
from videollava_jax.serving.settings import SWITCH_SECONDS, Settings

_HEADERS = 2**16
"""The most bytes of a request's headers."""
_LAST_WORDS = 2.0
"""Seconds that clients have to read their errors after the engine has stopped."""
_STOPPING = 10.0
"""Seconds that the engine has to stop once its requests are cancelled; after that it hangs in a call of the device."""
_KEEP_ALIVE = 75
"""Seconds that a connection stays open without a request: longer than most balancers keep theirs."""


def run(
    session: LiveSession,
    processor: VideoLlavaProcessor,
    settings: Settings,
    bound: socket.socket,
    *,
    reader: Callable[..., Any],
    said: Callable[[dict[str, Any]], None],
    on_drain: Callable[[Callable[[], None]], None] | None = None,
) -> BaseException | None:
    """Serves until SIGTERM, SIGINT or the end of the engine.

    Args:
      session: not warm yet; closed at the end.
      bound: the socket; `listening.listen` makes it.
      reader: reads media, in other processes.
      said: called with a record of each new state; its reader may be gone.
      on_drain: is given the function that makes the server drain, which any thread may call; None where SIGTERM and
        SIGINT do that.

    Returns:
      None after a signal; otherwise the error by which the engine has stopped, a TimeoutError if it would not stop.
    """
    app = create_app(session, processor, settings, reader=reader)
    running = Running(app, session, settings, said, signals=on_drain is None)
    if on_drain is not None:
        on_drain(running.drain_soon)
    said = running.say
    host, port = bound.getsockname()[:2]
    shown = "127.0.0.1" if host == "0.0.0.0" else "[::1]" if host == "::" else f"[{host}]" if ":" in host else host
    url = f"http://{shown}:{port}"
    said({"state": "starting", "url": url, "model": settings.model})
    running.run(sockets=[bound])
    said({"state": "ended"})
    return running.failed


async def _in_daemon(call: Callable[[], Any]) -> None:
    """Calls a function in a thread that the process does not wait for when it ends, unlike those of `to_thread`."""
    loop = asyncio.get_running_loop()
    done = loop.create_future()

    def set_result(error: BaseException | None) -> None:
        if not done.done():
            done.set_exception(error) if error is not None else done.set_result(None)

    def run() -> None:
        error: BaseException | None = None
        try:
            call()
        except Exception as raised:
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(set_result, error)

    threading.Thread(target=run, name=COMPILING, daemon=True).start()
    await done


class Running(uvicorn.Server):
    """A server whose state follows its session and its signals.

    Attributes:
      failed: by which the engine has stopped; None while it has not.
    """

    def __init__(
        self,
        app: App,
        session: LiveSession,
        settings: Settings,
        said: Callable[[dict[str, Any]], None],
        *,
        signals: bool = True,
    ):
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,  # a program that serves has logging of its own; warnings go to standard error
                log_level="warning",
                access_log=False,
                lifespan="on",
                ws="none",
                http="h11",
                loop="asyncio",
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=_KEEP_ALIVE,
                timeout_graceful_shutdown=5,
                h11_max_incomplete_event_size=_HEADERS,
            )
        )
        self._lifecycle, self._session, self._settings, self._said = app.server.lifecycle, session, settings, said
        self._began = time.monotonic()
        self.failed: BaseException | None = None
        self._by_signals = signals
        self._drains, self._called = 0, 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serves on sockets, and watches the engine meanwhile."""
        self._loop = asyncio.get_running_loop()
        self._loop.call_soon(self._drain_as_called)
        sys.setswitchinterval(SWITCH_SECONDS)
        watching = asyncio.create_task(self._watch())
        try:
            await super().serve(sockets)
        finally:
            watching.cancel()
            await self._close_session()

    def say(self, record: dict[str, Any]) -> None:
        """Says what the server does; it goes on where nobody hears that any more, as the pipe is closed."""
        with contextlib.suppress(OSError):
            self._said(record)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handles SIGTERM and SIGINT while it serves, in the main thread."""
        if not self._by_signals or threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        for each in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(each, self.drain)
        try:
            yield
        finally:
            for each in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(each)

    def drain_soon(self) -> None:
        """Calls `drain` in the thread of the server, once that runs; any thread may call it."""
        self._called += 1
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._drain_as_called)

    def _drain_as_called(self) -> None:
        while self._called:
            self._called -= 1
            self.drain()

    def drain(self) -> None:
        """Takes no more requests, and ends when those that are open have ended; called again, ends at once."""
        self._drains += 1
        if self._drains > 1:
            self.should_exit = self.force_exit = True
        elif self._draining is None:
            self._draining = asyncio.get_running_loop().create_task(self._drain())

    async def _drain(self) -> None:
        if self._lifecycle.state is not State.FAILED:
            self._lifecycle.state = State.DRAINING
        seconds = self._settings.drain_seconds
        self.say({"state": "draining", "open": self._lifecycle.open, "seconds": seconds})
        ends = time.monotonic() + seconds
        while self._lifecycle.open and time.monotonic() < ends:
            await asyncio.sleep(0.05)
        # What is left is cancelled, and its clients get an error.
        await self._close_session()
        await self._empty(_LAST_WORDS)
        self.should_exit = True

    async def _close_session(self) -> None:
        """Ends the engine; where it hangs, the server has failed, and the process ends without it."""
        if isinstance(self.failed, TimeoutError):
            return
        try:
            await asyncio.to_thread(self._session.close, 0, _STOPPING)
        except TimeoutError as error:
            self.failed = error

    async def _empty(self, seconds: float) -> None:
        ends = time.monotonic() + seconds
        while self._lifecycle.open and time.monotonic() < ends:
            await asyncio.sleep(0.02)

    async def _watch(self) -> None:
        """Compiles, takes requests, and ends the server when the engine has stopped."""
        try:
            await _in_daemon(self._session.warm_up)
        except Exception as error:
            self._fail(error)
            return
        if self._lifecycle.state is State.STARTING:
            self._lifecycle.state = State.READY
            self.say({"state": "ready", "seconds": time.monotonic() - self._began})
        watchdog = Watchdog(self._settings.request_timeout + self._settings.stuck_seconds)
        while self._session.error is None:
            self._note(watchdog.idle_for(self._session.steps, self._session.unanswered))
            await asyncio.sleep(0.2)
        if self._lifecycle.state is not State.DRAINING:
            self._lifecycle.state = State.FAILED
            await self._empty(_LAST_WORDS)
            self._fail(self._session.error)

    def _note(self, idle: float | None) -> None:
        """Takes no requests while the engine hangs; `idle` is for how many seconds, None while it does not."""
        state = self._lifecycle.state
        if state is State.READY and idle is not None:
            self._lifecycle.state = State.STUCK
            self.say({"state": "stuck", "seconds": idle})
        elif state is State.STUCK and idle is None:
            self._lifecycle.state = State.READY
            self.say({"state": "ready"})

    def _fail(self, error: BaseException) -> None:
        self._lifecycle.state = State.FAILED
        self.failed = error
        self.should_exit = True
