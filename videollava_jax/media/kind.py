"""Image or video, told by a file's content and never by its name."""

from __future__ import annotations

from typing import Literal

from videollava_jax.media.animation import frame_count
from videollava_jax.media.container import opened_video
from videollava_jax.media.errors import Cause, MediaError, MediaLimits
from videollava_jax.media.source import Source, open_source


def media_kind(source: Source, limits: MediaLimits = MediaLimits()) -> Literal["image", "video"]:  # noqa: B008
    """What a file holds: `read_image` reads an "image", `read_video` a "video".

    A GIF, PNG, WebP or AVIF of more than one frame is a video; a picture inside a sound file is not one.
    Only headers are read; a file object is read to its end.

    Raises:
      MediaError: neither, not readable, or larger than the limits.
    """
    with open_source(source, limits.max_bytes) as opened:
        try:
            return "video" if frame_count(opened, limits) > 1 else "image"
        except MediaError as error:
            if error.cause != Cause.NOT_MEDIA:
                raise
        with opened_video(opened, limits):
            return "video"


def is_video(source: Source, limits: MediaLimits = MediaLimits()) -> bool:  # noqa: B008
    """Whether `media_kind` is "video"; the same errors."""
    return media_kind(source, limits) == "video"
