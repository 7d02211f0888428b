"""What ends a run in good order: a signal, seen by all processes at the same step; a step that takes too long."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

import jax

STALLED = 75
"""Exit status of a run that was ended because a step took too long: EX_TEMPFAIL, try again."""


class StopSignals:
    """While it is entered, SIGTERM and SIGINT are remembered, and the run ends between two steps.

    A second SIGINT ends it at once.

    Attributes:
      received: the signal's number; None for none.
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
    """Ends the process, with a message, when there was no sign of life for too long.

    A peer that hangs, or a disk, leaves all others waiting in a collective that nothing can interrupt.

    Args:
      seconds: between two signs of life.
      going_on: how to go on, for the message.
    """

    def __init__(self, seconds: float, going_on: str):
        self._seconds, self._going_on = seconds, going_on
        self._signs, self._what = 0, "the start"
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def alive(self, what: str) -> None:
        """A sign of life.

        Args:
          what: is done next, for the message.
        """
        self._signs, self._what = self._signs + 1, what

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        # Counted, not read from a clock: a process that was itself stopped, or a laptop asleep, has not waited.
        tick = min(1.0, self._seconds / 4)
        signs, waited = 0, 0.0
        while not self._over.wait(tick):
            waited = waited + tick if signs == self._signs else 0.0
            signs = self._signs
            if waited > self._seconds:
                print(
                    f"process {jax.process_index()} of {jax.process_count()}: no progress for {waited:.0f} s in "
                    f"{self._what}: another process hangs or has gone, or a disk. {self._going_on}",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(STALLED)
