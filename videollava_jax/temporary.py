"""Temporary directories that do not outlive their process: what a killed one has left, the next one removes.

A process holds a lock on its directory. The kernel frees it however the process ends, so a directory of ours whose lock
is free belongs to nobody.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType

_LOCK = ".lock"


class TemporaryPlace:
    """A temporary directory of this process. A context: it yields the path, and removes the directory at the end.

    Args:
      prefix: of the name; directories with the same prefix that killed processes of this user have left are removed.

    Attributes:
      path: of the directory.

    Raises:
      OSError: it cannot be made.
    """

    def __init__(self, prefix: str):
        parent = Path(tempfile.gettempdir())
        _sweep(parent, prefix)
        self.path = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        # Locked before it has its name, so that nobody finds it free.
        new = self.path / f"{_LOCK}.new"
        self._lock = os.open(new, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with suppress(OSError):  # a file system without locks: nothing is swept there
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            new.rename(self.path / _LOCK)

    def close(self) -> None:
        """Removes the directory. A second call does nothing."""
        if self._lock >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        with suppress(AttributeError):
            self.close()


def _sweep(parent: Path, prefix: str) -> None:
    """Removes the directories of this user whose lock nobody holds."""
    for place in parent.glob(f"{prefix}*"):
        with suppress(OSError):
            if place.is_symlink() or place.stat().st_uid != os.getuid():
                continue
            lock = os.open(place / _LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(place, ignore_errors=True)
            finally:
                os.close(lock)
