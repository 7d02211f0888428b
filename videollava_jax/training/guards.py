"""What ends a run in good order: a signal, seen by all processes at the same step; a step that takes too long."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

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


def several_processes() -> bool:
    """Whether the surroundings say that this is one of several processes: `jax.distributed.initialize()` then finds
    the others."""
    if "JAX_COORDINATOR_ADDRESS" in os.environ:
        return True
    slurm = int(os.environ.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in os.environ
    mpi = int(os.environ.get("OMPI_COMM_WORLD_SIZE", "1")) > 1
    pod = len(os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")) > 1
    return slurm or mpi or pod


def summed(*numbers: int) -> tuple[int, ...]:
    """Each number summed over all processes, which call this together."""
    if jax.process_count() == 1:
        return numbers
    found = multihost_utils.process_allgather(np.asarray(numbers, np.int64))
    return tuple(int(number) for number in np.asarray(found).sum(axis=0))


class Watchdog:
    """Ends the process, with a message, when there was no sign of life for too long.

    A peer that hangs, or a disk, leaves all others waiting in a collective that nothing can interrupt.

    Args:
      seconds: between two signs of life.
      going_on: how to go on, for the message.
    """

    def __init__(self, seconds: float, going_on: str):
        self._seconds, self._going_on = seconds, going_on
        self._last, self._what = time.monotonic(), "the start"
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def alive(self, what: str) -> None:
        """A sign of life.

        Args:
          what: is done next, for the message.
        """
        self._last, self._what = time.monotonic(), what

    def __enter__(self) -> Watchdog:
        self.alive(self._what)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(min(1.0, self._seconds / 4)):
            waited = time.monotonic() - self._last
            if waited > self._seconds:
                print(
                    f"process {jax.process_index()} of {jax.process_count()}: no progress for {waited:.0f} s in "
                    f"{self._what}: another process hangs or has gone, or a disk. {self._going_on}",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(STALLED)
