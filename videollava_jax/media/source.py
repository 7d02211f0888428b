"""Opens a path, bytes or a file object as a seekable file of known size, or raises a `MediaError` that says why not."""

from __future__ import annotations

import errno
import io
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO, TypeAlias

from videollava_jax.media.deadline import Deadline
from videollava_jax.media.errors import Cause, MediaError
from videollava_jax.media.rooted import is_regular, open_descriptor

Source: TypeAlias = "str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO"

_CHUNK = 2**20


@dataclass(frozen=True)
class OpenSource:
    """An open file, given as a path, bytes or a file object.

    Attributes:
      name: the name for error messages.
      file: seekable and read-only; closed at the end of the `with`.
      size: bytes.
      deadline: when the reading has to end; checked by every read, also those of the decoding libraries.
    """

    name: str
    file: BinaryIO
    size: int
    deadline: Deadline

    def check_time(self) -> None:
        """Raises a MediaError if the reading has taken longer than it may."""
        self.deadline.check(self.name)

    def read(self, offset: int, count: int) -> bytes:
        """Reads at most `count` bytes from `offset` on."""
        self.check_time()
        self.file.seek(offset)
        return self.file.read(count)

    def rewound(self) -> NamelessFile:
        """Returns the file, positioned at its start, for a library to read."""
        self.file.seek(0)
        return NamelessFile(self)


class NamelessFile:
    """A file without its name.

    FFmpeg takes the name as a hint: it would decode a `.txt` as video, and resolve relative paths against it.
    """

    def __init__(self, source: OpenSource):
        self._source = source
        self.seek, self.tell = source.file.seek, source.file.tell

    def read(self, count: int = -1) -> bytes:
        """Reads at most `count` bytes; raises a MediaError if the disk fails or the time is over."""
        self._source.check_time()
        try:
            return self._source.file.read(count)
        except OSError as error:  # which FFmpeg and PIL would take for damage of the file
            raise _unreadable(self._source.name, error) from None


@contextmanager
def open_source(source: Source, max_bytes: int, seconds: float = math.inf) -> Iterator[OpenSource]:
    """Opens a path, bytes or a file object.

    A path is always opened as a local file: `http://…` or `concat:…` names a file that does not exist. A file object
    is read from its position to its end, and is not closed.

    Args:
      source: the file.
      max_bytes: that it may have.
      seconds: from now on, in which it has to be read.

    Raises:
      MediaError: the file is missing, not a regular file, empty, or over `max_bytes` (checked before it is read); or
        it cannot be read, now or later within the `with`, or not in time.
      ValueError: `source` is none of these three.
    """
    name, deadline = source_name(source), Deadline(seconds)
    with _opened(source, name, max_bytes, deadline) as file:
        size = file.seek(0, os.SEEK_END)
        if size > max_bytes:
            raise MediaError(name, Cause.TOO_LARGE, f"{size} bytes, over the limit of {max_bytes}")
        if not size:
            raise MediaError(name, Cause.NOT_MEDIA, "expected an image or a video, got an empty file")
        try:
            yield OpenSource(name, file, size, deadline)
        except OSError as error:  # from the disk: the decoding libraries' errors are handled where they are called
            raise _unreadable(name, error) from None


def source_name(source: Source) -> str:
    """Returns the name of a source for error messages: on one line, and shortened if it is as long as a data URL."""
    given = os.fspath(source) if isinstance(source, str | os.PathLike) else getattr(source, "name", "<bytes>")
    name = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(given))
    return name if len(name) <= 300 else f"{name[:200]}… ({len(name)} characters)"


def _opened(source: Source, name: str, max_bytes: int, deadline: Deadline) -> BinaryIO:
    if isinstance(source, str | os.PathLike):
        return _opened_path(source, name)
    if isinstance(source, bytes | bytearray | memoryview):
        return io.BytesIO(source)
    if not callable(getattr(source, "read", None)):
        raise ValueError(f"expected a path, bytes or a binary file object, got {type(source).__name__}")
    content = io.BytesIO()
    try:
        # In chunks, because read(n) may allocate n bytes even if the file is smaller.
        while content.tell() <= max_bytes and (chunk := source.read(_CHUNK)):
            content.write(chunk)
            deadline.check(name)
    except OSError as error:
        raise _unreadable(name, error) from None
    except TypeError:
        raise ValueError(f"{name}: expected a file opened in binary mode, got one that reads text") from None
    return content


def _unreadable(name: str, error: OSError) -> MediaError:
    return MediaError(name, Cause.UNREADABLE, f"cannot be read ({error.strerror or type(error).__name__})")


def _opened_path(path: str | os.PathLike[str], name: str) -> BinaryIO:
    try:
        descriptor = open_descriptor(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a null character in the path
        hint = "; only local files are read, fetch it first" if "://" in str(os.fspath(path)) else ""
        raise MediaError(name, Cause.NOT_FOUND, f"no such file{hint}") from None
    except IsADirectoryError:
        raise MediaError(name, Cause.NOT_A_FILE, "expected a file, got a directory") from None
    except OSError as error:
        # A name that is too long for any file; a socket.
        causes = {errno.ENAMETOOLONG: Cause.NOT_FOUND, errno.ENXIO: Cause.NOT_A_FILE}
        if error.errno == errno.ELOOP:
            raise MediaError(name, Cause.UNREADABLE, "cannot be opened: a link where a file was expected") from None
        cause = causes.get(error.errno or 0, Cause.UNREADABLE)
        raise MediaError(name, cause, f"cannot be opened ({error.strerror})") from None
    if not is_regular(descriptor):  # of the file that was opened, as the path could change
        os.close(descriptor)
        raise MediaError(name, Cause.NOT_A_FILE, "expected a file, got a directory, a pipe or a device")
    return open(descriptor, "rb")
