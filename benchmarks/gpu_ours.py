"""Our side of `gpu.py`: the engine, and the compiled functions that it calls, with their own caches."""

from __future__ import annotations

import dataclasses
import gc
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gpu_work import Work
from questions import FRAMES, question_words, random_videos, requests_of
from random_models import Figures, jax_device, our_model, shape_of, versions
from sides import OURS, Measured, Section, rate

from videollava_jax import compilation_cache
from videollava_jax.costs.chips import roofline
from videollava_jax.costs.work import (
    Job,
    Storage,
    best_possible,
    decode_step,
    decoder_flops,
    encode_flops,
    weight_bytes,
)
from videollava_jax.engine import Engine
from videollava_jax.engine import grid as on_device
from videollava_jax.engine.grid import Grid
from videollava_jax.engine.media import encode_prefixes
from videollava_jax.engine.preparation import Preparer, ReadPrefix
from videollava_jax.engine.row_arrays import idle_answers
from videollava_jax.engine.sizes import HOST_MEMORY, PLAIN, Demand, GridShape, choose_shape
from videollava_jax.generation import steps as compiled
from videollava_jax.generation.answers import Answers, Vocabulary
from videollava_jax.generation.buckets import bucket
from videollava_jax.model.cache import TailCache

CACHE_SHARE = 0.85
"""The share of memory, without the weights, that caches may take; programs need little else here."""
FOR_EVER = 1 << 30
"""The length of answers that must not end during a measurement."""


@dataclass(frozen=True)
class Asked:
    """A question about a video as the engine prepares it.

    Attributes:
      read: the prefix, with its pixels.
      ids: token ids after the prefix, [T].
    """

    read: ReadPrefix
    ids: np.ndarray


class Ours:
    """The sections, in the order of `gpu_work.SECTIONS`.

    Args:
      work: what is measured.

    Raises:
      CannotRun: there is no accelerator.
    """

    def __init__(self, work: Work):
        self.work = work
        self.device = jax_device(small=work.small)
        self.figures = Figures.of(self.device.device_kind, work.chip)
        self.chip = self.figures.limits
        compilation_cache.enable()
        self.config, self.processor = shape_of(small=work.small)
        self.model = our_model(self.config, jnp.bfloat16)
        self.storage = Storage()
        # Once for all sections, because for a grid with one row less everything would be compiled again.
        self.memory = self._memory()

        rng = np.random.default_rng(0)
        self.words = question_words(self.processor, rng, work.questions, work.question_tokens)
        count = max(work.videos, work.rows, work.int8_rows)
        self.videos = random_videos(rng, count, self.config.vision_config.image_size)
        self.asked = self._asked()

    def begun(self) -> tuple[dict[str, Any], Mapping[str, Section]]:
        """Returns facts about the device, and the sections by name."""
        facts = {"device": self.device.device_kind, **versions("jax", "flax")}
        if self.chip is not None:
            facts["limits by"] = self.chip.name
        sections: dict[str, Section] = {
            "ceilings": self.ceilings,
            "encode": self.encode,
            "decode": self.decode,
            "one": self.one,
            "ten": self.ten,
            "caption": self.caption,
            "int8": self.int8,
        }
        return facts, sections

    # ── phases ──

    def ceilings(self) -> Iterator[Measured]:
        """Measures the rates of a copy and of a matrix product on this device, for comparison with its stated peaks."""
        maker, side = self.figures.maker, self.work.matrix
        many = jnp.ones((16, side, side), jnp.bfloat16)
        add = jax.jit(lambda x: x + 1, donate_argnums=0)

        def copy() -> None:
            nonlocal many
            for _ in range(8):
                many = add(many)
            jax.block_until_ready(many)

        rates = self._rounds(copy, 8 * 2 * many.nbytes / 1e9)
        yield Measured(work="copy, GB/s", way=OURS, rates=rates, limit=maker and maker.hbm_bytes_per_second / 1e9)
        del many
        a, b = jax.random.normal(jax.random.key(0), (2, side, side), jnp.bfloat16)
        multiply = jax.jit(jnp.matmul)

        def product() -> None:
            jax.block_until_ready([multiply(a, b) for _ in range(8)])

        rates = self._rounds(product, 8 * 2 * side**3 / 1e12)
        yield Measured(work="product, TFLOP/s", way=OURS, rates=rates, limit=maker and maker.bf16_flops / 1e12)

    def encode(self) -> Iterator[Measured]:
        """Measures pixels on the device to features: one video per call, like the engine, and eight."""
        preprocess = self.processor.preprocessors["video"]
        mean, std = ((np.array(numbers, np.float32),) for numbers in (preprocess.mean, preprocess.std))
        for videos in (1, 8):
            pixels = (jnp.asarray(np.stack([self.asked.read.pixels[0]] * videos)),)

            def calls(pixels: tuple[jax.Array, ...] = pixels) -> None:
                model = self.model
                jax.block_until_ready(
                    [on_device.encode(model.graph, model.state, ("video",), 1, pixels, mean, std) for _ in range(8)]
                )

            limit = self.chip and 1 / roofline(encode_flops(self.config, frames=FRAMES), 0, self.chip).seconds
            rates = self._rounds(calls, 8 * videos)
            yield Measured(work=f"encode, {videos} at a time, videos/s", way=OURS, rates=rates, limit=limit)

    def decode(self) -> Iterator[Measured]:
        """Measures prefill into the slots of a grid, and steps of decoding with one row and with all rows."""
        shape = self._shape(self.work.rows, self.work.answer_tokens)
        rates, grid = self._filled(shape)
        tokens = len(self.asked.read.ids)
        limit = None
        if self.chip is not None:
            flops, weights = decoder_flops(self.config, tokens, logits=0), weight_bytes(self.config, self.storage)
            limit = tokens / roofline(flops, weights, self.chip).seconds
        yield Measured(work="prefill, tokens/s", way=OURS, rates=rates, limit=limit, note=f"{tokens} tokens")
        grid = self._with_questions(shape, grid)
        yield self._decode_rates("decode, one row, tokens/s", _first_row(grid), 4 * self.work.steps)
        yield self._decode_rates("decode, many rows, tokens/s", grid, self.work.steps)

    # ── jobs ──

    def one(self) -> Iterator[Measured]:
        """Measures a job with one question about each video."""
        yield self._job(
            "one question a video, answers/s", self.work.videos, self.work.answer_tokens, max_rows=self.work.rows
        )

    def ten(self) -> Iterator[Measured]:
        """Measures a job with several questions about each video."""
        questions = self.work.questions
        name = f"{questions} questions a video, answers/s"
        yield self._job(name, self.work.videos, self.work.answer_tokens, questions=questions)

    def caption(self) -> Iterator[Measured]:
        """Measures a job with a long answer about each video."""
        rows = self.work.rows
        yield self._job("captions, videos/s", rows, self.work.caption_tokens, max_rows=rows)

    def int8(self) -> Iterator[Measured]:
        """Measures decoding and captions with int8 weights and prefixes. Comes last, as it replaces the weights."""
        del self.model
        gc.collect()
        self.storage = Storage(int8_weights=True, int8_kv=True)
        self.model = our_model(self.config, jnp.bfloat16, int8=True)
        self.memory = self._memory()
        shape = self._shape(self.work.int8_rows, self.work.caption_tokens)
        grid = self._with_questions(shape, self._filled(shape)[1])
        yield self._decode_rates("decode, int8, many rows, tokens/s", grid, self.work.steps)
        del grid
        rows = shape.slots
        yield self._job("captions, int8, videos/s", rows, self.work.caption_tokens, max_rows=rows)

    # ── parts ──

    def _rounds(self, run: Callable[[], None], amount: float) -> tuple[float, ...]:
        """Returns the rates of the rounds that count, after one that compiles."""
        run()
        return tuple(rate(run, amount) for _ in range(self.work.rounds))

    def _memory(self) -> int:
        """Returns the bytes for caches, with the weights in memory."""
        stats = self.device.memory_stats()
        return int(CACHE_SHARE * (stats["bytes_limit"] - stats["bytes_in_use"])) if stats else HOST_MEMORY

    def _asked(self) -> Asked:
        model = self.model
        preparer = Preparer(self.processor, model.model_config, model.generation_defaults, longest=512)
        (request,) = requests_of(self.videos[:1], self.words[:1], self.work.answer_tokens)
        question = preparer.question(request)
        return Asked(preparer.read(question.prefix), question.ids)

    def _shape(self, rows: int, answer_tokens: int) -> GridShape:
        """Returns the engine's grid for a question about each of `rows` videos, to share compiled programs."""
        demand = Demand(len(self.asked.read.ids), [1] * rows, len(self.asked.ids), answer_tokens)
        text, dtype, int8 = self.config.text_config, self.model.dtype, self.storage.int8_kv
        return choose_shape(demand, text, dtype, shards=1, max_rows=rows, memory=self.memory, int8=int8)

    def _filled(self, shape: GridShape) -> tuple[tuple[float, ...], Grid]:
        """Fills a grid with the video in all slots; returns the rates of prefill in tokens per second, and the grid."""
        model, read = self.model, self.asked.read
        ids = np.zeros((1, shape.prefix), np.int32)
        ids[0, : len(read.ids)] = read.ids
        mask = np.arange(shape.prefix)[None] < len(read.ids)
        ids_device, mask_device = model.on_devices(ids), model.on_devices(mask)
        features = encode_prefixes(model, self.processor, [read])
        text, int8 = self.config.text_config, self.storage.int8_kv
        grid = on_device.new_grid(text, shape, model.dtype, None, int8=int8, branches=PLAIN)
        prefix = grid.prefix

        def fill(slots: int) -> None:
            nonlocal prefix
            for slot in range(slots):
                prefix = on_device.prefill_slots(
                    model.graph, model.state, ids_device, mask_device, features, prefix, np.int32(slot)
                )
            jax.block_until_ready(prefix)

        fill(shape.slots)
        some = min(shape.slots, 8)
        rates = tuple(rate(lambda: fill(some), some * len(read.ids)) for _ in range(self.work.rounds))
        return rates, dataclasses.replace(grid, prefix=prefix)

    def _with_questions(self, shape: GridShape, grid: Grid) -> Grid:
        """Begins the question in all rows of a grid, with answers that never end. Donates the grid."""
        model, question = self.model, self.asked.ids
        T = bucket(len(question), 32)
        ids, mask = np.zeros((1, T), np.int32), np.arange(T)[None] >= T - len(question)
        ids[0, T - len(question) :] = question
        nobody = idle_answers(1, shape.answer, self.config.text_config.vocab_size, PLAIN)
        fresh = dataclasses.replace(nobody, limit_B=np.full(1, FOR_EVER, np.int32), done_B=np.zeros(1, bool))
        tail, answers = grid.tail, grid.answers
        for slot in range(shape.slots):
            tail, answers = on_device.begin(
                model.graph,
                model.state,
                model.on_devices(ids),
                model.on_devices(mask),
                model.on_devices(fresh),
                grid.prefix,
                tail,
                answers,
                self._vocabulary(),
                np.int32(slot),
            )
        return Grid(grid.prefix, tail, answers)

    def _decode_rates(self, work: str, grid: Grid, steps: int) -> Measured:
        """Measures steps of decoding with a full ring of answers, so that all rounds do the same. Donates the grid.

        Raises:
          RuntimeError: a row ended: its logits were not finite.
        """
        rows, ring = grid.answers.count_B.shape[0], grid.tail.capacity - grid.tail.question
        tail, answers, vocabulary = grid.tail, grid.answers, self._vocabulary()

        def step(times: int) -> None:
            nonlocal tail, answers
            model = self.model
            tail, answers = compiled.decode(
                model.graph, model.state, grid.prefix, tail, answers, vocabulary, np.int32(times), np.int32(rows + 1)
            )
            jax.block_until_ready(answers)

        step(ring)
        rates = tuple(rate(lambda: step(steps), rows * steps) for _ in range(self.work.rounds))
        if (written := int(answers.count_B.min())) != 1 + ring + self.work.rounds * steps:
            raise RuntimeError(f"a row ended after {written} tokens: logits of random weights were not finite")
        limit = None
        if self.chip is not None:
            prefix, own = len(self.asked.read.ids), len(self.asked.ids) + ring
            least = decode_step(
                self.config, self.chip, prefixes=rows, rows=rows, prefix=prefix, tail=own, storage=self.storage
            )
            limit = rows / least.seconds
        return Measured(work=work, way=OURS, rates=rates, limit=limit, note=f"{rows} rows" if rows > 1 else "")

    def _job(
        self, work: str, videos: int, new_tokens: int, *, questions: int = 1, max_rows: int | None = None
    ) -> Measured:
        """Measures the engine on a job.

        Args:
          work: name of the row in the table.
          videos: how many.
          new_tokens: tokens of each answer.
          questions: about each video.
          max_rows: of the engine's batch; None for its default.

        Raises:
          RuntimeError: a request came back with an error.
        """
        requests = requests_of(self.videos[:videos], self.words[:questions], new_tokens)
        sizes: set[str] = set()
        engine = Engine(
            self.model,
            self.processor,
            suppress_tokens=self.config.eos_token_ids,
            max_rows=max_rows,
            memory=self.memory,
            int8_cache=self.storage.int8_kv,
            window=len(requests),
            on_sizes=sizes.add,
        )

        def answer() -> None:
            for result in engine.run(requests):
                if result.error is not None or len(result.token_ids) != new_tokens:
                    raise RuntimeError(f"{result.id}: expected {new_tokens} tokens: {result.error or result.token_ids}")

        rates = self._rounds(answer, len(requests))
        for line in sizes:
            print(f"  {line}", file=sys.stderr)
        limit = None
        if self.chip is not None:
            job = Job(
                prompt_tokens=len(self.asked.read.ids) - FRAMES * self.config.tokens_per_frame,
                questions=questions,
                question_tokens=len(self.asked.ids),
                answer_tokens=new_tokens,
            )
            limit = best_possible(job, self.config, self.chip, storage=self.storage).answers_per_second
        return Measured(work=work, way=OURS, rates=rates, limit=limit)

    def _vocabulary(self) -> Vocabulary:
        """Returns a vocabulary in which no token ends an answer."""
        suppressed = np.zeros(self.config.text_config.vocab_size, bool)
        suppressed[list(self.config.eos_token_ids)] = True
        return Vocabulary(
            eos_E=jnp.asarray(self.config.eos_token_ids, jnp.int32),
            suppressed_V=jnp.asarray(suppressed),
            pad=jnp.int32(self.processor.tokenizer.pad_token_id),
        )


def _first_row(grid: Grid) -> Grid:
    """Copies the first slot and the first row into a separate grid, which can be donated."""

    def first(x: jax.Array) -> jax.Array:
        return jnp.array(x[:1])

    tail: TailCache = dataclasses.replace(
        grid.tail,
        layers=jax.tree.map(lambda x: jnp.array(x[:, :1]), grid.tail.layers),
        valid_BS=first(grid.tail.valid_BS),
        write_at=jnp.array(grid.tail.write_at),
        next_position_B=first(grid.tail.next_position_B),
    )
    answers: Answers = jax.tree.map(first, grid.answers)
    return Grid(jax.tree.map(first, grid.prefix), tail, answers)
