"""Turns lines of a job into requests for the engine: our own JSON, OpenAI's batch lines, LLaVA's questions, tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from videollava_jax.batch.lines import ID_KEYS, Form, Line, line_id
from videollava_jax.engine import Request
from videollava_jax.generation.kinds import parsed, whole
from videollava_jax.generation.options import (
    KINDS,
    OPENAI_NAMES,
    for_command,
    from_json,
    from_openai,
    require_own,
)
from videollava_jax.media import Uniform
from videollava_jax.processing.segments import MEDIA_TOKENS, MediaKind

Source = tuple[MediaKind, Any]

IMAGE_SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".avif"))
CHAT_URL = "/v1/chat/completions"
_MEDIA_OPTIONS = ("frames", "pool")
"""Options of a line that say how its media are read."""
# Fields of an OpenAI body that never change our answers, and fields that are supported only with these values.
_NEUTRAL = frozenset(
    ("model", "messages", "user", "metadata", "store", "service_tier", "stream_options", "safety_identifier")
)
_NEUTRAL_VALUES: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "stream": (False,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "response_format": ({"type": "text"},),
}


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """The options of lines that set none of their own.

    Attributes:
      options: of generation, by name. By default answers have at most 128 tokens and decoding is greedy; the
        checkpoint decides the rest. `seed` is that of the first line; each later line's is one higher.
      frame_sampling: which frames to take from a video file; None for 8, evenly spaced.
      video_pooling: None for the processor's.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    frame_sampling: Any = None
    video_pooling: int | None = None

    def __post_init__(self) -> None:
        require_own(self.options)
        object.__setattr__(self, "options", for_command(self.options))


def to_request(line: Line, form: Form, defaults: Defaults = Defaults()) -> Request:
    """Turns a line into a request. Its id is the line's index, and its media are the line's paths and URLs.

    Raises:
      ValueError: the line is malformed or asks for something unsupported; the message says what was expected.
    """
    if line.error is not None:
        raise ValueError(line.error)
    if line_id(line, form) is None:
        key = ID_KEYS[form]
        raise ValueError(f"expected a string or a whole number under {key!r}, got {_named(line.fields.get(key))}")
    options: dict[str, Any] = {}
    if form == "openai":
        asked, options = _openai(line.fields)
    elif form == "llava":
        asked = _llava(line.fields)
    elif form == "jsonl":
        asked, options = _ours(line.fields)
    else:
        media = [*_media(line.fields, "image"), *_media(line.fields, "video")]
        asked = _asked(line.fields.get("prompt"), media)
    reading = {"frame_sampling": defaults.frame_sampling, "video_pooling": defaults.video_pooling}
    return Request(id=str(line.index), **{**reading, **asked}, **_generation(options, line.index, defaults))


def prompt_text(line: Line, form: Form) -> str:
    """Returns the question of a line, for records that repeat it; "" if it has none."""
    text = line.fields.get("text" if form == "llava" else "prompt")
    return text if isinstance(text, str) else ""


def with_sources(request: Request, resolve: Callable[[MediaKind, Any], Any]) -> Request:
    """Returns the same request with each medium replaced by what `resolve` returns for its kind and source."""

    def part(given: Any) -> Any:
        found = _part_source(given)
        return given if found is None else {"type": found[0], found[0]: resolve(*found)}

    conversation = request.conversation
    if conversation is not None:
        conversation = [
            {**message, "content": [part(p) for p in message["content"]]}
            if isinstance(message.get("content"), list)
            else message
            for message in conversation
        ]
    return dataclasses.replace(
        request,
        conversation=conversation,
        images=[resolve("image", source) for source in request.images],
        videos=[resolve("video", source) for source in request.videos],
    )


def _part_source(part: Any) -> Source | None:
    """Returns the medium in a part of a message; None for text, and for parts that the engine will refuse."""
    if not isinstance(part, Mapping):
        return None
    kind = part.get("type")
    if kind in ("image_url", "video_url"):
        value = part.get(kind)
        value = value.get("url") if isinstance(value, Mapping) else value
        return ("image" if kind == "image_url" else "video", value) if isinstance(value, str) else None
    if kind in ("image", "video"):
        given = [part[key] for key in (kind, "path", "url") if part.get(key) is not None]
        return (kind, given[0]) if len(given) == 1 else None
    return None


# ── the forms ──


def _ours(fields: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    if misplaced := sorted(fields.keys() & {*KINDS, *_MEDIA_OPTIONS}):
        raise ValueError(f"{misplaced[0]!r} stands next to the prompt: expected it under 'options'")
    given = fields.get("options", {})
    if not isinstance(given, Mapping):
        raise ValueError(f"expected an object under 'options', got {_named(given)}")
    options = from_json(given, others=_MEDIA_OPTIONS)
    reading: dict[str, Any] = {}
    if given.get("frames") is not None:
        reading["frame_sampling"] = Uniform(parsed("frames", whole(1), given["frames"]))
    if given.get("pool") is not None:
        reading["video_pooling"] = parsed("pool", whole(1), given["pool"])
    media = [*_media(fields, "image"), *_media(fields, "video"), *_mixed_media(fields.get("media", []))]
    conversation, prompt = fields.get("conversation"), fields.get("prompt")
    if (conversation is None) == (prompt is None):
        raise ValueError("expected a 'prompt' or a 'conversation', one of the two and not both")
    if conversation is None:
        return {**_asked(prompt, media), **reading}, options
    if media:
        raise ValueError("expected the media of a conversation in its messages, got them next to it")
    return {"conversation": _messages(conversation, "conversation"), **reading}, options


def _llava(fields: Mapping[str, Any]) -> dict[str, Any]:
    text = fields.get("text")
    if not isinstance(text, str):
        raise ValueError(f"expected a string under 'text', got {_named(text)}")
    for token in MEDIA_TOKENS.values():  # some files include them, but the template decides where media go
        text = text.replace(f"{token}\n", "").replace(token, "")
    return _asked(text, [*_media(fields, "image"), *_media(fields, "video")])


def _openai(fields: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    for key, expected in (("method", "POST"), ("url", CHAT_URL)):
        if fields.get(key, expected) != expected:
            raise ValueError(f"expected {expected!r} under {key!r}, got {_named(fields[key])}")
    body = fields.get("body")
    if not isinstance(body, Mapping):
        raise ValueError(f"expected an object under 'body', got {_named(body)}")
    for key, value in body.items():
        neutral = value is None or key in _NEUTRAL or value in _NEUTRAL_VALUES.get(key, ())
        if not neutral and key not in OPENAI_NAMES:
            raise ValueError(f"body.{key} is not supported: expected it to be left out")
    messages = [
        {**message, "role": "system"} if message.get("role") == "developer" else message
        for message in _messages(body.get("messages"), "body.messages")
    ]
    return {"conversation": messages}, from_openai(body)


# ── their parts ──


def _asked(prompt: Any, media: Sequence[Source]) -> dict[str, Any]:
    """Returns the request's arguments for a question; one with placeholders is the whole prompt, used unchanged."""
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(f"expected a question, got {_named(prompt)}")
    if any(token in prompt for token in MEDIA_TOKENS.values()):
        by_kind = {kind: [source for k, source in media if k == kind] for kind in MEDIA_TOKENS}
        return {"prompt": prompt, "images": by_kind["image"], "videos": by_kind["video"]}
    parts = [{"type": kind, kind: source} for kind, source in media]
    return {"conversation": [{"role": "user", "content": [*parts, {"type": "text", "text": prompt}]}]}


def _media(fields: Mapping[str, Any], kind: MediaKind) -> list[Source]:
    given = fields.get(kind)
    named = given if isinstance(given, list) else [] if given is None else [given]
    for source in named:
        if not isinstance(source, str) or not source:
            raise ValueError(f"expected a path or a URL under {kind!r}, or a list of them; got {_named(source)}")
    return [(kind, source) for source in named]


def _mixed_media(given: Any) -> list[Source]:
    if not isinstance(given, list):
        raise ValueError(f"expected a list under 'media', got {_named(given)}")
    found: list[Source] = []
    for item in given:
        if isinstance(item, str) and item:
            found.append((_kind_by_name(item), item))
        elif isinstance(item, Mapping) and len(item) == 1 and next(iter(item)) in MEDIA_TOKENS:
            found += _media(item, next(iter(item)))
        else:
            raise ValueError(
                'expected paths under \'media\', or objects such as {"video": "clip.mp4"}; got ' + _named(item)
            )
    return found


def _kind_by_name(source: str) -> MediaKind:
    if source.startswith("data:"):
        return "image" if source.startswith("data:image/") else "video"
    return "image" if PurePosixPath(source.split("?")[0]).suffix.lower() in IMAGE_SUFFIXES else "video"


def _messages(given: Any, where: str) -> list[Mapping[str, Any]]:
    if not isinstance(given, list) or not given or not all(isinstance(message, Mapping) for message in given):
        raise ValueError(f"expected a list of messages under {where!r}, got {_named(given)}")
    return given


def _generation(given: Mapping[str, Any], index: int, defaults: Defaults) -> dict[str, Any]:
    """Merges a line's options with the job's defaults: returns the arguments of `Request`."""
    options = {**defaults.options, **given}
    if not options["do_sample"]:
        options = {name: value for name, value in options.items() if name not in ("temperature", "top_k", "top_p")}
    first = options.pop("seed", 0)
    return {
        "max_new_tokens": options.pop("max_new_tokens"),
        "seed": given.get("seed", (first + index + 2**63) % 2**64 - 2**63),  # wraps around within 64 bits
        "options": options,
    }


def _named(value: Any) -> str:
    """Describes a value for an error message, shortened if it is as long as a data URL."""
    if value is None:
        return "nothing"
    if isinstance(value, (str, int, float)):
        text = repr(value)
        return text if len(text) <= 80 else f"{text[:80]}… ({len(text)} characters)"
    return "an empty list" if value == [] else f"a {type(value).__name__}"
