"""Starts the process of HTTP, passes signals on to it, and ends with it."""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any, cast

from videollava_jax.batch.media.isolation import WorkerLimits, import_path
from videollava_jax.engine.sizes import GridShape
from videollava_jax.processing.processor import VideoLlavaProcessor
from videollava_jax.serving.http_process.channel import Channel
from videollava_jax.serving.http_process.engine_side import EngineSide
from videollava_jax.serving.http_process.messages import Drain
from videollava_jax.serving.live_session import LiveSession
from videollava_jax.serving.metrics import MeasuredReader
from videollava_jax.serving.process import freeze_objects
from videollava_jax.serving.settings import SWITCH_SECONDS, Settings

_ENDING = 25.0
"""Seconds that the process of HTTP has to end, beyond those to drain: the engine's to stop are among them."""
_STOPPING = 10.0
"""Seconds that the engine has to stop where the process of HTTP has ended without closing it."""


class HttpEnded(ChildProcessError):
    """The process of HTTP has ended by itself, or was killed."""


@dataclass(frozen=True)
class Beginning:
    """What the process of HTTP needs to begin; it is sent when the model is loaded.

    Attributes:
      settings: of the server.
      processor: of the model.
      limits: of reading a medium that is uploaded.
      shape: of the session's grid.
    """

    settings: Settings
    processor: VideoLlavaProcessor
    limits: WorkerLimits
    shape: GridShape


class HttpProcess:
    """The process that answers HTTP. It imports what it needs while the model is loaded; `close` ends it, or `with`."""

    def __init__(self, bound: socket.socket):
        """Starts it.

        Args:
          bound: the socket of clients. It listens there when `run` is called; this process has no more use for it.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            # -P: no modules from the working directory, which may hold files of strangers.
            command = [sys.executable, "-P", "-m", "videollava_jax.serving.http_process"]
            self._process = subprocess.Popen(
                [*command, str(theirs.fileno()), str(bound.fileno())],
                pass_fds=(theirs.fileno(), bound.fileno()),
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,  # what it has to say goes through the channel; faults to standard error
                env={**os.environ, "PYTHONPATH": import_path()},
            )
        self._channel = Channel(ours)

    def run(
        self,
        session: LiveSession,
        begins: Beginning,
        *,
        reader: MeasuredReader,
        said: Callable[[dict[str, Any]], None],
    ) -> BaseException | None:
        """Serves until SIGTERM, SIGINT, the end of the engine or that of the process of HTTP.

        Args:
          session: not warm yet; closed at the end.
          begins: for that process.
          reader: of the session's media.
          said: called with a record of each new state.

        Returns:
          None after a signal; otherwise the error by which the engine has stopped, a TimeoutError if it would not
          stop, or an `HttpEnded`.
        """
        sys.setswitchinterval(SWITCH_SECONDS)
        side = EngineSide(self._channel, session, said, freeze_objects)
        reader.observe = side.medium_read
        events: queue.SimpleQueue[str] = queue.SimpleQueue()

        def serve() -> None:
            try:
                side.serve()
            finally:
                self._channel.close()  # nobody carries out messages any more: the other process ends
                events.put("ended")

        with contextlib.suppress(BrokenPipeError), cast(IO[bytes], self._process.stdin) as pipe:
            pickle.dump(begins, pipe)
        threading.Thread(target=serve, name="messages", daemon=True).start()
        with _signals(lambda: events.put("signal")):
            self._pass_signals_on(events, begins.settings.drain_seconds)
        status = self._wait(_ENDING)
        if side.error is not None or (side.closed and status == 0):
            return side.error
        try:
            session.close(0, _STOPPING)
        except TimeoutError as error:
            return error
        by = f"killed by {signal.Signals(-status).name}" if status < 0 else f"status {status}"
        return HttpEnded(f"the process that answers HTTP has ended ({by})")

    def _pass_signals_on(self, events: queue.SimpleQueue[str], drain_seconds: float) -> None:
        """Waits until the other process has ended; after a signal it has some time for that."""
        ends: float | None = None
        while True:
            try:
                event = events.get(timeout=None if ends is None else max(0.0, ends - time.monotonic()))
            except queue.Empty:
                self._process.kill()
                ends = None
                continue
            if event == "ended":
                return
            self._channel.send(Drain())
            ends = time.monotonic() + drain_seconds + _ENDING

    def _wait(self, seconds: float) -> int:
        """Returns the exit status of the process, which is killed if it has not ended after some seconds."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def close(self) -> None:
        """Ends the process, if it has not ended."""
        self._channel.close()
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()

    def __enter__(self) -> HttpProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextlib.contextmanager
def _signals(call: Callable[[], None]) -> Iterator[None]:
    """Calls a function for each SIGTERM and SIGINT, in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handled = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(each, lambda *_: call()) for each in handled]
    try:
        yield
    finally:
        for each, handler in zip(handled, before, strict=True):
            signal.signal(each, handler)
