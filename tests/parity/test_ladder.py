"""Parity with transformers, rung by rung: norm, rotary, attention, layer, tower, projector, decoder, whole model."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.parity.reference import Batch, assert_close, batch, channels_last, hf_logits, logits
from tests.small_models import array, hf_config, ours, sharp_hf_model
from tests.tolerances import LAYER, MODEL, SELF
from videollava_jax.generation.steps import extend, prefill
from videollava_jax.model.attention import KeysValues, attention
from videollava_jax.model.cache import Cache
from videollava_jax.model.layers import ACTIVATIONS, rotary

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.fixture(scope="module")
def pair(torch):
    """One random transformers model, and ours."""
    model = sharp_hf_model(torch, hf_config())
    return model, ours(model)


def test_activations(torch):
    from transformers.activations import ACT2FN

    x = normal(1000) * 4
    for name, function in ACTIVATIONS.items():
        assert_close(jax.jit(function)(x), array(ACT2FN[name](torch.tensor(x))), LAYER)


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


@pytest.mark.parametrize("order", ["GSKH", "GKSH", "SGKH"])
def test_attention(torch, order):
    q, k, v = normal(2, 6, 4, 8), normal(2, 2, 6, 8), normal(2, 2, 6, 8)
    mask = np.array([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]], bool)
    visible = np.tril(np.ones((6, 6), bool))[None, None] & mask[:, None, None, :]
    expected = torch.nn.functional.scaled_dot_product_attention(
        torch.tensor(q).transpose(1, 2),
        torch.tensor(k).repeat_interleave(2, dim=1),
        torch.tensor(v).repeat_interleave(2, dim=1),
        attn_mask=torch.tensor(visible),
    ).transpose(1, 2)
    kv = KeysValues(jnp.asarray(k), jnp.asarray(v), order="GKSH").reordered(order)
    got = attention(jnp.asarray(q), kv, key_mask_GS=jnp.asarray(mask), causal_offset=0)
    # A padded query sees nothing: torch gives NaN there, we give something finite, and nobody reads either.
    assert_close(got[0, 2:], array(expected)[0, 2:], LAYER)
    assert_close(got[1], array(expected)[1], LAYER)
    assert np.isfinite(got).all()


@pytest.mark.parametrize("offset", [None, 0, 5, "traced"])
def test_attention_in_blocks(monkeypatch, offset):
    """11 queries in blocks of 4 against all at once: no causal rule, from the first key, and behind a cache."""
    monkeypatch.setattr("videollava_jax.model.attention.QUERY_BLOCK", 4)
    q, k, v = normal(2, 11, 4, 8), normal(2, 2, 16, 8), normal(2, 2, 16, 8)
    mask = np.arange(16)[None] >= np.array([[0], [3]])
    offset = jnp.asarray(5) if offset == "traced" else offset
    # A query that sees nothing averages over whatever keys its block has: nobody reads that.
    reads = np.ones((2, 11), bool) if offset is None else np.arange(11) + offset >= np.array([[0], [3]])
    blocked, reference, chosen = (
        jax.jit(partial(attention, causal_offset=offset, implementation=name))(
            q, KeysValues(k, v, order="GKSH"), key_mask_GS=mask
        )
        for name in ("blocked", "reference", None)
    )
    assert_close(blocked[reads], reference[reads], SELF)
    np.testing.assert_array_equal(chosen, blocked)


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


DRAWS = 50
OPTIONS = {
    "vision_layers": (2, 3),
    "vision_heads": (1, 2, 4),
    "vision_act": ("quick_gelu", "gelu"),
    "vision_eps": (1e-5, 1e-2),
    "image_and_patch": ((28, 14), (28, 7), (42, 14), (30, 14)),  # the last leaves two rows of pixels over
    "text_layers": (1, 2),
    "heads_and_kv": ((1, 1), (2, 1), (2, 2), (4, 1), (4, 2), (4, 4)),
    "head_dim": (8, 16),
    "attention_bias": (False, True),
    "mlp_bias": (False, True),
    "text_act": ("silu", "gelu_pytorch_tanh"),
    "rms_norm_eps": (1e-6, 1e-2),
    "rope_theta": (10000.0, 500000.0),
    "feature_layer": (-2, -1, 1, [-2, -1], [0, 1, 2], [-1, 0]),
    "strategy": ("default", "full"),
    "projector_bias": (True, False),
    "projector_act": ("gelu", "relu"),
    "tied": (False, True),
    "frames": (1, 2, 8),
    "rows": (("i", "v"), ("vi", ""), ("i", "iv"), ("", "vv"), ("ii", "")),
}


def drawn_choices():
    """`DRAWS` choices among the options: each option of a part equally often, paired with the others by chance."""
    rng = np.random.default_rng(0)
    columns = {part: rng.permutation(np.arange(DRAWS) % len(options)) for part, options in OPTIONS.items()}
    return [{part: OPTIONS[part][column[i]] for part, column in columns.items()} for i in range(DRAWS)]


@pytest.mark.parametrize("choice", drawn_choices(), ids=range(DRAWS))
def test_whole_model_on_drawn_configurations(torch, choice):
    size, patch = choice["image_and_patch"]
    heads, kv_heads = choice["heads_and_kv"]
    config = hf_config(
        vision={
            "num_hidden_layers": choice["vision_layers"],
            "num_attention_heads": choice["vision_heads"],
            "hidden_act": choice["vision_act"],
            "layer_norm_eps": choice["vision_eps"],
            "image_size": size,
            "patch_size": patch,
        },
        text={
            "num_hidden_layers": choice["text_layers"],
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "head_dim": choice["head_dim"],
            "attention_bias": choice["attention_bias"],
            "mlp_bias": choice["mlp_bias"],
            "hidden_act": choice["text_act"],
            "rms_norm_eps": choice["rms_norm_eps"],
            "rope_parameters": {"rope_type": "default", "rope_theta": choice["rope_theta"]},
        },
        vision_feature_layer=choice["feature_layer"],
        vision_feature_select_strategy=choice["strategy"],
        multimodal_projector_bias=choice["projector_bias"],
        projector_hidden_act=choice["projector_act"],
        tie_word_embeddings=choice["tied"],
    )
    theirs = sharp_hf_model(torch, config, seed=1)
    mine = ours(theirs)
    given = batch(mine.config, np.random.default_rng(2), choice["rows"], choice["frames"])
    expected = hf_logits(torch, theirs, given)
    real = given.mask == 1
    assert np.abs(expected[real]).mean() > 0.3  # the tolerance is far below what it is compared with
    assert_close(logits(mine, given)[real], expected[real], MODEL)


def test_a_prompt_in_pieces_is_the_prompt(pair):
    """Prefill and three extensions, whose rows are of different lengths, against no cache at all."""
    model = pair[1]
    ids = np.random.default_rng(4).integers(3, 80, (3, 12))
    # How many tokens of each row are in each piece; the rest of a piece is padding, on its left.
    pieces = np.array([[4, 2, 4, 2], [1, 4, 4, 3], [3, 4, 1, 4]])
    whole = logits(model, Batch(ids, np.ones_like(ids), None, None))
    done, cache = np.zeros(3, int), None
    for counts in pieces.T:
        mask = np.arange(counts.max()) >= counts.max() - counts[:, None]
        piece = np.zeros(mask.shape, int)
        for row, (start, count) in enumerate(zip(done, counts, strict=True)):
            piece[row, mask[row]] = ids[row, start : start + count]
        if cache is None:
            last, cache = prefill(*nnx.split(model), piece, mask, None, None, capacity=16)
        else:
            last, tail = extend(*nnx.split(model), piece, mask, cache.prefix, cache.tail)
            cache = Cache(cache.prefix, tail)
        done += counts
        assert_close(last, whole[np.arange(3), done - 1], SELF)
    assert (done == 12).all()
    np.testing.assert_array_equal(cache.tail.next_position_B, 12)
