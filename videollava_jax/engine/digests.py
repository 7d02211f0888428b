"""Media named by their content, so that questions about equal media are recognised, whatever their files are called."""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Hashable
from concurrent.futures import Future
from typing import Any

import numpy as np
from PIL import Image

from videollava_jax.media import FrameFiles
from videollava_jax.media.image import rgb_pixels
from videollava_jax.media.rooted import file_status, open_descriptor


def file_version(source: Any) -> Hashable:
    """Returns what tells a file and its present content apart from others without reading it; None for pixels.

    Raises:
      OSError: there is no such file.
    """
    if isinstance(source, FrameFiles):
        return (source.fps, *map(file_version, source.paths))
    if not isinstance(source, (str, os.PathLike)):
        return None
    stat = file_status(source)
    return os.path.realpath(source), stat.st_size, stat.st_mtime_ns


def content_digest(source: Any) -> str:
    """Returns a digest of a file, or of the shapes, types and values of frames.

    Raises:
      OSError: a file that cannot be read.
    """
    if isinstance(source, (str, os.PathLike)):
        with open(open_descriptor(source), "rb") as file:
            return hashlib.file_digest(file, "blake2b").hexdigest()
    digest = hashlib.blake2b()
    if isinstance(source, FrameFiles):
        digest.update(f"{source.fps}".encode())
        source = source.paths
    frames = source if isinstance(source, (list, tuple)) else [getattr(source, "frames", source)]
    for frame in frames:
        if isinstance(frame, (str, os.PathLike)):
            digest.update(content_digest(frame).encode())
            continue
        array = np.ascontiguousarray(rgb_pixels(frame) if isinstance(frame, Image.Image) else frame)
        digest.update(f"{array.shape} {array.dtype}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


MOST = 2**16
"""Files whose digests are kept, those that were asked for last: a session may see any number."""


class Digests:
    """Digests of media, each version of a file read once. Several threads may ask at a time."""

    def __init__(self) -> None:
        self._known: OrderedDict[Hashable, Future[str]] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, version: Hashable, source: Any) -> str:
        """Returns the digest of a medium; where another thread is reading the same version, waits for it.

        Args:
          version: of the file, from `file_version`.
        """
        if version is None:
            return content_digest(source)
        with self._lock:
            found = self._known.get(version)
            own = self._known[version] = Future() if found is None else found
            self._known.move_to_end(version)
            if len(self._known) > MOST:
                self._known.popitem(last=False)
        if found is None:
            try:
                own.set_result(content_digest(source))
            except BaseException as error:
                self._known.pop(version, None)  # the next request for it tries again
                own.set_exception(error)
        return own.result()

    def knows(self, version: Hashable) -> bool:
        """Returns whether the digest of a file is at hand."""
        found = None if version is None else self._known.get(version)
        return found is not None and found.done()
