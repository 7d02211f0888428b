"""Files that clients upload: kept under an id for an hour, within limits on their number and size. No JAX."""

from __future__ import annotations

import re
import secrets
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

from videollava_jax.batch.media.spool import Spool, SpoolError
from videollava_jax.processing.segments import MediaKind
from videollava_jax.serving.errors import ApiError, invalid, not_stored
from videollava_jax.serving.settings import UploadLimits

_ID = re.compile(r"file-[0-9a-f]{32}")
_NAME = re.compile(r"[^\w.() -]")


@dataclass
class Upload:
    """A file that was uploaded.

    Attributes:
      id: 128 random bits: who knows it may use the file.
      path: where it is, named by its content.
      kind: "image" or "video", by its content.
      name: the client's, for people.
      created, expires: seconds since 1970, for people.
      ends: when it expires, by `time.monotonic`: a wall clock that is set neither ends it nor keeps it.
      pin: what keeps its prefix on the device; None where that is not done.
    """

    id: str
    path: str
    kind: MediaKind
    name: str
    purpose: str
    bytes: int
    created: float
    expires: float
    ends: float
    pin: Any = None

    def unpin(self) -> None:
        """Lets its prefix go."""
        if self.pin is not None:
            self.pin.release()
            self.pin = None

    def record(self) -> dict[str, Any]:
        """Returns it as OpenAI's clients read it, and its kind."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.bytes,
            "created_at": int(self.created),
            "expires_at": int(self.expires),
            "filename": self.name,
            "purpose": self.purpose,
            "status": "processed",
            "kind": self.kind,
        }


class Uploads:
    """The uploaded files of a server. Thread-safe.

    Args:
      spool: keeps their content.
      limits: on them.
    """

    def __init__(self, spool: Spool, limits: UploadLimits):
        self._spool, self.limits = spool, limits
        self._files: dict[str, Upload] = {}
        self._begun = self._begun_bytes = 0
        self._lock = threading.Lock()

    @contextmanager
    def room_for(self, size: int) -> Iterator[None]:
        """Reserves room while a file of at most `size` bytes comes.

        Raises:
          ApiError: too many files or bytes are there, or too many are coming.
        """
        self.expire()
        with self._lock:
            if self._begun >= self.limits.at_once:
                raise ApiError(429, f"{self._begun} files are being uploaded: expected fewer", code="uploads_full")
            if len(self._files) + self._begun >= self.limits.count:
                raise ApiError(
                    413,
                    f"{self.limits.count} files are here: delete some, or wait until some expire",
                    code="files_full",
                )
            there = sum(file.bytes for file in self._files.values()) + self._begun_bytes
            if there + size > self.limits.bytes_in_all:
                raise ApiError(
                    413,
                    f"there is no room for {size} bytes: {there} of {self.limits.bytes_in_all} are used. Delete files",
                    code="files_full",
                )
            self._begun += 1
            self._begun_bytes += size
        try:
            yield
        finally:
            with self._lock:
                self._begun -= 1
                self._begun_bytes -= size

    def store(self, content: BinaryIO) -> str:
        """Stores a file's content; returns its path, to be given to `add` or released.

        Raises:
          ApiError: the disk does not take it.
        """

        def write(file: BinaryIO) -> None:
            shutil.copyfileobj(content, file, 2**16)

        try:
            return self._spool.take(write)
        except SpoolError as error:
            raise not_stored(error.error) from None

    def release(self, path: str) -> None:
        """Gives up a stored content."""
        self._spool.release(path)

    def add(self, path: str, kind: MediaKind, name: str, purpose: str, size: int) -> Upload:
        """Lists a stored file under a new id."""
        now, seconds = time.time(), self.limits.seconds
        name = _NAME.sub("_", name)[:200] or "file"
        ends = time.monotonic() + seconds
        made = Upload(f"file-{secrets.token_hex(16)}", path, kind, name, purpose, size, now, now + seconds, ends)
        with self._lock:
            self._files[made.id] = made
        return made

    def get(self, name: str) -> Upload:
        """Returns the file of an id.

        Raises:
          ApiError: there is none, or it has expired.
        """
        self.expire()
        with self._lock:
            found = self._files.get(name)
        if found is None:
            shown = name if _ID.fullmatch(name) else "with this id"
            raise ApiError(
                404, f"there is no file {shown}: it was deleted, has expired or never was", code="no_such_file"
            )
        return found

    def hold(self, name: str) -> Upload:
        """Returns the file of an id whose content stays until it is released.

        Raises:
          ApiError: there is none: a fault of the request that names it.
        """
        try:
            found = self.get(name)
        except ApiError as error:
            raise invalid(error.message, "messages", "no_such_file") from None
        if not self._spool.hold(found.path):
            raise invalid("the file was deleted", "messages", "no_such_file")
        return found

    def all(self) -> list[Upload]:
        """Returns the files that are there, the oldest first."""
        self.expire()
        with self._lock:
            return list(self._files.values())

    def delete(self, name: str) -> Upload:
        """Deletes a file; requests that use it go on.

        Raises:
          ApiError: there is none.
        """
        self.get(name)
        with self._lock:
            found = self._files.pop(name, None)
        if found is None:
            return self.get(name)
        self._drop(found)
        return found

    def expire(self) -> None:
        """Deletes the files whose time is over."""
        now = time.monotonic()
        with self._lock:
            over = [file for file in self._files.values() if file.ends <= now]
            for file in over:
                del self._files[file.id]
        for file in over:
            self._drop(file)

    def _drop(self, file: Upload) -> None:
        file.unpin()
        self._spool.release(file.path)
