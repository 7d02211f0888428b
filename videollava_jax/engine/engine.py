"""`Engine`: what users call; options in, a run over requests out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import jax

from videollava_jax.engine.device import Device, free_memory
from videollava_jax.engine.options import EngineOptions
from videollava_jax.engine.preparation import Preparer
from videollava_jax.engine.request import Request, Result, Scored
from videollava_jax.engine.run import Run
from videollava_jax.engine.schedule import Limits, Schedule
from videollava_jax.engine.scoring import score_requests
from videollava_jax.engine.sizes import ROWS, Demand, GridShape, choose_shape, description
from videollava_jax.generation.loaded import LoadedModel
from videollava_jax.model.kernels import KERNELS
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
        decoding = [name for name, kernel in KERNELS.items() if kernel.decodes]
        if self.options.decode_attention not in (None, *decoding):
            raise ValueError(
                f"decode_attention: expected {', '.join(decoding)} or None, got {self.options.decode_attention!r}"
            )
        platform = jax.devices()[0].platform
        self.max_rows = self.options.max_rows or ROWS.get(platform, ROWS["gpu"])
        self.memory = self.options.memory or free_memory(model.placement)

    def run(self, requests: Iterable[Request]) -> Iterator[Result]:
        """Yields results as they finish, one for each request, in no particular order.

        An error of one request (a file that cannot be read, a prompt that is too long, logits that are not finite)
        becomes its result, and changes no other. Several processes that are given the same requests each yield all the
        results.

        Raises:
          ValueError: two requests have the same id, or the memory is too small for one request.
          MemoryError: the device has less memory than expected; the message says which option to lower.
        """
        options, model = self.options, self.model
        preparer = Preparer(
            self.processor,
            model.config,
            model.generation_defaults,
            options.longest_question,
            options.reader,
            eos_token_id=options.eos_token_id,
            pad_token_id=options.pad_token_id,
            suppress_tokens=options.suppress_tokens,
        )
        limits = Limits(
            shards=self._shards,
            window=options.window,
            ahead=2 * self.max_rows,
            positions=model.config.text_config.max_position_embeddings,
        )
        advice = (
            f"the device has less memory than expected: lower memory= (now {self.memory / 2**20:.0f} MiB "
            f"for keys and values) or max_rows= (now {self.max_rows}). "
        )
        device = Device(
            model,
            self.processor,
            preparer.decoding,
            int8=options.int8_cache,
            decode_attention=options.decode_attention,
            advice=advice,
        )
        schedule = Schedule(limits, self._choose_shape)
        tokenizer = self.processor.light_tokenizer
        return Run(preparer, schedule, device, tokenizer, readers=options.readers).results(requests)

    def score(self, requests: Iterable[Request]) -> Iterator[Scored]:
        """Yields the likelihood of each request's `choices` as the answer to its prompt, in the order of the requests.

        The prefix of media is computed once for neighbouring requests about them.
        """
        return score_requests(self.model, self.processor, self.options, requests)

    @property
    def _shards(self) -> int:
        return 1 if self.model.placement is None else self.model.placement.data

    def _choose_shape(self, demand: Demand) -> GridShape:
        config, dtype, int8 = self.model.config.text_config, self.model.dtype, self.options.int8_cache
        shards = self._shards
        shape = choose_shape(
            demand,
            config,
            dtype,
            shards=shards,
            max_rows=max(self.max_rows, shards),
            memory=self.memory,
            int8=int8,
        )
        if self.options.on_sizes:
            self.options.on_sizes(description(shape, config, dtype, int8=int8))
        return shape
