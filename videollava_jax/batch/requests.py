"""Turns lines of a job into requests, with the job's defaults, and replaces the media of requests. No JAX."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from videollava_jax.batch.forms import FORMS
from videollava_jax.batch.forms.fields import Source, described
from videollava_jax.batch.forms.form import Line
from videollava_jax.batch.lines import line_id
from videollava_jax.engine.request import Request
from videollava_jax.generation.options import for_command, require_own
from videollava_jax.media import Within
from videollava_jax.processing.segments import MediaKind


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """The options of lines that set none of their own.

    Attributes:
      options: of generation, by name. By default answers have at most 128 tokens and decoding is greedy; the
        checkpoint decides the rest. `seed` is that of the first line; each later line's is one higher.
      frame_sampling: which frames to take from a video file: a rule, a number of frames by the rule of the processor's
        preset, or None for 8.
      video_pooling: None for the processor's.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    frame_sampling: Any = None
    video_pooling: int | None = None

    def __post_init__(self) -> None:
        require_own(self.options)
        object.__setattr__(self, "options", for_command(self.options))


def to_request(line: Line, form: str, defaults: Defaults = Defaults()) -> Request:
    """Turns a line into a request. Its id is the line's index, and its media are the line's paths and URLs.

    Raises:
      ValueError: the line is malformed or asks for something unsupported; the message says what was expected.
    """
    if line.error is not None:
        raise ValueError(line.error)
    if line_id(line, form) is None:
        key = FORMS[form].id_key
        raise ValueError(f"expected a string or a whole number under {key!r}, got {described(line.fields.get(key))}")
    asked = FORMS[form].ask(line.fields)
    reading = {"frame_sampling": defaults.frame_sampling, "video_pooling": defaults.video_pooling, **asked.arguments}
    part = reading["frame_sampling"]
    if isinstance(part, Within) and part.rule is None:
        reading["frame_sampling"] = dataclasses.replace(part, rule=defaults.frame_sampling)
    return Request(id=str(line.index), **reading, **_generation(asked.options, line.index, defaults))


def with_sources(request: Request, resolve: Callable[[MediaKind, Any], Any]) -> Request:
    """Returns the same request with each medium replaced by what `resolve` returns for its kind and source."""

    def part(given: Any) -> Any:
        found = part_source(given)
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


def part_source(part: Any) -> Source | None:
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
