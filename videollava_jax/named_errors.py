"""Gives errors of the system the name of the file, which those of reading, writing and closing lack."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def named_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Raises an OSError of the block that names no file as one about this path; others pass as they are.

    Args:
      path: that the block reads or writes.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), os.fspath(path)) from None
