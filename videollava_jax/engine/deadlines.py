"""Calls functions at given times, from one thread."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable


class Deadlines:
    """A thread that calls each function when its time has come; it starts with the first."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._due: list[tuple[float, int]] = []
        self._calls: dict[int, Callable[[], None]] = {}
        self._numbers = itertools.count()
        self._thread: threading.Thread | None = None
        self._closed = False

    def after(self, seconds: float, call: Callable[[], None]) -> Callable[[], None]:
        """Calls a function, which must return quickly, after that time; returns one that forgets it before."""
        with self._changed:
            number = next(self._numbers)
            self._calls[number] = call
            due = time.monotonic() + seconds
            earliest = not self._due or due < self._due[0][0]
            heapq.heappush(self._due, (due, number))
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="deadlines", daemon=True)
                self._thread.start()
            if earliest:  # otherwise the thread wakes early enough by itself
                self._changed.notify()
        return lambda: self._forget(number)

    def _forget(self, number: int) -> None:
        """Lets go of a function and all that it refers to; its time stays in the heap until it has come."""
        with self._changed:
            self._calls.pop(number, None)

    def close(self) -> None:
        """Forgets what has not been called."""
        with self._changed:
            self._closed = True
            self._due.clear()
            self._calls.clear()
            self._changed.notify()

    def _watch(self) -> None:
        while True:
            with self._changed:
                if self._closed:
                    return
                left = self._due[0][0] - time.monotonic() if self._due else None
                if left is None or left > 0:
                    self._changed.wait(left)
                    continue
                call = self._calls.pop(heapq.heappop(self._due)[1], None)
            if call is not None:
                call()
