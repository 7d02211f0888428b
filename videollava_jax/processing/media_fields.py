"""Where the objects of data files name their media, in jobs and in training, and what looks like a lost medium."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import PurePosixPath
from typing import Any

from videollava_jax.processing.segments import MediaKind

MEDIA_KEYS: dict[MediaKind, tuple[str, str]] = {"image": ("image", "images"), "video": ("video", "videos")}
"""The keys of each kind: LLaVA's and ours, and LLaMA-Factory's."""
IMAGE_SUFFIXES = frozenset(
    (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".avif", ".heic", ".heif", ".jp2")
)
_VIDEO_SUFFIXES = frozenset(
    (".mp4", ".webm", ".mkv", ".mov", ".avi", ".m4v", ".gif", ".flv", ".wmv", ".mpg", ".mpeg", ".3gp", ".ogv")
)


def media_under(fields: Mapping[str, Any], kind: MediaKind) -> tuple[str, list[Any]]:
    """Returns the key of a kind's media, and what is there as a list, unchecked.

    Raises:
        ValueError: both keys of the kind have something.
    """
    said = [key for key in MEDIA_KEYS[kind] if fields.get(key) not in (None, [])]
    if len(said) > 1:
        raise ValueError(f"expected media under {said[0]!r} or {said[1]!r}, got some under both")
    key = said[0] if said else kind
    given = fields.get(key)
    return key, given if isinstance(given, list) else [] if given is None else [given]


def require_no_other_media(fields: Mapping[str, Any], read: Collection[str]) -> None:
    """Refuses an object without media in which some field names a file of media: it would be taken for text alone.

    Args:
        fields: the object.
        read: keys that are not looked at.

    Raises:
        ValueError: there is such a field; the message names it.
    """
    for key, value in fields.items():
        first = value[0] if isinstance(value, list) and value else value
        if key not in read and isinstance(first, str) and _names_medium(first):
            raise ValueError(
                f"{key[:80]!r} names {first[:80]!r}, and media are read from "
                f"{', '.join(repr(key) for keys in MEDIA_KEYS.values() for key in keys)} alone"
            )


def _names_medium(text: str) -> bool:
    if text[:5].lower() == "data:":
        return text[5:11].lower() in ("image/", "video/")
    suffix = PurePosixPath(text.partition("?")[0]).suffix.lower() if len(text) < 5000 else ""
    return suffix in IMAGE_SUFFIXES or suffix in _VIDEO_SUFFIXES
