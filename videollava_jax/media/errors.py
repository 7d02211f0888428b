"""The error that all media code raises, and the limits that keep a hostile file from exhausting the machine."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum


class Cause(StrEnum):
    """Why a file was refused, for programs that count errors by cause."""

    NOT_FOUND = "not_found"
    NOT_A_FILE = "not_a_file"  # a directory, a pipe, a device
    UNREADABLE = "unreadable"  # permissions, a failing disk
    NOT_MEDIA = "not_media"  # neither an image nor a video, or not the one that was asked for
    FORBIDDEN_FORMAT = "forbidden_format"  # playlists and scripts, which open other files; formats not allowed
    NO_VIDEO_STREAM = "no_video_stream"  # sound alone, or sound with a cover picture
    NO_FRAMES = "no_frames"
    TRUNCATED = "truncated"  # the file's own sizes reach past its end
    TOO_LARGE = "too_large"  # over a limit of `MediaLimits`
    TOO_SLOW = "too_slow"  # over `MediaLimits.seconds`
    DECODE_FAILED = "decode_failed"


class MediaError(ValueError):
    """A file that cannot be used as the image or the video that was asked for.

    The message is one line: the file, what was expected, what came and what to do. It never quotes the decoding
    libraries, whose messages can contain memory addresses.

    Attributes:
      source: the file's name, or `<bytes>`.
      cause: the kind of fault.
    """

    def __init__(self, source: str, cause: Cause, message: str):
        super().__init__(f"{source}: {message}")
        self.source = source
        self.cause = cause

    def __reduce__(self) -> tuple[object, ...]:
        # Worker processes return errors by pickling them.
        return MediaError, (self.source, self.cause, str(self)[len(self.source) + 2 :])


def cut_short(source: str, size: int, end: int) -> MediaError:
    """Makes the error for a file of `size` bytes whose own headers say that it should reach byte `end`."""
    message = f"cut short: it holds {size} bytes, and by its own sizes at least {end - size} more are missing"
    return MediaError(source, Cause.TRUNCATED, f"{message}; fetch or copy it again")


@dataclass(frozen=True, kw_only=True)
class MediaLimits:
    """Limits on the cost of a file. A file beyond them raises a `MediaError` before the memory is taken.

    Attributes:
      max_pixels: pixels of one frame or image; the default allows 8K video.
      max_bytes: bytes of a video file. Bytes and file objects are held in memory as a whole.
      max_image_bytes: bytes of an image file, which is held in memory as a whole.
      max_animation_pixels: pixels of all frames of an animated WebP together, as all are decoded; the default takes
        about half a minute.
      max_scans: passes over the pixels of a progressive JPEG; encoders write about ten.
      max_metadata_bytes: bytes of titles, chapters and other text of a Matroska file, for which FFmpeg takes up to
        thirty times the memory.
      max_attachments: files within a Matroska file.
      max_frames: packets of a video; the default is over nine hours at 30 frames a second.
      max_frames_returned: frames that one call may return.
      max_bytes_returned: bytes of the frames that one call may return, all in memory at once.
      seconds: wall time from the opening of a file on. It is checked between reads, packets, frames and scans; where a
        call of a decoder may hang, read in worker processes (`IsolatedReader`).
    """

    max_pixels: int = 7680 * 4320
    max_bytes: int = 16 * 2**30
    max_image_bytes: int = 256 * 2**20
    max_animation_pixels: int = 2**30
    max_scans: int = 100
    max_metadata_bytes: int = 4 * 2**20
    max_attachments: int = 1000
    max_frames: int = 1_000_000
    max_frames_returned: int = 1024
    max_bytes_returned: int = 4 * 2**30
    seconds: float = 120.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "seconds":
                if not value > 0:
                    raise ValueError(f"seconds: expected more than 0, got {value}")
            elif value < 1:
                raise ValueError(f"{field.name}: expected at least 1, got {value}")
