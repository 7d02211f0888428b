"""What lmms-eval asks, as requests of the engine. Nothing of lmms-eval is imported here."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from videollava_jax.engine.request import Request
from videollava_jax.media import Within
from videollava_jax.media.urls import file_url_path
from videollava_jax.processing.media_fields import IMAGE_SUFFIXES

LONGEST = 128
"""Tokens of an answer where a task does not say."""
_SHARED = {"max_new_tokens", "until", "do_sample", "temperature", "top_p", "top_k", "num_beams"}


@dataclass(frozen=True)
class Asked:
    """How a task wants answers.

    Attributes:
      max_new_tokens: of an answer.
      until: texts at which an answer ends; they are not part of it.
      options: of generation, by our names.
      unknown: names of a task's generation_kwargs that say nothing here.
    """

    max_new_tokens: int
    until: tuple[str, ...]
    options: Mapping[str, Any]
    unknown: tuple[str, ...]


def asked_of(given: Mapping[str, Any], longest: int) -> Asked:
    """Reads a task's generation_kwargs.

    Args:
      given: of the task.
      longest: the most tokens of an answer; a task may ask for more than the model has positions.

    Raises:
      ValueError: it asks for what the engine does not do.
    """
    beams = given.get("num_beams")
    if beams not in (None, 1):
        raise ValueError(f"num_beams: the engine has no beam search; expected 1, got {beams!r}")
    tokens = given.get("max_new_tokens") or LONGEST
    until = given.get("until") or ()
    ends = tuple(text for text in ([until] if isinstance(until, str) else until) if text)
    temperature = given.get("temperature")
    drawn = given.get("do_sample")
    drawn = bool(temperature) if drawn is None else bool(drawn) and temperature != 0
    options: dict[str, Any] = {"do_sample": drawn}
    if drawn:
        named = ("temperature", "top_p", "top_k")
        options |= {name: given[name] for name in named if given.get(name) is not None}
    if ends:
        options["stop_strings"] = list(ends)
    unknown = tuple(sorted(name for name, value in given.items() if name not in _SHARED and value is not None))
    return Asked(min(int(tokens), longest), ends, options, unknown)


def cut(text: str, ends: Iterable[str]) -> str:
    """Returns an answer up to the first text that ends it."""
    places = [at for end in ends if (at := text.find(end)) >= 0]
    return text[: min(places)] if places else text


class Media:
    """Media of lmms-eval's documents as files: images in memory become PNG files in a directory.

    Args:
      directory: for these files.
    """

    def __init__(self, directory: Path):
        self._directory = directory

    def part(self, kind: str, source: Any) -> dict[str, Any]:
        """Returns a medium as a part of a message.

        Raises:
          ValueError: neither a path nor an image.
        """
        return {"type": kind, kind: self.path(source)}

    def path(self, source: Any) -> str:
        """Returns the path of a medium."""
        if isinstance(source, str | os.PathLike):
            text = os.fspath(source)
            return file_url_path(text) if text.startswith("file:") else text
        if not isinstance(source, Image.Image):
            raise ValueError(f"expected the path of a medium or an image of PIL, got a {type(source).__name__}")
        image = source if source.mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16") else source.convert("RGB")
        file = io.BytesIO()
        image.save(file, "PNG", compress_level=1)
        path = self._directory / f"{hashlib.sha256(file.getvalue()).hexdigest()[:40]}.png"
        if not path.exists():
            path.write_bytes(file.getvalue())
        return str(path)

    def kind(self, source: Any) -> str:
        """Returns whether a medium without a kind is an image or a video: lmms-eval names videos by their paths."""
        if not isinstance(source, str | os.PathLike):
            return "image"
        return "image" if Path(source).suffix.lower() in IMAGE_SUFFIXES else "video"


def conversation_of(messages: Sequence[Any], media: Media) -> list[dict[str, Any]]:
    """Turns lmms-eval's chat messages into ours.

    Args:
      messages: as a task's doc_to_messages gives them: role, and content with text, images and videos.
      media: of the run.

    Raises:
      ValueError: a part that Video-LLaVA has no use for, such as audio.
    """
    found = []
    for message in messages:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        found.append({"role": message["role"], "content": [_part(part, media) for part in parts]})
    return found


def frames_of(messages: Sequence[Any], frames: int | None) -> Any:
    """Returns how frames of the videos in messages are taken: a number, None for 8, or a part of the video.

    Raises:
      ValueError: several videos with different parts.
    """
    parts = [part for message in messages if not isinstance(message["content"], str) for part in message["content"]]
    spans = {(part.get("start_time"), part.get("end_time")) for part in parts if part["type"] == "video"}
    if spans <= {(None, None)}:
        return frames
    if len(spans) > 1:
        raise ValueError(f"expected one part (start_time, end_time) for all videos of a question, got {spans}")
    ((start, end),) = spans
    return Within(start or 0.0, end, frames)


def _part(part: Mapping[str, Any], media: Media) -> dict[str, Any]:
    kind = part["type"]
    if kind == "text":
        return {"type": "text", "text": part["text"]}
    if kind in ("image", "video"):
        return media.part(kind, part["url"])
    raise ValueError(f"expected text, images and videos in a message, got {kind!r}")


def question_of(text: str, visuals: Iterable[Any], media: Media) -> list[dict[str, Any]]:
    """Returns a question about media as a conversation, the media first."""
    parts = [media.part(media.kind(one), one) for one in visuals]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def flat(visuals: Any) -> list[Any]:
    """Returns the media of a document in one list: doc_to_visual gives None, lists, or lists of lists."""
    if visuals is None:
        return []
    if isinstance(visuals, list | tuple):
        return [one for item in visuals for one in flat(item)]
    return [visuals]


def request_of(name: str, conversation: Sequence[Mapping[str, Any]], asked: Asked, frames: Any, seed: int) -> Request:
    """Returns a request of the engine.

    Args:
      name: its id.
      conversation: ours.
      asked: how the task wants answers.
      frames: of a video (`frames_of`).
      seed: of its draws.
    """
    return Request(
        id=name,
        conversation=conversation,
        max_new_tokens=asked.max_new_tokens,
        cut_to_fit=True,
        seed=seed,
        frame_sampling=frames,
        options=asked.options,
    )
