"""What threads say to the event loop: it is woken once for all that has come. No JAX."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from typing import Any


class Mail:
    """Passes on what threads say to functions that the event loop calls, in the order in which it came.

    A call of the device ends with news for many clients. To wake the loop for each would cost more than the news, and
    the engine's thread would wait for the loop's each time, as only one of them runs Python. So what that thread says
    waits until it has said everything; what other threads say wakes the loop at once.
    """

    def __init__(self) -> None:
        self._waiting: deque[tuple[Callable[[Any], None], Any]] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._called = False
        self._engine: int | None = None

    def put(self, loop: asyncio.AbstractEventLoop, take: Callable[[Any], None], said: Any) -> None:
        """Has the loop call a function with what was said. Any thread may call it.

        Args:
          loop: always the same.
        """
        self._loop = loop
        self._waiting.append((take, said))
        if threading.get_ident() != self._engine:
            self._wake()

    def settled(self) -> None:
        """Is called by the engine's thread when it has said everything for now."""
        self._engine = threading.get_ident()
        if self._waiting:
            self._wake()

    def _wake(self) -> None:
        if self._called or self._loop is None:
            return
        self._called = True
        try:
            self._loop.call_soon_threadsafe(self._take)
        except RuntimeError:  # the event loop has ended, and the process with it
            return

    def _take(self) -> None:
        self._called = False  # what comes from now on calls again
        while self._waiting:
            take, said = self._waiting.popleft()
            take(said)
