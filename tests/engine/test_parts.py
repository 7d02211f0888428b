"""Parts of a grid: which one is decoded, that it has every busy row, and that answers do not depend on it."""

import random
import threading
from dataclasses import replace

import pytest

from tests.engine.jobs import clip, generated, question
from videollava_jax.engine import Engine, part_programs
from videollava_jax.engine.compilations import compilations
from videollava_jax.engine.parts import Part, beginning, beginnings_of, lengths_of, parts_of, smallest
from videollava_jax.engine.sizes import GridShape

SECONDS = 120
GRID = GridShape(shards=2, slots=16, rows=8, prefix=2176, question=128, answer=32)


def test_the_parts_of_a_grid():
    """On a CPU the cost of a step follows its rows; elsewhere a part has all rows of its slots."""
    assert parts_of(GRID, "tpu") == (Part(16, 8), Part(4, 8))
    assert parts_of(GRID, "cpu") == tuple(Part(slots, rows) for slots in (16, 4) for rows in (8, 4, 2, 1))
    few = GridShape(shards=1, slots=3, rows=3, prefix=64, question=64, answer=64)
    assert parts_of(few, "cpu") == (Part(3, 3), Part(3, 2), Part(3, 1))


def test_how_many_questions_are_begun_at_a_time():
    one = GridShape(shards=1, slots=2, rows=8, prefix=64, question=64, answer=64)
    assert beginnings_of(one, "cpu") == (1, 2, 4, 8)
    assert beginnings_of(one, "gpu") == ()
    assert beginnings_of(GRID, "cpu") == ()
    assert beginnings_of(GridShape(1, 2, 3, 64, 64, 64), "cpu") == (1, 2)
    # A quarter of a call at most is padding.
    assert [beginning((1, 2, 4, 8), count) for count in range(1, 10)] == [1, 2, 4, 4, 4, 8, 8, 8, 8]
    assert [beginning((1, 2), count) for count in (1, 2, 3)] == [1, 2, 2]


def test_the_lengths_to_which_questions_are_padded():
    """Few on a CPU, where each is a program for several numbers of questions."""
    assert lengths_of(GRID, "tpu") == (32, 64, 96, 128)
    assert lengths_of(GRID, "cpu") == (24, 32, 64, 128)
    assert lengths_of(GridShape(1, 2, 3, 64, 150, 64), "cpu") == (24, 32, 64, 128, 160)
    assert lengths_of(GridShape(1, 2, 3, 64, 5, 64), "cpu") == (24, 32)


@pytest.mark.parametrize("seed", range(200))
def test_a_part_has_all_busy_rows_and_none_is_smaller(seed):
    draw = random.Random(seed)
    shape = GridShape(draw.randint(1, 3), draw.randint(1, 20), draw.randint(1, 9), 320, 64, 64)
    parts = parts_of(shape, draw.choice(["cpu", "tpu"]))
    rows = draw.sample(range(shape.batch), draw.randint(1, shape.batch))
    part, slots = smallest(shape, parts, rows)
    assert part in parts
    assert len(slots) == len(set(slots)) == part.slots
    assert all(0 <= slot < shape.slots for slot in slots)
    has = {
        (shard * shape.slots + slot) * shape.rows + row
        for shard in range(shape.shards)
        for slot in slots
        for row in range(part.rows)
    }
    assert has >= set(rows)
    busy = len({row // shape.rows % shape.slots for row in rows})
    highest = 1 + max(row % shape.rows for row in rows)
    for other in parts:
        if (
            (other.slots, other.rows) != (part.slots, part.rows)
            and other.slots <= part.slots
            and other.rows <= part.rows
        ):
            assert other.slots < busy or other.rows < highest


@pytest.fixture(scope="module")
def session(tiny_model, tiny_processor):
    """A session of 8 slots with 2 rows each, warm, whose answers are as long as they may be."""
    with Engine(tiny_model, tiny_processor, max_rows=16, suppress_tokens=[2]).session(
        rows=2, longest_answer=32
    ) as made:
        assert made.shape.slots == 8
        made.warm_up()
        yield made


@pytest.fixture
def submitting():
    """Held while requests are submitted: nothing is decoded meanwhile, so they all begin within one chunk."""
    return threading.Lock()


@pytest.fixture
def decoded(monkeypatch, submitting):
    """The slots and rows of each call that decodes a part."""
    calls, real = [], part_programs.decode_part

    def decode_part(*given, **options):
        with submitting:
            calls.append((tuple(given[-1].tolist()), options["rows"]))
        return real(*given, **options)

    monkeypatch.setattr(part_programs, "decode_part", decode_part)
    return calls


def test_one_question_computes_one_row_of_few_slots(session, decoded):
    session.submit(question("a", "what?", videos=[clip(3)], max_new_tokens=9)).result(SECONDS)
    assert decoded
    assert all(len(slots) == 2 and rows == 1 for slots, rows in decoded)


def test_answers_are_those_of_generate_whatever_part_is_decoded(
    session, decoded, submitting, tiny_model, tiny_processor
):
    """Questions about few and many clips at a time; some end early, so the parts change meanwhile."""
    pins = [session.pin(question("pin", "?", videos=[clip(seed)])) for seed in range(6)]
    for pin in pins:
        pin.result(SECONDS)
    draw, answered, before = random.Random(3), [], compilations()
    drawn = {"do_sample": True, "temperature": 1.5, "top_k": 9}
    for count, questions_per_clip in ((1, 1), (4, 2), (6, 1), (12, 2)):
        asked = [
            question(
                f"{count}-{i}",
                draw.choice(["what?", "which way does it move?", "what colour?"]),
                videos=[clip(i // questions_per_clip)],
                max_new_tokens=2 if count == 12 and i % 2 else 30,
                seed=i,
                options=draw.choice([{}, drawn, {"repetition_penalty": 1.4}]),
            )
            for i in range(count)
        ]
        with submitting:
            tickets = [session.submit(each) for each in asked]
        answered += zip(asked, [ticket.result(SECONDS) for ticket in tickets], strict=True)
    assert compilations() == before
    for each, result in answered:
        options = {**each.options, "suppress_tokens": [2]}
        assert result.token_ids == generated(tiny_model, tiny_processor, replace(each, options=options))
    for pin in pins:
        pin.release()
    assert {(len(slots), rows) for slots, rows in decoded} >= {(2, 1), (2, 2), (8, 1)}
