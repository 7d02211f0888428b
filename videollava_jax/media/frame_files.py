"""Image files that are the frames of one video, as a screen recorder or `ffmpeg out/%04d.png` writes them."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from videollava_jax.media.errors import Cause, MediaError

_SUFFIXES = {
    ".png", ".jpg", ".jpeg", ".jpe", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pnm", ".avif",
    ".heic", ".heif",
}  # fmt: skip


@dataclass(frozen=True)
class FrameFiles:
    """One video whose frames are image files. Only the frames that are chosen are opened.

    `read_video` takes it, and a plain list of paths too; where a list could also mean several videos (the processor's
    `videos=`), only this object says that the files are one.

    Attributes:
      paths: at least one, in the order of presentation.
      fps: frames a second, which `Fps` needs; None if it is not known.
    """

    paths: tuple[str, ...]
    fps: float | None = None

    def __init__(self, paths: Sequence[str | os.PathLike[str]], fps: float | None = None):
        if isinstance(paths, (str, bytes)) or not isinstance(paths, Sequence):
            raise ValueError(f"frame files: expected a list of paths, got {type(paths).__name__}")
        others = [path for path in paths if not isinstance(path, (str, os.PathLike))]
        if others:
            raise ValueError(f"frame files: expected paths, got {type(others[0]).__name__} among them")
        if not paths:
            raise ValueError("frame files: expected at least one path, got an empty list")
        if fps is not None and not (fps > 0 and math.isfinite(fps)):
            raise ValueError(f"frame files: expected a positive number of frames a second, got {fps}")
        object.__setattr__(self, "paths", tuple(os.fspath(path) for path in paths))
        object.__setattr__(self, "fps", None if fps is None else float(fps))

    @classmethod
    def in_directory(cls, directory: str | os.PathLike[str], fps: float | None = None) -> FrameFiles:
        """Takes all image files of a directory, by name; numbers in names count as numbers: 2.png is before 10.png.

        Raises:
          MediaError: there is no such directory, or no image file in it.
        """
        place = os.fspath(directory)
        try:
            names = [name for name in os.listdir(place) if os.path.splitext(name)[1].lower() in _SUFFIXES]
        except NotADirectoryError:
            raise MediaError(place, Cause.NOT_A_FILE, "expected a directory of frames, got a file") from None
        except FileNotFoundError:
            raise MediaError(place, Cause.NOT_FOUND, "no such directory") from None
        except OSError as error:
            raise MediaError(place, Cause.UNREADABLE, f"cannot be listed ({error.strerror})") from None
        if not names:
            raise MediaError(place, Cause.NO_FRAMES, "expected a directory of frames, got one without image files")
        return cls([os.path.join(place, name) for name in sorted(names, key=_natural)], fps)

    @property
    def name(self) -> str:
        """The files in a few words, for messages."""
        return self.paths[0] if len(self.paths) == 1 else f"{self.paths[0]} and {len(self.paths) - 1} more files"

    def times(self) -> npt.NDArray[np.float64]:
        """The second at which each frame is shown, float64 [F]; NaN if `fps` is not known."""
        return np.arange(len(self.paths)) / (self.fps or math.nan)


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Returns a key that orders names as people do: by text and by the values of numbers."""
    parts = re.split(r"(\d+)", name)
    return [(1, int(part), part) if part.isdecimal() else (0, 0, part) for part in parts if part]
