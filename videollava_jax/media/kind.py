"""Decides by a file's content, never by its name, whether it is an image or a video."""

from __future__ import annotations

from typing import Literal

from videollava_jax.media.animation import frame_count
from videollava_jax.media.container import opened_video
from videollava_jax.media.errors import Cause, MediaError, MediaLimits
from videollava_jax.media.source import Source, open_source


def media_kind(source: Source, limits: MediaLimits = MediaLimits()) -> Literal["image", "video"]:  # noqa: B008
    """Returns what a file holds: an "image", which `read_image` reads, or a "video", which `read_video` reads.

    A GIF, PNG, WebP or AVIF of more than one frame is a video. A sound file with a cover picture is neither.
    Only headers are read, except that a file object is read to its end.

    Raises:
      MediaError: it is neither, cannot be read, or exceeds the limits.
    """
    with open_source(source, limits.max_bytes, limits.seconds) as opened:
        try:
            return "video" if frame_count(opened, limits) > 1 else "image"
        except MediaError as error:
            if error.cause != Cause.NOT_MEDIA:
                raise
        with opened_video(opened, limits):
            return "video"


def is_video(source: Source, limits: MediaLimits = MediaLimits()) -> bool:  # noqa: B008
    """Returns whether `media_kind` is "video"; raises the same errors."""
    return media_kind(source, limits) == "video"
