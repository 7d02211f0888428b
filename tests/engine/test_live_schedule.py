"""A live schedule decides alone: requests that come and are cancelled at any time, and the rules one by one."""

import random

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.engine.simulated import Media, Question, Simulation, limits
from videollava_jax.engine import events
from videollava_jax.engine.schedule import LIVE_STEPS, Schedule
from videollava_jax.engine.sizes import Branches, GridShape

CLIPS = "abcdefgh"
GRID = GridShape(shards=1, slots=2, rows=3, prefix=320, question=64, answer=64)


class Live(Simulation):
    """One session: requests come, some of them are cancelled and pins released, between any two actions."""

    def __init__(self, requests, media, limits, *, cancelled=(), order=None, rush=0.2):
        super().__init__(requests, media, limits, order=order or random.Random(0))
        self.rush = rush  # the probability that a request comes, or something else happens, before the next action
        self.schedule = Schedule(limits)
        self.shape, self.branches = limits.grid, Branches()
        self.waiting, self.cancelled, self.gone = list(requests), set(cancelled), []
        self.come, self.by_host = [], set()
        self.pins, self.let_go = {}, set()
        self.scored_since_decoding, self.prefilled_since_decoding = set(), False

    def run(self):
        exhausted = False
        while not isinstance(action := self.schedule.next(), events.Finish):
            if isinstance(action, events.Wait) and not self.under_way and not exhausted and not self.waiting:
                self._nothing_leaks()
                self.schedule.take(events.Exhausted())
                exhausted = True
                continue
            getattr(self, f"_{type(action).__name__}")(action)
            while self.under_way and self.order.random() < self.rush:
                self._deliver()
            while self.waiting and self.order.random() < self.rush:
                self._come()
            while self.pins and self.order.random() < 0.02:
                self.release(self.order.choice(list(self.pins)))
        assert not self.rows
        assert len(self.results) == len(self.requests)
        return self

    def _come(self):
        request = self.waiting.pop(0)
        refused = isinstance(request, str)
        self.come.append(request)
        self.schedule.take(events.Refused(request, ValueError("no")) if refused else events.Arrived(request))
        for question in [q for q in self.come if not isinstance(q, str) and q.id in self.cancelled]:
            if self.order.random() < 0.3:
                self.cancel(question)
        pins = [q for q in self.come if not isinstance(q, str) and q.task == "pin" and q.id not in self.results]
        for question in pins:
            if self.order.random() < 0.05:
                self.gone.append(question)
                self.release(question)

    def cancel(self, question):
        self.cancelled.discard(question.id)
        self.gone.append(question)
        self.schedule.take(events.Cancelled(question, "nobody wants it", "cancelled"))

    def release(self, question):
        """Lets a prefix go, or a pin whose prefix is not there yet; a second time nothing happens."""
        for _ in range(self.order.randrange(1, 3)):
            self.schedule.take(events.Released(question))
        self.pins.pop(question, None)
        self.let_go.add(question)

    def _nothing_leaks(self):
        """All requests have ended, and what is still taken is pinned."""
        assert not self.rows
        slots = self.schedule.slots
        assert not any(slots.rows)
        assert not slots.cached
        assert all(slot.group is None for slot in slots.slots)
        assert {question for slot in slots.slots for question in slot.pins} == self.pins.keys()
        usage = self.schedule.usage
        assert (usage.reading, usage.running, usage.slots_in_use) == (0, 0, sum(bool(s.pins) for s in slots.slots))
        for question in list(self.pins):
            self.release(question)
        assert self.schedule.usage.slots_in_use == 0

    def _holds(self, slot, question):
        """A prefix in a slot is the one that the question is about, and as long as it says."""
        assert slot.clip == question.clip
        return slot

    def _Prefill(self, action):
        P = self.shape.slots
        for shard in range(self.shape.shards):
            assert not self.schedule.slots.slots[shard * P + action.slot].pins, "a pinned prefix goes"
        if self.rows and self.prefilled_since_decoding:
            groups = [slot.group for slot in self.schedule.slots.of_index(action.slot) if slot.group is not None]
            groups += [group for group in self.schedule._groups if isinstance(group.media, Media)]
            waiting = sum(len(group.waiting) for group in groups)
            assert waiting > len(self.rows), "rows that are being answered wait for two prefills, and are not the fewer"
        self.prefilled_since_decoding = True
        super()._Prefill(action)

    def _Score(self, action):
        question, prefix = action.question, self.slots[action.slot][action.shard]
        assert question.task == "score"
        self._holds(prefix, question)
        assert action.prefix.tokens == prefix.tokens
        if self.rows:  # a score that came before they were begun is none that they have waited for
            assert (action.slot, action.shard) not in self.scored_since_decoding, "rows wait for two scores of a slot"
            self.scored_since_decoding.add((action.slot, action.shard))
        self._result(question.id, "answer")

    def _KeepPrefix(self, action):
        assert action.question.task == "pin"
        assert any(prefix.clip == action.question.clip for index in self.slots.values() for prefix in index)
        self._result(action.question.id, "answer")
        if action.question not in self.let_go:  # while the action was on its way
            self.pins[action.question] = True
        assert len({question.clip for question in self.pins}) < self.shape.slots

    def _StopReading(self, action):
        if self.order.random() < 0.7:  # otherwise a thread has begun
            reading = [e for e in self.under_way if isinstance(e, events.MediaRead) and e.key == action.key]
            self.under_way = [event for event in self.under_way if event not in reading]

    def _TakeRequest(self, action):
        raise AssertionError("a live schedule takes no requests")

    def _Wait(self, action):
        if self.waiting:
            self._come()
        else:
            super()._Wait(action)

    def _Decode(self, action):
        assert action.steps == LIVE_STEPS
        self._none_could_begin()
        self.scored_since_decoding, self.prefilled_since_decoding = set(), False
        super()._Decode(action)

    def _none_could_begin(self):
        """No question waits for a row while its slot has a free one."""
        R = self.shape.rows
        for number, slot in enumerate(self.schedule.slots.slots):
            if slot.group is not None and any(question.task == "answer" for question in slot.group.waiting):
                rows = range(number * R, (number + 1) * R)
                assert all(row in self.rows for row in rows), "a free row was left while it decodes"

    def _EndRows(self, action):
        for row in action.rows:
            if row in self.rows:  # of a question that nobody wants any more
                assert self.rows[row] in self.gone
                del self.rows[row], self.written[row]
            else:
                assert row in self.by_host
        self.trace.append(("end", action.rows))


def live(**changes):
    return limits(**{"grid": GRID} | changes)


@st.composite
def questions(draw, i, clips):
    task = draw(st.sampled_from(["answer", "answer", "answer", "score", "pin"]))
    clip, tokens = draw(st.sampled_from(clips)), draw(st.integers(1, 70))
    if task != "answer":
        unreadable = draw(st.integers(0, 9)) == 0
        return Question(id=str(i), clip=clip, tokens=tokens, task=task, answer_tokens=0, unreadable=unreadable)
    answer_tokens = draw(st.integers(1, 70))
    return Question(
        id=str(i),
        clip=clip,
        tokens=tokens,
        answer_tokens=answer_tokens,
        cut_to_fit=draw(st.booleans()),
        draws=draw(st.booleans()),
        wants_logprobs=draw(st.booleans()),
        length=draw(st.integers(1, answer_tokens)),
        stop=draw(st.none() | st.integers(1, answer_tokens)),
        finite=draw(st.integers(0, 9)) > 0,
        unreadable=draw(st.integers(0, 9)) == 0,
    )


@st.composite
def sessions(draw):
    count, clips = draw(st.integers(0, 32)), CLIPS[: draw(st.integers(1, len(CLIPS)))]
    requests = [f"refused {i}" if draw(st.integers(0, 9)) == 0 else draw(questions(i, clips)) for i in range(count)]
    media = {
        clip: ValueError("broken")
        if draw(st.integers(0, 9)) == 0
        else Media(clip, draw(st.integers(0, 325)), draw(st.sampled_from(["video", "image"])))
        for clip in CLIPS
    }
    grid = GridShape(draw(st.integers(1, 2)), draw(st.integers(1, 5)), draw(st.integers(1, 4)), 320, 64, 64)
    chosen = live(shards=grid.shards, grid=grid, positions=draw(st.sampled_from([250, 4096])))
    cancelled = [str(i) for i in range(count) if draw(st.integers(0, 3)) == 0]
    rush = draw(st.sampled_from([0.1, 0.3, 0.95]))
    return {"requests": requests, "media": media, "limits": chosen, "cancelled": cancelled, "rush": rush}


DRAWN = {"session": sessions(), "seed": st.integers(0, 2**32)}
DRAWING = {"deadline": None, "phases": [Phase.explicit, Phase.generate], "suppress_health_check": list(HealthCheck)}


@settings(max_examples=400, derandomize=True, **DRAWING)
@given(**DRAWN)
def test_a_drawn_session(session, seed):
    check_session(session, seed)


@pytest.mark.slow
@settings(max_examples=10_000, **DRAWING)
@given(**DRAWN)
def test_ten_thousand_drawn_sessions(session, seed):
    check_session(session, seed)


def check_session(session, seed):
    """One result a request, no row used twice, none left free for a waiting question; what fits is answered."""
    done = Live(**session, order=random.Random(seed)).run()
    gone = {question.id for question in done.gone}
    for question in session["requests"]:
        if isinstance(question, str):
            continue
        media = session["media"][question.clip]
        fails = question.unreadable or isinstance(media, ValueError) or not question.finite
        positions, grid = session["limits"].positions, session["limits"].grid
        if not fails:
            fails = media.tokens + question.tokens + question.required_tokens > positions
            fails |= media.tokens > grid.prefix or question.tokens > grid.question
            fails |= question.answer_tokens > grid.answer
        if question.task == "pin" and "pinned prefixes" in done.results[question.id]:
            continue  # others were there before
        if question.id in gone:
            assert not fails or done.results[question.id] != "answer"
        else:
            assert (done.results[question.id] == "answer") == (not fails)


def answered(schedule):
    """Carries out actions until the schedule waits or decodes; returns them all."""
    actions = []
    while not isinstance(action := schedule.next(), events.Wait | events.Decode):
        actions.append(action)
        if isinstance(action, events.Identify):
            schedule.take(events.Identified(action.question, action.question.clip))
    return [*actions, action]


def arrive(schedule, *questions):
    for question in questions:
        schedule.take(events.Arrived(question))
    return answered(schedule)


def decoded(schedule, *ended):
    schedule.take(events.RowsEnded(tuple(events.EndedRow(row, [1]) for row in ended)))
    return answered(schedule)


def kinds(actions):
    return [type(action).__name__ for action in actions]


def ask(id, **changes):
    return Question(id=id, clip=id[0], **{"answer_tokens": 60, "length": 60} | changes)


def test_a_late_question_about_a_busy_clip_begins_before_the_next_steps():
    """Whatever its neighbours still have to write."""
    made = Schedule(live())
    arrive(made, ask("a0"))
    made.take(events.MediaRead("a", Media("a")))
    assert kinds(answered(made)) == ["Prefill", "Begin", "Decode"]
    late = ask("a1")
    made.take(events.Arrived(late))
    actions = decoded(made)
    assert kinds(actions) == ["Identify", "Begin", "Decode"]
    assert actions[1].questions == (None, late, None)


def test_nobody_waits_for_the_media_of_another():
    made = Schedule(live())
    assert kinds(arrive(made, ask("a0"), ask("b0"))) == ["Identify", "Identify", "ReadMedia", "ReadMedia", "Wait"]
    made.take(events.MediaRead("b", Media("b")))
    actions = answered(made)
    assert kinds(actions) == ["Prefill", "Begin", "Decode"]
    assert actions[0].prefixes == (Media("b"),)


def test_rows_wait_for_one_prefill_and_for_more_while_more_questions_wait():
    """A step costs nearly the same with few rows."""
    made = Schedule(live(grid=GridShape(shards=1, slots=5, rows=3, prefix=320, question=64, answer=64)))
    arrive(made, ask("a0"), ask("a1"))
    made.take(events.MediaRead("a", Media("a")))
    assert kinds(answered(made)) == ["Prefill", "Begin", "Decode"]
    for clip in "bcde":
        made.take(events.Arrived(ask(f"{clip}0")))
    decoded(made)
    for clip in "bcde":
        made.take(events.MediaRead(clip, Media(clip)))
    assert kinds(decoded(made)) == ["Prefill", "Prefill", "Begin", "Begin", "Decode"]
    assert kinds(decoded(made)) == ["Prefill", "Begin", "Decode"]
    assert kinds(decoded(made)) == ["Prefill", "Begin", "Decode"]


def test_nobody_waits_for_another_to_be_identified():
    made = Schedule(live())
    slow, quick = ask("a0"), ask("b0")
    for question in (slow, quick):
        made.take(events.Arrived(question))
    assert kinds([made.next(), made.next(), made.next()]) == ["Identify", "Identify", "Wait"]
    made.take(events.Identified(quick, "b"))
    assert made.next() == events.ReadMedia("b", quick)


def test_a_prefix_stays_until_its_slot_is_needed_the_one_used_least_recently_first():
    made = Schedule(live())
    for clip in "ab":
        arrive(made, ask(f"{clip}0"))
        made.take(events.MediaRead(clip, Media(clip)))
        answered(made)
        decoded(made, 0 if clip == "a" else 3)
    assert kinds(arrive(made, ask("a1"))) == ["Identify", "Begin", "Decode"], "neither read nor computed again"
    decoded(made, 0)
    arrive(made, ask("c0"))
    made.take(events.MediaRead("c", Media("c")))
    assert answered(made)[0] == events.Prefill(1, (Media("c"),)), "b was used before a"


@pytest.mark.parametrize("stage", ["arrived", "identified", "read", "waiting", "decoding"])
def test_a_cancelled_question_frees_what_it_holds(stage):
    made = Schedule(live())
    question, other = ask("a0"), ask("b0")
    made.take(events.Arrived(question))
    assert made.next() == events.Identify(question)
    if stage != "arrived":
        made.take(events.Identified(question, "a"))
        assert made.next() == events.ReadMedia("a", question)
    if stage in ("read", "decoding", "waiting"):
        made.take(events.MediaRead("a", Media("a")))
    row = None
    if stage == "waiting":
        neighbours = [ask(f"a{i}") for i in (1, 2, 3)]
        for neighbour in neighbours:
            made.take(events.Arrived(neighbour))
        answered(made)
        question = neighbours[-1]  # three rows are taken
        made.take(events.RowsEnded(()))
    if stage == "decoding":
        assert kinds(answered(made)) == ["Prefill", "Begin", "Decode"]
        made.take(events.RowsEnded(()))
        row = 0
    made.take(events.Cancelled(question, "nobody wants it", "cancelled"))
    if row is not None:
        assert made.next() == events.EndRows((row,))
    if stage == "identified":
        assert made.next() == events.StopReading("a")
    failed = made.next()
    assert (failed.id, failed.error, failed.cause) == (question.id, "nobody wants it", "cancelled")
    if stage == "waiting":
        assert not any(slot.group and slot.group.waiting for slot in made.slots.slots)
        return
    assert not made.slots.busy
    made.take(events.Identified(question, "a"))  # what was under way may still come
    made.take(events.MediaRead("a", Media("a")))
    assert isinstance(made.next(), events.Wait)
    made.take(events.Cancelled(question, "again", "cancelled"))
    assert isinstance(made.next(), events.Wait)
    arrive(made, other)
    made.take(events.MediaRead("b", Media("b")))
    assert kinds(answered(made)) == ["Prefill", "Begin", "Decode"]


@pytest.mark.parametrize(
    ("question", "media", "message"),
    [
        (ask("a0", tokens=65), None, r"a question of 65 tokens and an answer of up to 60: expected at most 64 and 64"),
        (ask("a0", answer_tokens=65), None, r"an answer of up to 65: expected at most 64 and 64"),
        (ask("a0"), Media("a", 321), r"of 321 tokens: expected at most 320, for which the engine was started"),
    ],
    ids=["question", "answer", "prefix"],
)
def test_what_does_not_fit_the_fixed_sizes_fails_alone(question, media, message):
    made = Schedule(live())
    actions = arrive(made, question)
    if media is not None:
        made.take(events.MediaRead("a", media))
        actions = answered(made)
    with pytest.raises(ValueError, match=message):
        raise ValueError(next(action.error for action in actions if isinstance(action, events.Fail)))
    arrive(made, ask("b0"))
    made.take(events.MediaRead("b", Media("b")))
    assert kinds(answered(made)) == ["Prefill", "Begin", "Decode"]
