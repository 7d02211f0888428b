"""Ends a run in good order: at a signal, which all processes see at the same step; or when a step takes too long."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import jax

STALLED = 75
"""Exit status of a run whose step took too long: EX_TEMPFAIL, try again."""
_UNSAID = "ignore:resource_tracker:UserWarning"
_UNKNOWN = "a disk or another process hangs, or another process has ended"


def leave(status: int) -> None:
    """Ends this process at once with a status, and with it the processes that load data for it, stopped ones too.

    From any thread, and without unwinding, as the main thread may wait for ever.
    """
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(status)


def silence_resource_tracker() -> None:
    """Keeps Python's resource tracker from warning of what a killed process has left: it frees all that it warns of.

    Its process takes the options of this one when the first lock or worker is made: to be called before.
    """
    if _UNSAID not in sys.warnoptions:
        sys.warnoptions.append(_UNSAID)


class StopSignals:
    """A context in which SIGTERM and SIGINT are remembered, so that the run can end between two steps.

    A second SIGINT raises KeyboardInterrupt at once.

    Attributes:
      received: the signal's number; None until one comes.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number


class Watchdog:
    """Ends the process with a message when it has given no sign of life for too long.

    When one process or its disk hangs, all others wait in a collective that nothing can interrupt.

    Args:
      seconds: the longest time between two signs of life.
      going_on: the last sentence of the message: how to go on.
      cause: says what is known to hang, "" for nothing.
    """

    def __init__(self, seconds: float, going_on: str, cause: Callable[[], str] = str):
        self._seconds, self._going_on, self._cause = seconds, going_on, cause
        self._signs, self._what = 0, "the start"
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def alive(self, what: str) -> None:
        """Gives a sign of life.

        Args:
          what: names the work that begins now, for the message.
        """
        self._signs, self._what = self._signs + 1, what

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        # Ticks are counted and no clock is read: time in which the process was stopped or the laptop slept is no wait.
        tick = min(1.0, self._seconds / 4)
        signs, waited = 0, 0.0
        while not self._over.wait(tick):
            waited = waited + tick if signs == self._signs else 0.0
            signs = self._signs
            if waited > self._seconds:
                print(
                    f"process {jax.process_index()} of {jax.process_count()}: no progress for {waited:.0f} s in "
                    f"{self._what}: {self._cause() or _UNKNOWN}. {self._going_on}",
                    file=sys.stderr,
                    flush=True,
                )
                leave(STALLED)
