"""How large a grid fits the memory: its slots and rows, chosen from the requests and the memory. No JAX."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from videollava_jax.config import TextConfig
from videollava_jax.generation.buckets import bucket

PREFIX_BUCKET = 64
TEXT_BUCKET = 32
QUESTION_BUCKET = 16
"""Of the positions of rows for questions: a step reads them all, and packed questions begin without them."""
LEAST_QUESTION = 64  # a next question that is a little longer needs no new grid
HOST_MEMORY = 2 * 2**30
"""Bytes that caches may take where the platform does not report its memory."""
ROWS = {"cpu": 32, "gpu": 1024, "tpu": 1024}
"""The most rows by default. On accelerators it is memory that limits them: a step of decoding reads the weights once,
however many rows there are."""
LIVE_ROWS = {"cpu": 32, "gpu": 256, "tpu": 256}
"""The same of a session. A step reads the prefixes of all slots, and every request waits for each step."""
UNEVEN = 1.25
"""How many times the mean the most questions about a prefix are where their numbers count as uneven."""
FIRST_WAVE = 0.9
"""Where they are uneven: rows of a slot, as a share of the mean number of questions. A slot keeps all its rows until
its last answer ends, so rows for the most questions stand idle in most slots; the others begin as rows get free."""
MOST_AHEAD = 512
"""Prefixes whose media are read ahead at most: 1.2 MB of pixels for a video of 8 frames."""


@dataclass(frozen=True)
class GridShape:
    """How large a grid is; every number is a dimension of what is compiled.

    Attributes:
      shards: W, what the data axis of the mesh splits a batch into.
      slots: P, the slots of each shard; there are W × P.
      rows: R, the rows of each slot.
      prefix: positions of a slot.
      question: positions of a row for its question.
      answer: positions of a row for its answer.
    """

    shards: int
    slots: int
    rows: int
    prefix: int
    question: int
    answer: int

    @property
    def prefixes(self) -> int:
        """The prefixes held at a time: W × P, one in each slot."""
        return self.shards * self.slots

    @property
    def batch(self) -> int:
        """Rows in all: B."""
        return self.prefixes * self.rows


@dataclass(frozen=True)
class Branches:
    """What the programs of a grid can do: without any of these less is compiled.

    Attributes:
      draw: rows may draw their tokens.
      penalise: rows may have penalties and biases.
      logprobs: rows may want log-probabilities.
    """

    draw: bool = True
    penalise: bool = True
    logprobs: bool = True


PLAIN = Branches(draw=False, penalise=False, logprobs=False)
"""Programs that take the likeliest token, and do nothing else."""


@dataclass(frozen=True)
class Demand:
    """The sizes of the questions that a grid is chosen for.

    Attributes:
      prefix: tokens of the oldest prefix.
      questions: the number of questions about each prefix.
      question, answer: tokens of the longest question and answer.
    """

    prefix: int
    questions: Sequence[int]
    question: int
    answer: int


def token_bytes(config: TextConfig, dtype: npt.DTypeLike, *, int8: bool = False) -> int:
    """Returns the bytes of one token's keys and values in all layers: 512 KiB for Vicuna-7B in bfloat16."""
    vector = config.head_dim + 4 if int8 else config.head_dim * np.dtype(dtype).itemsize
    return 2 * config.num_hidden_layers * config.num_key_value_heads * vector


def cache_bytes(shape: GridShape, config: TextConfig, dtype: npt.DTypeLike, *, int8: bool) -> int:
    """Returns the bytes of all keys and values of a grid; with `int8`, those of prefixes are int8."""
    prefixes = shape.prefixes * shape.prefix * token_bytes(config, dtype, int8=int8)
    return prefixes + shape.batch * (shape.question + shape.answer) * token_bytes(config, dtype)


CacheMemory = int | Callable[[GridShape], int]
"""Bytes for all caches: a number, or what a grid leaves, whatever its number of slots (`budget.FreeMemory.of_grid`)."""


def choose_shape(
    demand: Demand,
    config: TextConfig,
    dtype: npt.DTypeLike,
    *,
    shards: int,
    max_rows: int,
    memory: CacheMemory,
    int8: bool,
) -> GridShape:
    """Returns the largest grid within `max_rows` and `memory`, no larger than the demand needs.

    Every step computes all rows. A slot has a row for each question about its prefix if these are about as many for all
    prefixes, or if all of them fit at once; otherwise it has fewer.

    Args:
      shards: W, what the mesh splits a batch into.
      max_rows: the most rows of all shards together.
      memory: bytes for all caches.

    Raises:
      ValueError: the memory is too small for one slot with one row in each shard.
    """
    S, Q, A = (
        bucket(max(demand.prefix, 1), PREFIX_BUCKET),
        bucket(max(demand.question, LEAST_QUESTION), QUESTION_BUCKET),
        bucket(demand.answer, TEXT_BUCKET),
    )

    def per_slot(rows: int) -> int:
        return cache_bytes(GridShape(shards, 1, rows, S, Q, A), config, dtype, int8=int8)

    def room(rows: int) -> int:
        return memory if isinstance(memory, int) else memory(GridShape(shards, 1, rows, S, Q, A))

    wanted = -(-len(demand.questions) // shards)
    most = max(demand.questions)
    mean = sum(demand.questions) / len(demand.questions)
    fit = shards * wanted * most <= max_rows and wanted * per_slot(most) <= room(most)
    rows = most if most <= UNEVEN * mean or (fit and most <= 2 * mean) else math.ceil(FIRST_WAVE * mean)
    rows = max(1, min(rows, max_rows // shards))
    while rows > 1 and per_slot(rows) > room(rows):
        rows = (rows + 1) // 2
    if per_slot(rows) > room(rows):
        raise ValueError(
            f"one prefix of {S} positions and one row of {Q + A} on each of {shards} batch shards take "
            f"{per_slot(rows) / 2**20:.0f} MiB of keys and values, and there are {room(rows) / 2**20:.0f} MiB for "
            "them: raise memory=, shorten prompts and answers, or keep prefixes in int8"
        )
    slots = max(1, min(wanted, max_rows // (shards * rows), room(rows) // per_slot(rows)))
    return GridShape(shards, slots, rows, S, Q, A)


def description(shape: GridShape, config: TextConfig, dtype: npt.DTypeLike, *, int8: bool) -> str:
    """Returns a line that describes a grid."""
    size = cache_bytes(shape, config, dtype, int8=int8)
    kind = "int8 and " * int8 + np.dtype(dtype).name
    return (
        f"{shape.prefixes} prefixes of {shape.prefix} positions with {shape.rows} rows of "
        f"{shape.question} + {shape.answer} each: {shape.batch} rows, {size / 2**20:.0f} MiB of keys and values "
        f"in {kind}"
    )
