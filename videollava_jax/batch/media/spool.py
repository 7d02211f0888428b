"""Turns the media that lines name into files: paths below a root, data: URLs, and URLs of hosts. No JAX.

Files for URLs are in a directory of the job, as long as a question needs them. A video given as encoded frames (vLLM's
`data:video/jpeg;base64,<frame>,<frame>`) is one file, which `read_frames` reads.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import stat
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt

from videollava_jax.media import Cause, MediaError, MediaLimits, read_image
from videollava_jax.media.rooted import RootedFile, file_status
from videollava_jax.media.urls import SourceError, base64_bytes, base64_digits, file_url_path, short_name
from videollava_jax.processing.segments import MediaKind

Fetch = Callable[[str, BinaryIO, int], None]
"""Fetches a URL into a file: called with the URL, the file and the most bytes."""


@dataclass(frozen=True)
class FrameFile(os.PathLike[str]):
    """The path of a video stored as encoded frames: a line with their sizes in JSON, then the frames in order."""

    path: str

    def __fspath__(self) -> str:
        return self.path


def read_frames(path: str, limits: MediaLimits) -> list[npt.NDArray[np.uint8]]:
    """Reads the frames of a `FrameFile`, uint8 [H, W, 3] each."""
    with open(path, "rb") as file:
        sizes = json.loads(file.readline())
        return [read_image(file.read(size), limits) for size in sizes]


class SpoolError(Exception):
    """The disk does not take a medium, or does not give it back. The fault is neither the medium's nor the line's.

    It is no OSError, since whoever fetches a medium takes those for faults of the network.

    Attributes:
      error: the system's.
    """

    def __init__(self, directory: Path, error: OSError):
        super().__init__(f"{directory}: media cannot be stored ({os.strerror(error.errno or 0).lower()})")
        self.error = error


class Spool:
    """Temporary files named by their content, each deleted when its last user releases it.

    Args:
      directory: used by this job only; emptied now and at `close`.
    """

    def __init__(self, directory: Path):
        self._directory = directory
        self._users: Counter[str] = Counter()
        self._lock = threading.Lock()
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)

    def take(self, write: Callable[[BinaryIO], None]) -> str:
        """Stores what `write` writes and returns the file's path, to be given to `release` later. Thread-safe.

        Raises:
          SpoolError: the disk is full, or fails.
        """
        try:
            descriptor, temporary = tempfile.mkstemp(dir=self._directory, suffix=".new")
        except OSError as error:
            raise SpoolError(self._directory, error) from None
        try:
            raw = _Raw(descriptor, self._directory)
            with io.BufferedRandom(raw) as file:
                write(cast(BinaryIO, file))
                file.seek(0)
                name = hashlib.file_digest(file, "blake2b").hexdigest()[:40]
            path = str(self._directory / name)
            with self._lock:
                if not self._users[path]:
                    with raw.faults():
                        os.replace(temporary, path)
                self._users[path] += 1
            return path
        finally:
            with suppress(OSError):
                os.unlink(temporary)

    def hold(self, path: str) -> bool:
        """Counts one user more of a file; False if it has been deleted. Thread-safe."""
        with self._lock:
            if not self._users[path]:
                return False
            self._users[path] += 1
            return True

    def release(self, source: Any) -> None:
        """Counts one user of a file less, and deletes it after the last. Files from elsewhere are left alone."""
        if not isinstance(source, (str, os.PathLike)):
            return
        path = os.fspath(source)
        with self._lock:
            if not self._users[path]:
                return
            self._users[path] -= 1
            if not self._users[path]:
                with suppress(OSError):  # closing removes the directory
                    os.unlink(path)

    def close(self) -> None:
        """Removes the directory."""
        shutil.rmtree(self._directory, ignore_errors=True)


class _Raw(io.FileIO):
    """A new file of the spool, whose errors are `SpoolError`s."""

    def __init__(self, descriptor: int, directory: Path):
        self._directory = directory
        super().__init__(descriptor, "w+b")

    @contextmanager
    def faults(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise SpoolError(self._directory, error) from None

    def readinto(self, buffer: Any) -> int:
        with self.faults():
            return cast(int, super().readinto(buffer))

    def write(self, content: Any) -> int:
        with self.faults():
            return cast(int, super().write(content))

    def truncate(self, size: int | None = None) -> int:
        with self.faults():
            return super().truncate(size)

    def close(self) -> None:
        with self.faults():
            super().close()


class Resolver:
    """Turns the names of media in lines into files that may be read.

    Args:
      spool: stores media from URLs.
      root: relative paths begin there, and all paths must lead below it; None allows any path.
      fetch: fetches http and https URLs; None refuses them.
      max_bytes: the most bytes of one medium.
    """

    def __init__(self, spool: Spool, *, root: Path | None, fetch: Fetch | None, max_bytes: int):
        self._spool, self._fetch, self._max_bytes = spool, fetch, max_bytes
        self._root = None if root is None else Path(os.path.realpath(root))

    def __call__(self, kind: MediaKind, source: Any) -> Any:
        """Returns the path of a medium, or a `FrameFile`.

        Raises:
          SourceError: the name is forbidden, or the medium cannot be obtained.
          MediaError: there is no such file, or it is not a regular one.
          SpoolError: it is to be stored, and the disk does not take it.
        """
        if not isinstance(source, str):
            raise SourceError("invalid_request", f"expected a path or a URL, got a {type(source).__name__}")
        scheme = source.partition(":")[0].lower() if ":" in source else ""
        if scheme == "data":
            return self._data(kind, source)
        if scheme in ("http", "https"):
            return self._remote(source)
        if scheme == "file":
            return self._file(file_url_path(source))
        if "://" in source:
            raise SourceError(
                "forbidden_source", f"{short_name(source)}: expected a path, a data:, http: or https: URL"
            )
        return self._file(source)

    def _file(self, name: str) -> str | RootedFile:
        try:
            usable = b"\0" not in os.fsencode(name)
        except UnicodeEncodeError:  # half of a surrogate pair, which JSON can write
            usable = False
        if not usable:
            raise SourceError("forbidden_source", f"{short_name(name)}: no file can have this name")
        path: str | RootedFile = name if self._root is None else self._rooted(name)
        try:
            found = file_status(path)
        except OSError as error:
            missing = isinstance(error, (FileNotFoundError, NotADirectoryError))
            cause = Cause.NOT_FOUND if missing else Cause.UNREADABLE
            raise MediaError(short_name(name), cause, os.strerror(error.errno or 0).lower()) from None
        if not stat.S_ISREG(found.st_mode):  # a pipe would never end when it is hashed
            raise MediaError(short_name(name), Cause.NOT_A_FILE, "expected a file, got a directory, a pipe or a device")
        if found.st_size > self._max_bytes:
            raise self._too_large(short_name(name), found.st_size)
        return path

    def _rooted(self, name: str) -> RootedFile:
        """Returns a path below the root with its links followed, which must stay below."""
        assert self._root is not None
        named = Path(name)
        if ".." in named.parts:
            raise SourceError("forbidden_source", f"{short_name(name)}: expected a path in --media-root, without ..")
        path = Path(os.path.realpath(self._root / named))
        if not path.is_relative_to(self._root):
            way = "an absolute path" if named.is_absolute() else "a link"
            raise SourceError("forbidden_source", f"{short_name(name)}: {way} that leads out of --media-root")
        if path == self._root:
            raise MediaError(short_name(name), Cause.NOT_A_FILE, "expected a file, got the directory --media-root")
        return RootedFile(str(self._root), str(path.relative_to(self._root)))

    def _data(self, kind: MediaKind, url: str) -> str | FrameFile:
        head, comma, content = url[5:].partition(",")
        mime, *parameters = (part.strip() for part in head.lower().split(";"))
        if not comma or not mime.startswith(("image/", "video/")) or "base64" not in parameters:
            raise SourceError(
                "bad_data_url", f"{short_name(url)}: expected data:image/…;base64,… or data:video/…;base64,…"
            )
        digits = base64_digits(content)
        if len(digits) // 4 * 3 > self._max_bytes:
            raise self._too_large("a data: URL", len(digits) // 4 * 3)
        if kind == "video" and mime == "video/jpeg":
            return FrameFile(self._spool.take(_frame_writer([base64_bytes(part) for part in digits.split(b",")])))
        return self._spool.take(_write_all([base64_bytes(digits)]))

    def _remote(self, url: str) -> str:
        if self._fetch is None:
            raise SourceError(
                "forbidden_source", f"{short_name(url)}: nothing is fetched unless --allow-host names the host"
            )
        fetch = self._fetch
        return self._spool.take(lambda file: fetch(url, file, self._max_bytes))

    def _too_large(self, name: str, size: int) -> SourceError:
        return SourceError(
            str(Cause.TOO_LARGE), f"{name}: {size} bytes, over the limit of {self._max_bytes}; --limit-bytes raises it"
        )


def _frame_writer(frames: Sequence[bytes]) -> Callable[[BinaryIO], None]:
    return _write_all([json.dumps([len(frame) for frame in frames]).encode() + b"\n", *frames])


def _write_all(parts: Sequence[bytes]) -> Callable[[BinaryIO], None]:
    def write(file: BinaryIO) -> None:
        for part in parts:
            file.write(part)

    return write
