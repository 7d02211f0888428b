"""The media of a request: what clients name, as files that stay until the request has ended. No JAX."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

from videollava_jax.batch.media.spool import Resolver, Spool, SpoolError
from videollava_jax.batch.requests import part_source, with_sources
from videollava_jax.engine.request import Request
from videollava_jax.media import MediaError
from videollava_jax.media.addresses import Address, is_public
from videollava_jax.media.remote import Fetcher
from videollava_jax.media.urls import SourceError, short_name
from videollava_jax.processing.segments import MediaKind
from videollava_jax.serving.errors import ApiError, invalid, not_stored
from videollava_jax.serving.files import Uploads
from videollava_jax.serving.protocol import UPLOADED
from videollava_jax.serving.settings import Settings
from videollava_jax.temporary import TemporaryPlace

_ELSEWHERE = ("http:", "https", "data:")
"""How the names of media begin that have to become files first."""


class MediaStore:
    """Finds the media that clients name: data: URLs, uploaded files, paths below the root, URLs of allowed hosts.

    Attributes:
      uploads: the files that were uploaded.
    """

    def __init__(self, settings: Settings, allowed_address: Callable[[Address], bool] = is_public):
        """Makes a directory for what is fetched and uploaded.

        Args:
          allowed_address: returns whether media may be fetched from an address.
        """
        self._directory = TemporaryPlace("videollava-serve-")
        self.spool = Spool(self._directory.path / "media")
        self.uploads = Uploads(self.spool, settings.uploads)
        self._fetch = Fetcher(
            settings.hosts,
            seconds=min(60.0, settings.request_timeout),
            attempts=2,
            allowed_address=allowed_address,
        )
        fetch = self._fetch if settings.hosts else None
        self._resolve = Resolver(self.spool, root=settings.media_root, fetch=fetch, max_bytes=settings.max_medium_bytes)
        self._max_frames = settings.max_frames
        self._paths_allowed = settings.media_root is not None

    def are_here(self, request: Request) -> bool:
        """Returns whether the media that a request names are files of this machine: nothing is fetched or written."""
        contents = [message.get("content") for message in request.conversation or ()]
        found = [part_source(part) for content in contents if isinstance(content, list) for part in content]
        return not any(each is not None and each[1][:5].lower() in _ELSEWHERE for each in found)

    def hold(self) -> HeldMedia:
        """Returns what will hold the media of one request."""
        return HeldMedia(self)

    def file_of(self, kind: MediaKind, source: str) -> tuple[MediaKind, Any]:
        """Returns the kind and the path of a medium that is named in a request.

        Raises:
          ApiError: it may not be named, or cannot be had.
        """
        if source.startswith(UPLOADED):
            upload = self.uploads.hold(source.removeprefix(UPLOADED))
            return upload.kind, upload.path
        if not self._paths_allowed and source.partition(":")[0].lower() not in ("data", "http", "https"):
            raise invalid(
                f"{short_name(source)}: expected a data: URL, an uploaded file ({UPLOADED}…) or a URL of an allowed "
                "host; the server reads no paths",
                "messages",
                "forbidden_source",
            )
        frames = source.count(",") if source[:15].lower() == "data:video/jpeg" else 0
        if frames > self._max_frames:
            raise invalid(
                f"a video of {frames} frames does not fit the server's longest prompt: expected at most "
                f"{self._max_frames}",
                "messages",
                "too_long",
            )
        try:
            return kind, self._resolve(kind, source)
        except (SourceError, MediaError) as error:
            raise invalid(" ".join(str(error).split()), "messages", str(error.cause)) from None
        except SpoolError as error:
            raise not_stored(error.error) from None

    def close(self) -> None:
        """Ends fetches and deletes the directory."""
        self._fetch.stop()
        self._directory.close()


class HeldMedia:
    """The media of one request, as files. One thread fills it, and any may release it at any time."""

    def __init__(self, store: MediaStore):
        self._store = store
        self._lock = threading.Lock()
        self._paths: list[Any] = []
        self._released = False
        self._names: dict[str, str] = {}

    def fill(self, request: Request) -> Request:
        """Returns the request with a file for each medium that the client names.

        Raises:
          ApiError: a medium may not be named, or cannot be had; or the request has ended meanwhile.
        """
        return with_sources(request, self._file)

    def _file(self, kind: MediaKind, source: Any) -> Any:
        found_kind, path = self._store.file_of(kind, source)
        with self._lock:
            if not self._released:
                self._paths.append(path)
        if self._released:
            self._store.spool.release(path)
            raise ApiError(499, "the client has gone")
        if found_kind != kind:
            raise invalid(
                f"{short_name(source)} is {_an(found_kind)}, and the part is {_an(kind)}", "messages", "not_media"
            )
        self._names[os.fspath(path)] = f"{kind} {len(self._names) + 1} of the request"
        return path

    def named(self, message: str) -> str:
        """Returns an error of the engine with the client's media instead of files of this machine."""
        for path, name in self._names.items():
            message = message.replace(path, name)
        return message

    def release(self) -> None:
        """Lets go of the files."""
        with self._lock:
            self._released, paths = True, self._paths
            self._paths = []
        for path in paths:
            self._store.spool.release(path)


def _an(kind: MediaKind) -> str:
    return "an image" if kind == "image" else "a video"
