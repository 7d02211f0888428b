"""`Engine`: what users call; options in, a run over requests out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, cast

import jax

from videollava_jax.engine.device import Device, free_memory
from videollava_jax.engine.options import EngineOptions
from videollava_jax.engine.preparation import Preparer
from videollava_jax.engine.readers import Readers
from videollava_jax.engine.request import Request, Result, Scored
from videollava_jax.engine.run import Run
from videollava_jax.engine.schedule import Limits, Schedule
from videollava_jax.engine.scoring import score_requests
from videollava_jax.engine.session import Session
from videollava_jax.engine.sizes import (
    LIVE_ROWS,
    MOST_AHEAD,
    PREFIX_BUCKET,
    ROWS,
    TEXT_BUCKET,
    CacheMemory,
    Demand,
    GridShape,
    choose_shape,
    description,
)
from videollava_jax.generation.buckets import bucket
from videollava_jax.generation.loaded import LoadedModel
from videollava_jax.model.kernels import decoding
from videollava_jax.processing.processor import VideoLlavaProcessor


class Engine:
    """Answers many questions about many media with one model.

    Requests are grouped by their media, whatever their order: each medium is decoded, encoded and prefilled once, its
    keys and values are held once, and all questions about it attend to them together. Answers are those of `generate`.
    """

    def __init__(self, model: LoadedModel, processor: VideoLlavaProcessor, **options: Any):
        """Takes a model and its processor; nothing is compiled before the first request.

        Args:
          options: the fields of `EngineOptions`.

        Raises:
          ValueError: an option is out of range, or `decode_attention` names no kernel for decoding.
        """
        self.model = model
        self.processor = processor
        self.options = EngineOptions(**options)
        # Checked here: the table of kernels needs JAX, and the options do without.
        known = decoding()
        if self.options.decode_attention not in (None, *known):
            raise ValueError(
                f"decode_attention: expected {', '.join(known)} or None, got {self.options.decode_attention!r}"
            )
        platform = jax.devices()[0].platform
        self.max_rows = self.options.max_rows or ROWS.get(platform, ROWS["gpu"])
        self._live_rows = self.options.max_rows or LIVE_ROWS.get(platform, LIVE_ROWS["gpu"])
        free = self.options.memory or free_memory(model)
        self.memory = free if isinstance(free, int) else free.share
        self._job_memory: CacheMemory = free if isinstance(free, int) else free.of_grid

    def run(self, requests: Iterable[Request]) -> Iterator[Result]:
        """Yields results as they finish, one for each request, in no particular order.

        An error of one request (a file that cannot be read, a prompt that is too long, logits that are not finite)
        becomes its result, and changes no other. Several processes that are given the same requests each yield all the
        results.

        Raises:
          ValueError: two requests have the same id, or the memory is too small for one request.
          MemoryError: the device has less memory than expected; the message says which option to lower.
        """
        preparer = self._preparer(self.options.longest_question)
        limits = Limits(shards=self._shards, window=self.options.window, ahead=self._ahead, positions=self._positions)
        schedule = Schedule(limits, lambda demand: self._choose_shape(demand, self._job_memory))
        readers = Readers(preparer, self.options.readers)
        run = Run(preparer, schedule, self._device(preparer), self.processor.light_tokenizer, readers)
        return cast(Iterator[Result], run.results(requests))

    def session(
        self,
        *,
        longest_prefix: int | None = None,
        longest_question: int = 128,
        longest_answer: int = 512,
        rows: int = 8,
        memory: int | None = None,
        max_requests: int | None = None,
    ) -> Session:
        """Begins a session: requests from any thread are answered as they come, on a grid of fixed sizes.

        As many prefixes are held as fit `memory` and `max_rows`: each has a slot of the grid with its own rows. It
        stays until its memory is needed for another, the one that was used least recently first, unless it is pinned.

        Args:
          longest_prefix: tokens of a prompt up to its last medium, media included; None for a video of 8 frames with
            some text before it.
          longest_question: tokens after the media; the start of a longer text is prefilled with its media.
          longest_answer: tokens.
          rows: questions about one prefix that are answered at a time; others wait. Fewer leave room for more prefixes.
          memory: bytes for the keys and values of all prefixes and rows; None for the engine's `memory`.
          max_requests: requests without a result at a time, beyond which `submit` raises `QueueFull`; None for any.

        Raises:
          ValueError: a size is out of range, or the memory is too small for one prefix.
        """
        given = {"longest_question": longest_question, "longest_answer": longest_answer, "rows": rows}
        others = {"longest_prefix": longest_prefix, "memory": memory, "max_requests": max_requests}
        for name, value in {**given, **others}.items():
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        if longest_prefix is None:
            longest_prefix = min(8 * self.processor.tokens_per_frame + PREFIX_BUCKET, self._positions)
        preparer = self._preparer(longest_question)
        enough = self._live_rows // rows or 1
        # Questions of a session are padded to multiples of a bucket, for which its rows need room.
        demand = Demand(longest_prefix, [rows] * enough, bucket(longest_question, TEXT_BUCKET), longest_answer)
        return Session(
            preparer,
            self._device(preparer, fixed=True),
            self.processor.light_tokenizer,
            self._choose_shape(demand, memory or self.memory),
            ahead=self._ahead,
            positions=self._positions,
            readers=self.options.readers,
            max_requests=max_requests,
        )

    def score(self, requests: Iterable[Request]) -> Iterator[Scored]:
        """Yields the likelihood of each request's `choices` as the answer to its prompt, in the order of the requests.

        The prefix of media is computed once for neighbouring requests about them.
        """
        return score_requests(self.model, self.processor, self.options, requests)

    @property
    def _shards(self) -> int:
        return 1 if self.model.placement is None else self.model.placement.data

    @property
    def _ahead(self) -> int:
        return min(2 * self.max_rows, MOST_AHEAD)

    @property
    def _positions(self) -> int:
        return self.model.model_config.text_config.max_positions_in_parts

    def _preparer(self, longest_question: int) -> Preparer:
        options = self.options
        return Preparer(
            self.processor,
            self.model.model_config,
            self.model.generation_defaults,
            longest_question,
            options.reader,
            eos_token_id=options.eos_token_id,
            pad_token_id=options.pad_token_id,
            suppress_tokens=options.suppress_tokens,
        )

    def _device(self, preparer: Preparer, *, fixed: bool = False) -> Device:
        least = "" if self.options.memory or fixed else "at least "  # a job's grids get what its programs leave
        advice = (
            f"the device has less memory than expected: lower memory= (now {least}{self.memory / 2**20:.0f} MiB "
            f"for keys and values) or max_rows= (now {self.max_rows}). "
        )
        return Device(
            self.model,
            self.processor,
            preparer.decoding,
            int8=self.options.int8_cache,
            decode_attention=self.options.decode_attention,
            fixed=fixed,
            advice=advice,
        )

    def _choose_shape(self, demand: Demand, memory: CacheMemory) -> GridShape:
        config, dtype, int8 = self.model.model_config.text_config, self.model.dtype, self.options.int8_cache
        shards = self._shards
        shape = choose_shape(
            demand,
            config,
            dtype,
            shards=shards,
            max_rows=max(self.max_rows, shards),
            memory=memory,
            int8=int8,
        )
        if self.options.on_sizes:
            self.options.on_sizes(description(shape, config, dtype, int8=int8))
        return shape
