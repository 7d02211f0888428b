"""What went wrong, in one line and an exit status: a user's error, or a fault of this program."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import traceback
from collections.abc import Sequence

from videollava_jax.version import __version__

DEBUG = "VIDEOLLAVA_DEBUG"
"""The environment variable that adds tracebacks to errors."""

FAULT = 70
"""The exit status of faults: EX_SOFTWARE of sysexits.h."""

_HAPPENS = (ValueError, OSError, FloatingPointError, ImportError, MemoryError)
"""What the package raises for wrong input, files, weights, and machines that lack something."""


class UsageError(ValueError):
    """A command line that was parsed and makes no sense: shown with the usage, status 2."""


def print_error(error: object) -> None:
    """Prints an error to standard error, after the program's name."""
    print(f"videollava: {error}", file=sys.stderr)


def report(error: Exception, given: Sequence[str]) -> int:
    """Says in a line what went wrong, and returns the exit status.

    Args:
      error: that ended the command.
      given: the command line, for the report of a fault.
    """
    if os.environ.get(DEBUG):
        traceback.print_exception(error)
    reason = _reason(error)
    if reason is not None:
        print_error(reason)
        return 1
    print_error(
        f"a fault of videollava's own ({type(error).__name__}: {' '.join(str(error).split())[:300]}). Please report it"
        f"{_where()} with version {__version__}, this command and what it prints with {DEBUG}=1: "
        f"videollava {shlex.join(given)}"
    )
    return FAULT


def _reason(error: Exception) -> str | None:
    """What to tell a user; None if it is a fault of the program."""
    said = str(error)
    if isinstance(error, UnicodeEncodeError):
        return None
    if isinstance(error, OSError) and error.strerror:
        what = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
        return f"{what}{error.strerror.lower()}"
    if isinstance(error, MemoryError):
        return f"not enough memory: {said or 'take fewer frames, smaller media or a smaller model'}"
    if isinstance(error, _HAPPENS):
        return said
    first = said.strip().split("\n")[0]
    if "RESOURCE_EXHAUSTED" in said:  # JAX's error, whose class is not imported here
        return (
            f"the device is out of memory: take fewer frames (--frames), pool them (--pool) or lower --dtype, and in "
            f"`batch` --max-rows. {first[:300]}"
        )
    if isinstance(error, RuntimeError) and "backend" in said and ("initialize" in said or "Unknown" in said):
        return f"JAX cannot use the device that JAX_PLATFORMS or the installation names: {first[:300]}"
    return None


def _where() -> str:
    """Where the project takes reports, by the installed package's metadata; empty if it does not say."""
    from importlib import metadata

    try:
        urls = metadata.metadata("videollava-jax").get_all("Project-URL") or []
    except metadata.PackageNotFoundError:
        return ""
    places = dict(url.split(", ", 1) for url in urls)
    named = [places[name] for name in ("Issues", "Repository", "Source", "Homepage") if name in places]
    return f" at {named[0]}" if named else ""


def closed_pipe() -> int:
    """Ends after the reader of the output has gone, such as `head -1`: without a message; returns the exit status."""
    with contextlib.suppress(OSError, ValueError):  # a stream without a descriptor
        # Python writes what is left when it exits, and would complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1
