"""Drawn combinations of `generate`'s options against transformers: the same tokens, and scores within 1e-4.

The draws share what is compiled: one batch of mixed media, sequences and end tokens of one size, 8 new tokens.

    python -m tests.parity.test_generate_options 200 7    draws 200 combinations with seed 7, and counts
"""

from __future__ import annotations

import sys

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, given, seed, settings
from hypothesis import strategies as st

from tests.parity.reference import collate, drawn_row
from tests.small_models import TEXT, hf_config, public, sharp_hf_model
from videollava_jax.generation import steps

NEW = 8
MEDIA = ["iv", "", "v"]
PAD = 0
CLOSE = 1e-4
DRAWN_ONCE = (Phase.generate,)
"""Without looking for a smaller combination that fails: that takes minutes."""


class Pair:
    """A random transformers model with logits far apart, ours with its weights, and a batch of prompts."""

    def __init__(self, torch, number):
        self.theirs = sharp_hf_model(torch, hf_config(text={"eos_token_id": 2, "pad_token_id": PAD}), number)
        with torch.no_grad():
            self.theirs.lm_head.weight.mul_(3)
        self.ours = public(self.theirs)
        rng = np.random.default_rng(3)
        self.rows = [drawn_row(self.ours.model_config, rng, media, frames=2) for media in MEDIA]
        self.batch = collate(self.rows, pad=PAD)


@pytest.fixture(scope="module")
def pair(torch):
    return Pair(torch, 5)


ids = st.integers(1, TEXT - 1)
words = st.lists(st.lists(ids, min_size=1, max_size=4, unique=True), min_size=1, max_size=6)
fixed = st.fixed_dictionaries
DRAWN = fixed(
    {
        "max_new_tokens": st.just(NEW),
        "eos_token_id": st.lists(ids, min_size=2, max_size=2, unique=True),
        "bad_words_ids": words,
        "repetition_penalty": st.sampled_from([0.8, 1.1, 1.7]),
        # transformers looks at the padding of prompts as if it were text, and ours does not: neither chooses it.
        "suppress_tokens": st.lists(st.integers(42, TEXT), max_size=5, unique=True).map(lambda some: [PAD, *some]),
    },
    optional={
        "sequence_bias": st.dictionaries(
            st.lists(ids, min_size=1, max_size=4).map(tuple), st.sampled_from([-5.0, 2.0, 8.0]), min_size=1, max_size=6
        ),
        "encoder_repetition_penalty": st.sampled_from([0.7, 1.5]),
        "no_repeat_ngram_size": st.integers(1, 4),
        "encoder_no_repeat_ngram_size": st.integers(1, 3),
        "min_new_tokens": st.integers(1, NEW),
        "min_length": st.integers(1, 32),
        "forced_eos_token_id": st.sampled_from([2, [40, 41]]),
        "forced_bos_token_id": st.just(3),
        "remove_invalid_values": st.booleans(),
        "renormalize_logits": st.booleans(),
        "exponential_decay_length_penalty": st.tuples(st.integers(0, 6), st.sampled_from([1.1, 1.7])),
        "begin_suppress_tokens": st.lists(ids, min_size=1, max_size=20, unique=True),
    },
)


BEAMS = fixed(
    {"num_beams": st.integers(2, 3), "num_return_sequences": st.integers(1, 2)},
    optional={
        "length_penalty": st.sampled_from([-1.0, 0.0, 0.5, 2.0]),
        "early_stopping": st.sampled_from([True, False, "never"]),
    },
)


def comparable(options):
    """Leaves out what makes scores equal or infinite, where it is up to the machine which token comes first.

    Beams that two forced tokens continue tie; and a decay of the smallest float32 overflows or not.
    """
    left_out = set()
    if options.get("remove_invalid_values") and "exponential_decay_length_penalty" in options:
        left_out.add("remove_invalid_values")
    if "num_beams" in options and options.get("forced_eos_token_id") != 2:
        left_out.add("forced_eos_token_id")
    return {name: value for name, value in options.items() if name not in left_out}


COMBINATIONS = st.builds(lambda options, beams: comparable({**options, **beams}), DRAWN, st.just({}) | BEAMS)


def both(torch, pair, options):
    """The outputs of both models, with scores and logits."""
    asked = dict(do_sample=False, return_dict_in_generate=True, output_scores=True, output_logits=True)
    asked["pad_token_id"] = PAD
    options = {"num_beams": 1, **options}
    with torch.no_grad():
        expected = pair.theirs.generate(**pair.batch.for_torch(torch), **asked, **options)
    return expected, pair.ours.generate(**pair.batch.for_ours(), **asked, **options)


def assert_same(expected, got, live=None):
    """The same tokens; scores and logits within 1e-4 where they were computed for a row that had not ended.

    The relative 1e-5 is for scores in the hundreds, where float32 has steps of 1e-5.
    """
    np.testing.assert_array_equal(got.sequences, expected.sequences.numpy())
    for name in ("scores", "logits"):
        theirs, mine = expected[name], got[name]
        assert len(theirs) == len(mine)
        for step, (one, other) in enumerate(zip(theirs, mine, strict=True)):
            rows = slice(None) if live is None else live[:, step]
            np.testing.assert_allclose(other[rows], one.numpy()[rows], rtol=1e-5, atol=CLOSE, err_msg=f"{name} {step}")


def live_rows(sequences, prompt, ends):
    """bool [rows, steps], the steps that a row had not ended before."""
    answers = sequences[:, prompt:]
    ended = np.isin(answers, ends).cumsum(axis=1) > 0
    return np.pad(~ended, ((0, 0), (1, 0)), constant_values=True)[:, :-1]


def check(torch, pair, options):
    expected, got = both(torch, pair, options)
    if options.get("num_beams", 1) == 1:
        assert_same(expected, got, live_rows(got.sequences, pair.batch.ids.shape[1], options["eos_token_id"]))
        return got
    assert_same(expected, got)
    np.testing.assert_allclose(got.sequences_scores, expected.sequences_scores.numpy(), rtol=1e-5, atol=CLOSE)
    np.testing.assert_array_equal(got.beam_indices, expected.beam_indices.numpy())
    return got


@settings(max_examples=40, deadline=None, derandomize=True, phases=DRAWN_ONCE)
@given(options=COMBINATIONS)
def test_drawn_options_give_the_same_tokens(torch, pair, options):
    check(torch, pair, options)


# ── what the draws do not have ──


def answers_of(pair, batch, **options):
    return pair.ours.generate(**batch.for_ours(), max_new_tokens=NEW, pad_token_id=PAD, **options)


@pytest.mark.parametrize("beams", [1, 3])
def test_answers_and_scores_do_not_depend_on_padding(pair, beams):
    options = dict(num_beams=beams, eos_token_id=[22, 66], no_repeat_ngram_size=1, bad_words_ids=[[5, 7]])
    options |= dict(repetition_penalty=1.1, return_dict_in_generate=True, output_scores=True, output_logits=True)
    wider = collate(pair.rows, pad=PAD, padding=4)
    got, padded = answers_of(pair, pair.batch, **options), answers_of(pair, wider, **options)
    T = pair.batch.ids.shape[1]
    np.testing.assert_array_equal(got.sequences[:, T:], padded.sequences[:, T + 4 :])
    for one, other in zip(got.scores, padded.scores, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=CLOSE)


def test_a_function_of_arrays_processes_scores_as_its_torch_twin_does(torch, pair):
    from transformers import LogitsProcessor

    class NotTwice(LogitsProcessor):
        def __call__(self, input_ids, scores):
            return scores.scatter(1, input_ids[:, -3:], -torch.inf)

    def not_twice(ids, scores):
        assert ids.dtype == jnp.int32
        return scores.at[jnp.arange(len(ids))[:, None], ids[:, -3:]].set(-jnp.inf)

    options = dict(max_new_tokens=NEW, pad_token_id=PAD, eos_token_id=22, do_sample=False)
    expected = pair.theirs.generate(**pair.batch.for_torch(torch), **options, logits_processor=[NotTwice()])
    got = pair.ours.generate(**pair.batch.for_ours(), **options, logits_processor=not_twice)
    np.testing.assert_array_equal(got, expected.numpy())
    assert (got != pair.ours.generate(**pair.batch.for_ours(), **options)).any()
    for wrong, message in (
        ([NotTwice()], "NotTwice computes with torch"),
        (lambda ids, scores: np.asarray(scores), "does not run on JAX arrays"),
        (lambda ids, scores: scores[:, 0], "expected scores"),
        (7, "expected a function"),
    ):
        with pytest.raises(ValueError, match=f"logits_processor: .*{message}"):
            answers_of(pair, pair.batch, logits_processor=wrong)


def test_criteria_end_rows_at_the_token_where_transformers_ends_them(torch, pair):
    """One of transformers' own gets tensors, a function gets arrays; each is asked once for every step."""
    from transformers import StoppingCriteria, StoppingCriteriaList

    class AtSum(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            return input_ids[:, -2:].sum(dim=1) % 5 == 0

    options = dict(max_new_tokens=20, pad_token_id=PAD, eos_token_id=[22], do_sample=False)
    theirs = StoppingCriteriaList([AtSum()])
    expected = pair.theirs.generate(**pair.batch.for_torch(torch), **options, stopping_criteria=theirs)
    np.testing.assert_array_equal(
        pair.ours.generate(**pair.batch.for_ours(), **options, stopping_criteria=theirs), expected.numpy()
    )
    asked = []

    def at_sum(ids, scores):
        asked.append(ids.shape[1])
        return ids[:, -2:].sum(axis=1) % 5 == 0

    parts = []
    got = pair.ours.generate(
        **pair.batch.for_ours(), **options, stopping_criteria=at_sum, on_tokens=lambda new: parts.append(new)
    )
    np.testing.assert_array_equal(got, expected.numpy())
    T = pair.batch.ids.shape[1]
    assert asked == list(range(T + 1, got.shape[1] + 1))
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), got[:, T:])
    short = pair.ours.generate(**pair.batch.for_ours(), **options, max_time=0.0)
    assert short.shape[1] == T + 1
    with pytest.raises(ValueError, match="stopping_criteria: expected a bool or one for each of 3 rows"):
        answers_of(pair, pair.batch, stopping_criteria=lambda ids, scores: np.zeros(7, bool))


def test_guessed_tokens_are_those_of_greedy_decoding_in_fewer_passes(torch, pair):
    alone = collate(pair.rows[1:2], pad=PAD)
    options = dict(max_new_tokens=60, pad_token_id=PAD, eos_token_id=22, return_dict_in_generate=True)
    plain = pair.ours.generate(**alone.for_ours(), **options, output_scores=True)
    guessed = pair.ours.generate(**alone.for_ours(), **options, output_scores=True, prompt_lookup_num_tokens=3)
    expected = pair.theirs.generate(**alone.for_torch(torch), **options, prompt_lookup_num_tokens=3, do_sample=False)
    np.testing.assert_array_equal(guessed.sequences, plain.sequences)
    np.testing.assert_array_equal(guessed.sequences, expected.sequences.numpy())
    np.testing.assert_allclose(guessed.scores, plain.scores, rtol=1e-5, atol=CLOSE)
    assert guessed.decoder_passes <= 0.8 * plain.decoder_passes, "many of its tokens are repeated"
    for wrong in ({"num_beams": 2}, {"num_return_sequences": 2, "do_sample": True}):
        with pytest.raises(ValueError, match="prompt_lookup_num_tokens: expected one prompt with one answer"):
            pair.ours.generate(**alone.for_ours(), **options, prompt_lookup_num_tokens=3, **wrong)


def test_values_that_ask_for_nothing_compile_nothing(pair):
    """The greedy program is the one that it always was, whatever neutral options say."""
    plain = answers_of(pair, pair.batch)
    programs = steps.decode._cache_size(), steps.choose._cache_size()
    neutral = dict(num_beams=1, min_new_tokens=0, length_penalty=2.0, use_cache=True, no_repeat_ngram_size=0)
    neutral |= dict(return_dict_in_generate=True, renormalize_logits=False, suppress_tokens=None, typical_p=0.5)
    found = answers_of(pair, pair.batch, **neutral)
    np.testing.assert_array_equal(found.sequences, plain)
    assert (steps.decode._cache_size(), steps.choose._cache_size()) == programs
    assert found["sequences"] is found[0] is found.sequences
    assert found.scores is found.logits is found.beam_indices is None
    with pytest.raises(KeyError):
        found["scores"]


def main() -> None:
    import torch

    count, number = int(sys.argv[1]), int(sys.argv[2])
    counts: dict[str, int] = {}
    pair = Pair(torch, 5)

    @seed(number)
    @settings(max_examples=count, deadline=None, database=None, phases=DRAWN_ONCE)
    @given(options=COMBINATIONS)
    def run(options):
        check(torch, pair, options)
        for name in ("combinations", *options):
            counts[name] = counts.get(name, 0) + 1

    run()
    print(f"seed {number}: {counts}")


if __name__ == "__main__":
    main()
