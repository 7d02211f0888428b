"""Reads the fields that lines of several forms have: questions, media, messages. No JAX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from videollava_jax.processing.media_fields import MEDIA_KEYS, media_under, require_no_other_media
from videollava_jax.processing.segments import MEDIA_TOKENS, MediaKind

Source = tuple[MediaKind, Any]


def question(prompt: Any, media: Sequence[Source]) -> dict[str, Any]:
    """Returns the request's arguments for a question; one with placeholders is the whole prompt, used unchanged."""
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(f"expected a question, got {described(prompt)}")
    if any(token in prompt for token in MEDIA_TOKENS.values()):
        by_kind = {kind: [source for k, source in media if k == kind] for kind in MEDIA_TOKENS}
        return {"prompt": prompt, "images": by_kind["image"], "videos": by_kind["video"]}
    parts = [{"type": kind, kind: source} for kind, source in media]
    return {"conversation": [{"role": "user", "content": [*parts, {"type": "text", "text": prompt}]}]}


_TEXTS = ("id", "question_id", "prompt", "text", "media", "options", "conversation")


def images_and_videos(fields: Mapping[str, Any], more: Sequence[Source] = ()) -> list[Source]:
    """Returns the media under `image` and `video`, each a path or URL or a list of them, in their order, and `more`.

    Raises:
      ValueError: something else is there; or there are no media, and another field names a file of media.
    """
    kinds = {kind: media_of_kind(fields, kind) for kind in MEDIA_TOKENS}
    named = {key: kind for kind, keys in MEDIA_KEYS.items() for key in keys}
    order = dict.fromkeys([*(named[key] for key in fields if key in named), *MEDIA_TOKENS])
    media = [*(source for kind in order for source in kinds[kind]), *more]
    if not media:
        require_no_other_media(fields, _TEXTS)
    return media


def media_of_kind(fields: Mapping[str, Any], kind: MediaKind) -> list[Source]:
    """Returns the media under the name of their kind, or its plural."""
    key, named = media_under(fields, kind)
    for source in named:
        if not isinstance(source, str) or not source:
            raise ValueError(f"expected a path or a URL under {key!r}, or a list of them; got {described(source)}")
    return [(kind, source) for source in named]


def messages(given: Any, where: str) -> list[Mapping[str, Any]]:
    """Returns the messages of a conversation.

    Raises:
      ValueError: they are not a list of objects; the message says that they were expected under `where`.
    """
    if not isinstance(given, list) or not given or not all(isinstance(message, Mapping) for message in given):
        raise ValueError(f"expected a list of messages under {where!r}, got {described(given)}")
    return given


def short(text: str) -> str:
    """Returns a text for an error message: shortened if it is long."""
    return text if len(text) <= 80 else f"{text[:80]}… ({len(text)} characters)"


def described(value: Any) -> str:
    """Describes a value for an error message, shortened if it is as long as a data URL."""
    if value is None:
        return "nothing"
    if isinstance(value, (str, int, float)):
        return short(repr(value))
    return "an empty list" if value == [] else f"a {type(value).__name__}"
