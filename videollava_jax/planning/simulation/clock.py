"""What the schedule's actions take: a device with a queue, host threads that read media, and a clock that they move."""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import cast

import numpy as np

from videollava_jax.engine.events import EndedRow, Event, MediaRead, Question
from videollava_jax.engine.packing import packed_length
from videollava_jax.engine.parts import SLOTS_AT_ONCE, parts_of, smallest
from videollava_jax.engine.sizes import TEXT_BUCKET, GridShape
from videollava_jax.generation.buckets import bucket
from videollava_jax.planning.simulation.programs import ProgramTimes
from videollava_jax.planning.simulation.workload import SimulatedQuestion, Video

CALL_SECONDS = 0.001
"""Of the host for a call of decoding: it waits for the device, reads answers and decides, while the device idles."""


class Host:
    """Threads that read media in the order in which they are asked to, each on a core of its own."""

    def __init__(self, threads: int):
        self._free = [0.0] * threads
        self._events: list[tuple[float, int, Event]] = []
        self._numbers = count()
        self._unwanted: set[Hashable] = set()
        self.busy = 0.0

    def read(self, now: float, key: Hashable, video: Video) -> None:
        """Reads a video as soon as a thread is free."""
        begun = max(now, heapq.heappop(self._free))
        heapq.heappush(self._free, begun + video.seconds)
        self.busy += video.seconds
        self.put(begun + video.seconds, MediaRead(key, video))

    def put(self, at: float, event: Event) -> None:
        """Adds an event that comes at a time."""
        heapq.heappush(self._events, (at, next(self._numbers), event))

    def finished(self, now: float) -> Iterator[Event]:
        """Yields the events that have come by now."""
        while self._events and self._events[0][0] <= now:
            yield heapq.heappop(self._events)[2]

    @property
    def next_at(self) -> float | None:
        """When the next event comes; None if none will."""
        return self._events[0][0] if self._events else None


@dataclass
class Phases:
    """Seconds of the device by program, and what its steps of decoding were worth.

    Attributes:
      seconds: by program.
      calls: by program.
      steps: of decoding.
      row_steps: steps × rows that wrote a token.
      grid_rows: steps × rows that were computed.
      begun_rows, begin_rows: rows that got a question, of those that were computed.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    steps: int = 0
    row_steps: int = 0
    grid_rows: int = 0
    begun_rows: int = 0
    begin_rows: int = 0

    def add(self, name: str, seconds: float) -> None:
        """Counts a call."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        self.calls[name] = self.calls.get(name, 0) + 1


class SimulatedDevice:
    """A device that takes calls one after the other, as JAX dispatches them; only decoding is waited for.

    Attributes:
      free_at: when its last call ends.
      idle: seconds in which it had nothing to do, since its first call.
    """

    def __init__(self, times: ProgramTimes, *, fixed: bool):
        """Begins without a grid.

        Args:
          fixed: work as a session's device does: all rows of a slot begin together, padded to one length, and where
            few slots are busy these are copied and decoded without the others.
        """
        self.times, self.phases, self._fixed = times, Phases(), fixed
        self.free_at, self.idle = 0.0, 0.0
        self._shape: GridShape | None = None
        self._written: dict[int, int] = {}
        self._begun: list[int] = []  # the tokens of slots whose questions begin by the present call

    def make_grid(self, shape: GridShape) -> None:
        """Makes an empty grid."""
        self._shape, self._written, self._begun = shape, {}, []

    def prefill(self, now: float) -> None:
        """Encodes videos and computes their prefixes."""
        self._begun = []
        self._call("encode", now, self.times.encode())
        self._call("prefill", now, self.times.prefill(self._grid))

    def begin(self, now: float, slot: int, questions: Sequence[Question | None]) -> None:
        """Puts questions into rows of the slots of one index: each has its first token then."""
        shape = self._grid
        there = [question for question in questions if question is not None]
        if self._fixed:
            tokens = shape.rows * bucket(max(question.tokens for question in there), TEXT_BUCKET)
            self._call("begin", now, self.times.begin(shape, tokens))
        else:
            each = [questions[first : first + shape.rows] for first in range(0, len(questions), shape.rows)]
            tokens = packed_length(max(sum(q.tokens for q in own if q is not None) for own in each))
            self._call("begin", now, self._begin_seconds(tokens))
        self.phases.begun_rows += len(there)
        self.phases.begin_rows += len(questions)
        for number, question in enumerate(questions):
            if question is not None:
                shard, row = divmod(number, shape.rows)
                self._written[(shard * shape.slots + slot) * shape.rows + row] = 1

    def _begin_seconds(self, tokens: int) -> float:
        """Returns the seconds by which the present call of begin takes longer with the questions of one slot more."""
        shape, before = self._grid, self._begun
        together = [*before, tokens]
        if not before or len(together) > SLOTS_AT_ONCE or self.times.slots_at_once(shape, max(together)) == 1:
            self._begun = [tokens]
            return self.times.begin(shape, tokens)
        self._begun = together
        already = self.times.begin(shape, max(before), SLOTS_AT_ONCE if len(before) > 1 else 1)
        return max(0.0, self.times.begin(shape, max(together), SLOTS_AT_ONCE) - already)

    def decode(self, now: float, steps: int, enough: int, rows: Mapping[int, Question]) -> tuple[EndedRow, ...]:
        """Decodes until `enough` more rows have ended, for `steps` steps at most; returns the rows that have ended."""
        self._begun = []
        to_write = (cast(SimulatedQuestion, question).written - self._written[row] for row, question in rows.items())
        left = sorted(tokens for tokens in to_write if tokens > 0)
        taken = min(steps, left[min(enough, len(left)) - 1]) if left else 0
        shape, copied = self._grid, 0.0
        if self._fixed:
            part, _ = smallest(shape, parts_of(shape, self.times.chip.kind), rows)
            part_shape = replace(shape, slots=part.slots, rows=part.rows)
            copied = 0.0 if part.slots == shape.slots else self.times.copy(part_shape)
            shape = part_shape
        self._call("decode", now, copied + self._steps(shape, taken, rows))
        self.phases.steps += taken
        self.phases.grid_rows += taken * shape.batch
        self.phases.row_steps += sum(min(taken, each) for each in left)
        ended = []
        for row, question in rows.items():
            written = cast(SimulatedQuestion, question).written
            self._written[row] = min(written, self._written[row] + taken)
            if self._written[row] == written:
                ended.append(EndedRow(row, np.zeros(written, np.int32)))
        return tuple(ended)

    def _steps(self, shape: GridShape, steps: int, rows: Mapping[int, Question]) -> float:
        """Returns the seconds of steps: with each of them, rows that have not ended hold one token more."""
        if not self.times.reads_tokens_alone(shape):
            return steps * self.times.decode(shape)
        begun = [(question.tokens, cast(SimulatedQuestion, question).written, row) for row, question in rows.items()]
        seconds = 0.0
        for step in range(steps):
            held = sum(
                tokens + self._written[row] + step
                for tokens, written, row in begun
                if self._written[row] + step < written
            )
            seconds += self.times.decode(shape, held / shape.shards)
        return seconds

    @property
    def _grid(self) -> GridShape:
        assert self._shape is not None, "make_grid comes first"
        return self._shape

    def _call(self, name: str, now: float, seconds: float) -> None:
        if now > self.free_at and self.phases.calls:
            self.idle += now - self.free_at
        self.free_at = max(now, self.free_at) + seconds
        self.phases.add(name, seconds)
