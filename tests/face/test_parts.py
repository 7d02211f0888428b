"""The model without its head, parts and parameters by name, and vocabularies that change, against transformers."""

from __future__ import annotations

import copy
import json

import jax.numpy as jnp
import numpy as np
import pytest

from tests.parity.reference import assert_close, batch
from tests.small_models import TEXT, array, hf_config, on_mesh, public, sharp_hf_model
from tests.tolerances import LAYER, MODEL, SELF
from videollava_jax import VideoLlavaForConditionalGeneration, VideoLlavaModel, VideoLlavaProcessor
from videollava_jax.model.sharding import make_mesh


@pytest.fixture(scope="module")
def theirs(torch):
    return sharp_hf_model(torch, hf_config())


@pytest.fixture
def model(theirs):
    """Ours with their weights, which a test may change."""
    return public(theirs)


@pytest.fixture(scope="module")
def given(theirs):
    return batch(public(theirs).model_config, np.random.default_rng(0), ["iv", "v", ""])


def compare(torch, function, ours, *inputs):
    with torch.no_grad():
        found = function(*(torch.tensor(x) for x in inputs))
    assert_close(ours, array(found), LAYER)


def test_the_model_without_its_head(torch, theirs, model, given, tmp_path):
    with torch.no_grad():
        expected = theirs.model(**given.for_torch(torch), output_hidden_states=True)
    asked = {**given.for_ours(), "output_hidden_states": True}
    model.save_pretrained(tmp_path / "saved")
    for base in (model.model, VideoLlavaModel.from_pretrained(tmp_path / "saved"), model.base_model):
        assert isinstance(base, VideoLlavaModel)
        got = base(**asked)
        held = given.mask == 1
        assert_close(got.last_hidden_state[held], array(expected.last_hidden_state)[held], MODEL)
        assert got[0] is got.last_hidden_state
        assert list(got)[:3] == ["last_hidden_state", "past_key_values", "hidden_states"]
        assert_close(got.video_hidden_states, array(expected.video_outputs.pooler_output), MODEL)
        assert {name: value.shape for name, value in base.state_dict().items()} == {
            name: tuple(value.shape) for name, value in theirs.model.state_dict().items()
        }
        assert base.num_parameters() == theirs.model.num_parameters()
        assert base.config.tie_word_embeddings is False
        assert isinstance(base(**asked, return_dict=False), tuple)
        found = base.get_image_features(given.images).pooler_output
        assert_close(found, array(expected.image_outputs.pooler_output), MODEL)
    config = hf_config()
    alone = VideoLlavaModel(config)
    assert alone.config is config
    assert alone.get_output_embeddings() is None
    assert np.isfinite(alone(np.array([[3, 4]])).last_hidden_state).all()
    with pytest.raises(ValueError, match="save VideoLlavaForConditionalGeneration"):
        alone.save_pretrained(tmp_path / "alone")


def test_a_model_without_its_head_continues_the_cache_of_the_whole(model):
    ids = np.array([[3, 4, 5, 6, 7]])
    whole = model(ids)
    past = model.model(ids[:, :3]).past_key_values
    last = model.model(ids[:, 3:], past_key_values=past).last_hidden_state
    assert_close(model.lm_head(last), whole.logits[:, 3:], MODEL)


def test_parts_are_called(torch, theirs, model):
    rng, inner = np.random.default_rng(1), theirs.model
    x = rng.standard_normal((2, 5, 32)).astype(np.float32)
    ids = rng.integers(3, TEXT, (2, 5))
    compare(torch, inner.multi_modal_projector, model.multi_modal_projector(x), x)
    compare(torch, inner.language_model.norm, model.language_model.norm(jnp.asarray(x)), x)
    compare(torch, inner.language_model.layers[1].mlp, model.model.language_model.layers[1].mlp(x), x)
    compare(
        torch, inner.language_model.layers[0].self_attn.q_proj, model.language_model.layers[0].self_attn.q_proj(x), x
    )
    compare(torch, inner.language_model.embed_tokens, model.language_model.embed_tokens(ids), ids)
    compare(torch, inner.get_input_embeddings(), model.get_input_embeddings()(ids), ids)
    compare(torch, theirs.lm_head, model.lm_head(x), x)
    vision = inner.video_tower.encoder.layers[2]
    compare(torch, vision.layer_norm1, model.video_tower.vision_model.encoder.layers[2].layer_norm1(x), x)
    compare(torch, vision.mlp, model.get_submodule("model.video_tower.encoder.layers.2.mlp")(x), x)


def test_the_decoder_and_the_towers_are_called(torch, theirs, model):
    rng = np.random.default_rng(2)
    embeds = rng.standard_normal((2, 5, 32)).astype(np.float32)
    with torch.no_grad():
        expected = theirs.model.language_model(inputs_embeds=torch.tensor(embeds), output_hidden_states=True)
    got = model.language_model(inputs_embeds=embeds, output_hidden_states=True)
    assert_close(got.last_hidden_state, array(expected.last_hidden_state), MODEL)
    assert_close(got.hidden_states[1], array(expected.hidden_states[1]), MODEL)
    assert got.past_key_values.get_seq_length() == 5
    pixels = rng.standard_normal((3, 3, 28, 28)).astype(np.float32)
    for name in ("image_tower", "video_tower"):
        with torch.no_grad():
            expected = getattr(theirs.model, name)(torch.tensor(pixels), output_hidden_states=True)
        got = getattr(model, name)(pixels, output_hidden_states=True)
        assert len(got.hidden_states) == len(expected.hidden_states) == 4
        for ours, each in zip(got.hidden_states, expected.hidden_states, strict=True):
            assert_close(ours, array(each), MODEL)
        assert_close(got.last_hidden_state, array(expected.last_hidden_state), MODEL)
        assert_close(got.pooler_output, array(expected.pooler_output), MODEL)
        assert "hidden_states" not in getattr(model, name)(pixels)
    features = model.video_tower(pixels, output_hidden_states=True).hidden_states[-2]
    expected = model.get_video_features(pixels[None]).pooler_output
    assert_close(model.multi_modal_projector(features), expected, MODEL)


def test_parameters_one_by_one(torch, theirs, model):
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in theirs.parameters())
    assert [name for name, _ in model.language_model.layers[0].named_parameters()]
    assert dict(model.named_parameters()).keys() == dict(theirs.named_parameters()).keys()
    weight = model.lm_head.weight
    assert (weight.shape, weight.dim(), weight.size(0), weight.element_size()) == ((99, 32), 2, 99, 4)
    assert_close(weight, array(theirs.lm_head.weight), 0)
    assert_close(weight.data.detach().cpu().numpy(), array(theirs.lm_head.weight), 0)
    assert_close(weight.mean(), array(theirs.lm_head.weight.mean()), LAYER)
    assert_close(jnp.asarray(weight) + 1, weight + 1, 0)
    model.half()
    assert weight.dtype == next(model.parameters()).dtype == np.float16
    weight.requires_grad = False
    with pytest.raises(ValueError, match="videollava finetune"):
        weight.requires_grad = True


def test_rows_are_set_by_hand(model):
    """Averaged into a new token, as many scripts do; the next call sees them."""
    ids = np.array([[3, 4, 5]])
    rows = model.get_input_embeddings().weight.data
    rows[5] = rows[[6, 7]].mean(0)
    assert_close(model.parameters["language_model.embed_tokens.weight"][5], np.asarray(rows)[[6, 7]].mean(0), LAYER)
    before = model(ids).logits
    model.lm_head.weight.data[:2] = 0
    after = model(ids).logits
    assert not after[..., :2].any()
    assert_close(after[..., 2:], before[..., 2:], 0)
    model.set_input_embeddings(model.get_input_embeddings().weight * 2)
    model.set_output_embeddings(np.ones((99, 32)))
    assert_close(model(ids).logits[..., :1], model(ids).logits[..., 1:2], 0)
    with pytest.raises(ValueError, match=r"expected \[99, 32\], got \[98, 32\]: resize_token_embeddings"):
        model.set_input_embeddings(np.ones((98, 32)))


def test_a_state_is_loaded(torch, theirs, model, given):
    other = VideoLlavaForConditionalGeneration(hf_config(), seed=3)
    before = other(**given.for_ours()).logits
    assert other.load_state_dict({}, strict=False).missing_keys == list(other.state_dict())
    with pytest.raises(ValueError, match=r"parameters are missing, such as .*, and 1 names are unknown, .*'b'"):
        other.load_state_dict({"b": 1})
    assert_close(other(**given.for_ours()).logits, before, 0)
    unfit = other.load_state_dict({name: array(value) for name, value in theirs.state_dict().items()})
    assert unfit == ([], [])
    assert_close(other(**given.for_ours()).logits, model(**given.for_ours()).logits, 0)
    with pytest.raises(ValueError, match=r"lm_head.weight: expected \[99, 32\], got \[3\]"):
        other.load_state_dict({"lm_head.weight": np.ones(3)}, strict=False)


@pytest.mark.parametrize("tied", [False, True])
def test_a_vocabulary_grows(torch, given, tied, tmp_path):
    """Old logits stay, new rows are those that transformers draws, up to the draws; saved, it loads in both."""
    import transformers

    theirs = sharp_hf_model(torch, hf_config(tie_word_embeddings=tied, text={"tie_word_embeddings": tied}))
    model = public(theirs)
    before = model(**given.for_ours()).logits
    embedding = model.resize_token_embeddings(105)
    theirs.resize_token_embeddings(105)
    assert embedding.weight.shape == model.lm_head.weight.shape == (105, 32)
    assert model.config.text_config.vocab_size == model.vocab_size == model.model_config.text_config.vocab_size == 105
    for ours, expected in ((embedding, theirs.get_input_embeddings()), (model.lm_head, theirs.lm_head)):
        assert_close(ours.weight[:99], array(expected.weight)[:99], 0)
        # 1e-9 of the covariance of weights near 1 / sqrt(32): a standard deviation of 6e-6.
        assert_close(ours.weight[99:], array(expected.weight)[99:], 1e-4)
        drawn = np.asarray(ours.weight[99:]) - np.asarray(ours.weight[:99]).mean(0)
        assert 1e-6 < drawn.std() < 2e-5
    after = model(**given.for_ours()).logits
    assert_close(after[..., :99], before, SELF)
    with torch.no_grad():
        assert_close(after[given.mask == 1], array(theirs(**given.for_torch(torch)).logits)[given.mask == 1], 1e-3)
    ids = np.array([[3, 104, 5]])
    answer = model.generate(ids, max_new_tokens=3)
    model.save_pretrained(tmp_path / "saved")
    again = VideoLlavaForConditionalGeneration.from_pretrained(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["text_config"]["vocab_size"] == 105
    np.testing.assert_array_equal(again.generate(ids, max_new_tokens=3), answer)
    reference = transformers.VideoLlavaForConditionalGeneration.from_pretrained(tmp_path / "saved").eval()
    with torch.no_grad():
        assert_close(again(ids).logits, array(reference(torch.tensor(ids)).logits), MODEL)


def test_a_vocabulary_shrinks_and_is_rounded_up(model):
    ids = np.array([[3, 4, 5]])
    before = model(ids).logits
    assert model.resize_token_embeddings().weight.shape == (99, 32)
    model.resize_token_embeddings(93)
    assert_close(model(ids).logits, before[..., :93], SELF)
    with pytest.raises(ValueError, match=r"input_ids: expected ids in 0..92, got 3..94"):
        model(np.array([[3, 94]]))
    assert model.model.resize_token_embeddings(pad_to_multiple_of=64, mean_resizing=False).weight.shape == (128, 32)
    assert 0.015 < float(model.lm_head.weight[93:].std()) < 0.025
    assert_close(model(ids).logits[..., :93], before[..., :93], SELF)
    assert model.generate(ids, max_new_tokens=2).shape[1] <= 5
    for wrong in (0, -3, 1.5, True, "7"):
        with pytest.raises(ValueError, match="new_num_tokens: expected a whole number of at least 1"):
            model.resize_token_embeddings(wrong)


def test_a_vocabulary_grows_on_a_mesh(model):
    mesh = on_mesh(model, make_mesh(1, 2))
    ids = np.array([[3, 4, 5]])
    for rows in (104, 107):  # that the tensor axis divides, and not
        model.resize_token_embeddings(rows)
        mesh.resize_token_embeddings(rows)
        assert_close(mesh.lm_head.weight, model.lm_head.weight, 0)
        assert_close(mesh(ids).logits, model(ids).logits, MODEL)
        np.testing.assert_array_equal(mesh.generate(ids, max_new_tokens=2), model.generate(ids, max_new_tokens=2))
    assert_close(mesh.multi_modal_projector(np.ones((2, 32))), model.multi_modal_projector(np.ones((2, 32))), LAYER)
    assert_close(mesh.get_input_embeddings()(ids), model.get_input_embeddings()(jnp.asarray(ids)), 0)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_tensors_of_torch_are_taken(torch, dtype):
    """As transformers' page moves and casts them; in bfloat16 NumPy has no such tensors."""
    from videollava_jax.assets import MEDIA, TINY

    model = VideoLlavaForConditionalGeneration.from_pretrained(TINY, dtype=getattr(torch, dtype))
    processor = VideoLlavaProcessor.from_pretrained(TINY)
    given = {"text": "USER: <video>\nWhich way? ASSISTANT:", "videos": str(MEDIA / "rising-triangle.mp4")}
    plain, cast = processor(**given), getattr(torch, dtype)
    inputs = processor(**given, return_tensors="pt").to(model.device, cast)
    assert inputs["pixel_values_videos"].dtype == cast
    np.testing.assert_array_equal(model.generate(**inputs, max_new_tokens=4), model.generate(**plain, max_new_tokens=4))
    out = model(**inputs, labels=inputs["input_ids"].clone())
    assert np.isfinite(float(out.loss))
    with torch.no_grad():
        features = model.get_video_features(inputs["pixel_values_videos"]).pooler_output
        model.multi_modal_projector(torch.ones(2, 64, requires_grad=True))
        model.lm_head.weight.data[torch.tensor([3, 4])] = torch.ones(2, 128, requires_grad=True)
    assert np.asarray(model.lm_head.weight[[3, 4]]).min() == 1
    assert features.shape == (8, 17, 128)
    model.load_state_dict({"lm_head.weight": torch.zeros(643, 128, dtype=torch.bfloat16)}, strict=False)
    assert not np.asarray(model.lm_head.weight).any()


def test_parts_are_listed(torch, theirs, model):
    """Under transformers' names, but for modules without parameters."""
    ours = dict(model.named_modules())
    assert set(ours) <= dict(theirs.named_modules()).keys()
    assert {name for name, part in theirs.named_modules() if isinstance(part, torch.nn.Linear)} <= ours.keys()
    assert len(list(model.modules())) == len(ours)
    assert [name for name, _ in model.model.named_children()] == [
        name.removeprefix("model.") for name, _ in model.named_children() if name != "lm_head"
    ]
    assert "(lm_head): lm_head: 3,168 parameters" in repr(model)
    state = model.multi_modal_projector.state_dict()
    assert model.multi_modal_projector.load_state_dict({name: value * 0 for name, value in state.items()}) == ([], [])
    assert not np.asarray(model.multi_modal_projector.linear_1.weight).any()
    with pytest.raises(ValueError, match="1 names are unknown"):
        model.multi_modal_projector.load_state_dict({"x": 1})


def test_a_model_is_copied(model):
    """A copy has its own parameters and configuration."""
    other = copy.deepcopy(model)
    before = model(np.array([[3, 4]])).logits
    other.lm_head.weight.data[:] = 0
    other.config.use_cache = False
    assert_close(model(np.array([[3, 4]])).logits, before, 0)
    assert not hasattr(model.config, "use_cache")
    assert not np.asarray(other(np.array([[3, 4]])).logits).any()


REFUSED = [
    (lambda m: m.gradient_checkpointing_enable(), ValueError, "videollava finetune"),
    (lambda m: m.language_model.layers[0](np.ones((1, 2, 32))), ValueError, "output_hidden_states=True"),
    (lambda m: m.language_model.layers[0].self_attn(1), ValueError, "is not called by itself"),
    (lambda m: m.multi_modal_projector(np.ones((2, 31))), ValueError, r"expected floats \[..., 32\]"),
    (lambda m: m.get_input_embeddings()(np.array([99])), ValueError, "expected ids in 0..98, got 99..99"),
    (lambda m: m.get_input_embeddings()(np.array([1.0])), ValueError, "expected ids in 0..98, got float64"),
    (lambda m: m.image_tower(np.ones((1, 3, 14, 14))), ValueError, r"expected \[N, 3, 28, 28\]"),
    (lambda m: m.language_model(np.array([[90]])), ValueError, "tokens for images"),
    (lambda m: m.language_model.wte, AttributeError, "it has embed_tokens, layers, norm, parameters"),
    (lambda m: m.load_adapter("x"), AttributeError, "videollava convert ADAPTER OUT --base MODEL"),
    (lambda m: m.register_forward_hook(print), AttributeError, "output_hidden_states=True"),
    (lambda m: m.lm_head.register_forward_hook(print), AttributeError, "output_hidden_states=True"),
    (lambda m: m.set_attn_implementation("flash_attention_2"), ValueError, "chosen by the device"),
    (lambda m: m.vision_tower, AttributeError, "docs/transformers.md"),
    (lambda m: m.lm_head.weight.backward(), AttributeError, "'backward' is none of them"),
    (lambda m: m.get_parameter("x"), ValueError, "named_parameters"),
    (lambda m: m.lm_head.train(), ValueError, "train: "),
    (lambda m: m.lm_head.requires_grad_(), ValueError, "requires_grad_: "),
]


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_refused_by_name(theirs, number):
    given, kind, words = REFUSED[number]
    with pytest.raises(kind, match=words):
        given(public(theirs))
