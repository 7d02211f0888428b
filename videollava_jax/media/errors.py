"""The one error of media files, and the limits that keep a hostile file from taking the machine."""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import StrEnum
from typing import BinaryIO, TypeAlias

Source: TypeAlias = "str | os.PathLike[str] | bytes | BinaryIO"


class Cause(StrEnum):
    """Why a file was refused, for programs to count by."""

    NOT_FOUND = "not_found"
    NOT_A_FILE = "not_a_file"
    NOT_MEDIA = "not_media"
    FORBIDDEN_FORMAT = "forbidden_format"
    NO_VIDEO_STREAM = "no_video_stream"
    NO_FRAMES = "no_frames"
    TRUNCATED = "truncated"
    TOO_LARGE = "too_large"
    DECODE_FAILED = "decode_failed"


class MediaError(ValueError):
    """A file that cannot be used as an image or a video.

    Attributes:
      source: the file's name, or `<bytes>`.
      cause: the kind of fault.
    """

    def __init__(self, source: str, cause: Cause, message: str):
        super().__init__(f"{source}: {message}")
        self.source = source
        self.cause = cause


@dataclass(frozen=True, kw_only=True)
class MediaLimits:
    """What a file may ask of the machine; beyond it a `MediaError` is raised before the memory is taken.

    Attributes:
      max_pixels: pixels of one frame or image; the default admits 8K video.
      max_bytes: bytes of the file.
      max_frames: packets of a video; the default is over nine hours at 30 frames a second.
      max_frames_returned: frames that one call may ask for, all held in memory at once.
    """

    max_pixels: int = 7680 * 4320
    max_bytes: int = 16 * 2**30
    max_frames: int = 1_000_000
    max_frames_returned: int = 1024


def source_name(source: Source) -> str:
    """How an error names a source."""
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    return str(getattr(source, "name", "<bytes>"))
