"""Opens images and videos in every form that transformers' users pass them, as forms that the core takes.

tensors of any library     ▶ arrays of NumPy
uint8, channels first      ▶ channels last
file://, data:, base64     ▶ paths, pixels
https://                   ▶ pixels, if the caller allows it
files that are the frames of a video, or their URLs ▶ a list of frames
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from videollava_jax.media import Cause, MediaError, MediaLimits, Uniform, Video, read_image, read_video
from videollava_jax.media.remote import Fetcher
from videollava_jax.media.urls import SourceError, base64_bytes, base64_digits, file_url_path, short_name
from videollava_jax.processing.media_processor import DEFAULT_LIMITS
from videollava_jax.processing.segments import MediaKind

_IMAGE_FILES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm")


_EIGHT = Uniform(8)


@dataclass(frozen=True)
class Opening:
    """How media are opened.

    Attributes:
        limits: of media files.
        allow_remote_media: whether http and https URLs are fetched, from public addresses only.
        frame_sampling: of a video that comes as bytes: by data: URL, base64 or https.
        input_data_format: "channels_first" or "channels_last" of arrays; None to tell by their shapes.
        reader: reads files instead of this process: an `IsolatedReader`, which has limits of its own.
    """

    limits: MediaLimits = DEFAULT_LIMITS
    allow_remote_media: bool = False
    frame_sampling: Any = _EIGHT
    input_data_format: Any = None
    reader: Any = None

    def read_image(self, file: Any) -> Any:
        """Reads an image file: uint8 [H, W, 3]."""
        return read_image(file, self.limits) if self.reader is None else self.reader.read_image(file)

    def read_video(self, file: Any) -> Video:
        """Reads the frames of a video file that the rule chooses."""
        if self.reader is None:
            return read_video(file, self.frame_sampling, self.limits)
        found: Video = self.reader.read_video(file, self.frame_sampling)
        return found

    def image(self, given: Any, *, read: bool = False) -> Any:
        """Opens an image, or every image of nested lists.

        Args:
            given: a path, a URL, base64, bytes, a PIL image, an array or tensor; or lists of them.
            read: whether files are read too, as uint8 [H, W, 3]; else their paths are returned.

        Raises:
            ValueError: an image that cannot be opened, or may not be.
        """
        if isinstance(given, (list, tuple)):
            return [self.image(item, read=read) for item in given]
        if isinstance(given, (str, bytes, os.PathLike)):
            found = self._found(given, "image")
            if isinstance(found, bytes) or read:
                return self.read_image(found)
            return found
        return self._array(given)

    def video(self, given: Any) -> Any:
        """Opens a video, or every video of nested lists.

        Args:
            given: a path, a URL, base64, bytes, an array or tensor [F, H, W, 3] or [F, 3, H, W], a list of frames or of
                their files or URLs, what `media.read_video` returns; or lists of them.

        Raises:
            ValueError: a video that cannot be opened, or may not be.
        """
        if isinstance(given, (list, tuple)):
            if given and all(_names_image(item) for item in given):
                return [self.image(item, read=True) for item in given]
            return [self.video(item) for item in given]
        if isinstance(given, (str, bytes, os.PathLike)):
            found = self._found(given, "video")
            return self.read_video(io.BytesIO(found)) if isinstance(found, bytes) else found
        return self._array(given)

    def _found(self, named: str | bytes | os.PathLike[str], kind: MediaKind) -> Any:
        """Returns the path that a name leads to, or the bytes of the medium."""
        if not isinstance(named, str):
            return named
        scheme = named.partition(":")[0].lower() if ":" in named[:8] else ""
        if scheme == "file":
            return file_url_path(named)
        if scheme == "data":
            return self._within_limit(base64_bytes(base64_digits(named.partition(",")[2])), kind)
        if scheme in ("http", "https"):
            return self._fetched(named, kind)
        if len(named) > 255 and not os.path.exists(named[:4096]):
            return self._within_limit(base64_bytes(base64_digits(named)), kind)
        return named

    def _fetched(self, url: str, kind: MediaKind) -> bytes:
        if not self.allow_remote_media:
            raise SourceError(
                "forbidden_source",
                f"{short_name(url)}: nothing is fetched from the network unless allow_remote_media=True is passed",
            )
        file = io.BytesIO()
        Fetcher(None)(url, file, self._most_bytes(kind))
        return file.getvalue()

    def _most_bytes(self, kind: MediaKind) -> int:
        return self.limits.max_image_bytes if kind == "image" else self.limits.max_bytes

    def _within_limit(self, content: bytes, kind: MediaKind) -> bytes:
        if len(content) > self._most_bytes(kind):
            raise MediaError("<base64>", Cause.TOO_LARGE, f"{len(content)} bytes, over the limit")
        return content

    def _array(self, given: Any) -> Any:
        """An array of NumPy of an array or tensor, with channels last if it is uint8; anything else unchanged."""
        if not isinstance(given, np.ndarray):
            if not hasattr(given, "__array__") or hasattr(given, "convert"):  # PIL images stay what they are
                return given
            given = np.asarray(given.detach().cpu() if hasattr(given, "detach") else given)
        first = getattr(self.input_data_format, "value", self.input_data_format)
        if given.ndim < 3 or first == "channels_last":
            return given
        told = first == "channels_first"
        if told or (given.dtype == np.uint8 and given.shape[-1] != 3 and given.shape[-3] == 3):
            return np.ascontiguousarray(np.moveaxis(given, -3, -1))
        return given


def _names_image(value: Any) -> bool:
    """Whether a value names an image file: a frame, in a list that is a video."""
    if not isinstance(value, (str, os.PathLike)):
        return False
    name = os.fspath(value).lower()
    return name.startswith("data:image/") or name.partition("?")[0].endswith(_IMAGE_FILES)
