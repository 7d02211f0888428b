"""What runs on the device: a grid and the model, and the compiled functions that carry out the schedule's actions."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import numpy.typing as npt

from videollava_jax.engine import grid as on_device
from videollava_jax.engine.grid import Grid
from videollava_jax.engine.media import encode_in_pieces, encode_prefixes
from videollava_jax.engine.preparation import Ids, Question, ReadPrefix
from videollava_jax.engine.row_arrays import sampling_of, unwritten_answers
from videollava_jax.engine.sizes import HOST_MEMORY, MEMORY_SHARE, TEXT_BUCKET, GridShape
from videollava_jax.generation import steps as compiled
from videollava_jax.generation.answers import Vocabulary
from videollava_jax.generation.buckets import bucket
from videollava_jax.generation.loaded import LoadedModel
from videollava_jax.generation.options import GenerationOptions
from videollava_jax.model.attention import Implementation
from videollava_jax.model.sharding import Placement
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


@dataclass
class _Filled:
    """A grid and what is known of it on the host.

    Attributes:
      prefixes: the ids in the slots of each index, one for each shard.
    """

    shape: GridShape
    draw: bool
    penalise: bool
    grid: Grid
    prefixes: dict[int, list[Ids]]


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
        in_pieces: bool = False,
        advice: str = "",
    ):
        """Takes the model; a grid is made by `make_grid`.

        Args:
          options: those that hold for all requests: which tokens end answers, pad them, and are never chosen.
          int8: keep the keys and values of prefixes in int8.
          decode_attention: the implementation of attention to prefixes while decoding; None chooses one.
          in_pieces: encode media by programs that do not depend on their number and length (`encode_in_pieces`).
          advice: what a MemoryError says about how to need less.
        """
        self._model, self._processor, self._int8, self._advice = model, processor, int8, advice
        self._decode_attention, self._in_pieces = decode_attention, in_pieces
        self._text = model.model_config.text_config
        self._vocabulary = _vocabulary(options, self._text.vocab_size)
        self._held: _Filled | None = None

    def make_grid(self, shape: GridShape, draw: bool, penalise: bool) -> None:
        """Makes an empty grid; the memory of the one before is freed first."""
        self._held = None
        model = self._model
        with self._memory_errors():
            grid = on_device.new_grid(
                self._text,
                shape,
                model.dtype,
                model.placement,
                int8=self._int8,
                sampling=sampling_of([], draw, penalise),
            )
            if model.placement is None:
                # What programs return is bound to the device of the parameters. A grid that is not would be another
                # kind of argument to JAX, and every program would be compiled twice.
                grid = jax.device_put(grid, model.device)
        self._held = _Filled(shape, draw, penalise, grid, {})

    def prefill(self, slot: int, prefixes: Sequence[ReadPrefix]) -> None:
        """Encodes media of one signature and computes their prefixes, in the slots of one index.

        Args:
          prefixes: one for each shard.
        """
        held, model = self._filled(), self._model
        ids, mask = padded_left([read.ids for read in prefixes], held.shape.prefix)
        with self._memory_errors():
            features = (
                encode_in_pieces(model, self._processor, prefixes, held.shape.prefix)
                if self._in_pieces
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
        held, model = self._filled(), self._model
        T = bucket(max(question.tokens for question in questions if question is not None), TEXT_BUCKET)
        ids, mask = padded_left([_NO_IDS if question is None else question.ids for question in questions], T)
        prefixes = [prefix for prefix in held.prefixes[slot] for _ in range(held.shape.rows)]
        fresh = unwritten_answers(
            questions, prefixes, held.shape.answer, self._text.vocab_size, held.draw, held.penalise
        )
        with self._memory_errors():
            tail, answers = on_device.begin(
                model.graph,
                model.state,
                model.on_devices(ids),
                model.on_devices(mask),
                model.on_devices(fresh),
                held.grid.prefix,
                held.grid.tail,
                held.grid.answers,
                self._vocabulary,
                np.int32(slot),
            )
        held.grid = Grid(held.grid.prefix, tail, answers)

    def decode(self, steps: int, enough: int) -> Report:
        """Decodes all rows until `enough` have ended, for `steps` steps at most; waits, and returns all answers."""
        held = self._filled()
        with self._memory_errors():
            tail, answers = compiled.decode(
                self._model.graph,
                self._model.state,
                held.grid.prefix,
                held.grid.tail,
                held.grid.answers,
                self._vocabulary,
                np.int32(steps),
                np.int32(enough),
                prefix_attention=self._decode_attention,
            )
            held.grid = Grid(held.grid.prefix, tail, answers)
            return Report(*(np.asarray(x) for x in on_device.report(answers)))

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
        shape, side = self._filled().shape, self._model.model_config.vision_config.image_size
        preprocessors = self._processor.preprocessors
        frames = (
            np.zeros((1, side, side, 3), preprocessors["image"].dtype),
            np.zeros((max(1, self._model.model_config.frame_window), side, side, 3), preprocessors["video"].dtype),
        )
        read = ReadPrefix(np.ones(1, np.int32), ("image", "video"), frames, self._processor.video_pooling)
        self.prefill(0, [read] * shape.shards)
        for length in range(TEXT_BUCKET, bucket(shape.question, TEXT_BUCKET) + 1, TEXT_BUCKET):
            question = dataclasses.replace(example, ids=np.ones(length, np.int32))
            self.begin(0, [question] * (shape.shards * shape.rows))
        self.decode(1, 1)
        self.end_rows(range(shape.batch))

    def _filled(self) -> _Filled:
        assert self._held is not None, "make_grid comes first"
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


def free_memory(placement: Placement | None) -> int:
    """Returns the bytes that caches may take on all devices of a mesh together, or on the default device."""
    devices: Any = [jax.devices()[0]] if placement is None else placement.mesh.local_devices
    stats = devices[0].memory_stats()
    each = HOST_MEMORY
    if stats and "bytes_limit" in stats:
        each = int(MEMORY_SHARE * (stats["bytes_limit"] - stats["bytes_in_use"]))
    count = 1 if placement is None else placement.mesh.size
    return each * count if devices[0].platform != "cpu" else each


def _vocabulary(options: GenerationOptions, V: int) -> Vocabulary:
    suppressed = np.zeros(V, bool)
    suppressed[list(options.suppress_tokens)] = True
    return Vocabulary(
        eos_E=np.array(options.eos_token_id, np.int32),  # type: ignore[arg-type]
        suppressed_V=suppressed,  # type: ignore[arg-type]
        pad=np.int32(options.pad_token_id),  # type: ignore[arg-type]
    )
