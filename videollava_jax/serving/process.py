"""The process of a server: what its collector of garbage passes over, and its end while threads still compile."""

from __future__ import annotations

import gc
import os
import sys
import threading
from typing import NoReturn

COMPILING = "compile"
"""The name of the thread that compiles."""


def freeze_objects() -> None:
    """Has Python's collector of garbage pass over all objects that there are now, and look at others less often.

    A process with JAX's compiled programs has hundreds of thousands of objects that stay. To look at them again and
    again took a tenth of a server's processor time, and all its threads waited meanwhile. What is frozen and becomes
    garbage stays: it is for processes that do nothing but serve.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 50)


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
