"""Conversations about media. The KV cache stays on the device, and each turn computes only what is new."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import jax
import numpy as np

from videollava_jax.generation.buckets import answer_capacity
from videollava_jax.generation.decoding import row_keys
from videollava_jax.generation.inputs import Ids
from videollava_jax.generation.loaded import LoadedModel
from videollava_jax.generation.options import ANSWER_TOKENS, GenerationOptions
from videollava_jax.generation.text import TextStream, answer_text
from videollava_jax.media import Medium
from videollava_jax.model.cache import Cache
from videollava_jax.processing.processor import VideoLlavaProcessor
from videollava_jax.processing.prompt import PromptTemplate
from videollava_jax.processing.room import require_room


@dataclass(frozen=True)
class Turn:
    """A question and its answer.

    Attributes:
      question: as it was asked.
      answer: its text, without special tokens.
      token_ids: the answer's tokens, with the end token if the answer reached it.
      prompt_tokens: length of the whole prompt, media included.
      cached_tokens: the number of prompt tokens that were in the cache already.
      seconds: from the question to the whole answer. The first question of each length compiles programs.
    """

    question: str
    answer: str
    token_ids: tuple[int, ...]
    prompt_tokens: int
    cached_tokens: int
    seconds: float


@dataclass(frozen=True)
class _Held:
    """The cache that the last turn left on the device, and the tokens of the prompt and the answer in it."""

    cache: Cache
    ids: Ids


class Chat:
    """A conversation with a model about images and videos.

    The media are encoded once, in the first turn. The cache of each turn is kept for the next one, whose prompt is
    compared with the cached tokens; only the tokens after the common part are computed. The answers are the same as
    those to the whole conversation in one prompt.

        turn 1   USER: ▒▒▒▒▒▒▒▒▒ What is it? ASSISTANT:            computed
                                                      A cat.</s>   decoded
        turn 2   USER: ▒▒▒▒▒▒▒▒▒ What is it? ASSISTANT: A cat.</s>USER: What colour? ASSISTANT:
                 └───────────── in the cache ────────────────────┘└────── computed ───────────┘
    """

    def __init__(
        self,
        model: LoadedModel,
        processor: VideoLlavaProcessor,
        *,
        images: Sequence[Any] = (),
        videos: Sequence[Any] = (),
        template: str | PromptTemplate | None = None,
        **read: Any,
    ):
        """Starts a conversation; nothing is read before the first question.

        Args:
          model: answers.
          processor: of the same checkpoint.
          images, videos: shown in the first turn, images first, in any form that the processor takes. Videos have the
            same number of frames.
          template: how the conversation is written; None for the processor's own template.
          read: `frame_sampling`, `limits`, `reader` and `video_pooling` of `VideoLlavaProcessor.conversation_inputs`.
        """
        self._model = model
        self._processor = processor
        self._template = template
        self._read = read
        self._media: list[dict[str, Any]] = [{"type": "image", "image": source} for source in images]
        self._media += [{"type": "video", "video": source} for source in videos]
        self._media_lengths: list[int] = []
        self._frame_tokens = 0
        self._messages: list[dict[str, Any]] = []
        self._held: _Held | None = None

    @classmethod
    def about(
        cls,
        model: LoadedModel,
        processor: VideoLlavaProcessor,
        media: Sequence[Medium],
        *,
        template: str | PromptTemplate | None = None,
    ) -> Chat:
        """Starts a conversation about media that `media.open_medium` has read, in their order."""
        chat = cls(model, processor, template=template)
        chat._media = [
            {"type": medium.kind, medium.kind: medium.frames[0] if medium.kind == "image" else medium.frames}
            for medium in media
        ]
        return chat

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The messages so far, as the processor takes them."""
        return list(self._messages)

    def restart(self) -> None:
        """Forgets the turns. The media stay in the cache, so the next question costs no more than another turn."""
        self._messages = []

    def ask(
        self,
        question: str,
        *,
        on_text: Callable[[str], None] | None = None,
        **options: Any,
    ) -> Turn:
        """Asks a question and waits for the answer. A turn that fails or is interrupted is forgotten.

        Args:
          question: text; a literal `<video>` or `</s>` in it is only text.
          on_text: called with each new piece of the answer's text as it is decoded.
          options: fields of `GenerationOptions`: `max_new_tokens` (128 where it is left out), `do_sample`, `seed`, ….

        Raises:
          TypeError: an unknown option.
          ValueError: bad options, a medium that cannot be read, or a conversation longer than the model's positions.
        """
        started = time.perf_counter()
        model, tokenizer = self._model, self._processor.light_tokenizer
        content = [*([] if self._messages else self._media), {"type": "text", "text": question}]
        messages = [*self._messages, {"role": "user", "content": content}]
        decoding = model.resolve_options({"max_new_tokens": ANSWER_TOKENS, **options})
        held, self._held = self._held, None  # decoding donates the cache, so a failed turn leaves none
        if held is None:
            ids, logits, cache = self._begin(messages, decoding)
            cached = 0
        else:
            try:
                ids = self._ids(messages, decoding.max_new_tokens)
                room = model.model_config.text_config
                require_room(len(ids), decoding.max_new_tokens, room.max_positions_in_parts, room.why_in_parts)
            except ValueError:
                self._held = held
                raise
            logits, cache, cached = self._continue(held, ids, decoding)
        stream = None if on_text is None else TextStream(tokenizer, on_text)
        answers, cache, *_ = model.decode(
            logits,
            cache,
            row_keys(decoding.seed, 1),
            [ids],
            decoding,
            tokenizer=tokenizer,
            on_tokens=stream,
        )
        if stream is not None:
            stream.end()
        answer = answers[0].astype(np.int32)
        text = answer_text(tokenizer, answer.tolist()).rstrip()
        self._held = _Held(cache, np.concatenate([ids, answer[:-1]]))  # the last token was never fed back
        self._messages = [*messages, {"role": "assistant", "content": text}]
        return Turn(question, text, tuple(answer.tolist()), len(ids), cached, time.perf_counter() - started)

    def _begin(self, messages: list[dict[str, Any]], decoding: GenerationOptions) -> tuple[Ids, jax.Array, Cache]:
        """Reads the media and prefills the whole prompt."""
        inputs = self._processor.conversation_arrays(
            messages, template=self._template, max_new_tokens=decoding.max_new_tokens, **self._read
        )
        processor = self._processor
        self._frame_tokens = processor.pooled_tokens_per_frame(inputs.get("video_pooling", 1))
        lengths: dict[str, Iterator[int]] = {
            "image": repeat(processor.tokens_per_image),
            "video": (len(frames) * self._frame_tokens for frames in inputs.get("pixel_values_videos", ())),
        }
        media = processor.encode(messages, template=self._template).media
        self._media_lengths = [next(lengths[medium.kind]) for medium in media]
        logits, cache = self._model.prefill(**inputs, capacity=answer_capacity(decoding.max_new_tokens))
        return np.asarray(inputs["input_ids"][0], np.int32), logits, cache

    def _ids(self, messages: list[dict[str, Any]], max_new_tokens: int) -> Ids:
        """The prompt's tokens, from the media's known lengths."""
        segments = self._processor.encode(messages, template=self._template, max_new_tokens=max_new_tokens)
        ids = self._processor.encoder.media_ids
        return segments.expand(self._media_lengths, ids, self._frame_tokens).input_ids.astype(np.int32)

    def _continue(self, held: _Held, ids: Ids, decoding: GenerationOptions) -> tuple[jax.Array, Cache, int]:
        """Extends the cache by the tokens that it lacks, and by the last token in any case: its logits are needed."""
        shorter = min(len(held.ids), len(ids) - 1)
        different = np.flatnonzero(held.ids[:shorter] != ids[:shorter])
        cached = int(different[0]) if len(different) else shorter
        logits, cache = self._model.extend(
            ids[None, cached:], held.cache.keep(cached), capacity=answer_capacity(decoding.max_new_tokens)
        )
        return logits, cache, cached
