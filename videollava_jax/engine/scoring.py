"""Scoring: the likelihoods of given answers after a prefix that they share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from videollava_jax.engine import grid as on_device
from videollava_jax.engine.device import padded_right, scored_rows
from videollava_jax.engine.events import HeldPrefix
from videollava_jax.engine.media import encode_prefixes
from videollava_jax.engine.options import EngineOptions
from videollava_jax.engine.preparation import Preparer, Question
from videollava_jax.engine.request import Request, Scored
from videollava_jax.engine.results import scored_of
from videollava_jax.engine.sizes import PREFIX_BUCKET, TEXT_BUCKET
from videollava_jax.generation.buckets import bucket
from videollava_jax.generation.loaded import LoadedModel
from videollava_jax.media import Frames
from videollava_jax.model.cache import PrefixCache
from videollava_jax.processing.processor import VideoLlavaProcessor
from videollava_jax.processing.room import TooLong


def score_requests(
    model: LoadedModel,
    processor: VideoLlavaProcessor,
    options: EngineOptions,
    requests: Iterable[Request],
) -> Iterator[Scored]:
    """Yields a `Scored` for each request, in order; see `Engine.score`."""
    preparer = Preparer(
        processor, model.model_config, model.generation_defaults, options.longest_question, options.reader
    )
    scorer = _Scorer(model, processor, preparer, options.int8_cache)
    for request in requests:
        try:
            yield scorer.score(preparer.question(request, "score"))
        except (ValueError, TypeError, OSError) as error:
            cause = getattr(error, "cause", None)
            yield Scored(id=request.id, error=" ".join(str(error).split()), cause=cause)


class _Scorer:
    """Keeps the prefix of the last request, as the next one is often about the same media."""

    def __init__(
        self,
        model: LoadedModel,
        processor: VideoLlavaProcessor,
        preparer: Preparer,
        int8: bool,
    ):
        self._model, self._processor, self._preparer, self._int8 = model, processor, preparer, int8
        self._key: object = None
        self._prefix: PrefixCache | None = None
        self._length = 0
        self._frames: tuple[Frames | None, ...] = ()

    def score(self, question: Question) -> Scored:
        """Returns the likelihoods of a question's choices."""
        prefix, cached = self._prefix_of(question)
        longest = question.tokens
        positions = self._model.model_config.text_config.max_positions_in_parts
        if self._length + longest > positions:
            raise TooLong(
                f"a prompt and a choice of {self._length + longest} tokens do not fit the model's {positions} positions"
            )
        T, count = bucket(longest, TEXT_BUCKET), len(question.choices)
        padded_rows = 1 << (count - 1).bit_length()  # few shapes are compiled
        rows = scored_rows(question.ids, question.choices, padded_rows, T)
        model = self._model
        totals, greedy = on_device.score(model.graph, model.state, *(model.on_devices(x) for x in rows), prefix)
        held = HeldPrefix(self._length, cached, self._frames)
        return scored_of(question, np.asarray(totals)[:count], np.asarray(greedy)[:count], held)

    def _prefix_of(self, question: Question) -> tuple[PrefixCache, bool]:
        """Computes a question's prefix, unless it is the one at hand; returns whether it was that."""
        key = self._preparer.key(question.prefix)
        cached = self._prefix is not None and self._key == key
        if self._prefix is None or not cached:
            self._prefix = None  # its memory is freed before the next one takes some
            read, model = self._preparer.read(question.prefix), self._model
            ids, mask = padded_right([read.ids], bucket(max(1, read.tokens), PREFIX_BUCKET))
            self._prefix = on_device.new_prefix(
                model.graph,
                model.state,
                model.on_devices(ids),
                model.on_devices(mask),
                encode_prefixes(model, self._processor, [read]),
                self._int8,
            )
            self._key, self._length, self._frames = key, read.tokens, read.frames
        return self._prefix, cached
