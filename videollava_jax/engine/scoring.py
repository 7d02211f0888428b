"""Scoring: the likelihoods of given answers after a prefix that they share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from videollava_jax.engine import grid as on_device
from videollava_jax.engine.device import padded_left
from videollava_jax.engine.media import encode_prefixes
from videollava_jax.engine.options import EngineOptions
from videollava_jax.engine.preparation import Preparer, Question
from videollava_jax.engine.request import Request, Scored
from videollava_jax.engine.sizes import PREFIX_BUCKET, TEXT_BUCKET
from videollava_jax.generation.buckets import bucket
from videollava_jax.generation.loaded import LoadedModel
from videollava_jax.model.cache import PrefixCache
from videollava_jax.processing.processor import VideoLlavaProcessor


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
            if not request.choices:
                raise ValueError("choices: expected at least one answer to score, got none")
            yield scorer.score(preparer.question(request))
        except (ValueError, TypeError, OSError) as error:
            yield Scored(id=request.id, error=" ".join(str(error).split()))


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

    def score(self, question: Question) -> Scored:
        """Returns the likelihoods of a question's choices."""
        prefix = self._prefix_of(question)
        rows = [np.concatenate([question.ids, choice]) for choice in question.choices]
        longest = max(len(row) for row in rows)
        positions = self._model.model_config.text_config.max_positions_in_parts
        if self._length + longest > positions:
            raise ValueError(
                f"a prompt and a choice of {self._length + longest} tokens do not fit the model's {positions} positions"
            )
        T, count = bucket(longest, TEXT_BUCKET), len(rows)
        padded_rows = 1 << (count - 1).bit_length()  # few shapes are compiled
        ids, mask, scored = (np.zeros((padded_rows, T), kind) for kind in (np.int32, bool, bool))
        for i, (row, choice) in enumerate(zip(rows, question.choices, strict=True)):
            ids[i, T - len(row) :], mask[i, T - len(row) :], scored[i, T - len(choice) :] = row, True, True
        model = self._model
        totals, greedy = on_device.score(
            model.graph, model.state, *(model.on_devices(x) for x in (ids, mask, scored)), prefix
        )
        likelihoods = np.asarray(totals)[:count]
        if not np.isfinite(likelihoods).all():
            raise ValueError("log-likelihoods are not finite: the weights or pixels hold NaN or infinity")
        return Scored(
            id=question.request.id,
            log_likelihoods=tuple(likelihoods.tolist()),
            tokens=tuple(len(choice) for choice in question.choices),
            greedy=tuple(np.asarray(greedy)[:count].tolist()),
        )

    def _prefix_of(self, question: Question) -> PrefixCache:
        """Computes a question's prefix, unless it is the one at hand."""
        key = self._preparer.key(question.prefix)
        if self._prefix is None or self._key != key:
            self._prefix = None  # its memory is freed before the next one takes some
            read, model = self._preparer.read(question.prefix), self._model
            ids, mask = padded_left([read.ids], bucket(max(1, read.tokens), PREFIX_BUCKET))
            self._prefix = on_device.new_prefix(
                model.graph,
                model.state,
                model.on_devices(ids),
                model.on_devices(mask),
                encode_prefixes(model, self._processor, [read]),
                self._int8,
            )
            self._key, self._length = key, read.tokens
        return self._prefix
