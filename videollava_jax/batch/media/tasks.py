"""What worker processes are asked to read, and what they reply: a JSON object and raw pixels. No JAX."""

from __future__ import annotations

import dataclasses
import math
import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from videollava_jax.batch.media.spool import FrameFile, read_frames
from videollava_jax.media import (
    FrameFiles,
    MediaLimits,
    Medium,
    Preprocessor,
    open_medium,
    read_image,
    read_video,
)
from videollava_jax.media.medium import medium_of
from videollava_jax.processing import given_media
from videollava_jax.processing.segments import MediaKind

Reply = tuple[dict[str, Any], bytes | memoryview]


@dataclass(frozen=True)
class Task:
    """A medium to read, resized and cropped for the model.

    Attributes:
      kind: "image" or "video".
      source: a path, a `FrameFile`, `FrameFiles` or a list of paths.
      frame_sampling: which frames of a video to take.
      preprocess: how frames are resized and cropped.
      limits: of the file.
      seconds: the time limit.
    """

    kind: MediaKind
    source: Any
    frame_sampling: Any
    preprocess: Preprocessor
    limits: MediaLimits
    seconds: float

    @property
    def name(self) -> str:
        """The file's, for messages."""
        return name_of(self.source)

    def reply(self) -> Reply:
        """Reads the medium."""
        source, frames = self.source, None
        if isinstance(source, FrameFile):
            source = read_frames(source.path, self.limits)
        if self.kind == "image":
            pixels = given_media.image_pixels(source, self.preprocess, self.limits)[None]
        else:
            read = given_media.read_frames_of(source, self.preprocess, self.frame_sampling, self.limits)
            pixels = read.pixels
            frames = None if read.frames is None else dataclasses.asdict(read.frames)
        return {"shape": pixels.shape, "frames": frames}, pixels.tobytes()


@dataclass(frozen=True)
class FileTask:
    """A file whose frames are wanted as they are, neither resized nor cropped.

    Attributes:
      kind: "image" or "video"; None for either.
      name: of the file, for messages.
      source: a path, `FrameFiles`, a list of paths, or the bytes of a file.
      frame_sampling: which frames of a video to take.
      limits: of the file.
      seconds: the time limit.
    """

    kind: MediaKind | None
    name: str
    source: Any
    frame_sampling: Any
    limits: MediaLimits
    seconds: float

    def reply(self) -> Reply:
        """Reads the frames of the file."""
        medium = self._read()
        times = [None if math.isnan(time) else time for time in medium.timestamps.tolist()]
        reply = {
            "kind": medium.kind,
            "shape": medium.frames.shape,
            "indices": medium.indices.tolist(),
            "times": times,
            "total": int(medium.total_frames),
            "decoded": int(medium.decoded_frames),
            "fps": None if medium.fps is None else float(medium.fps),
        }
        return reply, np.ascontiguousarray(medium.frames).data.cast("B")

    def _read(self) -> Medium:
        source = self.source
        if isinstance(source, bytes):
            source = _Named(source)
            source.name = self.name
        if self.kind == "image":
            pixels = read_image(source, self.limits)
            return Medium("image", self.name, pixels[None], np.zeros(1, np.int64), np.zeros(1), 1)
        if self.kind == "video":
            return medium_of(read_video(source, self.frame_sampling, self.limits), self.name)
        return open_medium(source, self.frame_sampling, self.limits)


class _Named(bytes):
    """The content of a file, with the name that messages about it have."""

    name: str


def name_of(source: Any) -> str:
    """Returns the name of a path, of `FrameFiles` or of a list of paths, for messages."""
    if isinstance(source, list | tuple):
        source = FrameFiles(source)
    return source.name if isinstance(source, FrameFiles) else str(os.fspath(source))
