"""Requests prepared for the engine: options that are found again."""

import numpy as np
import pytest

from videollava_jax.engine.preparation import _MOST_RESOLVED, Preparer
from videollava_jax.engine.request import Request


@pytest.fixture
def preparer(tiny_model, tiny_processor):
    return Preparer(tiny_processor, tiny_model.model_config, {}, 64)


def options(preparer, **own):
    return preparer.question(Request(id="a", prompt="USER: what? ASSISTANT:", options=own)).options


def test_equal_options_are_checked_once(preparer):
    first = options(preparer, do_sample=True, temperature=0.5, logit_bias=((5, -1.0),))
    assert options(preparer, logit_bias=((5, -1.0),), temperature=0.5, do_sample=True) is first
    assert options(preparer, do_sample=True, temperature=0.25).temperature == 0.25
    assert first.temperature == 0.5


def test_a_value_that_is_equal_and_of_another_type_is_not_taken_for_it(preparer):
    assert options(preparer, top_k=1).top_k == 1
    for top_k in (True, 1.5, "1"):
        with pytest.raises(ValueError, match="top_k: expected a whole number"):
            options(preparer, top_k=top_k)
    assert options(preparer, logit_bias=((1, 1),)).logit_bias == ((1, 1.0),)
    with pytest.raises(ValueError, match="logit_bias"):
        options(preparer, logit_bias=((True, 1),))


def test_arrays_that_print_alike_are_not_taken_for_each_other(preparer):
    biases = [np.stack([np.arange(600), np.zeros(600, int)], 1) for _ in range(2)]
    biases[1][300, 1] = 50
    assert repr(biases[0]) == repr(biases[1])
    found = [dict(options(preparer, logit_bias=each).logit_bias) for each in biases]
    assert [each[300] for each in found] == [0.0, 50.0]


def test_any_number_of_options_may_come(preparer):
    for seed in range(_MOST_RESOLVED + 5):
        assert preparer.question(Request(id="a", prompt="USER: what? ASSISTANT:", seed=seed)).options.seed == seed
    assert len(preparer._resolved) <= _MOST_RESOLVED
