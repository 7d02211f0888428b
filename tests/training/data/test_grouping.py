"""The authors' order of samples, against what their sampler gave."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from videollava_jax.training.data.grouping import grouped_order
from videollava_jax.training.data.packing import BatchShape, RowShape, Sizes, make_plan

# What their `get_modality_length_grouped_indices` returned for these lengths and media, with these draws of `randperm`.
THEIRS = {
    "halves": {
        "lengths": [16, 26, 14, 26, 20, 17, 22, 3, 1, 4, 21, 8, 6, 19, 17, 2, 29, 11, 8, 14, 16],
        "media": [0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 0, 0, 0],
        "groups": 2,
        "batch": 4,
        "drawn": [[3, 10, 6, 8, 1, 13, 0, 7, 4, 12, 14, 2, 5, 9, 11], [3, 1, 4, 0, 2, 5], [0, 3, 1, 2]],
        "order": [10, 8, 13, 5, 1, 18, 0, 19, 16, 9, 3, 2, 6, 15, 4, 17, 7, 11, 12, 14, 20],
    },
    "four groups, few media": {
        "lengths": [3, 28, 1, 29, 3, 8, 13, 23, 14, 1, 10, 9, 11, 29, 14, 1, 6, 14, 9, 28, 18],
        "media": [0, 1, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 1, 1],
        "groups": 4,
        "batch": 8,
        "drawn": [[0, 5, 6, 2, 4, 1, 3], [11, 2, 12, 3, 10, 1, 8, 13, 6, 0, 7, 4, 9, 5], [0]],
        "order": [13, 2, 17, 15, 6, 16, 11, 5, 0, 1, 3, 4, 7, 8, 9, 10, 12, 14, 18, 19, 20],
    },
    "one group": {
        "lengths": [24, 9, 11, 4, 5, 4, 4, 26, 25, 3, 22, 17, 19, 11, 10, 1, 12, 13, 26, 17, 29],
        "media": [1, 0, 0, 1, 0, 1, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 1, 0, 0],
        "groups": 1,
        "batch": 3,
        "drawn": [[0, 5, 6, 2, 4, 1, 3], [11, 2, 12, 3, 10, 1, 8, 13, 6, 0, 7, 4, 9, 5], [3, 1, 4, 0, 2, 5]],
        "order": [7, 2, 15, 11, 5, 3, 20, 10, 13, 18, 0, 16, 19, 17, 4, 8, 12, 1, 6, 9, 14],
    },
    "text alone": {
        "lengths": [21, 7, 2, 6, 4, 25, 16, 24, 29, 10, 24, 18, 15, 8, 8, 12, 4, 24, 20, 9, 12],
        "media": [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        "groups": 2,
        "batch": 4,
        "drawn": [[3, 8, 13, 10, 15, 17, 16, 12, 1, 14, 6, 0, 7, 4, 19, 5, 20, 18, 2, 9, 11]],
        "order": [3, 13, 10, 8, 16, 15, 12, 17, 1, 14, 6, 0, 4, 19, 7, 5, 2, 9, 20, 18, 11],
    },
    "media alone": {
        "lengths": [5, 20, 8, 5, 6, 27, 3, 29, 1, 18, 26, 8, 13, 1, 7, 29, 14, 21, 20, 19, 13],
        "media": [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1],
        "groups": 2,
        "batch": 6,
        "drawn": [[3, 8, 13, 10, 15, 17, 16, 12, 1, 14, 6, 0, 7, 4, 19, 5, 20, 18, 2, 9, 11]],
        "order": [15, 3, 8, 10, 17, 13, 1, 14, 0, 16, 12, 6, 7, 19, 4, 5, 18, 20, 9, 11, 2],
    },
}


@pytest.mark.parametrize("name", THEIRS)
def test_the_order_is_the_authors_for_the_same_draws(name):
    case = THEIRS[name]
    drawn = iter(case["drawn"])
    lengths, media = np.array(case["lengths"]), np.array(case["media"], np.bool_)
    order = grouped_order(lengths, media, case["groups"], case["batch"], lambda count: np.array(next(drawn)))
    assert order.tolist() == case["order"]
    assert next(drawn, None) is None


@settings(max_examples=100, deadline=None)
@given(
    media=st.lists(st.booleans(), min_size=1, max_size=80),
    groups=st.sampled_from([1, 2, 4]),
    each=st.integers(1, 4),
    seed=st.integers(0, 2**31 - 1),
)
def test_a_plan_in_this_order_has_each_sample_once_an_epoch_and_steps_of_one_modality(media, groups, each, seed):
    rng, has = np.random.default_rng(seed), np.array(media)
    count, batch = len(media), groups * each
    text = rng.integers(2, 50, count).astype(np.int32)
    none, learnt = np.zeros(count, np.int32), np.ones(count, np.int32)
    sizes = Sizes(text, has.astype(np.int32), none, learnt, text)
    shape = BatchShape(batch=batch, rows=1, row=RowShape(tokens=100, images=8))
    steps = -(-2 * count // batch)
    plan, again = (
        make_plan(sizes, shape, steps=steps, seed=seed, loss_samples=each, order="modality") for _ in range(2)
    )
    assert plan.digest == again.digest
    samples = plan.order.reshape(steps, batch)
    whole = count // batch  # steps of the first epoch alone
    assert len(set(samples[:whole].ravel().tolist())) == whole * batch
    # Each kind keeps its last step for the end of the epoch, where the kinds meet.
    kept = sum(-(-int(kind.sum()) // batch) - 1 for kind in (has, ~has) if kind.any())
    assert all(len(set(has[step].tolist())) == 1 for step in samples[:kept])
