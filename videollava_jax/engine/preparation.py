"""Turns requests into a prefix, which questions may share, and the tokens after it; reads the media of prefixes."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from videollava_jax.config import ModelConfig
from videollava_jax.engine.digests import Digests, file_version
from videollava_jax.engine.events import Task
from videollava_jax.engine.request import MOST_LOGPROBS, Request
from videollava_jax.generation.kinds import parsed, whole
from videollava_jax.generation.options import GenerationOptions, require_own
from videollava_jax.generation.text import ends_by_text
from videollava_jax.media import Frames, MediumPixels
from videollava_jax.processing.given_media import known_frames, require_sources, with_media
from videollava_jax.processing.processor import VideoLlavaProcessor
from videollava_jax.processing.prompt import parse_conversation
from videollava_jax.processing.room import TooLong, require_room, room_for_prompt
from videollava_jax.processing.segments import Media, MediaKind, Segments, TextIds

Ids = npt.NDArray[np.int32]
Reader = Callable[[Media, Any], MediumPixels | npt.NDArray[Any]]
"""Reads a medium, whose frames are sampled as the second argument says. Runs in threads. One that returns pixels alone,
[F, S, S, 3], 0-255, leaves it unknown which frames these are."""
_LOGPROBS = whole(0, MOST_LOGPROBS)
_MOST_RESOLVED = 1024
"""Options of requests that are kept: any number may come, as seeds differ."""
_PLAIN = frozenset((bool, int, float, str, type(None)))


@dataclass(frozen=True)
class Prefix:
    """The start of a prompt, up to and including its last medium: questions about the same media share it.

    Attributes:
      segments: text and media.
      versions: `file_version` of each medium.
      frame_sampling, pooling: how its videos are read and encoded.
    """

    segments: Segments
    versions: tuple[Hashable, ...]
    frame_sampling: Any
    pooling: int


def with_own_paths(error: str, own: Prefix, read: Prefix) -> str:
    """Rewrites an error about media that were read for another prefix of equal content, so that it names own files."""
    for medium, theirs in zip(own.segments.media, read.segments.media, strict=True):
        if isinstance(medium.source, (str, os.PathLike)) and isinstance(theirs.source, (str, os.PathLike)):
            error = error.replace(os.fspath(theirs.source), os.fspath(medium.source))
    return error


@dataclass(frozen=True, eq=False)
class Question:
    """A prepared request: a prefix, and the tokens after it.

    Attributes:
      ids: int32 [T], what follows the prefix.
      choices: where they are scored, each choice's tokens; they follow `ids`.
      task: what is wanted.
    """

    request: Request
    options: GenerationOptions
    prefix: Prefix
    ids: Ids
    choices: tuple[Ids, ...] = ()
    task: Task = "answer"

    @property
    def id(self) -> str:
        """The request's id."""
        return self.request.id

    @property
    def tokens(self) -> int:
        """The number of tokens after the prefix; of the longest choice too, where they are scored."""
        return len(self.ids) + max(map(len, self.choices), default=0)

    @property
    def answer_tokens(self) -> int:
        """The most tokens of the answer."""
        return self.options.max_new_tokens if self.task == "answer" else 0

    @property
    def required_tokens(self) -> int:
        """The tokens of the answer for which there has to be room."""
        return min(1, self.answer_tokens) if self.request.cut_to_fit else self.answer_tokens

    @property
    def draws(self) -> bool:
        """Whether tokens are drawn."""
        return self.options.do_sample

    @property
    def penalises(self) -> bool:
        """Whether there is a penalty or a bias."""
        return self.options.penalises

    @property
    def stops(self) -> bool:
        """Whether the text may end the answer (`ends_by_text`)."""
        return ends_by_text(self.options)

    @property
    def wants_logprobs(self) -> bool:
        """Whether the log-probabilities of its answer are wanted."""
        return self.request.logprobs is not None


@dataclass(frozen=True)
class ReadPrefix:
    """A prefix with its media read.

    Attributes:
      ids: int32 [T], with a medium's token repeated for each of its features.
      kinds: "image" or "video", of each medium.
      pixels: [F, S, S, 3] of each medium, RGB, 0-255; uint8, or float32 of a `FloatPreprocessor`.
      pooling: `video_pooling` of its videos.
      frames: for each video which frames these are; None for one that was given as pixels.
    """

    ids: Ids
    kinds: tuple[MediaKind, ...]
    pixels: tuple[npt.NDArray[Any], ...]
    pooling: int = 1
    frames: tuple[Frames | None, ...] = ()

    @property
    def tokens(self) -> int:
        """The length of the prefix, media included."""
        return len(self.ids)

    @property
    def signature(self) -> Hashable:
        """The kinds, shapes and pooling of the media: prefixes of one signature are encoded together."""
        return self.kinds, tuple(array.shape for array in self.pixels), self.pooling


def _with_frames(read: MediumPixels | npt.NDArray[Any]) -> MediumPixels:
    return read if isinstance(read, MediumPixels) else MediumPixels(read)


def _is_plain(value: Any) -> bool:
    """Whether a value's `repr` says all of it."""
    return type(value) in _PLAIN or (type(value) in (tuple, list) and all(map(_is_plain, value)))


class Preparer:
    """Prepares requests with a processor, and reads their media.

    Attributes:
      decoding: the options of a request that has none of its own.
    """

    def __init__(
        self,
        processor: VideoLlavaProcessor,
        config: ModelConfig,
        defaults: Mapping[str, Any],
        longest: int,
        reader: Reader | None = None,
        **decoding: Any,
    ):
        """Takes what all requests have in common.

        Args:
          defaults: the checkpoint's generation_config.json.
          longest: tokens after a prefix, at most.
          reader: reads media instead of the processor's `read`.
          decoding: options of all requests, under the names of `generate`.
        """
        self._processor, self._config, self._defaults, self._longest = processor, config, defaults, longest
        self._positions, self._why = config.text_config.max_positions_in_parts, config.text_config.why_in_parts
        self._decoding = decoding
        self._read_medium = reader or processor.read
        self._digests = Digests()
        self._resolved: dict[str, GenerationOptions] = {}
        self.decoding = GenerationOptions.resolve(decoding, defaults, config)

    def question(self, request: Request, task: Task = "answer") -> Question:
        """Returns a request as a prefix and the tokens after it. Media are not opened yet.

        Args:
          task: what is wanted of it.

        Raises:
          ValueError: a request that cannot be carried out.
          OSError: there is no such file.
        """
        require_own(request.options)
        if request.logprobs is not None:
            parsed("logprobs", _LOGPROBS, request.logprobs)
        own = {"max_new_tokens": request.max_new_tokens, "seed": request.seed, **request.options}
        options = self._options(own)
        choices = tuple(self._choice(text) for text in request.choices) if task == "score" else ()
        if task == "score" and not choices:
            raise ValueError("choices: expected at least one answer to score, got none")
        answer = options.max_new_tokens if task == "answer" else max(map(len, choices), default=0)
        answer = min(1, answer) if request.cut_to_fit and task == "answer" else answer
        segments = self._segments(request, answer)
        pooling = self._processor.video_pooling if request.video_pooling is None else request.video_pooling
        frame_sampling = self._processor.frames(request.frame_sampling)
        self._require_room(segments, frame_sampling, pooling, answer)
        before, after = segments.split()
        ids = [i for part in after.parts if isinstance(part, TextIds) for i in part.ids]
        if not ids:
            raise ValueError("the prompt ends in a medium: expected a question after it")
        room = self._longest - max(map(len, choices), default=0)
        if room < 1:
            raise TooLong(f"choices: expected at most {self._longest - 1} tokens each")
        if len(ids) > room:  # the start of a long text belongs to the prefix, which then has one question
            head, ids = ids[:-room], ids[-room:]
            before = Segments((*before.parts, TextIds(tuple(head), (False,) * len(head))))
        versions = tuple(file_version(medium.source) for medium in before.media)
        prefix = Prefix(before, versions, frame_sampling, pooling)
        return Question(request, options, prefix, np.array(ids, np.int32), choices, task)

    def _options(self, own: Mapping[str, Any]) -> GenerationOptions:
        """Returns a request's options: found again where another had the same, as most requests of a server have."""
        asked = repr(sorted(own.items())) if all(map(_is_plain, own.values())) else None  # tells 1 from True
        options = None if asked is None else self._resolved.get(asked)
        if options is None:
            options = GenerationOptions.resolve({**self._decoding, **own}, self._defaults, self._config)
            if asked is not None:
                if len(self._resolved) == _MOST_RESOLVED:
                    self._resolved.clear()
                self._resolved[asked] = options
        return options

    def key(self, prefix: Prefix) -> Hashable:
        """Returns what is equal for prefixes of equal tokens and of media of equal content. Reads the media's files.

        Raises:
          OSError: a file that cannot be read.
        """
        versions = iter(prefix.versions)
        parts = tuple(
            part.ids
            if isinstance(part, TextIds)
            else (part.kind, part.join_ids, self._digests.of(next(versions), part.source))
            for part in prefix.segments.parts
        )
        return parts, repr(prefix.frame_sampling), prefix.pooling

    def key_is_known(self, prefix: Prefix) -> bool:
        """Returns whether `key` reads no file."""
        return all(self._digests.knows(version) for version in prefix.versions)

    def read(self, prefix: Prefix) -> ReadPrefix:
        """Reads the media of a prefix, which decodes and resizes them. Several threads may call it at a time.

        Raises:
          ValueError: a medium that cannot be read (`MediaError`), or frames that the model does not take.
        """
        media = prefix.segments.media
        read = [_with_frames(self._read_medium(medium, prefix.frame_sampling)) for medium in media]
        pixels = tuple(each.pixels for each in read)
        each = self._processor.medium_tokens(media, pixels, prefix.pooling)
        frame = self._processor.pooled_tokens_per_frame(prefix.pooling)
        expanded = prefix.segments.expand(each, self._processor.encoder.media_ids, frame)
        kinds = tuple(medium.kind for medium in media)
        frames = tuple(each.frames for each, kind in zip(read, kinds, strict=True) if kind == "video")
        return ReadPrefix(expanded.input_ids.astype(np.int32), kinds, pixels, prefix.pooling, frames)

    def _require_room(self, segments: Segments, frame_sampling: Any, pooling: int, answer: int) -> None:
        """Refuses a prompt that is too long as far as its length is known before media are opened."""
        frame = self._processor.pooled_tokens_per_frame(pooling)
        media = sum(
            self._processor.tokens_per_image
            if medium.kind == "image"
            else (frames := known_frames(medium.source, frame_sampling) or 0) * frame + medium.text_tokens(frames)
            for medium in segments.media
        )
        require_room(segments.text_length + media, answer, self._positions, self._why)

    def _segments(self, request: Request, answer: int) -> Segments:
        if (request.prompt is None) == (request.conversation is None):
            raise ValueError("expected a prompt or a conversation, one of the two")
        most = room_for_prompt(self._positions, answer)
        if request.conversation is None:
            assert request.prompt is not None
            segments = self._processor.encoder.encode_string(request.prompt, most)
            return with_media([segments], list(request.images) or None, list(request.videos) or None)[0]
        if request.images or request.videos:
            raise ValueError("images and videos of a conversation belong into its messages")
        turns = parse_conversation(request.conversation)
        segments = self._processor.encoder.encode(self._processor.write(turns), most)
        require_sources([segments])
        return segments

    def _choice(self, text: str) -> Ids:
        ids = self._processor.encoder.encode_continuation(text)
        if not ids:
            raise ValueError(f"choices: {text!r} has no tokens")
        return np.array(ids, np.int32)
