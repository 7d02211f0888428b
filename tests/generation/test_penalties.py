"""Biases and penalties against OpenAI's formula in NumPy, alone and in whole answers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.small_models import random_model
from videollava_jax.generation.options import GenerationOptions
from videollava_jax.generation.penalties import penalties_of

V = 24


def reference(scores, prompt, answer, options):
    """The scores of one row: https://platform.openai.com/docs/api-reference, after Keskar et al. for repetitions."""
    scores = scores.astype(np.float64)
    for token, bias in options.logit_bias:
        scores[token] += bias
    for token in {*prompt, *answer}:
        scores[token] *= options.repetition_penalty if scores[token] < 0 else 1 / options.repetition_penalty
    for token in range(len(scores)):
        count = list(answer).count(token)
        scores[token] -= count * options.frequency_penalty + float(count > 0) * options.presence_penalty
    return scores


TOKENS = st.lists(st.integers(0, V - 1), max_size=6)
OPTIONS = st.builds(
    GenerationOptions,
    repetition_penalty=st.sampled_from([1.0, 0.5, 1.7]),
    frequency_penalty=st.floats(-2, 2, width=16),
    presence_penalty=st.floats(-2, 2, width=16),
    logit_bias=st.dictionaries(st.integers(0, V - 1), st.floats(-100, 100, width=16), max_size=4),
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    rows=st.lists(st.tuples(TOKENS, st.none() | OPTIONS), min_size=3, max_size=3),
    answers=st.lists(st.lists(st.integers(0, V - 1), min_size=3, max_size=3), max_size=7),
    ends=st.lists(st.integers(0, 7), min_size=3, max_size=3),
    seed=st.integers(0, 99),
)
def test_scores_are_those_of_the_formula(rows, answers, ends, seed):
    """Three rows with options of their own, one of them perhaps idle; each ends after some tokens."""
    scores = np.random.default_rng(seed).standard_normal((3, V)).astype(np.float32)
    prompts = [np.array(prompt, np.int32) for prompt, _ in rows]
    penalties = penalties_of(prompts, [options for _, options in rows], V)
    for step, tokens in enumerate(answers):
        live = np.array([step < end for end in ends])
        penalties = penalties.with_tokens(np.array(tokens, np.int32), live)
    found = np.asarray(penalties.applied(scores))
    for row, (prompt, options) in enumerate(rows):
        answer = [tokens[row] for tokens in answers[: ends[row]]]
        expected = scores[row] if options is None else reference(scores[row], prompt, answer, options)
        np.testing.assert_allclose(found[row], expected, rtol=1e-5, atol=1e-5)
    moved = penalties.of_rows(np.array([2, 0, 0]))
    np.testing.assert_array_equal(np.asarray(moved.applied(scores[[2, 0, 0]])), found[[2, 0, 0]])


@pytest.mark.parametrize(
    "options",
    [
        {"frequency_penalty": -1.9},
        {"presence_penalty": -2.0},
        {"frequency_penalty": 0.6, "presence_penalty": 0.9, "repetition_penalty": 1.5, "logit_bias": {40: 30.0}},
    ],
    ids=["frequency", "presence", "all"],
)
def test_answers_are_the_likeliest_by_the_formula(tiny_model, options):
    """Each token by a whole forward pass: none but those of the answer is counted by OpenAI's penalties."""
    model = random_model(tiny_model)
    prompt = [1, 40, 41, 42, 40, 7, 9]
    chosen = GenerationOptions(**options)
    answer = []
    for _ in range(10):
        logits, _ = model.sequence_logits(np.array([prompt + answer + [0] * (10 - len(answer))]))
        scores = reference(np.asarray(logits[0, len(prompt) + len(answer) - 1]), prompt, answer, chosen)
        answer.append(int(scores.argmax()))
    out = model.generate(np.array([prompt]), max_new_tokens=10, eos_token_id=[], **options)
    assert out[0, len(prompt) :].tolist() == answer
    plain = model.generate(np.array([prompt]), max_new_tokens=10, eos_token_id=[])
    assert out.tolist() != plain.tolist()
