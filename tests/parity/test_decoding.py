"""Generation against transformers' own: where rows end, which tokens they get, and that no row touches another."""

import dataclasses

import numpy as np
import pytest

from tests.parity.reference import collate, drawn_row
from tests.processing.llama_vocabulary import train_small_model
from tests.small_models import hf_config, public, sharp_hf_model
from videollava_jax.processing.tokenizer import load_tokenizer

PAD = 602  # behind the 600 pieces of the small vocabulary and the two placeholders
NEW = 24
MEDIA = ["iv", "v", "", "i", "vi"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(train_small_model(tmp_path_factory.mktemp("vocabulary")).parent)


def models(torch, seed, **changes):
    """A transformers model with the small vocabulary, and ours."""
    text = {"vocab_size": PAD + 1, "pad_token_id": PAD, "eos_token_id": 2}
    theirs = sharp_hf_model(torch, hf_config(text=text, image_token_index=600, video_token_index=601, **changes), seed)
    return theirs, public(theirs)


@pytest.fixture(scope="module")
def pair(torch):
    return models(torch, 0)


@pytest.fixture(scope="module")
def rows(pair):
    rng = np.random.default_rng(1)
    return [drawn_row(pair[1].model_config, rng, media, frames=2) for media in MEDIA]


@pytest.fixture(scope="module")
def given(rows):
    return collate(rows, pad=PAD)


@pytest.fixture(scope="module")
def answers(pair, given):
    """Greedy tokens [rows, NEW] that nothing ends."""
    return new_tokens(pair[1], given, eos_token_id=())


def new_tokens(model, given, **options):
    return model.generate(**given.for_ours(), **({"max_new_tokens": NEW} | options))[:, given.ids.shape[1] :]


def their_new_tokens(torch, model, given, **options):
    generated = model.generate(**given.for_torch(torch), max_new_tokens=NEW, do_sample=False, **options)
    return generated.numpy()[:, given.ids.shape[1] :]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": True, "vision_feature_layer": [-2, -1], "vision_feature_select_strategy": "full"},
    ],
    ids=["plain", "other"],
)
def test_greedy_tokens_of_drawn_models(torch, seed, changes):
    theirs, mine = models(torch, seed, **changes)
    rng = np.random.default_rng(10 + seed)
    drawn = collate([drawn_row(mine.model_config, rng, media, frames=2) for media in rng.permutation(MEDIA)], pad=PAD)
    np.testing.assert_array_equal(new_tokens(mine, drawn), their_new_tokens(torch, theirs, drawn))


@pytest.mark.parametrize("seed", range(6))
def test_several_end_tokens(torch, pair, given, answers, seed):
    """Ends drawn from the answers, so that rows end at different steps and some not at all."""
    rng = np.random.default_rng(seed)
    ends = [int(answers[rng.integers(len(answers)), rng.integers(NEW)]) for _ in range(3)]
    expected = their_new_tokens(torch, pair[0], given, eos_token_id=ends)
    np.testing.assert_array_equal(new_tokens(pair[1], given, eos_token_id=ends), expected)


# ── stop strings ──


def continuation(tokenizer, tokens):
    """The text of tokens behind a prompt: the space before a first word is part of its token, and can begin a stop."""
    return " " * tokenizer.convert_ids_to_tokens(int(tokens[0])).startswith("▁") + tokenizer.decode(tokens.tolist())


def drawn_stops(rng, tokenizer, answers):
    """Two pieces of the answers' text, anywhere in it: in the middle of a token or over several."""
    stops = []
    while len(stops) < 2:
        text = continuation(tokenizer, answers[rng.integers(len(answers))])
        start = rng.integers(len(text))
        stop = text[start : start + rng.integers(1, 6)]
        if stop.isascii():
            stops.append(stop)
    return stops


@pytest.mark.parametrize("seed", range(20))
def test_stop_strings_end_where_transformers_ends(torch, pair, given, answers, tokenizer, seed):
    rng = np.random.default_rng(seed)
    stops = drawn_stops(rng, tokenizer, answers)
    # Half of the draws have an end token too.
    ends = [int(rng.choice(answers.reshape(-1)))] if seed % 2 else []
    expected = their_new_tokens(torch, pair[0], given, eos_token_id=ends, stop_strings=stops, tokenizer=tokenizer)
    got = new_tokens(pair[1], given, eos_token_id=ends, stop_strings=stops, tokenizer=tokenizer)
    np.testing.assert_array_equal(got, expected)


def test_the_token_that_completes_a_stop_string_is_the_last(pair, given, answers, tokenizer):
    lengths = set()
    for seed in range(10):
        stops = drawn_stops(np.random.default_rng(seed), tokenizer, answers)
        for row, free in zip(new_tokens(pair[1], given, stop_strings=stops, tokenizer=tokenizer), answers, strict=True):
            length = np.flatnonzero(row != PAD)[-1] + 1
            np.testing.assert_array_equal(row[:length], free[:length])
            assert length == 1 or not any(stop in continuation(tokenizer, row[: length - 1]) for stop in stops)
            if length < NEW and 2 not in row:
                assert any(stop in continuation(tokenizer, row[:length]) for stop in stops)
            lengths.add(length)
    assert len(lengths) > 10  # of 50 rows


def test_streamed_tokens_are_those_returned(pair, given, answers, tokenizer):
    stops, parts = drawn_stops(np.random.default_rng(3), tokenizer, answers), []
    whole = new_tokens(pair[1], given, stop_strings=stops, tokenizer=tokenizer, on_tokens=parts.append)
    streamed = np.concatenate(parts, axis=1)
    assert len(parts) > 1
    np.testing.assert_array_equal(streamed[:, : whole.shape[1]], whole)
    assert (streamed[:, whole.shape[1] :] == PAD).all()


def test_the_host_ends_beams_where_transformers_ends_them(torch, pair, given, answers, tokenizer):
    """By a text or by a function of arrays, which look at every candidate of every step."""
    stops = drawn_stops(np.random.default_rng(4), tokenizer, answers)
    options = dict(num_beams=2, num_return_sequences=2, eos_token_id=[2], suppress_tokens=[PAD])
    by_text = dict(stop_strings=stops, tokenizer=tokenizer)
    by_function = dict(stopping_criteria=[lambda ids, scores: ids[:, -1] % 7 == 0])
    for ends in (by_text, by_function):
        expected = their_new_tokens(torch, pair[0], given, **options, **ends)
        got = new_tokens(pair[1], given, **options, **ends)
        np.testing.assert_array_equal(got, expected)
    with pytest.raises(ValueError, match=r"num_beams: .* nothing to stream"):
        new_tokens(pair[1], given, **options, on_tokens=print)


# ── rows by themselves ──

SEEDS = [3, 1, 4, 1, 5]


@pytest.fixture(scope="module")
def drawn(pair, given):
    """Drawn tokens of all rows together, a seed for each."""
    return new_tokens(pair[1], given, do_sample=True, seed=SEEDS, eos_token_id=())


@pytest.mark.parametrize(
    ("order", "padding"),
    [([4, 3, 2, 1, 0], 0), ([1, 4, 0, 2, 3], 3), ([2, 0, 3, 4, 1], 40), ([2], 0), ([0], 7)],
)
def test_draws_depend_on_the_rows_seed_alone(pair, rows, drawn, order, padding):
    """Another order, more padding (40 columns make a longer bucket), or no neighbours at all."""
    moved = collate([rows[i] for i in order], pad=PAD, padding=padding)
    got = new_tokens(pair[1], moved, do_sample=True, seed=[SEEDS[i] for i in order], eos_token_id=())
    np.testing.assert_array_equal(got, drawn[order])


def test_draws_differ_by_seed(pair, given, drawn):
    assert len({tuple(row) for row in drawn.tolist()}) == len(drawn)
    other = new_tokens(pair[1], given, do_sample=True, seed=[s + 100 for s in SEEDS], eos_token_id=())
    assert (other != drawn).any(axis=1).all()
    again = new_tokens(pair[1], given, do_sample=True, seed=SEEDS, eos_token_id=())
    np.testing.assert_array_equal(again, drawn)


def test_samples_of_a_row(pair, rows, given, drawn):
    """Rows' samples stand together; the first is the one without others; none depends on the other rows."""
    options = dict(do_sample=True, eos_token_id=(), num_return_sequences=3)
    samples = new_tokens(pair[1], given, seed=SEEDS, **options).reshape(len(rows), 3, NEW)
    np.testing.assert_array_equal(samples[:, 0], drawn)
    assert len({tuple(sample) for sample in samples.reshape(-1, NEW).tolist()}) == 3 * len(rows)
    alone = new_tokens(pair[1], collate(rows[2:3]), seed=SEEDS[2], **options)
    np.testing.assert_array_equal(alone, samples[2])


def test_logits_that_are_not_finite_name_their_row(pair, rows, given, answers):
    """The row whose image holds NaN is named; what the others were given, and streamed, is what they always get."""
    broken, parts = given.images.copy(), []
    broken[1, 0, 5, 5] = np.nan  # the image of row 3
    with pytest.raises(FloatingPointError, match=r"rows \[3\] are not finite"):
        new_tokens(pair[1], dataclasses.replace(given, images=broken), eos_token_id=(), on_tokens=parts.append)
    got = np.concatenate(parts, axis=1)
    np.testing.assert_array_equal(np.delete(got, 3, axis=0), np.delete(answers, 3, axis=0))
