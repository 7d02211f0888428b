"""Requests to tokens: what questions share, what is their own, and media read once, ahead of the device."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from videollava_jax.config import VideoLlavaConfig
from videollava_jax.engine.request import Request
from videollava_jax.generation.options import GenerationOptions, require_own
from videollava_jax.media import Uniform
from videollava_jax.processing.given_media import require_sources, with_media
from videollava_jax.processing.processor import VideoLlavaProcessor
from videollava_jax.processing.prompt import parse_conversation, render
from videollava_jax.processing.segments import Media, Segments, TextIds

Ids = npt.NDArray[np.int32]
Reader = Callable[[Media, Any], npt.NDArray[np.uint8]]
"""A medium and how to sample its frames to pixels, uint8 [F, S, S, 3]; called by several threads at a time."""


@dataclass(frozen=True)
class Prefix:
    """What questions about the same media share: their prompts up to and including the last medium.

    Attributes:
      key: equal for prefixes of equal tokens and equal media, by the content of these.
      segments: text and media.
      frame_sampling, pooling: how its videos are read and encoded.
    """

    key: Hashable
    segments: Segments
    frame_sampling: Any
    pooling: int


def in_the_names_of(prefix: Prefix, error: str, read: Prefix) -> str:
    """An error about the media that were read for another prefix of the same key, with this one's files in it."""
    for own, theirs in zip(prefix.segments.media, read.segments.media, strict=True):
        if isinstance(own.source, (str, os.PathLike)) and isinstance(theirs.source, (str, os.PathLike)):
            error = error.replace(os.fspath(theirs.source), os.fspath(own.source))
    return error


@dataclass(frozen=True, eq=False)
class Question:
    """A request made ready: a prefix, and the tokens after it.

    Attributes:
      ids: int32 [T], what follows the prefix.
      choices: for scoring, each choice's tokens; they follow `ids`.
    """

    request: Request
    options: GenerationOptions
    prefix: Prefix
    ids: Ids
    choices: tuple[Ids, ...] = ()


@dataclass(frozen=True)
class ReadPrefix:
    """A prefix with its media read.

    Attributes:
      ids: int32 [T], each medium as so many of its token.
      kinds: "image" or "video", of each medium.
      pixels: uint8 [F, S, S, 3] of each medium, RGB, 0-255.
    """

    ids: Ids
    kinds: tuple[str, ...]
    pixels: tuple[npt.NDArray[np.uint8], ...]

    @property
    def signature(self) -> Hashable:
        """Equal for prefixes whose media can be encoded together."""
        return self.kinds, tuple(array.shape for array in self.pixels)


class Preparer:
    """Makes requests ready with a processor.

    Attributes:
      decoding: options of a request that says nothing of its own.
    """

    def __init__(
        self,
        processor: VideoLlavaProcessor,
        config: VideoLlavaConfig,
        defaults: Mapping[str, Any],
        longest: int,
        reader: Reader | None = None,
        **decoding: Any,
    ):
        """
        Args:
          defaults: the checkpoint's generation_config.json.
          longest: tokens after a prefix, at most.
          reader: reads media in the place of the processor's `read_medium`.
          decoding: what is decided for all requests, under the names of `generate`.
        """
        self._processor, self._config, self._defaults, self._longest = processor, config, defaults, longest
        self._decoding = decoding
        self._read_medium = reader or processor.read_medium
        self._digests: dict[Hashable, str] = {}
        self.decoding = GenerationOptions.resolve(decoding, defaults, config)

    def question(self, request: Request) -> Question:
        """A request as a prefix and the tokens after it. Media are named by content, and not decoded yet.

        Raises:
          ValueError: a request that cannot be carried out.
          OSError: a file that is not there.
        """
        require_own(request.options)
        own = {"max_new_tokens": request.max_new_tokens, "seed": request.seed, **request.options}
        options = GenerationOptions.resolve({**self._decoding, **own}, self._defaults, self._config)
        before, after = self._segments(request).split()
        ids = [i for part in after.parts if isinstance(part, TextIds) for i in part.ids]
        if not ids:
            raise ValueError("the prompt ends in a medium: expected a question after it")
        choices = tuple(self._choice(text) for text in request.choices)
        room = self._longest - max((len(choice) for choice in choices), default=0)
        if room < 1:
            raise ValueError(f"choices: expected at most {self._longest - 1} tokens each")
        if len(ids) > room:  # a long text stands in the prefix, and shares it with nobody
            head, ids = ids[:-room], ids[-room:]
            before = Segments((*before.parts, TextIds(tuple(head), (False,) * len(head))))
        pooling = self._processor.video_pooling if request.video_pooling is None else request.video_pooling
        frame_sampling = Uniform(8) if request.frame_sampling is None else request.frame_sampling
        key = tuple(self._part_key(part) for part in before.parts), repr(frame_sampling), pooling
        prefix = Prefix(key, before, frame_sampling, pooling)
        return Question(request, options, prefix, np.array(ids, np.int32), choices)

    def read(self, prefix: Prefix) -> ReadPrefix:
        """Reads the media of a prefix: decoding and resizing, on whatever thread calls.

        Raises:
          ValueError: a medium that cannot be read (`MediaError`), or frames that the model does not take.
        """
        media = prefix.segments.media
        pixels = tuple(self._read_medium(medium, prefix.frame_sampling) for medium in media)
        each = self._processor.medium_tokens(media, pixels, prefix.pooling)
        expanded = prefix.segments.expand(each, self._processor.encoder.media_ids)
        return ReadPrefix(expanded.input_ids.astype(np.int32), tuple(medium.kind for medium in media), pixels)

    def _segments(self, request: Request) -> Segments:
        if (request.prompt is None) == (request.conversation is None):
            raise ValueError("expected a prompt or a conversation, one of the two")
        if request.conversation is None:
            assert request.prompt is not None
            segments = self._processor.encoder.encode_string(request.prompt)
            return with_media([segments], list(request.images) or None, list(request.videos) or None)[0]
        if request.images or request.videos:
            raise ValueError("images and videos of a conversation belong into its messages")
        turns = parse_conversation(request.conversation)
        segments = self._processor.encoder.encode(render(turns, self._processor.template, True))
        require_sources([segments])
        return segments

    def _choice(self, text: str) -> Ids:
        ids = self._processor.encoder.encode_continuation(text)
        if not ids:
            raise ValueError(f"choices: {text!r} has no tokens")
        return np.array(ids, np.int32)

    def _part_key(self, part: TextIds | Media) -> Hashable:
        return part.ids if isinstance(part, TextIds) else (part.kind, self._digest(part.source))

    def _digest(self, source: Any) -> str:
        if isinstance(source, (str, os.PathLike)):
            stat = os.stat(source)
            name = (os.path.realpath(source), stat.st_size, stat.st_mtime_ns)
            if name not in self._digests:
                with open(source, "rb") as file:
                    self._digests[name] = hashlib.file_digest(file, "blake2b").hexdigest()
            return self._digests[name]
        frames = source if isinstance(source, (list, tuple)) else [getattr(source, "frames", source)]
        digest = hashlib.blake2b()
        for frame in frames:
            array = np.ascontiguousarray(frame)
            digest.update(f"{array.shape} {array.dtype}".encode())
            digest.update(array.tobytes())
        return digest.hexdigest()
