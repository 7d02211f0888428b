"""Scaled rotary embeddings, linear and dynamic, against transformers: whole prompts, a cache, the most positions."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.parity.reference import assert_close
from tests.small_models import TEXT, array, hf_config, public, sharp_hf_model
from tests.tolerances import LAYER, SELF
from videollava_jax.config import RopeScaling
from videollava_jax.engine import Engine, Request
from videollava_jax.generation.chat import Chat
from videollava_jax.model.layers import RotaryScaling, rotary

POSITIONS = 24  # of the training; prompts are shorter and longer
KINDS = ("linear", "dynamic")
FACTOR = 4.0


@pytest.fixture(scope="module", params=KINDS)
def pair(request, torch):
    """One random transformers model with a scaled rotary embedding, and ours."""
    rope = {"rope_type": request.param, "factor": FACTOR, "rope_theta": 100.0}
    config = hf_config(text={"max_position_embeddings": POSITIONS, "rope_parameters": rope})
    model = sharp_hf_model(torch, config)
    return model, public(model)


def fresh(model):
    """The model with a rotary embedding that has computed nothing: dynamic ones keep the longest length so far."""
    decoder = model.model.language_model
    decoder.rotary_emb = type(decoder.rotary_emb)(decoder.config)
    return model


def prompt(length):
    return np.random.default_rng(length).integers(3, TEXT, (1, length))


@pytest.mark.parametrize("kind", KINDS)
def test_rotary(torch, pair, kind):
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

    rope = {"rope_type": kind, "factor": FACTOR, "rope_theta": 10000.0}
    config = LlamaConfig(hidden_size=32, num_attention_heads=4, max_position_embeddings=POSITIONS, rope_parameters=rope)
    q = np.random.default_rng(0).standard_normal((1, 6, 4, 8)).astype(np.float32)
    for positions in ([0, 1, 2, 3, 4, 5], [0, 5, 9, 22, 23, 23], [0, 1, 20, 23, 24, 24], [7, 8, 9, 60, 61, 95]):
        cos, sin = LlamaRotaryEmbedding(config)(torch.tensor(q), torch.tensor([positions]))
        expected, _ = apply_rotary_pos_emb(torch.tensor(q), torch.tensor(q), cos, sin, unsqueeze_dim=2)
        got = rotary(
            jnp.asarray(q), jnp.array([positions]), theta=10000.0, scaling=RotaryScaling(kind, FACTOR, POSITIONS)
        )
        assert_close(got, array(expected), LAYER)


@pytest.mark.parametrize("length", [5, POSITIONS, POSITIONS + 1, 40, 90])
def test_logits_of_whole_prompts(torch, pair, length):
    theirs, mine = pair
    ids = prompt(length)
    with torch.no_grad():
        expected = array(fresh(theirs)(input_ids=torch.tensor(ids)).logits)
    assert np.abs(expected).mean() > 0.3
    assert_close(mine(input_ids=ids).logits, expected, SELF)
    plain = dataclasses.replace(mine.model_config.text_config, rope_scaling=None)
    if length > POSITIONS or mine.model_config.text_config.rope_scaling.kind == "linear":
        without = type(mine)(dataclasses.replace(mine.model_config, text_config=plain), dict(mine.parameters), {})
        assert np.abs(np.asarray(without(input_ids=ids).logits) - expected).max() > 1e-2  # the scaling matters


@pytest.mark.parametrize("length", [10, POSITIONS - 4, 40])
def test_tokens_and_logits_of_decode_with_a_cache(torch, pair, length):
    """Cached keys keep the rotation that they were written with, in transformers as here; new ones have their own."""
    theirs, mine = pair
    ids, steps = prompt(length), 12
    options = {"max_new_tokens": steps, "do_sample": False, "eos_token_id": None, "return_dict_in_generate": True}
    expected = fresh(theirs).generate(
        input_ids=torch.tensor(ids), attention_mask=torch.ones_like(torch.tensor(ids)), output_logits=True, **options
    )
    got = mine.generate(input_ids=ids, output_logits=True, **options)
    np.testing.assert_array_equal(got.sequences, expected.sequences.numpy())
    for ours, reference in zip(got.logits, expected.logits, strict=True):
        assert_close(ours, array(reference), SELF)


@pytest.mark.filterwarnings("ignore:.*past_key_values.*:FutureWarning")  # transformers' newer name for it
@pytest.mark.parametrize(("first", "then"), [(10, 10), (20, 10), (30, 20)])
def test_logits_after_a_cache_that_is_given(torch, pair, first, then):
    """transformers does not rotate the keys of its cache again, either: those of `forward` are the same in parts."""
    theirs, mine = pair
    ids = prompt(first + then)
    before, after = ids[:, :first], ids[:, first:]
    with torch.no_grad():
        cache = fresh(theirs)(input_ids=torch.tensor(before), use_cache=True).past_key_values
        expected = array(theirs(input_ids=torch.tensor(after), past_key_values=cache, use_cache=True).logits)
    held = mine(input_ids=before, use_cache=True).past_key_values
    assert_close(mine(input_ids=after, past_key_values=held, use_cache=True).logits, expected, SELF)


def test_a_row_does_not_depend_on_the_others_of_its_batch(pair):
    _, mine = pair
    alone = mine.generate(input_ids=prompt(10), max_new_tokens=6, do_sample=False, eos_token_id=None)[:, 10:]
    ids = np.concatenate([np.zeros((1, 50), int), prompt(60)[:, :50]])
    ids[0, 40:] = prompt(10)
    mask = np.ones_like(ids)
    mask[0, :40] = 0
    both = mine.generate(input_ids=ids, attention_mask=mask, max_new_tokens=6, do_sample=False, eos_token_id=None)
    np.testing.assert_array_equal(both[:1, 50:], alone)


def test_the_most_positions(pair):
    _, mine = pair
    with pytest.raises(ValueError, match=f"do not fit the model's {int(FACTOR) * POSITIONS} positions"):
        mine.generate(input_ids=prompt(95), max_new_tokens=2)
    dynamic = mine.model_config.text_config.is_dynamic
    ids = prompt(30)
    if dynamic:
        with pytest.raises(ValueError, match=r"24 positions.*the rope_scaling of this model is dynamic"):
            mine.generate(input_ids=ids, max_new_tokens=4, prompt_lookup_num_tokens=3)
    else:
        options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
        np.testing.assert_array_equal(
            mine.generate(input_ids=ids, prompt_lookup_num_tokens=3, **options), mine.generate(input_ids=ids, **options)
        )


# ── parts: the engine, chats, training ──


@pytest.fixture(scope="module")
def scaled(tiny_model):
    """The bundled model with half of its positions, scaled by 2: none of its numbers changes where that is dynamic."""

    def make(kind):
        text = dataclasses.replace(
            tiny_model.model_config.text_config,
            max_position_embeddings=256,
            rope_scaling=RopeScaling(kind=kind, factor=2.0),
        )
        config = dataclasses.replace(tiny_model.model_config, text_config=text)
        return type(tiny_model)(config, dict(tiny_model.parameters), dict(tiny_model.generation_defaults))

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_the_engine_answers_as_generate(scaled, tiny_processor, kind):
    model = scaled(kind)
    words = "Which way does it move? " * 20
    request = Request(id="1", prompt=f"USER: {words}ASSISTANT:", max_new_tokens=4)
    inputs = tiny_processor(text=request.prompt)
    length = inputs["input_ids"].shape[1]
    assert 80 < length < 250
    (answer,) = Engine(model, tiny_processor, max_rows=2).run([request])
    expected = model.generate(**inputs, max_new_tokens=4, do_sample=False)[0, length:]
    assert answer.error is None
    np.testing.assert_array_equal(answer.token_ids, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_training_rows_beyond_the_trained_positions(scaled, kind):
    """Packed rows hold several samples: with dynamic scaling the longest would rotate the others."""
    model = scaled(kind)
    T = 300
    ids, positions = jnp.ones((1, T), jnp.int32), jnp.arange(T)[None]
    packed = (ids, positions, jnp.zeros_like(ids), jnp.full_like(ids, -1), None)
    module = nnx.merge(model.graph, model.state)
    if kind == "dynamic":
        with pytest.raises(ValueError, match=r"rows of 300 tokens: .*dynamic rope_scaling .* 256: .*data.row_tokens"):
            module.packed(*packed)
    else:
        assert module.packed(*packed).shape == (1, T, 128)


def test_parts_beyond_the_trained_positions_are_refused_by_name(scaled, tiny_processor):
    model = scaled("dynamic")
    request = Request(id="1", prompt=f"USER: {'Which way does it move? ' * 50}ASSISTANT:", max_new_tokens=4)
    (answer,) = Engine(model, tiny_processor, max_rows=2).run([request])
    assert "256 positions" in str(answer.error)
    assert "the rope_scaling of this model is dynamic" in str(answer.error)
    chat = Chat(model, tiny_processor)
    chat.ask("Which way does it move?", max_new_tokens=4)
    with pytest.raises(ValueError, match="the rope_scaling of this model is dynamic"):
        chat.ask("Which way does it move? " * 50, max_new_tokens=4)
