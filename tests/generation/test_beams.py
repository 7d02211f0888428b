"""Beam search with draws: continuations are drawn without replacement by the scores of all beams together."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.generation.test_filters import sampling
from videollava_jax.generation.answers import Vocabulary
from videollava_jax.generation.beams import BeamRules, advanced, candidates, new_beams
from videollava_jax.generation.processors import Processors

PROMPTS, BEAMS, V, K = 5000, 2, 6, 4


def test_continuations_are_drawn_without_replacement():
    """How often each token is among the drawn ones, against numpy's draws without replacement, 5 deviations wide."""
    rng = np.random.default_rng(0)
    logits = np.repeat(rng.standard_normal((1, V)).astype(np.float32) * 1.5, PROMPTS * BEAMS, axis=0)
    zero, none = jnp.int32(0), jnp.zeros((V,), bool)
    rules = BeamRules(
        divisor_N=jnp.ones(9), limit=jnp.int32(8), full_ends=jnp.asarray(False), longest=jnp.asarray(False),
        beams=BEAMS, candidates=K,
    )  # fmt: skip
    processors = Processors(
        past=None, min_new_tokens=zero, forced_first_V=none, forced_last_V=none, decay_start=zero,
        decay_factor=jnp.float32(1), not_first_V=none, begin=zero, make_finite=jnp.asarray(False),
        renormalize=jnp.asarray(False), filters=None, functions=(),
    )  # fmt: skip
    vocabulary = Vocabulary(eos_E=jnp.array([V - 1]), suppressed_V=none, pad=zero)
    beams = new_beams(PROMPTS, 8, rules, zero, None, None)
    found, beams = candidates(logits, beams, rules, vocabulary, sampling(PROMPTS * BEAMS), processors)
    assert (np.asarray(found.beam_BK) == 0).all(), "the first step has one beam that counts"
    assert (np.diff(np.asarray(found.sums_BK), axis=1) <= 0).all()
    tokens = np.asarray(found.tokens_BKN)[:, :, 0]
    assert all(len(set(row)) == K for row in tokens.tolist())
    p = np.asarray(jax.nn.softmax(logits[0]), np.float64)
    draws = [rng.choice(V, size=K, replace=False, p=p / p.sum()) for _ in range(PROMPTS)]
    got, expected = (np.bincount(np.concatenate(list(x)), minlength=V) / PROMPTS for x in (tokens, draws))
    deviation = np.sqrt(expected * (1 - expected) * 2 / PROMPTS)
    assert (np.abs(got - expected) <= 5 * deviation + 1e-9).all(), (got, expected)
    beams, row_R = advanced(found, beams, rules)
    assert (np.asarray(row_R) == np.repeat(np.arange(PROMPTS) * BEAMS, BEAMS)).all()
    assert (np.asarray(beams.tokens_BnN)[:, :, 0] != V - 1).all(), "what ended does not run on"
    ended = (tokens[:, :BEAMS] == V - 1).any(axis=1)
    np.testing.assert_array_equal(np.asarray(beams.ended_Bn).any(axis=1), ended)
