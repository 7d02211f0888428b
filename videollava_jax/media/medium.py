"""Opens an image or a video, whichever a file holds, as one kind of object with a one-line description."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from videollava_jax.media.errors import MediaLimits
from videollava_jax.media.frame_files import FrameFiles
from videollava_jax.media.frame_sampling import FrameSampling, Uniform
from videollava_jax.media.image import read_image
from videollava_jax.media.kind import media_kind
from videollava_jax.media.source import source_name
from videollava_jax.media.video import Video, read_video


@dataclass(frozen=True)
class Medium:
    """An image, or the sampled frames of a video.

    Attributes:
      kind: "image" or "video".
      path: the file that it was read from.
      frames: uint8 [F, H, W, 3], RGB, 0-255; F is 1 for an image.
      indices: int64 [F], the numbers of these frames in the video.
      timestamps: float64 [F], seconds since the video's first frame; NaN if the file gives none.
      total_frames: frames in the video.
      fps: frames a second of the video; None if the file gives none, and for an image.
      decoded_frames: how many frames were decoded to get these.
    """

    kind: Literal["image", "video"]
    path: str
    frames: npt.NDArray[np.uint8]
    indices: npt.NDArray[np.int64]
    timestamps: npt.NDArray[np.float64]
    total_frames: int
    fps: float | None = None
    decoded_frames: int = 1

    @property
    def description(self) -> str:
        """The file's name, its size in pixels and how many of its frames were taken, on one line."""
        height, width = self.frames.shape[1:3]
        size = f"{os.path.basename(self.path)}: {width} by {height} pixels"
        return size if self.kind == "image" else f"{size}, {len(self.frames)} of {self.total_frames} frames"


def open_medium(
    path: str | os.PathLike[str] | bytes | FrameFiles,
    frame_sampling: FrameSampling = Uniform(8),  # noqa: B008
    limits: MediaLimits = MediaLimits(),  # noqa: B008
) -> Medium:
    """Reads an image or a video, whichever the file's content says it is; `FrameFiles` are a video.

    Args:
      path: the file or its content, or the files of a video's frames.
      frame_sampling: which frames to take if it is a video.
      limits: of the file.

    Raises:
      MediaError: it is neither, or cannot be read.
    """
    if isinstance(path, FrameFiles):
        name = path.name
    else:
        name = source_name(path) if isinstance(path, bytes) else os.fspath(path)
    if not isinstance(path, FrameFiles) and media_kind(path, limits) == "image":
        pixels = read_image(path, limits)[None]
        return Medium("image", name, pixels, np.zeros(1, np.int64), np.zeros(1), 1)
    video = read_video(path, frame_sampling, limits)
    return medium_of(video, name)


def medium_of(video: Video, name: str) -> Medium:
    """Returns a video that was read as a medium of that name."""
    return Medium(
        "video",
        name,
        video.frames,
        video.indices,
        video.timestamps,
        video.total_frames,
        video.fps,
        video.decoded_frames,
    )
