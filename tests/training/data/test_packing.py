"""The plan: every sample once an epoch, no row over its limits, the same on every host."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from videollava_jax.training.data.packing import (
    BatchShape,
    PackingPlan,
    RowShape,
    Sizes,
    make_plan,
    sample_order,
    steps_of,
)

ROW = RowShape(tokens=100, images=2, videos=1, samples=5)


@st.composite
def sizes_of_samples(draw: st.DrawFn) -> Sizes:
    count = draw(st.integers(1, 60))
    limits = ((2, 100), (0, 2), (0, 1))
    numbers = [draw(st.lists(st.integers(*limit), min_size=count, max_size=count)) for limit in limits]
    return Sizes(*(np.array(column, np.int32) for column in numbers))


@st.composite
def shapes(draw: st.DrawFn) -> BatchShape:
    buckets = draw(st.sampled_from([(), (100,), (30, 60, 100)]))
    return BatchShape(batch=draw(st.integers(1, 20)), rows=draw(st.integers(1, 6)), row=ROW, buckets=buckets)


def samples_of_steps(plan: PackingPlan) -> list[list[int]]:
    """The samples of each step, from its micro-batches."""
    found: list[list[int]] = [[] for _ in range(plan.steps)]
    for number in range(len(plan)):
        micro_batch = plan.micro_batch(number)
        found[micro_batch.step] += [sample for row in micro_batch.rows for sample in row]
    return found


@settings(max_examples=150, deadline=None)
@given(sizes=sizes_of_samples(), shape=shapes(), epochs=st.integers(1, 3), seed=st.integers(0, 2**31))
def test_every_sample_comes_once_an_epoch_in_steps_of_one_size(sizes, shape, epochs, seed):
    steps = steps_of(epochs, len(sizes), shape.batch)
    plan = make_plan(sizes, shape, steps=steps, seed=seed)
    groups = samples_of_steps(plan)
    assert [len(group) for group in groups] == [shape.batch] * steps
    endless = sample_order(len(sizes), 0, steps * shape.batch, seed)
    for step, group in enumerate(groups):
        assert sorted(group) == sorted(endless[step * shape.batch : (step + 1) * shape.batch].tolist())
    for epoch in range(epochs):
        own = endless[epoch * len(sizes) : (epoch + 1) * len(sizes)]
        assert sorted(own.tolist()) == list(range(len(sizes)))


@settings(max_examples=150, deadline=None)
@given(sizes=sizes_of_samples(), shape=shapes(), seed=st.integers(0, 2**31))
def test_micro_batches_are_static_and_no_row_is_over_its_limits(sizes, shape, seed):
    plan = make_plan(sizes, shape, steps=3, seed=seed)
    micro_batches = [plan.micro_batch(number) for number in range(len(plan))]
    for before, this, after in zip([None, *micro_batches], micro_batches, [*micro_batches[1:], None], strict=False):
        assert len(this.rows) == shape.rows
        assert this.last == (after is None or after.step == this.step + 1)
        assert this.step == (0 if before is None else before.step + before.last)
        assert this.tokens in (shape.buckets or (ROW.tokens,))
        for row in this.rows:
            assert len(row) <= shape.samples_per_row
            for name, limit in (("tokens", this.tokens), ("images", ROW.images), ("videos", ROW.videos)):
                assert getattr(sizes, name)[list(row)].sum() <= limit
        empty = [not row for row in this.rows]
        assert sorted(empty) == empty  # empty rows fill the end,
        assert not empty[0]
        assert this.last or not any(empty)  # of a step's last micro-batch alone
        if shape.buckets:
            longest = max(int(sizes.tokens[list(row)].sum()) for row in this.rows)
            assert this.tokens == min(bucket for bucket in shape.buckets if bucket >= longest)
    with pytest.raises(IndexError, match=f"expected one of {len(plan)}"):
        plan.micro_batch(len(plan))


@settings(max_examples=50, deadline=None)
@given(sizes=sizes_of_samples(), shape=shapes(), seed=st.integers(0, 2**31))
def test_the_report_is_what_the_micro_batches_come_to(sizes, shape, seed):
    plan = make_plan(sizes, shape, steps=2, seed=seed)
    micro_batches = [plan.micro_batch(number) for number in range(len(plan))]
    rows = [row for micro_batch in micro_batches for row in micro_batch.rows]
    samples = [sample for row in rows for sample in row]
    report = plan.report
    assert (report.steps, report.micro_batches, report.rows) == (2, len(plan), len(rows))
    assert report.filled_rows == sum(bool(row) for row in rows)
    assert report.tokens == sizes.tokens[samples].sum()
    assert report.positions == sum(micro_batch.tokens * shape.rows for micro_batch in micro_batches)
    assert (report.images, report.videos) == (sizes.images[samples].sum(), sizes.videos[samples].sum())
    assert (report.image_slots, report.video_slots) == (len(rows) * ROW.images, len(rows) * ROW.videos)
    assert 0 <= report.padding < 1
    assert f"{report.padding:.1%} padding" in str(report)


@settings(max_examples=50, deadline=None)
@given(sizes=sizes_of_samples(), shape=shapes(), seed=st.integers(0, 2**31), steps=st.integers(1, 5))
def test_a_plan_depends_on_lengths_and_seed_alone_and_a_longer_one_begins_the_same(sizes, shape, seed, steps):
    plan, again = (make_plan(sizes, shape, steps=steps, seed=seed) for _ in range(2))
    assert plan.digest == again.digest == pickle.loads(pickle.dumps(plan)).digest
    longer = make_plan(sizes, shape, steps=steps + 2, seed=seed)
    assert longer.digest != plan.digest
    for number in range(len(plan)):
        assert longer.micro_batch(number) == plan.micro_batch(number) == again.micro_batch(number)


@settings(max_examples=100, deadline=None)
@given(count=st.integers(1, 40), start=st.integers(0, 200), length=st.integers(1, 100), seed=st.integers(0, 2**63))
def test_the_endless_order_may_be_asked_for_in_parts(count, start, length, seed):
    whole = sample_order(count, 0, start + length, seed)
    np.testing.assert_array_equal(sample_order(count, start, start + length, seed), whole[start:])


def test_orders_differ_by_epoch_and_seed_and_stay_what_they_were():
    first, second = sample_order(1000, 0, 2000, seed=5).reshape(2, 1000)
    assert (first == second).sum() < 20
    assert (first == sample_order(1000, 0, 1000, seed=6)).sum() < 20
    # A run that was begun with another version of NumPy has to find the same order.
    assert sample_order(10, 0, 20, seed=5).tolist() == [9, 2, 4, 3, 1, 5, 0, 6, 7, 8, 7, 4, 5, 1, 9, 6, 8, 0, 2, 3]


def test_packing_is_tight_where_it_can_be():
    # Videos of 60 with texts of 40, images of 50 by twos: 10 full rows from 24 samples.
    lengths = np.array([60] * 6 + [40] * 6 + [50] * 8, np.int32)
    images = np.array([0] * 12 + [1] * 8, np.int32)
    videos = np.array([1] * 6 + [0] * 14, np.int32)
    plan = make_plan(Sizes(lengths, images, videos), BatchShape(batch=20, rows=5, row=ROW), steps=1, seed=0)
    assert len(plan) == 2
    assert plan.report.padding == 0
    assert plan.report.filled_rows == 10
    padded = make_plan(
        Sizes(lengths, images, videos), BatchShape(batch=20, rows=5, row=ROW, buckets=(50, 100)), steps=1, seed=0
    )
    assert padded.lengths.tolist() == [100, 100, 50, 50]


def test_what_cannot_be_is_refused():
    sizes = Sizes(np.array([5, 101, 120]), np.array([0, 0, 0]), np.array([0, 0, 2]))
    shape = BatchShape(batch=2, rows=1, row=ROW)
    with pytest.raises(ValueError, match="sample 1 has 101 tokens, and a row holds 100; 2 of 3 samples are too large"):
        make_plan(sizes, shape, steps=1, seed=0)
    sizes.tokens[:] = 5
    with pytest.raises(ValueError, match="sample 2 has 2 videos, and a row holds 1"):
        make_plan(sizes, shape, steps=1, seed=0)
    with pytest.raises(ValueError, match="got 3 samples and 0 steps"):
        make_plan(sizes, shape, steps=0, seed=0)
    for wrong in ((60,), (100, 60), (60, 60, 100)):
        with pytest.raises(ValueError, match="buckets: expected ascending lengths, the last one the 100 tokens"):
            BatchShape(batch=2, rows=1, row=ROW, buckets=wrong)
    with pytest.raises(ValueError, match="batch: expected at least 1, got 0"):
        BatchShape(batch=0, rows=1, row=ROW)
    with pytest.raises(ValueError, match="videos of a row: expected at least 0, got -1"):
        RowShape(tokens=100, videos=-1)


@settings(max_examples=100, deadline=None)
@given(sizes=sizes_of_samples(), shape=shapes(), loss_samples=st.integers(1, 20), seed=st.integers(0, 2**31))
def test_weights_make_the_loss_the_mean_of_the_groups_means(sizes, shape, loss_samples, seed):
    if shape.batch % loss_samples:
        with pytest.raises(ValueError, match=r"data\.loss_samples: expected a number that divides the"):
            make_plan(sizes, shape, steps=1, seed=seed, loss_samples=loss_samples)
        return
    rng = np.random.default_rng(seed)
    sizes = Sizes(sizes.tokens, sizes.images, sizes.videos, rng.integers(1, 30, len(sizes)).astype(np.int32))
    losses = rng.random(len(sizes)) * sizes.targets  # of all targets of a sample together
    steps = steps_of(2.0, len(sizes), shape.batch)
    plan = make_plan(sizes, shape, steps=steps, seed=seed, loss_samples=loss_samples)
    assert plan.digest != make_plan(sizes, shape, steps=steps, seed=seed).digest
    weighted, targets = np.zeros(steps), np.zeros(steps)
    for number in range(len(plan)):
        micro_batch = plan.micro_batch(number)
        for row, weights in zip(micro_batch.rows, micro_batch.weights, strict=True):
            for sample, weight in zip(row, weights, strict=True):
                weighted[micro_batch.step] += weight * losses[sample]
                targets[micro_batch.step] += sizes.targets[sample]
    drawn = sample_order(len(sizes), 0, steps * shape.batch, seed).reshape(steps, -1, loss_samples)
    theirs = (losses[drawn].sum(axis=2) / sizes.targets[drawn].sum(axis=2)).mean(axis=1)
    np.testing.assert_allclose(weighted / targets, theirs, rtol=1e-5)
