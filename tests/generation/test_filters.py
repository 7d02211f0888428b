"""What tokens are drawn from, against transformers' own warpers: the same tokens stay, for every filter."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from videollava_jax.generation.filters import Filters
from videollava_jax.generation.next_token import Sampling, drawn, drawn_from

ROWS, V = 6, 128


def sampling(rows, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    return Sampling(
        keys_B=jax.vmap(jax.random.key)(jnp.arange(rows)),
        draw_B=jnp.full((rows,), True),
        temperature_B=jnp.full((rows,), temperature, jnp.float32),
        top_k_B=jnp.full((rows,), top_k, jnp.int32),
        top_p_B=jnp.full((rows,), top_p, jnp.float32),
        min_p_B=jnp.full((rows,), min_p, jnp.float32),
        draw=True,
    )


def filters(keep=1, **values):
    neutral = {"top_h": 2.0, "typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0}
    return Filters(**{name: jnp.float32(value) for name, value in {**neutral, **values}.items()}, keep=keep)


ours = jax.jit(drawn_from)


def theirs(torch, scores, keep, temperature, top_k, top_p, min_p, values):
    from transformers.generation import logits_process as of

    kept = {"min_tokens_to_keep": keep}
    warpers = [of.TemperatureLogitsWarper(temperature)] if temperature != 1.0 else []
    warpers += [of.TopHLogitsWarper(values["top_h"])] if "top_h" in values else []
    warpers += [of.TopKLogitsWarper(top_k, **kept)] if top_k else []
    warpers += [of.TopPLogitsWarper(top_p, **kept)] if top_p < 1.0 else []
    warpers += [of.MinPLogitsWarper(min_p, **kept)] if min_p else []
    warpers += [of.TypicalLogitsWarper(values["typical_p"], **kept)] if "typical_p" in values else []
    warpers += [of.EpsilonLogitsWarper(values["epsilon_cutoff"], **kept)] if "epsilon_cutoff" in values else []
    warpers += [of.EtaLogitsWarper(values["eta_cutoff"], **kept)] if "eta_cutoff" in values else []
    scores = torch.tensor(scores)
    for warper in warpers:
        scores = warper(None, scores)
    return scores.numpy()


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    scale=st.sampled_from([0.5, 2.0, 6.0]),
    keep=st.sampled_from([1, 3]),
    temperature=st.sampled_from([0.7, 1.0, 1.6]),
    top_k=st.sampled_from([0, 1, 7, 50]),
    top_p=st.sampled_from([0.5, 0.9, 1.0]),
    min_p=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
    values=st.fixed_dictionaries(
        {},
        optional={
            "top_h": st.sampled_from([0.2, 0.5, 0.9]),
            "typical_p": st.sampled_from([0.1, 0.5, 0.95]),
            "epsilon_cutoff": st.sampled_from([1e-3, 0.05]),
            "eta_cutoff": st.sampled_from([1e-3, 0.1]),
        },
    ),
)
def test_the_tokens_that_are_drawn_from_are_those_of_transformers(
    torch, seed, scale, keep, temperature, top_k, top_p, min_p, values
):
    scores = (scale * np.random.default_rng(seed).standard_normal((ROWS, V))).astype(np.float32)
    expected = theirs(torch, scores, keep, temperature, top_k, top_p, min_p, values)
    got = np.asarray(ours(scores, sampling(ROWS, temperature, top_k, top_p, min_p), filters(keep, **values)))
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    assert (got > -np.inf).any(axis=1).all()


def test_draws_have_the_probabilities_of_what_is_left():
    """Pearson's statistic over rows with keys of their own stays below its mean and 5 standard deviations."""
    count = 20_000
    scores = np.random.default_rng(0).standard_normal((1, 16)).astype(np.float32) * 2
    left = np.asarray(drawn_from(jnp.asarray(scores), sampling(1, min_p=0.05), filters(typical_p=0.9)))[0]
    tokens = drawn(jnp.broadcast_to(left, (count, 16)), sampling(count), jnp.zeros((count,), jnp.int32))
    found = np.bincount(np.asarray(tokens), minlength=16)
    expected = count * np.asarray(jax.nn.softmax(left))
    inside = expected > 0
    assert 1 < inside.sum() < 16
    assert found[~inside].sum() == 0
    statistic = ((found - expected)[inside] ** 2 / expected[inside]).sum()
    freedom = inside.sum() - 1
    assert statistic < freedom + 5 * np.sqrt(2 * freedom)
