"""Parity with transformers, rung by rung: norm, rotary, attention, layer, tower, projector, decoder, whole model."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.parity.reference import IMAGE, VIDEO, array, assert_close, channels_last, hf_config, hf_model, ours
from tests.tolerances import LAYER, MODEL
from videollava_jax.attention import attention
from videollava_jax.config import VideoLlavaConfig
from videollava_jax.layers import ACTIVATIONS, rotary

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.fixture(scope="module")
def pair(torch):
    """One random transformers model, its biases and norms stirred so that none is trivially 0 or 1, and ours."""
    model = hf_model(torch, hf_config())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model, ours(model)


def test_activations(torch):
    from transformers.activations import ACT2FN

    x = normal(1000) * 4
    for name, function in ACTIVATIONS.items():
        assert_close(function(jnp.asarray(x)), array(ACT2FN[name](torch.tensor(x))), LAYER)


def test_layer_norm(torch, pair):
    x = normal(2, 5, 32) * 3 + 1
    theirs, mine = pair[0].model.image_tower.pre_layrnorm, pair[1].image_tower.pre_layrnorm
    assert_close(mine(jnp.asarray(x)), array(theirs(torch.tensor(x))), LAYER)


def test_rms_norm(torch, pair):
    x = normal(2, 5, 32) * 3
    theirs, mine = pair[0].model.language_model.norm, pair[1].language_model.norm
    assert_close(mine(jnp.asarray(x)), array(theirs(torch.tensor(x))), LAYER)


def test_rotary(torch, pair):
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    q, positions = normal(2, 6, 4, 8), np.array([[0, 1, 2, 3, 4, 5], [7, 8, 9, 100, 101, 255]])
    cos, sin = pair[0].model.language_model.rotary_emb(torch.tensor(q), torch.tensor(positions))
    expected, _ = apply_rotary_pos_emb(torch.tensor(q), torch.tensor(q), cos, sin, unsqueeze_dim=2)
    assert_close(rotary(jnp.asarray(q), jnp.asarray(positions), theta=10000.0), array(expected), LAYER)


def test_attention(torch):
    q, k, v = normal(2, 6, 4, 8), normal(2, 2, 6, 8), normal(2, 2, 6, 8)
    mask = np.array([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]], bool)
    visible = np.tril(np.ones((6, 6), bool))[None, None] & mask[:, None, None, :]
    expected = torch.nn.functional.scaled_dot_product_attention(
        torch.tensor(q).transpose(1, 2),
        torch.tensor(k).repeat_interleave(2, dim=1),
        torch.tensor(v).repeat_interleave(2, dim=1),
        attn_mask=torch.tensor(visible),
    ).transpose(1, 2)
    got = attention(*map(jnp.asarray, (q, k, v)), key_mask_BS=jnp.asarray(mask), causal_offset=0)
    # A padded query sees nothing: torch gives NaN there, we give something finite, and nobody reads either.
    assert_close(got[0, 2:], array(expected)[0, 2:], LAYER)
    assert_close(got[1], array(expected)[1], LAYER)
    assert np.isfinite(got).all()


def test_vision_layer(torch, pair):
    x = normal(3, 5, 32)
    theirs, mine = pair[0].model.image_tower.encoder.layers[1], pair[1].image_tower.encoder.layers[1]
    assert_close(mine(jnp.asarray(x)), array(theirs(torch.tensor(x), None)), LAYER)


def test_tower(torch, pair):
    pixels = normal(3, 3, 28, 28)
    with torch.no_grad():
        hidden = pair[0].model.video_tower(torch.tensor(pixels), output_hidden_states=True).hidden_states
    for i, expected in enumerate(hidden):
        assert_close(pair[1].video_tower(channels_last(pixels), (i,)), array(expected), LAYER)


def test_projector(torch, pair):
    x = normal(2, 5, 32)
    expected = pair[0].model.multi_modal_projector(torch.tensor(x))
    assert_close(pair[1].multi_modal_projector(jnp.asarray(x)), array(expected), LAYER)


def test_decoder_layer(torch, pair):
    x, positions = normal(2, 6, 32), np.tile(np.arange(6), (2, 1))
    llama = pair[0].model.language_model
    causal = torch.full((6, 6), float("-inf")).triu(1)[None, None]
    embeddings = llama.rotary_emb(torch.tensor(x), torch.tensor(positions))
    expected = llama.layers[1](torch.tensor(x), attention_mask=causal, position_embeddings=embeddings)
    got, _ = pair[1].language_model.layers[1](jnp.asarray(x), jnp.asarray(positions))
    assert_close(got, array(expected), LAYER)


@settings(max_examples=50, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whole_model_on_drawn_configurations(torch, data):
    draw = lambda *options: data.draw(st.sampled_from(options))  # noqa: E731
    layers = draw(2, 3)
    heads = draw(1, 2, 4)
    config = hf_config(
        vision={
            "num_hidden_layers": layers,
            "num_attention_heads": draw(1, 2, 4),
            "hidden_act": draw("quick_gelu", "gelu"),
            "image_size": draw(28, 42, 30),
            "patch_size": draw(7, 14),
        },
        text={
            "num_attention_heads": heads,
            "num_key_value_heads": draw(*[k for k in (1, 2, 4) if heads % k == 0]),
            "head_dim": draw(8, 16),
            "attention_bias": draw(False, True),
            "rms_norm_eps": draw(1e-5, 1e-6),
            "rope_parameters": {"rope_type": "default", "rope_theta": draw(10000.0, 500000.0)},
        },
        vision_feature_layer=draw(-2, -1, 1, [-2, -1], [0, 1, 2]),
        vision_feature_select_strategy=draw("default", "full"),
        multimodal_projector_bias=draw(True, False),
        projector_hidden_act=draw("gelu", "relu"),
        tie_word_embeddings=draw(False, True),
    )
    model = hf_model(torch, config, seed=data.draw(st.integers(0, 1000)))
    mine = ours(model)
    seed = data.draw(st.integers(0, 1000))
    rng = np.random.default_rng(seed)
    size, frames = config.vision_config.image_size, draw(1, 2, 8)
    images, videos = draw(0, 1, 2), draw(0, 1)
    rows = 2
    media = [(IMAGE, mine.config.tokens_per_image)] * images + [(VIDEO, mine.config.tokens_per_frame * frames)] * videos
    sequences = [list(rng.integers(3, 80, rng.integers(1, 5))) for _ in range(rows)]
    for i, (token, count) in enumerate(media):
        sequences[i % rows] += [token] * count + list(rng.integers(3, 80, rng.integers(1, 6)))
    length = max(map(len, sequences))
    ids = np.array([[0] * (length - len(s)) + s for s in sequences])
    mask = np.array([[0] * (length - len(s)) + [1] * len(s) for s in sequences])
    # Images of all rows come in the order of their rows.
    image_pixels = rng.standard_normal((images, 3, size, size)).astype(np.float32)
    video_pixels = rng.standard_normal((videos, frames, 3, size, size)).astype(np.float32)
    with torch.no_grad():
        expected = model(
            input_ids=torch.tensor(ids),
            attention_mask=torch.tensor(mask),
            pixel_values=torch.tensor(image_pixels) if images else None,
            pixel_values_videos=torch.tensor(video_pixels) if videos else None,
        ).logits
    got = nnx.jit(run)(
        mine,
        jnp.asarray(ids),
        jnp.asarray(mask),
        channels_last(image_pixels) if images else None,
        channels_last(video_pixels) if videos else None,
    )
    assert_close(np.asarray(got)[mask == 1], array(expected)[mask == 1], MODEL)


def run(model, ids, mask, images, videos):
    image_features = None if images is None else model.encode_images(images)
    video_features = None if videos is None else model.encode_videos(videos)
    return model(ids, mask, image_features, video_features)


def test_configuration_round_trip():
    config = VideoLlavaConfig.from_hf(hf_config(vision_feature_layer=[-2, 0], text={"eos_token_id": [2, 5]}))
    assert VideoLlavaConfig.from_hf(config.to_hf()) == config
    assert config.feature_layers == (2, 0)
    assert config.eos_token_ids == (2, 5)
