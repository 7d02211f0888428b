"""The schedule driven by simulated media and a simulated device, which check every action. Nothing is compiled."""

import random
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from videollava_jax.config import TextConfig
from videollava_jax.engine import events
from videollava_jax.engine.schedule import Limits, Schedule
from videollava_jax.engine.sizes import choose_shape

TEXT = TextConfig(num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1, hidden_size=16, head_dim=16)


@dataclass(frozen=True, eq=False, kw_only=True)
class Question:
    """A question, and what will happen to it.

    Attributes:
      clip: what it is about.
      cut_to_fit: it may end earlier where the model has no room for `answer_tokens`.
      length: tokens after which the device ends its answer, at most `answer_tokens`.
      stop: tokens after which the host finds a stop string.
      finite: otherwise its logits are not.
      unreadable: its file is gone when it is hashed.
    """

    id: str
    clip: str
    tokens: int = 5
    answer_tokens: int = 8
    cut_to_fit: bool = False
    draws: bool = False
    penalises: bool = False
    wants_logprobs: bool = False
    task: str = "answer"
    length: int = 4
    stop: int | None = None
    finite: bool = True
    unreadable: bool = False

    @property
    def required_tokens(self):
        return min(1, self.answer_tokens) if self.cut_to_fit else self.answer_tokens

    @property
    def stops(self):
        return self.stop is not None


@dataclass(frozen=True)
class Media:
    """The media of a prefix: what the schedule knows of them, and the clip."""

    clip: str
    tokens: int = 40
    signature: str = "video"
    frames: tuple = ()


def limits(**changes):
    return Limits(**{"shards": 1, "window": 100, "ahead": 100, "positions": 4096} | changes)


def schedule(limits, max_rows=8, memory=1 << 30):
    """A schedule whose grids are those of the engine."""

    def choose(demand):
        options = {"shards": limits.shards, "max_rows": max(max_rows, limits.shards), "memory": memory, "int8": False}
        return choose_shape(demand, TEXT, "float32", **options)

    return Schedule(limits, choose)


@dataclass
class Simulation:
    """One run.

    Attributes:
      requests: questions, and ids of requests that cannot be prepared.
      media: of each clip, or the error that reading them raises.
      limits: of the schedule.
      order: says which media are ready first, and when.
      trace: what was decided for the device, and the results.
      results: "answer" or the error, by id.
    """

    requests: list
    media: dict
    limits: Limits
    order: random.Random = field(default_factory=lambda: random.Random(0))
    max_rows: int = 8
    trace: list = field(default_factory=list)
    results: dict = field(default_factory=dict)

    def __post_init__(self):
        self.schedule = schedule(self.limits, self.max_rows)
        self.incoming = iter(self.requests)
        self.shape, self.slots, self.rows = None, {}, {}
        self.under_way, self.written, self.begun = [], {}, set()
        self.taken, self.read, self.prefilled = 0, Counter(), Counter()

    def run(self):
        """Carries out actions until the schedule has finished; checks that each request has one result."""
        while not isinstance(action := self.schedule.next(), events.Finish):
            getattr(self, f"_{type(action).__name__}")(action)
            while self.under_way and self.order.random() < 0.3:
                self._deliver()
        assert not self.rows
        ids = [request if isinstance(request, str) else request.id for request in self.requests]
        assert self.results.keys() == set(ids)
        assert len(self.results) == len(ids)
        return self

    @property
    def decisions(self):
        """The trace without errors, which are given at once when they are known."""
        return [event for event in self.trace if event[0] != "result" or event[2] == "answer"]

    def _deliver(self):
        """Any of the events that are under way comes next."""
        self.schedule.take(self.under_way.pop(self.order.randrange(len(self.under_way))))

    # ── actions that are answered ──

    def _TakeRequest(self, action):
        waiting = self.taken - len(self.begun) - sum(id not in {q.id for q in self.begun} for id in self.results)
        assert waiting < self.limits.window
        request = next(self.incoming, None)
        if request is None:
            self.schedule.take(events.Exhausted())
            return
        self.taken += 1
        refused = isinstance(request, str)
        self.schedule.take(events.Refused(request, ValueError("no")) if refused else events.Arrived(request))

    def _Identify(self, action):
        question = action.question
        key = OSError("gone") if question.unreadable else ("key", question.clip)
        self.under_way.append(events.Identified(question, key))

    def _ReadMedia(self, action):
        assert action.key == ("key", action.question.clip)
        self.read[action.question.clip] += 1
        self.under_way.append(events.MediaRead(action.key, self.media[action.question.clip]))

    def _Wait(self, action):
        assert self.under_way, "it waits for what nobody is doing"
        self._deliver()

    def _Decode(self, action):
        assert self.rows
        assert dict(action.rows) == self.rows
        assert 1 <= action.enough <= self.shape.batch
        assert action.steps >= 1
        self.trace.append(("decode", action.steps, action.enough, tuple(action.rows)))
        ended = {}
        for _ in range(action.steps):
            ended |= {row: False for row, q in self.rows.items() if self.written[row] >= q.length or not q.finite}
            if len(ended) >= action.enough:
                break
            for row in self.rows.keys() - ended.keys():
                self.written[row] += 1
        for row, question in self.rows.items():  # the host looks at the tokens afterwards
            if question.stops and question.stop <= self.written[row]:
                ended[row] = row not in ended
                self.written[row] = question.stop
        report = [
            events.EndedRow(row, np.zeros(self.written[row], np.int32), self.rows[row].finite, by_host)
            for row, by_host in sorted(ended.items())
        ]
        self.by_host = {row for row, by_host in ended.items() if by_host}
        for row in ended:
            del self.rows[row], self.written[row]
        self.schedule.take(events.RowsEnded(tuple(report)))

    # ── actions of the device ──

    def _MakeGrid(self, action):
        assert not self.rows, "rows are being answered"
        self.trace.append(("grid", action.shape, action.branches))
        self.shape, self.slots = action.shape, {}
        self.branches = action.branches

    def _rows_of(self, slot):
        P, R = self.shape.slots, self.shape.rows
        return [(shard * P + slot) * R + i for shard in range(self.shape.shards) for i in range(R)]

    def _Prefill(self, action):
        assert 0 <= action.slot < self.shape.slots
        assert len(action.prefixes) == self.shape.shards
        assert len({media.signature for media in action.prefixes}) == 1
        assert not set(self._rows_of(action.slot)) & self.rows.keys(), "questions about the old prefixes live"
        assert all(media.tokens <= self.shape.prefix for media in action.prefixes)
        self.prefilled.update({media.clip for media in action.prefixes})
        self.trace.append(("prefill", action.slot, tuple(media.clip for media in action.prefixes)))
        self.slots[action.slot] = action.prefixes

    def _Begin(self, action):
        rows = self._rows_of(action.slot)
        assert len(action.questions) == len(rows)
        assert any(question is not None for question in action.questions)
        self.trace.append(("begin", action.slot, tuple(q and q.id for q in action.questions)))
        for i, (row, question) in enumerate(zip(rows, action.questions, strict=True)):
            if question is None:
                continue
            assert row not in self.rows, "a row is used twice"
            assert question not in self.begun, "a question is answered twice"
            prefix = self.slots[action.slot][i // self.shape.rows]
            assert prefix.clip == question.clip, "the prefix is another's"
            assert question.tokens <= self.shape.question
            assert question.answer_tokens <= self.shape.answer
            assert self.branches.draw or not question.draws
            assert self.branches.penalise or not question.penalises
            assert self.branches.logprobs or not question.wants_logprobs
            assert prefix.tokens + question.tokens + question.required_tokens <= self.limits.positions
            self.begun.add(question)
            self.rows[row], self.written[row] = question, 1

    def _EndRows(self, action):
        assert set(action.rows) == self.by_host
        self.trace.append(("end", action.rows))

    def _Answer(self, action):
        question = action.question
        assert question in self.begun
        assert action.prefix.tokens == self.media[question.clip].tokens
        expected = question.length if question.stop is None else min(question.stop, question.length)
        assert len(action.tokens) == expected
        self._result(question.id, "answer")

    def _Fail(self, action):
        self._result(action.id, action.error)

    def _result(self, id, what):
        assert id not in self.results, "two results"
        self.results[id] = what
        self.trace.append(("result", id, what))
