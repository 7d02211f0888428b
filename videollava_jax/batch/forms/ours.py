"""Our own form: a JSON object with an id, a prompt or a conversation, media and options."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from videollava_jax.batch.forms.fields import (
    Source,
    described,
    images_and_videos,
    media_of_kind,
    messages,
    question,
)
from videollava_jax.batch.forms.form import JobFacts, LineForm, RequestParts, Tag
from videollava_jax.generation.kinds import number, parsed, whole
from videollava_jax.generation.options import KINDS, from_json
from videollava_jax.processing.media_fields import IMAGE_SUFFIXES
from videollava_jax.processing.segments import MEDIA_TOKENS, MediaKind

if TYPE_CHECKING:
    from videollava_jax.engine import Result
    from videollava_jax.media import Within

_MEDIA_OPTIONS = ("frames", "pool", "start", "end")
"""Options of a line that say how its media are read."""


def _ask(fields: Mapping[str, Any]) -> RequestParts:
    if misplaced := sorted(fields.keys() & {*KINDS, *_MEDIA_OPTIONS}):
        raise ValueError(f"{misplaced[0]!r} stands next to the prompt: expected it under 'options'")
    given = fields.get("options", {})
    if not isinstance(given, Mapping):
        raise ValueError(f"expected an object under 'options', got {described(given)}")
    options = from_json(given, others=_MEDIA_OPTIONS)
    reading: dict[str, Any] = {}
    if given.get("frames") is not None:
        reading["frame_sampling"] = parsed("frames", whole(1), given["frames"])
    if given.get("start") is not None or given.get("end") is not None:
        reading["frame_sampling"] = _part(given.get("start"), given.get("end"), reading.get("frame_sampling"))
    if given.get("pool") is not None:
        reading["video_pooling"] = parsed("pool", whole(1), given["pool"])
    media = images_and_videos(fields, _mixed_media(fields.get("media", [])))
    conversation, prompt = fields.get("conversation"), fields.get("prompt")
    if (conversation is None) == (prompt is None):
        raise ValueError("expected a 'prompt' or a 'conversation', one of the two and not both")
    if conversation is None:
        return RequestParts({**question(prompt, media), **reading}, options)
    if media:
        raise ValueError("expected the media of a conversation in its messages, got them next to it")
    return RequestParts({"conversation": messages(conversation, "conversation"), **reading}, options)


def _part(start: Any, end: Any, frames: int | None) -> Within:
    from videollava_jax.media import Within  # the help of commands does without

    seconds = number(0.0, 1e7)
    first = 0.0 if start is None else parsed("start", seconds, start)
    return Within(first, None if end is None else parsed("end", seconds, end), frames)


def _mixed_media(given: Any) -> list[Source]:
    if not isinstance(given, list):
        raise ValueError(f"expected a list under 'media', got {described(given)}")
    found: list[Source] = []
    for item in given:
        if isinstance(item, str) and item:
            found.append((_kind_by_name(item), item))
        elif isinstance(item, Mapping) and len(item) == 1 and next(iter(item)) in MEDIA_TOKENS:
            found += media_of_kind(item, next(iter(item)))
        else:
            raise ValueError(
                'expected paths under \'media\', or objects such as {"video": "clip.mp4"}; got ' + described(item)
            )
    return found


def _kind_by_name(source: str) -> MediaKind:
    if source.startswith("data:"):
        return "image" if source.startswith("data:image/") else "video"
    return "image" if PurePosixPath(source.split("?")[0]).suffix.lower() in IMAGE_SUFFIXES else "video"


def record(tag: Tag, result: Result, cause: str | None, facts: JobFacts) -> Mapping[str, Any]:
    """Makes the record of a line; tables have the same records."""
    return {
        "id": tag.id,
        **(tag.place if tag.id is None else {}),
        "text": result.text,
        "finish_reason": result.finish_reason,
        "error": result.error,
        **({"cause": cause} if cause is not None else {}),
        "prompt_tokens": result.prompt_tokens,
        "tokens": result.answer_tokens,
    }


JSONL = LineForm(name="jsonl", id_key="id", ask=_ask, record=record)
