"""Questions packed into one sequence: the arrays by hand, and the same tails and first tokens as with padding."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from tests.engine.jobs import clip, generated, question
from tests.small_models import on_mesh, random_model
from videollava_jax.engine import Engine, part_programs
from videollava_jax.engine import device as device_module
from videollava_jax.engine.packing import LEAST_PACKED, packed, packed_length
from videollava_jax.engine.parts import begins_several, slots_at_once
from videollava_jax.engine.sizes import PLAIN, GridShape
from videollava_jax.model.sharding import make_mesh


def test_lengths_have_four_steps_from_one_power_of_two_to_the_next_and_later_eight():
    assert sorted({packed_length(n) for n in range(1, 513)}) == [
        *(32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256),
        *(288, 320, 352, 384, 416, 448, 480, 512),
    ]
    for n in range(1, 5000):
        assert n <= packed_length(n) <= max(LEAST_PACKED, (1.25 if n <= 256 else 1.125) * n)


def test_arrays_by_hand():
    a, b, c = (np.array(ids, np.int32) for ids in ([5, 6], [7], [8, 9, 10]))
    found = packed([a, None, c, None, None, b], shards=2, length=4)
    assert found.ids_WN[:, :6].tolist() == [[5, 6, 8, 9, 10, 0], [7, 0, 0, 0, 0, 0]]
    assert found.place_WN[:, :5].tolist() == [[2, 3, 9, 10, 11], [11, 0, 0, 0, 0]]
    assert found.index_WP.tolist() == [[0, 0, 0, 1, 0, 0, 0, 0, 0, 2, 3, 4], [0] * 12]
    assert found.mask_ET.astype(int).tolist() == [
        *([0, 0, 1, 1], [0, 0, 0, 0], [0, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1])
    ]
    padded = np.where(found.mask_ET, found.ids_WN[np.arange(2)[:, None], found.index_WP].reshape(6, 4), 0)
    assert padded.tolist() == [[0, 0, 5, 6], [0] * 4, [0, 8, 9, 10], [0] * 4, [0] * 4, [0, 0, 0, 7]]


@pytest.mark.parametrize("mesh", [None, (2, 2)])
def test_tails_and_first_tokens_are_those_with_padding(tiny_model, tiny_processor, mesh):
    """Rows of several lengths, and free rows between them, in a slot that is not the first."""
    model = random_model(tiny_model)
    if mesh is not None:
        model = on_mesh(model, make_mesh(*mesh, devices=jax.devices()[: mesh[0] * mesh[1]]))
    shards = 1 if mesh is None else mesh[0]
    grids = []
    for padded in (True, False):
        engine = Engine(model, tiny_processor)
        preparer = engine._preparer(64)
        device = engine._device(preparer, fixed=padded)
        device.make_grid(GridShape(shards, 2, 4, 192, 32, 16), PLAIN)
        videos = [clip(v) for v in range(shards)]
        asked = [
            [preparer.question(question(f"{v}-{q}", text, videos=[video])) for q, text in enumerate(QUESTIONS)]
            for v, video in enumerate(videos)
        ]
        device.prefill(1, [preparer.read(own[0].prefix) for own in asked])
        device.begin(1, [q for a, b, c in asked for q in (a, None, b, c)])
        grids.append(device._filled().grid)
    with_padding, without = grids
    np.testing.assert_array_equal(without.answers.tokens_BN, with_padding.answers.tokens_BN)
    np.testing.assert_array_equal(without.tail.valid_BS, with_padding.tail.valid_BS)
    np.testing.assert_array_equal(without.tail.next_position_B, with_padding.tail.next_position_B)
    for own, others in zip(without.tail.layers, with_padding.tail.layers, strict=True):
        assert own.keys.sharding.is_equivalent_to(others.keys.sharding, 4)
        held = np.swapaxes(np.asarray(with_padding.tail.valid_BS), 0, 1)
        for x, y in ((own.keys, others.keys), (own.values, others.values)):
            x, y = np.asarray(x), np.asarray(y)
            np.testing.assert_allclose(x[held], y[held], rtol=2e-5, atol=2e-6)
            assert not x[~held].any(), "zeros where there is no token"


@pytest.mark.parametrize("mesh", [None, (2, 2)])
def test_slots_that_begin_together_hold_what_those_hold_that_begin_alone(tiny_model, tiny_processor, mesh, monkeypatch):
    """Three slots by one call for four, with free rows, in an order that is not that of the slots; one slot by its own.

    The last slot has too many tokens for the others.
    """
    model = random_model(tiny_model)
    if mesh is not None:
        model = on_mesh(model, make_mesh(*mesh, devices=jax.devices()[: mesh[0] * mesh[1]]))
    shards, calls, grids = 1 if mesh is None else mesh[0], [], []
    begin_slots = part_programs.begin_slots

    def counted(*given):
        calls.append(np.asarray(given[-2]).tolist())
        return begin_slots(*given)

    monkeypatch.setattr(part_programs, "begin_slots", counted)
    for several in (False, True):
        monkeypatch.setattr(device_module, "begins_several", lambda platform, several=several, **_: several)
        engine = Engine(model, tiny_processor)
        preparer = engine._preparer(64)
        device = engine._device(preparer)
        device.make_grid(GridShape(shards, 4, 2, 192, 64, 16), PLAIN)
        rows = {
            3: ("What is it?", None),
            0: (None, "Where?"),
            2: ("Which colour?", "Where?"),
            1: (2 * QUESTIONS[1],) * 2,
        }
        asked = {
            slot: [
                [q and preparer.question(question(f"{slot}-{v}-{i}", q, videos=[clip(v)])) for i, q in enumerate(own)]
                for v in range(shards)
            ]
            for slot, own in rows.items()
        }
        for slot, own in asked.items():
            device.prefill(slot, [preparer.read(next(q for q in each if q).prefix) for each in own])
        for slot, own in asked.items():
            device.begin(slot, [q for each in own for q in each])
        device.decode(3, shards * 8, range(shards * 8))
        grids.append(device._filled().grid)
    assert calls == [[3, 0, 2, 2]]
    alone, together = grids
    np.testing.assert_array_equal(together.answers.tokens_BN, alone.answers.tokens_BN)
    assert np.asarray(alone.answers.count_B).sum() > shards * 6
    np.testing.assert_array_equal(together.tail.valid_BS, alone.tail.valid_BS)
    np.testing.assert_array_equal(together.tail.next_position_B, alone.tail.next_position_B)
    for own, others in zip(together.tail.layers, alone.tail.layers, strict=True):
        assert own.keys.sharding.is_equivalent_to(others.keys.sharding, 4)
        np.testing.assert_allclose(own.keys, others.keys, rtol=2e-5, atol=2e-6)
        np.testing.assert_allclose(own.values, others.values, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(("tokens", "slots", "together"), [(56, 50, 4), (64, 2, 4), (80, 50, 1), (56, 1, 1)])
def test_slots_begin_together_where_a_device_reads_longer_than_it_computes(tokens: int, slots: int, together: int):
    assert slots_at_once(tokens, slots) == together


def test_slots_begin_one_by_one_on_cpus_and_where_the_compiler_would_copy_tails():
    assert begins_several("tpu", split_memory=False)
    assert begins_several("gpu", split_memory=False)
    assert not begins_several("tpu", split_memory=True)
    assert not begins_several("cpu", split_memory=False)


def test_answers_of_slots_that_begin_together_are_those_of_generate(tiny_model, tiny_processor, monkeypatch):
    monkeypatch.setattr(device_module, "begins_several", lambda platform, **_: True)
    asked = [question(f"{v}", "What is it?" if v % 2 else "Where?", videos=[clip(v)]) for v in range(5)]
    results = {result.id: result.token_ids for result in Engine(tiny_model, tiny_processor).run(asked)}
    assert results == {request.id: generated(tiny_model, tiny_processor, request) for request in asked}


QUESTIONS = ("What is it?", "Which colour does the shape have, and where does it go at the end?", "Where?")
