"""Errors of Orbax and TensorStore as WeightsErrors, without the tracebacks that they log."""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videollava_jax.weights.errors import WeightsError


class OrbaxErrors:
    """Raises what goes wrong inside the block, of whatever type, as one WeightsError.

    Orbax also logs errors, with tracebacks, and TensorStore's threads print theirs when they reach an event loop that
    the error has closed. Records are kept back until the block ends, and are logged only if it ends well.

    Args:
      path: that is read or written, for the message.
      doing: "read" or "write".
    """

    def __init__(self, path: Path, doing: str = "read"):
        self.path, self.doing = path, doing
        self.records: list[logging.LogRecord] = []

    def __enter__(self) -> OrbaxErrors:
        # First of the filters: what another one drops would not reach it, such as that of a run of fine-tuning.
        logging.getLogger("absl").filters.insert(0, self._keep)
        self.unraisable = sys.unraisablehook
        ignore_closed_loops()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        logger = logging.getLogger("absl")
        logger.removeFilter(self._keep)
        if error is None:
            sys.unraisablehook = self.unraisable
            for record in self.records:
                logger.handle(record)
        elif isinstance(error, Exception) and not isinstance(error, WeightsError):
            why = f"{type(error).__name__}: {_shortened(str(error))}"
            raise WeightsError(f"{self.path}: Orbax cannot {self.doing} it ({why})") from error

    def log(self) -> str:
        """Returns the last logged message: Orbax gives the cause of damaged metadata nowhere else."""
        return _shortened(self.records[-1].getMessage().split("Error details:")[-1]) if self.records else ""

    def _keep(self, record: logging.LogRecord) -> bool:
        if record.levelno >= logging.WARNING:
            self.records.append(record)
        return record.levelno < logging.WARNING


def ignore_closed_loops() -> None:
    """Keeps TensorStore's threads, which may outlive an event loop, from printing that it is closed."""
    if not isinstance(sys.unraisablehook, _IgnoreClosedLoops):
        sys.unraisablehook = _IgnoreClosedLoops(sys.unraisablehook)


def ignore_logged_errors() -> None:
    """Keeps Orbax's threads from logging their errors with tracebacks; whoever waits for them gets these raised.

    Where several of their tasks fail, the first error is raised, and asyncio logs the others when the loop ends.
    """
    logging.getLogger("absl").addFilter(_not_of_orbax)
    logging.getLogger("asyncio").addFilter(_not_of_an_end)


def _not_of_orbax(record: logging.LogRecord) -> bool:
    return record.levelno < logging.WARNING or "orbax" not in record.pathname


def _not_of_an_end(record: logging.LogRecord) -> bool:
    return "exception during asyncio.run() shutdown" not in record.getMessage()


def was_interrupted(error: Exception) -> bool:
    """Returns whether an error of TensorStore's is that a signal interrupted a system call."""
    return os.strerror(errno.EINTR) in str(error)


@dataclass(frozen=True)
class _IgnoreClosedLoops:
    """A `sys.unraisablehook` that ignores errors about closed event loops.

    It stays installed after an error, since threads may still be running.
    """

    otherwise: Callable[[sys.UnraisableHookArgs], object]

    def __call__(self, unraisable: sys.UnraisableHookArgs) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            self.otherwise(unraisable)


def _shortened(text: str) -> str:
    """Puts a message on one line, without TensorStore's specification; a long one loses its middle.

    It names the tensor at its beginning and the cause at its end.
    """
    line = " ".join(text.split()).split(" [tensorstore_spec")[0]
    return line if len(line) <= 400 else f"{line[:200]} … {line[-200:]}"
