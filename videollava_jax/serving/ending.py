"""Ends a process whose threads cannot be waited for."""

from __future__ import annotations

import os
import sys
import threading
from typing import NoReturn

COMPILING = "compile"
"""The name of the thread that compiles."""


def leave_if_compiling() -> None:
    """Ends the process at once if programs are still being compiled: the compiler's threads crash if Python ends first.

    The caller has cleaned up. Otherwise it does nothing.
    """
    if any(thread.name == COMPILING and thread.is_alive() for thread in threading.enumerate()):
        leave_at_once(0)


def leave_at_once(status: int) -> NoReturn:
    """Ends the process without waiting for its threads: one of them is in a call that may never return."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
