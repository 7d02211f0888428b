"""What int8 weights and prefixes cost: errors of logits compared with those of bfloat16, on random models."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.engine.jobs import clip, question
from tests.small_models import random_model
from videollava_jax import VideoLlavaForConditionalGeneration
from videollava_jax.engine import Engine
from videollava_jax.model.attention import KeysValues, attention
from videollava_jax.model.cache import as_prefix
from videollava_jax.model.layers import quantize_rows
from videollava_jax.weights.quantize import is_quantizable


def as_int8(model, dtype, quantization="int8"):
    """The same model with int8 projections, the rest in `dtype`."""
    parameters = {}
    for name, value in model.parameters.items():
        if is_quantizable(name):
            parameters[name], parameters[name + "_scale"] = quantize_rows(value)
        else:
            parameters[name] = value.astype(dtype)
    return VideoLlavaForConditionalGeneration(model.model_config, parameters, quantization=quantization)


def in_dtype(model, dtype):
    return VideoLlavaForConditionalGeneration(
        model.model_config, {name: value.astype(dtype) for name, value in model.parameters.items()}
    )


def relative_error(got, exact):
    got, exact = np.asarray(got, np.float32), np.asarray(exact, np.float32)
    return float(np.sqrt(np.square(got - exact).mean() / np.square(exact).mean()))


def test_errors_of_each_compared_with_bfloat16(tiny_model, tiny_processor, record_property):
    """Logits after a clip and a question; printed with `-rP`, bounded so that a regression shows."""
    model = random_model(tiny_model)
    inputs = tiny_processor(text="USER: <video>\nwhere does it go? ASSISTANT:", videos=[clip(0)])
    exact = model(**inputs).logits
    errors = {
        "bfloat16": relative_error(in_dtype(model, jnp.bfloat16)(**inputs).logits, exact),
        "int8 weights": relative_error(as_int8(model, jnp.float32)(**inputs).logits, exact),
        "int8 weights, bfloat16": relative_error(as_int8(model, jnp.bfloat16)(**inputs).logits, exact),
    }
    errors["int8 weights and inputs"] = relative_error(as_int8(model, jnp.float32, "w8a8")(**inputs).logits, exact)
    for name, error in errors.items():
        record_property(name, error)
        print(f"{name}: relative RMS error of the logits {error:.4f}")
    assert errors["int8 weights"] < 3 * errors["bfloat16"]
    assert errors["int8 weights"] < errors["int8 weights and inputs"] < 6 * errors["bfloat16"]


def test_the_error_of_an_int8_prefix(record_property):
    """Attention over a prefix in int8 with a scale for each vector, compared with one in bfloat16."""
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.standard_normal((2, length, 4, 64), np.float32)) for length in (3, 256, 256))
    exact = attention(q, KeysValues(k, v))
    stored = as_prefix(KeysValues(k, v), int8=True)
    assert stored.keys.dtype == jnp.int8
    assert stored.key_scale.shape == (2, 4, 256)
    int8 = relative_error(attention(q, stored), exact)
    qh, kh, vh = (x.astype(jnp.bfloat16) for x in (q, k, v))
    half = relative_error(attention(qh, KeysValues(kh, vh)), exact)
    record_property("int8", int8)
    print(f"attention: relative RMS error {int8:.4f} with int8 keys and values, {half:.4f} in bfloat16")
    assert int8 < 4 * half


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_each_vector_is_off_by_at_most_half_a_step(dtype):
    x = jnp.asarray(np.random.default_rng(1).standard_normal((5, 7, 16)), dtype)
    values, scale = quantize_rows(x)
    error = jnp.abs(values * scale[..., None] - x.astype(jnp.float32))
    assert bool((error <= 0.5001 * scale[..., None]).all())
    zeros, scale = quantize_rows(jnp.zeros((2, 4)))
    assert not zeros.any()
    assert bool(jnp.isfinite(scale).all())


def test_scores_with_int8_prefixes_stay_close(tiny_model, tiny_processor):
    model = random_model(tiny_model)
    job = [question("a", "which shape?", videos=[clip(0)], choices=["red", "a blue square"])]
    (exact,) = Engine(model, tiny_processor).score(job)
    (small,) = Engine(model, tiny_processor, int8_cache=True).score(job)
    np.testing.assert_allclose(small.log_likelihoods, exact.log_likelihoods, rtol=0.05)
    assert small.log_likelihoods != exact.log_likelihoods
