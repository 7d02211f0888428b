"""The parts of a grid that programs compute: slots whose questions begin together, busy slots and rows. No JAX."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from videollava_jax.engine.sizes import TEXT_BUCKET, GridShape
from videollava_jax.generation.buckets import bucket

SHARE = 4
"""A part of the slots is a copy of their prefixes while it decodes, so it is at most one slot in four."""
MOST_AT_ONCE = 8
"""Questions that one call begins at most where the cost of a call follows their number."""
SHORT = 24
"""Tokens to which short questions are padded where the cost of a call follows their number."""

SLOTS_AT_ONCE = 4
READ_LONGER = 256
"""Tokens of each shard. In the time that accelerators need to compute fewer, they do not even read the weights."""


@dataclass(frozen=True)
class Part:
    """Which slots and rows a call decodes; every number is a dimension of what is compiled.

    Attributes:
      slots: of each shard.
      rows: the first ones of each slot.
    """

    slots: int
    rows: int


def parts_of(shape: GridShape, platform: str) -> tuple[Part, ...]:
    """Returns the parts of a grid that are compiled, the whole grid first.

    A step reads the prefixes of all its slots, wanted or not. On a CPU its cost also follows the number of rows;
    accelerators read the weights whatever that is.

    Args:
      platform: of the devices, as JAX names it.
    """
    slots = [shape.slots]
    if shape.slots >= SHARE:
        slots.append(shape.slots // SHARE)
    rows = [shape.rows]
    while platform == "cpu" and rows[-1] > 1:
        rows.append((rows[-1] + 1) // 2)
    return tuple(Part(slot, row) for slot in slots for row in rows)


def beginnings_of(shape: GridShape, platform: str) -> tuple[int, ...]:
    """Returns the numbers of questions that are begun by one call, smallest first; none where a call begins all rows.

    Args:
      platform: of the devices, as JAX names it.
    """
    if platform != "cpu" or shape.shards > 1:
        return ()
    return tuple(size for size in (1, 2, 4, MOST_AT_ONCE) if size <= shape.rows)


def lengths_of(shape: GridShape, platform: str) -> tuple[int, ...]:
    """Returns the lengths to which questions of a grid with fixed sizes are padded, smallest first.

    Each is a program for every number of questions that begin by one call. On a CPU there are several such numbers, and
    the cost of a call follows the number of tokens: one length is for short questions, as most are; long ones double.

    Args:
      platform: of the devices, as JAX names it.
    """
    longest = bucket(shape.question, TEXT_BUCKET)
    if platform != "cpu":
        return tuple(range(TEXT_BUCKET, longest + 1, TEXT_BUCKET))
    lengths = [SHORT, TEXT_BUCKET]
    while lengths[-1] < longest:
        lengths.append(min(2 * lengths[-1], longest))
    return tuple(lengths)


def beginning(sizes: Sequence[int], questions: int) -> int:
    """Returns how many questions the next call begins: all, where a quarter of the call at most is padding.

    Args:
      sizes: of calls, smallest first.
      questions: that are left, at least one.
    """
    fitting = (size for size in sizes if questions <= size and 4 * questions >= 3 * size)
    return next(fitting, max((size for size in sizes if size <= questions), default=sizes[0]))


def begins_several(platform: str, *, split_memory: bool) -> bool:
    """Whether questions about several prefixes begin by one call.

    On a CPU the cost of a call follows the number of tokens. Where on-chip memory is split, the compiler copies the
    tails of every layer in such a call.

    Args:
      platform: of the devices, as JAX names it.
      split_memory: see `model.kernels.operands.has_split_memory`.
    """
    return platform != "cpu" and not split_memory


def slots_at_once(tokens: int, slots: int) -> int:
    """Returns in how many slots of each shard one call begins questions: one, or `SLOTS_AT_ONCE` for few tokens.

    Args:
      tokens: of the questions in one slot, padded.
      slots: of the grid's shards.
    """
    return SLOTS_AT_ONCE if slots > 1 and tokens * SLOTS_AT_ONCE <= READ_LONGER else 1


def smallest(shape: GridShape, parts: Sequence[Part], rows: Iterable[int]) -> tuple[Part, tuple[int, ...]]:
    """Returns the smallest part that has some rows of a grid, and its slot indices: the busy ones, then idle ones.

    Args:
      parts: to choose from; the first is the whole grid.
      rows: at least one.
    """
    rows = list(rows)
    busy = sorted({row // shape.rows % shape.slots for row in rows})
    highest = 1 + max(row % shape.rows for row in rows)
    fitting = [part for part in parts if part.slots >= len(busy) and part.rows >= highest]
    part = min(fitting, key=lambda each: (each.slots * (shape.prefix + each.rows * shape.answer), each.rows))
    idle = (index for index in range(shape.slots) if index not in busy)
    return part, (*busy, *(index for index, _ in zip(idle, range(part.slots - len(busy)), strict=False)))
