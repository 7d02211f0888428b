"""The schedule decides alone: drawn jobs with simulated media and a simulated device, and the rules one by one."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.simulated import TEXT, Media, Question, Simulation, limits, schedule
from videollava_jax.engine import events
from videollava_jax.engine.packing import packed_length
from videollava_jax.engine.rows import without_padding
from videollava_jax.engine.sizes import Demand, GridShape, cache_bytes, choose_shape

CLIPS = "abcdef"


@st.composite
def questions(draw, i):
    answer_tokens = draw(st.integers(1, 100))
    return Question(
        id=str(i),
        clip=draw(st.sampled_from(CLIPS)),
        tokens=draw(st.integers(1, 100)),
        answer_tokens=answer_tokens,
        cut_to_fit=draw(st.booleans()),
        draws=draw(st.integers(0, 5)) == 0,
        penalises=draw(st.integers(0, 5)) == 0,
        length=draw(st.integers(1, answer_tokens)),
        stop=draw(st.none() | st.integers(1, answer_tokens)),
        finite=draw(st.integers(0, 9)) > 0,
        unreadable=draw(st.integers(0, 9)) == 0,
    )


@st.composite
def jobs(draw):
    """Requests of all kinds, media that can be read or not, and limits."""
    requests = [
        f"refused {i}" if draw(st.integers(0, 9)) == 0 else draw(questions(i)) for i in range(draw(st.integers(0, 24)))
    ]
    media = {
        clip: ValueError("broken")
        if draw(st.integers(0, 5)) == 0
        else Media(clip, draw(st.integers(0, 300)), draw(st.sampled_from(["video", "image"])))
        for clip in CLIPS
    }
    drawn = limits(
        shards=draw(st.integers(1, 3)),
        window=draw(st.sampled_from([1, 2, 5, 100])),
        ahead=draw(st.sampled_from([1, 2, 100])),
        positions=draw(st.sampled_from([200, 4096])),
    )
    return {"requests": requests, "media": media, "limits": drawn, "max_rows": draw(st.integers(1, 12))}


@settings(max_examples=400, deadline=None, derandomize=True)
@given(job=jobs(), seeds=st.tuples(st.integers(0, 2**32), st.integers(0, 2**32)))
def test_a_drawn_job(job, seeds):
    """One result a request, no row or slot used twice, and decisions that do not depend on what is ready first."""
    one, other = (Simulation(**job, order=random.Random(seed)).run() for seed in seeds)
    assert one.decisions == other.decisions
    assert one.results == other.results
    for question in job["requests"]:
        if isinstance(question, Question):
            media = job["media"][question.clip]
            fails = question.unreadable or isinstance(media, ValueError) or not question.finite
            if fails or media.tokens + question.tokens + question.required_tokens > job["limits"].positions:
                assert one.results[question.id] != "answer"
            else:
                assert one.results[question.id] == "answer"


@settings(max_examples=50, deadline=None, derandomize=True)
@given(order=st.permutations([(clip, i) for clip in CLIPS for i in range(4)]), shards=st.integers(1, 3))
def test_each_prefix_is_read_and_prefilled_once(order, shards):
    """Whatever the order of the requests, where the window holds them all."""
    requests = [Question(id=f"{clip}{i}", clip=clip) for clip, i in order]
    media = {clip: Media(clip) for clip in CLIPS}
    done = Simulation(requests, media, limits(shards=shards), max_rows=6).run()
    assert set(done.read.values()) == {1}
    assert set(done.prefilled.values()) == {1}
    assert sum(kind == "grid" for kind, *_ in done.trace) == 1


def started(requests, keys=None, **changes):
    """A schedule that has taken all these requests and asked for their media."""
    made = schedule(limits(**changes))
    incoming = iter(requests)
    actions = []
    while not isinstance(action := made.next(), events.Wait):
        actions.append(action)
        if isinstance(action, events.TakeRequest):
            question = next(incoming, None)
            made.take(events.Exhausted() if question is None else events.Arrived(question))
        elif isinstance(action, events.Identify):
            made.take(events.Identified(action.question, action.question.clip))
    return made, actions


def ask(clips, **changes):
    return [Question(id=f"{clip}{i}", clip=clip, **changes) for i, clip in enumerate(clips)]


def test_it_waits_for_the_media_of_the_first_group_though_others_are_there():
    made, actions = started(ask("ab"))
    assert [a.key for a in actions if isinstance(a, events.ReadMedia)] == ["a", "b"]
    made.take(events.MediaRead("b", Media("b")))
    assert isinstance(made.next(), events.Wait)
    made.take(events.MediaRead("a", Media("a")))
    assert isinstance(made.next(), events.MakeGrid)
    assert made.next() == events.Prefill(0, (Media("a"),))


def test_media_are_read_as_soon_as_their_prefix_is_identified():
    """The others of the window may still be hashed, or not be there yet."""
    made = schedule(limits(window=50))
    assert isinstance(made.next(), events.TakeRequest)
    (question,) = ask("a")
    made.take(events.Arrived(question))
    assert isinstance(made.next(), events.Identify)
    assert isinstance(made.next(), events.TakeRequest)
    made.take(events.Identified(question, "a"))
    assert made.next() == events.ReadMedia("a", question)


def test_questions_are_grouped_in_the_order_in_which_they_came():
    """The second is identified first; its media are read second."""
    made = schedule(limits())
    first, second = ask("ab")
    for question in (first, second):
        assert isinstance(made.next(), events.TakeRequest)
        made.take(events.Arrived(question))
        assert isinstance(made.next(), events.Identify)
    made.take(events.Identified(second, "b"))
    assert isinstance(made.next(), events.TakeRequest)
    made.take(events.Exhausted())
    assert isinstance(made.next(), events.Wait)
    made.take(events.Identified(first, "a"))
    assert [made.next().key, made.next().key] == ["a", "b"]


def test_no_more_media_are_read_than_ahead():
    _, actions = started(ask("abcdef"), ahead=2)
    assert [a.key for a in actions if isinstance(a, events.ReadMedia)] == ["a", "b"]


@pytest.mark.parametrize(
    ("signatures", "expected"), [(("video", "video"), "ab"), (("video", "image"), "aa")], ids=["alike", "other"]
)
def test_the_slots_of_one_index_are_filled_together(signatures, expected):
    """Only media of one signature are encoded together; a slot without a group holds its neighbour's prefix."""
    made, _ = started(ask("ab"), shards=2)
    for clip, signature in zip("ab", signatures, strict=True):
        made.take(events.MediaRead(clip, Media(clip, signature=signature)))
    assert isinstance(made.next(), events.MakeGrid)
    assert "".join(media.clip for media in made.next().prefixes) == expected


def test_a_prefix_that_is_still_in_its_slot_is_not_computed_again():
    """Two clips in turn and two slots; the window holds one question of each at a time."""
    media = {clip: Media(clip) for clip in "ab"}
    done = Simulation(ask("abababab"), media, limits(window=2), max_rows=4).run()
    assert done.prefilled == {"a": 1, "b": 1}


def test_a_question_too_long_for_a_prefix_in_a_slot_fails_alone():
    requests = [*ask("aaa", answer_tokens=60, length=60), Question(id="long", clip="a", tokens=50, answer_tokens=60)]
    done = Simulation(requests, {"a": Media("a")}, limits(window=1, positions=120), max_rows=1).run()
    assert "a prompt of 90 tokens and an answer of up to 60 do not fit the model's 120" in done.results.pop("long")
    assert set(done.results.values()) == {"answer"}


def test_media_that_cannot_be_read_fail_all_their_questions_and_no_others():
    media = {"a": ValueError("broken"), "b": Media("b")}
    done = Simulation(ask("abab"), media, limits()).run()
    assert done.results == {"a0": "broken", "b1": "answer", "a2": "broken", "b3": "answer"}
    assert done.read == {"a": 1, "b": 1}


def test_what_is_no_fault_of_the_media_ends_the_run():
    media = {"a": RuntimeError("a reader that is broken")}
    with pytest.raises(RuntimeError, match="a reader that is broken"):
        Simulation(ask("a"), media, limits()).run()


def test_a_larger_grid_is_made_when_nothing_is_left_in_the_small_one():
    requests = [*ask("aa"), Question(id="large", clip="b", answer_tokens=200)]
    media = {"a": Media("a"), "b": Media("b", tokens=900)}
    done = Simulation(requests, media, limits(window=2)).run()
    grids = [shape for kind, shape, *_ in (event for event in done.trace if event[0] == "grid")]
    assert [(shape.prefix, shape.answer) for shape in grids] == [(64, 32), (960, 224)]


def begun(trace):
    """How many questions began at a time."""
    return [sum(id is not None for id in ids) for kind, _, *rest in trace if kind == "begin" for ids in rest]


@pytest.mark.parametrize(
    ("waiting", "tokens", "expected"),
    [
        (3, 10, [12, 3]),  # all that wait
        (9, 10, [12, 6, 3]),  # half of the rows
        (9, 100, [12, 3, 3, 3]),  # as many tokens as a call is worth
    ],
)
def test_questions_begin_in_the_rows_of_a_busy_slot(waiting, tokens, expected):
    """When enough rows have ended, or no other question waits: three answers end at a time here."""
    requests = [
        Question(id=str(i), clip="a", tokens=tokens, answer_tokens=64, length=4 + i // 3 * 4)
        for i in range(12 + waiting)
    ]
    done = Simulation(requests, {"a": Media("a")}, limits(), max_rows=12).run()
    assert begun(done.trace) == expected


def test_where_more_questions_wait_those_begin_that_fill_their_sequence():
    """Nine of thirty tokens would be padded from 270 to 288; the longer ones take the place of the padding."""
    asked = [Question(id=str(i), clip="a", tokens=30 if i < 12 else 35) for i in range(16)]
    found = without_padding(asked, 9)
    assert sum(question.tokens for question in found) == 285
    assert len({question.id for question in found}) == 9
    assert without_padding(asked[:5], 9) == asked[:5]
    assert without_padding(asked, 0) == []


def exchanged(questions, most):
    """What `without_padding` chooses, by trying every exchange."""
    chosen, others = list(questions[:most]), list(questions[most:])
    total = sum(question.tokens for question in chosen)
    free = packed_length(total) - total if chosen else 0
    while True:
        gains = {
            (i, j): new.tokens - old.tokens
            for i, old in enumerate(chosen)
            for j, new in enumerate(others)
            if 0 < new.tokens - old.tokens <= free
        }
        if not gains:
            return chosen
        (i, j), gain = max(gains.items(), key=lambda item: item[1])
        chosen[i], others[j] = others[j], chosen[i]
        free -= gain


@pytest.mark.parametrize("seed", range(200))
def test_the_best_exchange_is_made_each_time(seed):
    draw = random.Random(seed)
    most = draw.choice([3, 12, 60])
    asked = [Question(id=str(i), clip="a", tokens=draw.randint(1, most)) for i in range(draw.randint(1, 60))]
    rows = draw.randint(1, 25)
    assert without_padding(asked, rows) == exchanged(asked, rows)


@pytest.mark.parametrize(
    ("questions", "memory", "slots", "rows"),
    [
        ([25] * 40, 160, 6, 25),  # alike
        ([10, 40] * 20, 160, 6, 23),  # 0.9 times the mean
        ([10, 40], 100, 2, 40),  # all of them fit at once
        ([1] * 9 + [400], 1000, 10, 37),
    ],
)
def test_rows_of_a_slot_follow_the_numbers_of_questions(questions, memory, slots, rows):
    """Memory is counted in rows here, and a prefix takes two thirds of one."""
    a_row = cache_bytes(GridShape(1, 1, 1, 64, 64, 32), TEXT, "float32", int8=False) // 5 * 3
    demand = Demand(prefix=64, questions=questions, question=64, answer=32)
    options = {"shards": 1, "max_rows": 1024, "int8": False}
    shape = choose_shape(demand, TEXT, "float32", memory=memory * a_row, **options)
    assert (shape.slots, shape.rows) == (slots, rows)


def test_without_requests_it_finishes():
    assert Simulation([], {}, limits()).run().trace == []


def test_an_event_that_nobody_asked_for_is_refused():
    with pytest.raises(AssertionError, match="does not answer"):
        schedule(limits()).take(events.Exhausted())
