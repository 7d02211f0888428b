"""A file below a directory that must not be left, opened without following a link that somebody puts there meanwhile.

A path that was checked can lead elsewhere when it is opened: a directory on its way may have become a link. So each
component is opened below the one before, and none may be a link. No JAX.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass


@dataclass(frozen=True)
class RootedFile(os.PathLike[str]):
    """A file below a root.

    Attributes:
      root: a directory, by a path that is trusted: its own components may be links.
      name: the path from the root, without links and without `..`.
    """

    root: str
    name: str

    def __fspath__(self) -> str:
        return os.path.join(self.root, self.name)

    def __str__(self) -> str:
        return self.__fspath__()  # as a path is written in messages

    def open(self) -> int:
        """Opens the file for reading and returns its descriptor; does not wait for pipes.

        Raises:
          OSError: it is not there, or a component of its path is a link.
        """
        *directories, file = self.name.split(os.sep)
        if not file or any(part in ("", ".", "..") for part in (*directories, file)):
            raise ValueError(f"expected a path below a root, without . and .., got {self.name!r}")
        descriptor = os.open(self.root, _DIRECTORY)
        try:
            for part in directories:
                below = os.open(part, _DIRECTORY | os.O_NOFOLLOW, dir_fd=descriptor)
                os.close(descriptor)
                descriptor = below
            return os.open(file, FILE | os.O_NOFOLLOW, dir_fd=descriptor)
        finally:
            os.close(descriptor)


FILE = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
"""How files are opened. O_NONBLOCK: opening a pipe would wait for a writer."""
_DIRECTORY = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0)


def open_descriptor(path: str | os.PathLike[str]) -> int:
    """Opens a file for reading, a `RootedFile` without leaving its root; returns its descriptor.

    Raises:
      OSError: it cannot be opened.
    """
    return path.open() if isinstance(path, RootedFile) else os.open(path, FILE)


def file_status(path: str | os.PathLike[str]) -> os.stat_result:
    """Returns the status of a file that is opened for it, so that it is not that of a file outside of a root.

    Raises:
      OSError: it cannot be opened.
    """
    if not isinstance(path, RootedFile):
        return os.stat(path)
    descriptor = path.open()
    try:
        return os.fstat(descriptor)
    finally:
        os.close(descriptor)


def is_regular(descriptor: int) -> bool:
    """Returns whether an open file is a regular one, not a directory, a pipe or a device."""
    return stat.S_ISREG(os.fstat(descriptor).st_mode)
