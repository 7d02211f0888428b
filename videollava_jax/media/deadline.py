"""When the reading of a file has to end: checked between reads, packets, frames and scans, by the same thread."""

from __future__ import annotations

import math
import time

from videollava_jax.media.errors import Cause, MediaError


class Deadline:
    """Ends the reading of a file that takes too long.

    It is checked by the thread that reads, between two calls of a decoder: one call that never returns is not ended. A
    worker process (`batch.media.isolation`) is.

    Args:
      seconds: wall time from now on; infinite for no deadline.
    """

    def __init__(self, seconds: float = math.inf):
        self._seconds = seconds
        self._ends = time.monotonic() + seconds

    def check(self, name: str) -> None:
        """Raises a MediaError if the time is over, with the name of the file."""
        if time.monotonic() > self._ends:
            message = (
                f"reading it took over {self._seconds:g} s; raise MediaLimits.seconds (--limit-seconds) if it is meant"
            )
            raise MediaError(name, Cause.TOO_SLOW, message)
