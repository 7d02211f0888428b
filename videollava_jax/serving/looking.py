"""Uploads, and the frames of uploads that the model would see, as small JPEGs with their times."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from PIL import Image
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest

from videollava_jax.engine.request import Request
from videollava_jax.engine.tickets import QueueFull, SessionClosed
from videollava_jax.processing.segments import Media, MediaKind
from videollava_jax.serving.answers import frames_record
from videollava_jax.serving.errors import ApiError, invalid, not_stored, of_cause
from videollava_jax.serving.files import Upload, Uploads
from videollava_jax.serving.live_session import LiveSession
from videollava_jax.serving.protocol import frame_rule
from videollava_jax.serving.settings import Settings

_PURPOSES = ("user_data", "vision", "assistants", "batch", "fine-tune", "evals")
_IMAGES = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"BM", b"II*\0", b"MM\0*")
"""What most images begin with. It decides what is tried first, and not what a file is."""

Made = TypeVar("Made")


_ANY = {"type": "text", "text": "?"}


class Looking:
    """Takes uploads, and reads their frames, in threads that wait for the reader's processes."""

    def __init__(self, reader: Callable[..., Any], uploads: Uploads, session: LiveSession, settings: Settings):
        self._reader, self._uploads, self._session, self._settings = reader, uploads, session, settings
        self._pinned: list[Upload] = []
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="look-at-media")

    async def upload(self, request: HttpRequest) -> Upload:
        """Stores the file of a multipart body.

        Raises:
          ApiError: there is no file in it, no room for it, or it is neither an image nor a video.
        """
        length = int(request.headers.get("content-length") or 0) or self._uploads.limits.bytes
        with self._uploads.room_for(min(length, self._uploads.limits.bytes)):
            try:
                form = await request.form(max_files=1, max_fields=8, max_part_size=2**16)
            except ClientDisconnect:
                raise ApiError(499, "the client has gone") from None
            except OSError as error:  # a large file is kept on the disk while it comes
                raise not_stored(error) from None
            except HTTPException:
                raise invalid("expected a multipart body with one file, under 'file'", "file") from None
            try:
                file, purpose = form.get("file"), form.get("purpose", "user_data")
                if not isinstance(file, UploadFile):
                    raise invalid("expected a multipart body with a file under 'file'", "file")
                if purpose not in _PURPOSES:
                    raise invalid(f"purpose: expected {' or '.join(map(repr, _PURPOSES))}", "purpose")
                if not file.size:
                    raise invalid("the file is empty", "file", "not_media")
                if file.size > self._uploads.limits.bytes:
                    raise ApiError(413, f"the file is too large: expected at most {self._uploads.limits.bytes} bytes")
                upload = await self._in_thread(self._store, file, str(purpose))
                await self._in_thread(self._pin, upload)
                return upload
            finally:
                await form.close()

    async def frames(self, name: str, query: Mapping[str, str]) -> dict[str, Any]:
        """Returns the frames of an uploaded file, as the model would see them.

        Args:
          query: `frames` and `fps`, by which they are chosen.

        Raises:
          ApiError: there is no such file, or no such choice.
        """
        if unknown := sorted(query.keys() - {"frames", "fps"}):
            raise invalid(f"{unknown[0][:80]!r} is not known: expected frames or fps", unknown[0][:80])
        asked = {
            ours: _number(query[given]) for given, ours in (("frames", "num_frames"), ("fps", "fps")) if given in query
        }
        rule = frame_rule(None, asked, self._settings)
        upload = self._uploads.hold(name)
        try:
            return await self._in_thread(self._shown, upload, rule)
        finally:
            self._uploads.release(upload.path)

    def close(self) -> None:
        """Stops the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _in_thread(self, call: Callable[..., Made], *arguments: Any) -> Made:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call, *arguments)

    def _store(self, file: UploadFile, purpose: str) -> Upload:
        path = self._uploads.store(file.file)
        try:
            with open(path, "rb") as stored:
                like_image = stored.read(8).startswith(_IMAGES)
            kind = self._kind(path, "image" if like_image else "video")
            return self._uploads.add(path, kind, file.filename or "file", purpose, file.size or 0)
        except BaseException:
            self._uploads.release(path)
            raise

    def _pin(self, upload: Upload) -> None:
        """Lets the engine compute the file's prefix before the first question, and keep it while there is room.

        The latest files are kept, in half of the slots: others need some too.
        """
        most = self._session.usage.slots // 2
        if not most:
            return
        with self._lock:
            self._pinned = [each for each in self._pinned if each.pin is not None]
            too_many = self._pinned[: max(0, len(self._pinned) + 1 - most)]
        for each in too_many:
            each.unpin()
        message = {"role": "user", "content": [{"type": upload.kind, upload.kind: upload.path}, _ANY]}
        request = Request(id=upload.id, conversation=[message], frame_sampling=self._settings.frame_sampling)
        with contextlib.suppress(QueueFull, SessionClosed):  # the first question will do
            upload.pin = self._session.pin(request, timeout=self._settings.request_timeout)
            with self._lock:
                self._pinned.append(upload)

    def _kind(self, path: str, first: MediaKind) -> MediaKind:
        other: MediaKind = "video" if first == "image" else "image"
        for kind, last in ((first, False), (other, True)):
            try:
                self._read(path, kind, self._settings.frame_sampling)
                return kind
            except ApiError as error:
                if last or error.code != "not_media":
                    raise
        raise AssertionError

    def _read(self, path: str, kind: MediaKind, rule: Any) -> Any:
        try:
            return self._reader(Media(kind, path), rule)
        except (ValueError, OSError) as error:
            message = " ".join(str(error).split()).replace(path, "the file")
            raise of_cause(getattr(error, "cause", None), message, self._settings.request_timeout) from None

    def _shown(self, upload: Upload, rule: Any) -> dict[str, Any]:
        read = self._read(upload.path, upload.kind, rule)
        record = frames_record(read.frames) or {"frames": [0], "seconds": None, "total_frames": 1}
        times = record["seconds"] or [None] * len(read.pixels)
        shown = []
        for index, seconds, pixels in zip(record["frames"], times, read.pixels, strict=True):
            made = io.BytesIO()
            Image.fromarray(pixels).save(made, "JPEG", quality=85)
            url = "data:image/jpeg;base64," + base64.b64encode(made.getvalue()).decode()
            shown.append({"index": index, "seconds": seconds, "image": url})
        return {
            "object": "list",
            "id": upload.id,
            "kind": upload.kind,
            "total_frames": record["total_frames"],
            "data": shown,
        }


def _number(text: str) -> Any:
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        return text[:80]
