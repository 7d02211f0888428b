"""From logits to tokens: the filters against transformers' own, the draws against the probabilities."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from videollava_jax.generation.filters import likeliest
from videollava_jax.generation.next_token import Sampling, next_tokens
from videollava_jax.generation.options import GenerationOptions
from videollava_jax.generation.penalties import penalties_of

ROWS, V = 6, 64  # one shape for all draws of the filters, so that they share what is compiled


def sampling(rows, *, seeds=None, temperature=1.0, top_k=0, top_p=1.0, draw=True):
    seeds = range(rows) if seeds is None else seeds
    return Sampling(
        keys_B=jnp.stack([jax.random.key(s) for s in seeds]),
        draw_B=jnp.full((rows,), draw),
        temperature_B=jnp.full((rows,), temperature, jnp.float32),
        top_k_B=jnp.full((rows,), top_k, jnp.int32),
        top_p_B=jnp.full((rows,), top_p, jnp.float32),
        min_p_B=jnp.zeros((rows,), jnp.float32),
        draw=draw,
    )


def zeros(rows):
    return jnp.zeros((rows,), jnp.int32)


def logits(seed, rows=ROWS, scale=3.0):
    return (scale * np.random.default_rng(seed).standard_normal((rows, V))).astype(np.float32)


@jax.jit
def ours(scores, temperature, top_k, top_p):
    rows = (len(scores),)
    return likeliest(scores / temperature, jnp.full(rows, top_k), jnp.full(rows, top_p))


def theirs(torch, scores, temperature, top_k, top_p):
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    scores = torch.tensor(scores)
    warpers = [TemperatureLogitsWarper(temperature)] if temperature != 1.0 else []
    warpers += [TopKLogitsWarper(top_k)] if top_k else []
    warpers += [TopPLogitsWarper(top_p)] if top_p < 1.0 else []
    for warper in warpers:
        scores = warper(None, scores)
    return scores.numpy()


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    scale=st.sampled_from([0.01, 1.0, 8.0]),
    temperature=st.sampled_from([0.2, 0.7, 1.0, 1.6]),
    top_k=st.sampled_from([0, 1, 2, 7, 50, V, 1000]),
    top_p=st.sampled_from([1e-6, 0.1, 0.5, 0.9, 0.999, 1.0]),
)
def test_filters_equal_transformers(torch, seed, scale, temperature, top_k, top_p):
    scores = logits(seed, scale=scale)
    expected = theirs(torch, scores, temperature, top_k, top_p)
    np.testing.assert_allclose(ours(scores, temperature, top_k, top_p), expected, rtol=1e-6)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000), top_k=st.sampled_from([1, 2, 7, 50]), top_p=st.sampled_from([0.3, 0.8, 1.0]))
def test_ties_at_the_last_place_all_stay(torch, seed, top_k, top_p):
    """bfloat16 logits of a large vocabulary are full of ties; transformers keeps every one at the k-th place.

    At the end of the mass of top-p transformers keeps some of a tie, by the order of a sort that is not stable;
    we keep all of it.
    """
    scores = np.round(logits(seed))
    got = np.asarray(ours(scores, 1.0, top_k, top_p))
    expected = theirs(torch, scores, 1.0, top_k, top_p)
    last = np.min(expected, axis=-1, where=expected > -np.inf, initial=np.inf)[:, None]
    np.testing.assert_array_equal(got, np.where(scores >= last, scores, -np.inf))


@settings(max_examples=50, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000), penalty=st.sampled_from([0.5, 1.2, 3.0]))
def test_repetition_penalty_equals_transformers(torch, seed, penalty):
    from transformers import RepetitionPenaltyLogitsProcessor

    scores = logits(seed)
    ids = np.random.default_rng(seed).integers(0, V, (ROWS, 12))
    expected = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor(ids), torch.tensor(scores)).argmax(dim=-1)
    own = [GenerationOptions(repetition_penalty=penalty)] * ROWS
    got = next_tokens(jnp.asarray(scores), penalties_of(list(ids), own, V), sampling(ROWS, draw=False), zeros(ROWS))
    np.testing.assert_array_equal(got, expected.numpy())
    assert got.dtype == jnp.int32


DRAWS = 20_000


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 0.5}, {"temperature": 2.0}, {"top_k": 5}, {"top_p": 0.8}, {"top_k": 12, "top_p": 0.7}],
    ids=str,
)
def test_draws_have_the_probabilities_of_the_scores(options):
    """Pearson's statistic over rows with keys of their own stays below its mean and 5 standard deviations."""
    scores = np.linspace(-1.5, 1.5, 16)[::-1].astype(np.float32)  # the likeliest first
    weights = np.exp(scores.astype(np.float64) / options.get("temperature", 1.0))
    weights[options.get("top_k", 16) :] = 0
    weights /= weights.sum()
    weights[np.cumsum(weights) - weights >= options.get("top_p", 1.0)] = 0
    probabilities = weights / weights.sum()

    keys = jax.random.split(jax.random.key(0), DRAWS)
    rows = jax.tree.map(lambda x: jnp.repeat(x, DRAWS, axis=0), sampling(1, **options))
    drawing = dataclasses.replace(rows, keys_B=keys)
    drawn = next_tokens(jnp.broadcast_to(scores, (DRAWS, 16)), None, drawing, jnp.full((DRAWS,), 3))
    kept = probabilities > 0
    counts = np.bincount(np.asarray(drawn), minlength=16)
    assert counts[~kept].sum() == 0
    expected = DRAWS * probabilities[kept]
    freedom = kept.sum() - 1
    assert (np.square(counts[kept] - expected) / expected).sum() < freedom + 5 * np.sqrt(2 * freedom)


def test_a_row_draws_by_its_key_and_its_count_alone():
    scores, seeds, counts = jnp.asarray(logits(0, rows=50)), np.arange(50), jnp.arange(50) % 7
    drawn = np.asarray(next_tokens(scores, None, sampling(50, seeds=seeds), counts))
    order = np.random.default_rng(0).permutation(50)
    moved = next_tokens(scores[order], None, sampling(50, seeds=seeds[order]), counts[order])
    np.testing.assert_array_equal(moved, drawn[order])
    np.testing.assert_array_equal(next_tokens(scores[6:7], None, sampling(1, seeds=[6]), counts[6:7]), drawn[6:7])
    # Another count, or another seed, draws anew.
    for other in (
        next_tokens(scores, None, sampling(50), counts + 1),
        next_tokens(scores, None, sampling(50, seeds=seeds + 1), counts),
    ):
        assert (np.asarray(other) != drawn).any()
    same = jnp.broadcast_to(scores[0], scores.shape)
    assert len(set(np.asarray(next_tokens(same, None, sampling(50, seeds=seeds), zeros(50))).tolist())) > 5
    assert len(set(np.asarray(next_tokens(same, None, sampling(50, seeds=[3] * 50), zeros(50))).tolist())) == 1


def test_rows_are_chosen_each_by_its_own_options():
    """Half of the rows greedy, the others each with its own filters: as if each were alone."""
    scores, options = jnp.asarray(logits(3)), [{"draw": False}, {"top_k": 3}, {"top_p": 0.5}, {"temperature": 3.0}]
    alone = [sampling(1, seeds=[row], **options[row % len(options)]) for row in range(ROWS)]
    together = jax.tree.map(lambda *rows: jnp.concatenate(rows), *(dataclasses.replace(s, draw=True) for s in alone))
    expected = [int(next_tokens(scores[row : row + 1], None, alone[row], zeros(1))[0]) for row in range(ROWS)]
    assert next_tokens(scores, None, together, zeros(ROWS)).tolist() == expected


def test_greedy_ignores_what_only_draws_use():
    scores = jnp.asarray(logits(1))
    greedy = sampling(ROWS, temperature=9.0, top_k=3, top_p=0.1, draw=False)
    np.testing.assert_array_equal(next_tokens(scores, None, greedy, zeros(ROWS)), np.argmax(scores, axis=-1))


def test_the_likeliest_of_a_mass_too_small_for_any_is_drawn():
    scores = jnp.asarray(logits(2, scale=0.01))
    drawn = next_tokens(scores, None, sampling(ROWS, top_p=1e-9), zeros(ROWS))
    np.testing.assert_array_equal(drawn, np.argmax(scores, axis=-1))
