"""The original video tower against a torch reference written from its description: time first, then space."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.parity.original_tower import FRAMES, hidden_states, see_through_it
from tests.parity.reference import assert_close, batch, channels_last, hf_logits, logits
from tests.small_models import array, hf_config, ours, sharp_hf_model, weights_of, with_weights
from tests.tolerances import LAYER, MODEL
from videollava_jax.config import ModelConfig, VisionConfig
from videollava_jax.face.model import VideoLlavaForConditionalGeneration
from videollava_jax.model.video_llava import abstract_model, named_parameters, with_parameters
from videollava_jax.model.vision import VisionTower

CONFIG = VisionConfig(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    image_size=28,
    hidden_act="gelu",
)


def drawn(rng, name, shape):
    """A value for a parameter such that no bias is 0, no norm 1, and projections keep the size of what they get."""
    offset = 1.0 if "norm" in name and name.endswith(".weight") else 0.0
    std = shape[-1] ** -0.5 if len(shape) > 1 else 0.1
    return (offset + std * rng.standard_normal(shape)).astype(np.float32)


def abstract_tower(config):
    return nnx.eval_shape(lambda: VisionTower(config, temporal_frames=FRAMES, dtype=jnp.float32, rngs=nnx.Rngs(0)))


@pytest.fixture(scope="module")
def tower():
    graph, state = nnx.split(abstract_tower(CONFIG))
    rng = np.random.default_rng(0)
    weights = {name: jnp.asarray(drawn(rng, name, v.shape)) for name, v in named_parameters(state).items()}
    return nnx.merge(graph, with_parameters(state, weights))


@partial(jax.jit, static_argnums=(0, 3))
def _hidden(graph, state, pixels, layers):
    return nnx.merge(graph, state)(pixels, layers)


def hidden(tower, pixels, layers):
    return _hidden(*nnx.split(tower), channels_last(pixels), layers)


def test_equals_the_reference_layer_by_layer(torch, tower):
    pixels = np.random.default_rng(1).standard_normal((FRAMES, 3, 28, 28)).astype(np.float32)
    expected = torch.cat(hidden_states(torch, CONFIG, named_parameters(nnx.state(tower)), pixels), dim=-1)
    assert_close(hidden(tower, pixels, tuple(range(CONFIG.num_hidden_layers + 1))), array(expected), LAYER)


def test_sixteen_frames_are_two_clips_of_eight(tower):
    pixels = np.random.default_rng(2).standard_normal((16, 3, 28, 28)).astype(np.float32)
    both = hidden(tower, pixels, (2,))
    assert_close(both[:8], hidden(tower, pixels[:8], (2,)), LAYER)
    assert_close(both[8:], hidden(tower, pixels[8:], (2,)), LAYER)


def test_other_counts_are_refused(tower):
    with pytest.raises(ValueError, match="multiple of 8 frames, got 12"):
        tower(jnp.zeros((12, 28, 28, 3)), (2,))


def test_temporal_parameters_are_11_a_layer():
    parameters = named_parameters(nnx.state(abstract_tower(VisionConfig())))
    temporal = {n: v for n, v in parameters.items() if ".temporal_" in n}
    assert len(temporal) == 264
    assert sum(int(np.prod(v.shape)) for v in temporal.values()) == 101_007_360


@pytest.fixture(scope="module")
def whole(torch):
    """A transformers model that sees videos through the reference, its plain self, our weights and configuration."""
    plain = sharp_hf_model(torch, hf_config(vision={"hidden_act": CONFIG.hidden_act}, text={"eos_token_id": 2}))
    config = dataclasses.replace(ModelConfig.from_hf(plain.config), variant="original")
    assert config.vision_config == CONFIG
    rng, weights = np.random.default_rng(3), weights_of(plain)
    for name, value in named_parameters(nnx.state(abstract_model(config))).items():
        if ".temporal_" in name:
            weights[name] = drawn(rng, name, value.shape)
    original = sharp_hf_model(torch, plain.config)
    original.load_state_dict(plain.state_dict())
    see_through_it(torch, original, CONFIG, weights)
    return original, plain, config, weights


@pytest.mark.parametrize("frames", [8, 16])
def test_whole_model(torch, whole, frames):
    original, plain, config, weights = whole
    given = batch(config, np.random.default_rng(4), ["v", "iv", "i", ""], frames)
    real = given.mask == 1
    expected = hf_logits(torch, original, given)[real]
    assert_close(logits(with_weights(config, weights), given)[real], expected, MODEL)
    # Attention over time is not lost in the rounding: without it the logits are others.
    assert np.abs(hf_logits(torch, plain, given)[real] - expected).max() > 0.1
    assert_close(logits(ours(plain), given)[real], hf_logits(torch, plain, given)[real], MODEL)


def test_greedy_tokens(torch, whole):
    original, _, config, weights = whole
    model = VideoLlavaForConditionalGeneration(config, {n: jnp.asarray(w) for n, w in weights.items()})
    given = batch(config, np.random.default_rng(5), ["v", "iv", "i", ""], FRAMES)
    expected = original.generate(**given.for_torch(torch), max_new_tokens=16, do_sample=False)
    np.testing.assert_array_equal(model.generate(**given.for_ours(), max_new_tokens=16), expected.numpy())
