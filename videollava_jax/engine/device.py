"""What runs on the device: a grid and the model, and the compiled functions that carry out the schedule's actions."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import numpy.typing as npt

from videollava_jax.engine import grid as on_device
from videollava_jax.engine import part_programs
from videollava_jax.engine.budget import FreeMemory
from videollava_jax.engine.grid import Grid
from videollava_jax.engine.media import encode_in_pieces, encode_prefixes
from videollava_jax.engine.packing import packed, tokens_of_slot
from videollava_jax.engine.parts import (
    SLOTS_AT_ONCE,
    Part,
    beginning,
    beginnings_of,
    begins_several,
    lengths_of,
    parts_of,
    slots_at_once,
    smallest,
)
from videollava_jax.engine.preparation import Ids, Question, ReadPrefix
from videollava_jax.engine.row_arrays import unwritten_answers
from videollava_jax.engine.sizes import HOST_MEMORY, Branches, GridShape
from videollava_jax.generation import steps as compiled
from videollava_jax.generation.answers import Vocabulary
from videollava_jax.generation.loaded import LoadedModel
from videollava_jax.generation.options import GenerationOptions
from videollava_jax.model.attention import Implementation
from videollava_jax.model.cache import Packing
from videollava_jax.model.kernels.operands import has_split_memory
from videollava_jax.processing.processor import VideoLlavaProcessor


@dataclass(frozen=True)
class Report:
    """The answers in all rows of a grid, on the host.

    Attributes:
      tokens_BN, count_B: int32, the answers so far and their lengths.
      done_B: bool, rows that have ended.
      finite_B: bool, rows whose logits were always finite.
    """

    tokens_BN: npt.NDArray[np.int32]
    count_B: npt.NDArray[np.int32]
    done_B: npt.NDArray[np.bool_]
    finite_B: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class LastLogprobs:
    """The log-probabilities of the last W tokens in all rows of a grid, on the host: those of token i at i modulo W.

    Attributes:
      chosen_BW: float32, of the tokens.
      ids_BWK, top_BWK: int32 and float32, the likeliest tokens and their log-probabilities, the likeliest first.
    """

    chosen_BW: npt.NDArray[np.float32]
    ids_BWK: npt.NDArray[np.int32]
    top_BWK: npt.NDArray[np.float32]


@dataclass
class _Filled:
    """A grid and what is known of it on the host.

    Attributes:
      prefixes: the ids in the slots of each index, one for each shard.
      parts: that are decoded, the whole grid first.
      beginnings: the numbers of questions that are begun at a time, smallest first; none for all rows of a slot.
      lengths: to which questions are padded, smallest first; none where they are packed.
    """

    shape: GridShape
    branches: Branches
    grid: Grid
    prefixes: dict[int, list[Ids]]
    parts: tuple[Part, ...]
    beginnings: tuple[int, ...]
    lengths: tuple[int, ...]

    def length(self, tokens: int) -> int:
        """Returns the length to which questions are padded: the least that holds some tokens."""
        return next(length for length in self.lengths if length >= tokens)


class Device:
    """Carries out actions on a model's devices. Methods raise MemoryError where these have too little memory."""

    def __init__(
        self,
        model: LoadedModel,
        processor: VideoLlavaProcessor,
        options: GenerationOptions,
        *,
        int8: bool,
        decode_attention: Implementation | None = None,
        fixed: bool = False,
        advice: str = "",
    ):
        """Takes the model; a grid is made by `make_grid`.

        Args:
          options: those that hold for all requests: which tokens end answers, pad them, and are never chosen.
          int8: keep the keys and values of prefixes in int8.
          decode_attention: the implementation of attention to prefixes while decoding; None chooses one.
          fixed: work by programs that do not depend on the requests, and on parts of the grid where these are enough:
            media are encoded in pieces (`encode_in_pieces`), and busy slots and rows are decoded without the others.
          advice: what a MemoryError says about how to need less.
        """
        self._model, self._processor, self._int8, self._advice = model, processor, int8, advice
        self._decode_attention, self._fixed = decode_attention, fixed
        self._text = model.model_config.text_config
        self._vocabulary = _vocabulary(options, self._text.vocab_size)
        self._held: _Filled | None = None
        # Questions that begin with those of other slots, by one call, before anything else is done.
        device = model.jax_device
        split_memory = has_split_memory(device.device_kind)
        self._several = not fixed and begins_several(device.platform, split_memory=split_memory)
        self._waiting: list[tuple[int, Sequence[Question | None]]] = []

    def make_grid(self, shape: GridShape, branches: Branches) -> None:
        """Makes an empty grid; the memory of the one before is freed first."""
        self._held, self._waiting = None, []
        model = self._model
        with self._memory_errors():
            grid = on_device.new_grid(
                self._text,
                shape,
                model.dtype,
                model.placement,
                int8=self._int8,
                branches=branches,
            )
            if model.placement is None:
                # What programs return is bound to the device of the parameters. A grid that is not would be another
                # kind of argument to JAX, and every program would be compiled twice.
                grid = jax.device_put(grid, model.jax_device)
        parts: tuple[Part, ...] = (Part(shape.slots, shape.rows),)
        beginnings: tuple[int, ...] = ()
        lengths: tuple[int, ...] = ()
        if self._fixed:
            platform = model.jax_device.platform
            parts, beginnings = parts_of(shape, platform), beginnings_of(shape, platform)
            lengths = lengths_of(shape, platform)
        self._held = _Filled(shape, branches, grid, {}, parts, beginnings, lengths)

    def prefill(self, slot: int, prefixes: Sequence[ReadPrefix]) -> None:
        """Encodes media of one signature and computes their prefixes, in the slots of one index.

        Args:
          prefixes: one for each shard.
        """
        held, model = self._filled(), self._model
        ids, mask = padded_right([read.ids for read in prefixes], held.shape.prefix)
        with self._memory_errors():
            features = (
                encode_in_pieces(model, self._processor, prefixes, held.shape.prefix)
                if self._fixed
                else encode_prefixes(model, self._processor, prefixes)
            )
            cache = on_device.prefill_slots(
                model.graph,
                model.state,
                model.on_devices(ids),
                model.on_devices(mask),
                features,
                held.grid.prefix,
                np.int32(slot),
            )
        held.grid = Grid(cache, held.grid.tail, held.grid.answers)
        held.prefixes[slot] = [read.ids for read in prefixes]

    def begin(self, slot: int, questions: Sequence[Question | None]) -> None:
        """Puts questions into rows of the slots of one index, and chooses the first token of each answer.

        Args:
          questions: for each of the shards × rows; None for a row that keeps what it has.
        """
        if self._several:
            self._waiting.append((slot, questions))
            return
        held = self._filled()
        if not held.beginnings:
            self._begin([slot], questions)
            return
        first = slot * held.shape.rows
        begun = [(first + i, question) for i, question in enumerate(questions) if question is not None]
        while begun:
            size = beginning(held.beginnings, len(begun))
            here, begun = begun[:size], begun[size:]
            here += here[-1:] * (size - len(here))
            self._begin([slot], [question for _, question in here], np.array([row for row, _ in here], np.int32))

    def _begin_waiting(self) -> None:
        """Begins the questions that wait: those of several slots by one call where they are few."""
        waiting, self._waiting = self._waiting, []
        held = self._filled()
        W, R = held.shape.shards, held.shape.rows
        tokens = [tokens_of_slot([0 if q is None else len(q.ids) for q in questions], W) for _, questions in waiting]
        first = 0
        while first < len(waiting):
            most = min(len(waiting), first + SLOTS_AT_ONCE)
            last = next(
                last
                for last in range(most, first, -1)
                if last == first + 1 or slots_at_once(max(tokens[first:last]), held.shape.slots) > 1
            )
            here, first = waiting[first:last], last
            if len(here) > 1:
                here += here[-1:] * (SLOTS_AT_ONCE - len(here))  # what is done twice leaves what it has left before
            of_shard = [question for w in range(W) for _, begun in here for question in begun[w * R : (w + 1) * R]]
            self._begin([slot for slot, _ in here], of_shard)

    def _begin(
        self, slots: Sequence[int], questions: Sequence[Question | None], rows: npt.NDArray[np.int32] | None = None
    ) -> None:
        """Begins questions in all rows of the slots of some indices, or in some `rows` of the grid.

        Args:
          questions: of each shard those of the first index, then those of the next.
        """
        held, model = self._filled(), self._model
        each = len(questions) // (held.shape.shards * len(slots))
        shards = range(held.shape.shards)
        prefixes = [held.prefixes[slot][w] for w in shards for slot in slots for _ in range(each)]
        width, V, positions = held.shape.answer, self._text.vocab_size, self._text.max_positions_in_parts
        fresh = unwritten_answers(questions, prefixes, width, V, held.branches, positions)
        given = (
            model.graph,
            model.state,
            *self._texts(questions, len(slots)),
            model.as_arguments(fresh),
            held.grid.prefix,
            held.grid.tail,
            held.grid.answers,
            self._vocabulary,
            np.int32(slots[0]) if len(slots) == 1 else np.array(slots, np.int32),
        )
        with self._memory_errors():
            if rows is not None:
                tail, answers = part_programs.begin_rows(*given, rows)
            elif len(slots) > 1:
                tail, answers = part_programs.begin_slots(*given, held.shape.shards)
            else:
                begin = on_device.begin if self._fixed else on_device.begin_packed
                tail, answers = begin(*given)
        held.grid = Grid(held.grid.prefix, tail, answers)

    def _texts(self, questions: Sequence[Question | None], slots: int) -> tuple[Any, Any]:
        """Returns the tokens of questions on the devices and where they are: packed, or padded to few lengths."""
        rows = [None if question is None else question.ids for question in questions]
        if self._fixed:
            T = self._filled().length(max(len(ids) for ids in rows if ids is not None))
            ids, mask = padded_left([_NO_IDS if ids is None else ids for ids in rows], T)
            return self._model.as_arguments(ids), self._model.as_arguments(mask)
        shape = self._filled().shape
        found = packed(rows, shape.shards * slots, shape.question)
        places = (self._model.as_arguments(x) for x in (found.index_WP, found.place_WN, found.mask_ET))
        return self._model.as_arguments(found.ids_WN), Packing(*places)

    def decode(self, steps: int, enough: int, rows: Collection[int]) -> Report:
        """Decodes until `enough` rows have ended, for `steps` steps at most; waits, and returns all answers.

        Args:
          rows: those that are being answered.
        """
        held = self._filled()
        part, slots = smallest(held.shape, held.parts, rows)
        self._decode(steps, enough, part, slots)
        with self._memory_errors():
            return Report(*(np.asarray(x) for x in on_device.report(held.grid.answers)))

    def _decode(self, steps: int, enough: int, part: Part, slots: Sequence[int]) -> None:
        held = self._filled()
        given = (
            self._model.graph,
            self._model.state,
            held.grid.prefix,
            held.grid.tail,
            held.grid.answers,
            self._vocabulary,
            np.int32(steps),
            np.int32(enough),
        )
        options: dict[str, Any] = {"prefix_attention": self._decode_attention}
        with self._memory_errors():
            if part == held.parts[0]:
                tail, answers = compiled.decode(*given, **options)
            else:
                options |= {"shards": held.shape.shards, "rows": part.rows}
                tail, answers = part_programs.decode_part(*given, np.array(slots, np.int32), **options)
        held.grid = Grid(held.grid.prefix, tail, answers)

    def logprobs(self) -> LastLogprobs:
        """Returns the log-probabilities of the last tokens of all rows, which were decoded or begun last."""
        logprobs = self._filled().grid.answers.logprobs
        assert logprobs is not None, "the grid's programs compute none"
        return LastLogprobs(*(np.asarray(x) for x in on_device.last_logprobs(logprobs)))

    def score(self, slot: int, shard: int, question: Question) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """Computes how likely a question's choices are after the prefix in a slot.

        Returns:
          float32 [N], for each choice the sum of the log-probabilities of its tokens; bool [N], whether each of these
          was the likeliest.
        """
        held, model = self._filled(), self._model
        R, T = held.shape.rows, held.length(question.tokens)
        totals, greedy = [], []
        for first in range(0, len(question.choices), R):
            choices = question.choices[first : first + R]
            ids, mask, scored = scored_rows(question.ids, choices, held.shape.shards * R, T, first=shard * R)
            with self._memory_errors():
                found = on_device.score_in_slot(
                    model.graph,
                    model.state,
                    *(model.on_devices(x) for x in (ids, mask, scored)),
                    held.grid.prefix,
                    held.shape.shards,
                    np.int32(slot),
                )
            here = slice(shard * R, shard * R + len(choices))
            totals.append(np.asarray(found[0])[here])
            greedy.append(np.asarray(found[1])[here])
        return np.concatenate(totals), np.concatenate(greedy)

    def end_rows(self, rows: Sequence[int]) -> None:
        """Ends rows in which the host has found a stop string."""
        held = self._filled()
        ended = np.zeros(held.shape.batch, bool)
        ended[list(rows)] = True
        answers = on_device.end_rows(held.grid.answers, self._model.on_devices(ended))
        held.grid = Grid(held.grid.prefix, held.grid.tail, answers)

    def warm_up(self, example: Question) -> None:
        """Runs each program once, in an empty grid: on an image, on a video, and on questions of each length.

        Args:
          example: any question.
        """
        held = self._filled()
        shape, side = held.shape, self._model.model_config.vision_config.image_size
        preprocessors = self._processor.preprocessors
        frames = (
            np.zeros((1, side, side, 3), preprocessors["image"].dtype),
            np.zeros((max(1, self._model.model_config.frame_window), side, side, 3), preprocessors["video"].dtype),
        )
        read = ReadPrefix(np.ones(1, np.int32), ("image", "video"), frames, self._processor.video_pooling)
        self.prefill(0, [read] * shape.shards)
        # One that draws: keys are computed for such questions alone.
        options = dataclasses.replace(example.options, do_sample=True, temperature=1.0)
        for length in held.lengths:
            question = dataclasses.replace(example, ids=np.ones(length, np.int32), options=options)
            for size in held.beginnings or (shape.rows,):
                self.begin(0, [question] * size if held.beginnings else [question] * (shape.shards * size))
            scored = dataclasses.replace(question, ids=question.ids[1:], choices=(np.ones(1, np.int32),), task="score")
            self.score(0, 0, scored)
        for part in held.parts:
            self._decode(1, 1, part, range(part.slots))
        self.decode(1, 1, range(shape.batch))
        self.logprobs()
        self.end_rows(range(shape.batch))

    def _filled(self) -> _Filled:
        assert self._held is not None, "make_grid comes first"
        if self._waiting:
            self._begin_waiting()
        return self._held

    @contextmanager
    def _memory_errors(self) -> Iterator[None]:
        try:
            yield
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise MemoryError(f"{self._advice}{str(error).splitlines()[0][:300]}") from error


_NO_IDS: Ids = np.zeros(0, np.int32)


def padded_left(rows: Sequence[Ids], length: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
    """Returns ids of several lengths as int32 [N, length], and bool [N, length]: where they are not padding."""
    ids = np.zeros((len(rows), length), np.int32)
    mask = np.zeros((len(rows), length), bool)
    for i, row in enumerate(rows):
        ids[i, length - len(row) :], mask[i, length - len(row) :] = row, True
    return ids, mask


def padded_right(rows: Sequence[Ids], length: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
    """Returns ids as `padded_left` does, with the padding behind them."""
    ids = np.zeros((len(rows), length), np.int32)
    mask = np.zeros((len(rows), length), bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = row, True
    return ids, mask


def scored_rows(
    ids: Ids, choices: Sequence[Ids], rows: int, T: int, *, first: int = 0
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Returns rows of a question, each with a choice behind it, as `grid.score` takes them.

    Args:
      ids, choices: of the question.
      rows: in all; those without a choice are padding.
      T: tokens of a row.
      first: the row of the first choice.

    Returns:
      ids int32 [rows, T], their mask bool [rows, T], and the tokens of the choices, bool [rows, T].
    """
    found = [_NO_IDS] * first + [np.concatenate([ids, choice]) for choice in choices]
    array, mask = padded_left([*found, *[_NO_IDS] * (rows - len(found))], T)
    scored = np.zeros((rows, T), bool)
    for row, choice in enumerate(choices, first):
        scored[row, T - len(choice) :] = True
    return array, mask, scored


def free_memory(model: LoadedModel) -> int | FreeMemory:
    """Returns the memory that the weights leave on all devices of a model together.

    Where the platform does not report it, and on CPUs, it is a number of bytes that caches may take.
    """
    placement = model.placement
    devices: Any = [jax.devices()[0]] if placement is None else placement.mesh.local_devices
    stats = devices[0].memory_stats()
    count = 1 if placement is None else placement.mesh.size
    if devices[0].platform == "cpu":
        return HOST_MEMORY
    if not stats or "bytes_limit" not in stats:
        return HOST_MEMORY * count
    return FreeMemory(
        size=(stats["bytes_limit"] - stats["bytes_in_use"]) * count,
        devices=count,
        shards=1 if placement is None else placement.data,
        config=model.model_config.text_config,
        dtype=model.dtype,
    )


def _vocabulary(options: GenerationOptions, V: int) -> Vocabulary:
    suppressed = np.zeros(V, bool)
    suppressed[list(options.suppress_tokens)] = True
    return Vocabulary(
        eos_E=np.array(options.eos_token_id, np.int32),  # type: ignore[arg-type]
        suppressed_V=suppressed,  # type: ignore[arg-type]
        pad=np.int32(options.pad_token_id),  # type: ignore[arg-type]
    )
