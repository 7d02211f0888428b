"""bfloat16: each operation rounds its result and nothing before it; whole models err no more than transformers'."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.parity.reference import batch, hf_logits, logits
from tests.small_models import hf_config, hf_model, ours, sharp_hf_model
from videollava_jax.model.attention import KeysValues, attention
from videollava_jax.model.layers import ACTIVATIONS, LayerNorm, Linear, RMSNorm, rotary

SEEDS = 8
# Half the distance between neighbours of 8 significant bits, relative, and what float32 itself may be off.
ROUNDING = 2.0**-8 * 1.01


def drawn(seed, *shape, scale=1.0):
    return scale * jax.random.normal(jax.random.key(seed), shape, jnp.bfloat16)


# Each is called with bfloat16 arrays and with the same values in float32. Outside jit, where XLA cannot keep
# more precision than the program asks for.
OPERATIONS = {
    **{name: (function, [drawn(0, 4096, scale=3)]) for name, function in ACTIVATIONS.items()},
    "linear": (
        lambda x, w, b: with_values(linear(x.dtype), w, b)(x),
        [drawn(0, 64, 96), drawn(1, 32, 96), drawn(2, 32)],
    ),
    "rotary": (lambda x: rotary(x, jnp.arange(3000, 3064)[None], theta=1e4), [drawn(0, 1, 64, 2, 16)]),
    "layer norm": (
        lambda x, w, b: with_values(LayerNorm(96, eps=1e-5, dtype=x.dtype), w, b)(x),
        [drawn(0, 64, 96) + 20, drawn(1, 96), drawn(2, 96)],
    ),
}


def linear(dtype):
    return Linear(96, 32, bias=True, dtype=dtype, rngs=nnx.Rngs(0))


def with_values(layer, weight, bias=None):
    layer.weight[...] = weight
    if bias is not None:
        layer.bias[...] = bias
    return layer


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_rounds_once(name):
    function, arguments = OPERATIONS[name]
    got = function(*arguments)
    exact = np.asarray(function(*(a.astype(jnp.float32) for a in arguments)))
    assert got.dtype == jnp.bfloat16
    np.testing.assert_array_less(np.abs(np.asarray(got, np.float32) - exact), ROUNDING * np.abs(exact) + 1e-6)


def test_rms_norm_rounds_as_llama_does():
    """Once when normalised and once when scaled."""
    x, weight = drawn(0, 64, 96, scale=30), drawn(1, 96)
    got = with_values(RMSNorm(96, eps=1e-5, dtype=jnp.bfloat16), weight)(x)
    exact = with_values(RMSNorm(96, eps=1e-5, dtype=jnp.float32), weight.astype(jnp.float32))(x.astype(jnp.float32))
    exact = np.asarray(exact)
    np.testing.assert_array_less(np.abs(np.asarray(got, np.float32) - exact), 2 * ROUNDING * np.abs(exact) + 1e-6)


def test_attention_rounds_weights_and_outputs_only():
    """Scores near 30 in bfloat16 would be off by up to 1/16, and so would their weights."""
    q, k, v = drawn(0, 1, 16, 2, 32, scale=3), drawn(1, 1, 48, 2, 32, scale=3), drawn(2, 1, 48, 2, 32)
    exact = np.asarray(attention(q.astype(jnp.float32), KeysValues(k.astype(jnp.float32), v.astype(jnp.float32))))
    largest = np.asarray(
        attention(q.astype(jnp.float32), KeysValues(k.astype(jnp.float32), jnp.abs(v).astype(jnp.float32)))
    )
    got = np.asarray(attention(q, KeysValues(k, v)), np.float32)
    np.testing.assert_array_less(np.abs(got - exact), ROUNDING * (largest + np.abs(exact)) + 1e-6)


@pytest.mark.parametrize("make", [hf_model, sharp_hf_model])
def test_error_is_no_larger_than_that_of_transformers(torch, make):
    """Both run the same bfloat16 weights; the truth is transformers in float32 with those rounded weights.

    Errors of a single model go either way by chance, so those of all models are taken together, each in units of
    its own logits.
    """
    wide = {"hidden_size": 64, "intermediate_size": 128}
    mine_errors, their_errors = [], []
    for seed in range(SEEDS):
        theirs = make(torch, hf_config(vision=wide, text=wide), seed).to(torch.bfloat16)
        mine = ours(theirs, jnp.bfloat16)
        # One draw of prompts for all, so that the models share one compilation.
        given = batch(mine.config, np.random.default_rng(0), ["iv", "v", "", "i"])
        real = given.mask == 1
        got, expected = logits(mine, given)[real], hf_logits(torch, theirs, given)[real]
        exact = hf_logits(torch, theirs.float(), given)[real]
        scale = np.sqrt(np.square(exact).mean())
        mine_errors.append((got - exact) / scale)
        their_errors.append((expected - exact) / scale)
    for measure in (root_mean_square, mean_absolute, mean_of_largest):
        assert measure(mine_errors) <= measure(their_errors), measure.__name__
    assert root_mean_square(mine_errors) > 1e-3  # float32 all through would be no test


def root_mean_square(errors):
    return np.sqrt(np.square(errors).mean())


def mean_absolute(errors):
    return np.abs(errors).mean()


def mean_of_largest(errors):
    """The largest error of a model, on the average of the models: the largest of all would be one draw."""
    return np.mean([np.abs(e).max() for e in errors])
