"""The model's class as transformers' users call it: made, loaded, placed, cast, called, and what is refused by name."""

from __future__ import annotations

import copy
import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
import transformers

from tests import small_models
from tests.parity.reference import array, assert_close
from tests.tolerances import MODEL
from videollava_jax import DynamicCache, VideoLlavaConfig, VideoLlavaForConditionalGeneration, VideoLlavaModel
from videollava_jax.assets import TINY
from videollava_jax.config import ModelConfig


@pytest.fixture(scope="module")
def model():
    """A copy of the tiny model, which tests may cast."""
    return VideoLlavaForConditionalGeneration.from_pretrained(TINY)


@pytest.fixture
def model_namespace(model, tiny_processor):
    from transformers import BitsAndBytesConfig, CLIPVisionConfig, LlamaConfig

    clip = np.random.default_rng(0).integers(0, 256, (8, 56, 56, 3), np.uint8)
    inputs = tiny_processor("USER: <video>\nWhat? ASSISTANT:", videos=clip)
    small = small_models.hf_config().to_dict()
    return {
        "Model": VideoLlavaForConditionalGeneration,
        "VideoLlavaConfig": VideoLlavaConfig,
        "DynamicCache": DynamicCache,
        "Base": VideoLlavaModel,
        "CLIPVisionConfig": CLIPVisionConfig,
        "LlamaConfig": LlamaConfig,
        "quantized": BitsAndBytesConfig.__new__(BitsAndBytesConfig),  # whose __init__ needs torch
        "TINY": TINY,
        "model": model,
        "inputs": dict(inputs),
        "ids": inputs["input_ids"],
        "config": VideoLlavaConfig(small["vision_config"], small["text_config"], 90, 91),
        "jnp": jnp,
        "copy": copy,
        "np": np,
        "dtypes": lambda model: {str(value.dtype) for value in model.parameters.values()},
    }


HOLDS = [
    # ── loading ──
    ("out = Model.from_pretrained(TINY, device_map='auto')", "dtypes(out) == {'float32'}"),
    ("out = Model.from_pretrained(TINY, device_map='cuda:0', dtype='auto')", "dtypes(out) == {'float32'}"),
    ("out = Model.from_pretrained(TINY, device_map={'': 0}, torch_dtype='float16')", "dtypes(out) == {'float16'}"),
    ("out = Model.from_pretrained(TINY, dtype=jnp.bfloat16, low_cpu_mem_usage=True)", "dtypes(out) == {'bfloat16'}"),
    ("out = Model.from_pretrained(TINY, dtype='torch.bfloat16')", "dtypes(out) == {'bfloat16'}"),
    ("out = Model.from_pretrained(TINY, attn_implementation='sdpa', use_safetensors=True)", "out.training is False"),
    (
        "out = Model.from_pretrained(TINY, revision=None, token=None, cache_dir='x', local_files_only=True)",
        "out.num_parameters() == 1_223_936",
    ),
    ("out = Model.from_pretrained(pretrained_model_name_or_path=TINY)", "out.device.platform == 'cpu'"),
    (
        "c = VideoLlavaConfig.from_pretrained(TINY); c.vision_feature_layer = -1; out = Model.from_pretrained(TINY, config=c)",
        "out.config is c and out.model_config.vision_feature_layer == -1",
    ),
    ("out = Model.from_pretrained(TINY, output_loading_info=True)", "out[1]['missing_keys'] == []"),
    # ── placing and casting ──
    ("out = model.to('cuda').to(model.device).eval().cpu().cuda(0)", "out is model"),
    ("out = model.to('cuda', non_blocking=True).train(False).requires_grad_(False)", "out is model"),
    ("out = dtypes(model.half()), dtypes(model.to(jnp.bfloat16)), dtypes(model.float())", "out[1] == {'bfloat16'}"),
    ("out = dtypes(model.to('cuda', dtype='torch.float16')); model.to(np.float32)", "out == {'float16'}"),
    # ── weights ──
    ("out = model.state_dict()", "out['lm_head.weight'].shape == (643, 128)"),
    ("out = dict(model.named_parameters())", "'model.language_model.embed_tokens.weight' in out"),
    ("out = model.num_parameters(exclude_embeddings=True)", "out == model.num_parameters() - 643 * 128"),
    ("out = model.get_memory_footprint()", "out == 4 * 1_223_936"),
    ("out = model.get_input_embeddings()", "out(ids).shape == (*ids.shape, 128)"),
    ("out = model.get_output_embeddings().weight", "out.shape == (643, 128)"),
    ("out = sum(p.numel() for p in model.parameters())", "out == model.num_parameters()"),
    ("out = next(model.parameters()).dtype, next(model.parameters()).device", "out == (np.float32, model.device)"),
    ("for p in model.parameters():\n    p.requires_grad = False\nout = p", "out.requires_grad is False"),
    (
        "out = [(n, tuple(p.shape), p.dtype, p.requires_grad, p.device) for n, p in model.named_parameters()]",
        "('lm_head.weight', (643, 128)) in [each[:2] for each in out]",
    ),
    ("out = sum(p.nelement() * p.element_size() for p in model.parameters())", "out == model.get_memory_footprint()"),
    ("out = sum(p.numel() for p in model.parameters() if p.requires_grad)", "out == 0"),
    ("out = model.multi_modal_projector.linear_1.weight.shape", "out == (128, 64)"),
    ("out = len(model.language_model.layers)", "out == 4 == model.config.text_config.num_hidden_layers"),
    (
        "out = [layer.self_attn.q_proj.weight for layer in model.model.language_model.layers]",
        "out[3].shape == (128, 128)",
    ),
    ("out = model.image_tower.config.hidden_size, model.language_model.config.hidden_size", "out == (64, 128)"),
    ("out = model.image_tower.dtype, model.video_tower.device", "out == (np.float32, model.device)"),
    ("out = model.video_tower.vision_model.embeddings.patch_embedding.weight", "out.ndim == 4"),
    (
        "model.image_tower.requires_grad_(False); model.multi_modal_projector.eval(); out = model",
        "out.training is False",
    ),
    ("out = model.load_state_dict(model.state_dict())", "out.missing_keys == out.unexpected_keys == []"),
    ("out = model.vocab_size, model.config.text_config.vocab_size, model.can_generate()", "out == (643, 643, True)"),
    ("model.tie_weights(); model.gradient_checkpointing_disable(); model.compile(); out = model", "out is model"),
    (
        "out = Model(config); out.resize_token_embeddings(len(range(104)))",
        "out.get_input_embeddings().weight.shape[0] == out.config.text_config.vocab_size == 104",
    ),
    ("out = Model(config).resize_token_embeddings(100, pad_to_multiple_of=8)", "out.weight.shape == (104, 32)"),
    (
        "out = Model(config); e = out.get_input_embeddings().weight.data; e[-1:] = e[:-1].mean(axis=0, keepdims=True)",
        "np.allclose(out.parameters['language_model.embed_tokens.weight'][-1], np.mean(e[:-1], 0), atol=1e-6)",
    ),
    ("out = Base.from_pretrained(TINY, dtype='float32')(**inputs).last_hidden_state", "out.shape == (*ids.shape, 128)"),
    ("out = Base(config)(input_ids=np.array([[5]]), return_dict=False)", "out[0].shape == (1, 1, 32)"),
    (
        "out = model.model(**inputs); logits = model.lm_head(out[0])",
        "np.allclose(logits, model(**inputs)[0], atol=1e-4)",
    ),
    (
        "x = model.model.language_model(input_ids=np.array([[5, 6]]), output_hidden_states=True); out = x.hidden_states",
        "np.allclose(out[0], model.language_model.embed_tokens(np.array([[5, 6]])))",
    ),
    (
        "out = model.multi_modal_projector(model.image_tower(inputs['pixel_values_videos'][0], "
        "output_hidden_states=True).hidden_states[model.config.vision_feature_layer][:, 1:])",
        "np.allclose(out, model.get_image_features(inputs['pixel_values_videos'][0]).pooler_output, atol=1e-5)",
    ),
    # ── calling ──
    ("out = model(**inputs)", "out[0].shape == out.logits.shape == out['logits'].shape == (*ids.shape, 643)"),
    ("out = model.forward(**inputs, use_cache=True, return_dict=True)", "list(out.keys())[0] == 'logits'"),
    ("out = model(**inputs, labels=ids)", "float(out[0]) == float(out.loss) and 'loss' in out"),
    ("out = model(**inputs, return_dict=False)", "isinstance(out, tuple) and out[0].shape[-1] == 643"),
    ("out = model(**inputs, logits_to_keep=2, output_attentions=False)", "out.logits.shape[1] == 2"),
    (
        "out = model.get_video_features(inputs['pixel_values_videos'])",
        "np.allclose(out.pooler_output, model(**inputs).video_hidden_states)",
    ),
    ("out = model.get_image_features(inputs['pixel_values_videos'][0])[0]", "out.shape[0] == 8"),
    ("out = model.generate(**inputs, max_new_tokens=2, use_cache=True)", "out.shape[1] <= ids.shape[1] + 2"),
    ("out = model(**inputs, output_hidden_states=True).hidden_states", "len(out) == 5 and out[-1].shape[-1] == 128"),
    ("out = model(**inputs, output_attentions=True)['attentions'][-1]", "out.shape[-1] == ids.shape[1]"),
    ("out = model(**inputs, use_cache=False)", "'past_key_values' not in out and out.cache is None"),
    ("out = dict(model(**inputs).items())", "list(out) == ['logits', 'past_key_values', 'video_hidden_states']"),
    ("out = model(**inputs).to_tuple()", "len(out) == 3 and len(model(**inputs)) == 3"),
    ("out = model(**inputs).video_outputs.pooler_output", "out.shape == (8, 17, 128)"),
    (
        "loss, logits, past = model(**inputs, labels=ids, return_dict=False)[:3]; out = past",
        "out.get_seq_length() == ids.shape[1] and len(out) == 4",
    ),
    (
        "past = model(**inputs).past_key_values; step = model(input_ids=np.array([[5]]), past_key_values=past, "
        "use_cache=True); out = step.logits[:, -1].argmax(-1)",
        "out.shape == (1,) and step.past_key_values.get_seq_length() == ids.shape[1] + 1",
    ),
    (
        "text = {'input_ids': np.array([[1, 5, 6, 7]])}\nfor _ in range(3):\n    out = model(**text)\n"
        "    ids = out.logits[:, -1:].argmax(-1)\n    text = {'input_ids': ids, 'past_key_values': out.past_key_values}",
        "out.past_key_values.get_seq_length() == 6",
    ),
    (
        "out = model(inputs_embeds=model.get_input_embeddings()(ids), pixel_values_videos=inputs['pixel_values_videos'])",
        "np.allclose(out.logits, model(**inputs).logits, atol=1e-5)",
    ),
    ("out = model(**inputs, position_ids=np.arange(ids.shape[1])[None])", "out.logits.shape[1] == ids.shape[1]"),
    ("out = model(**inputs, cache_position=np.arange(ids.shape[1]))", "out.logits.shape[1] == ids.shape[1]"),
    ("out = model(**inputs, vision_feature_layer=-1)", "np.isfinite(out.logits).all()"),
    (
        "out = model.get_image_features(pixel_values_images=inputs['pixel_values_videos'][0], "
        "vision_feature_layer=-2, vision_feature_select_strategy='full').pooler_output",
        "out.shape == (8, 17, 128)",
    ),
    (
        "cache = DynamicCache(config=model.config); model(**inputs, past_key_values=cache); out = cache[0][0]",
        "out.shape == (1, 2, ids.shape[1], 64)",
    ),
    (
        "out = model.generate(**inputs, max_new_tokens=3, return_dict_in_generate=True, output_scores=True)",
        "list(out.keys()) == ['sequences', 'scores'] and out['scores'][0].shape == (1, 643)",
    ),
    (
        "o = model.generate(**inputs, max_new_tokens=3, return_dict_in_generate=True, output_scores=True); "
        "out = model.compute_transition_scores(o.sequences, o.scores, normalize_logits=True)",
        "(out <= 0).all() and out.shape == (1, len(o.scores))",
    ),
    (
        "out = model.generate(**inputs, max_new_tokens=3, return_dict_in_generate=True, output_attentions=True, "
        "output_hidden_states=True)",
        "out.attentions[0][-1].shape[-1] == ids.shape[1] and out.hidden_states[-1][-1].shape == (1, 1, 128)",
    ),
    (
        "hidden = model(**inputs, output_hidden_states=True).hidden_states; "
        "out = [model.lm_head(model.language_model.norm(h[:, -1])).argmax(-1) for h in hidden[1:-1]]",
        "len(out) == 3",
    ),
    (
        "past = DynamicCache(); model(**inputs, past_key_values=past); "
        "more = np.concatenate([ids, [[5, 6]]], axis=1); out = model.generate(more, past_key_values=past, max_new_tokens=2)",
        "past.get_seq_length() == out.shape[1] - 1",
    ),
    (
        "e = model.get_input_embeddings()(ids); out = model.generate(inputs_embeds=e, attention_mask=np.ones_like(ids), "
        "pixel_values_videos=inputs['pixel_values_videos'], max_new_tokens=3)",
        "out.shape[1] <= 3",
    ),
    ("out = model.language_model.generate(input_ids=np.array([[1, 5]]), max_new_tokens=2)", "out.shape[0] == 1"),
    ("out = str(model)", "out.startswith('VideoLlavaForConditionalGeneration(')"),
    (
        "out = [n for n, m in model.named_modules() if n.endswith('q_proj') and 'language_model' in n]",
        "out[0] == 'model.language_model.layers.0.self_attn.q_proj' and len(out) == 4",
    ),
    ("out = model.hf_device_map, model.device.type, model.main_input_name", "out == ({'': 'cpu'}, 'cpu', 'input_ids')"),
    ("model.zero_grad(); model.set_attn_implementation('eager'); out = copy.deepcopy(model)", "out is not model"),
    ("out = model.multi_modal_projector.load_state_dict(model.multi_modal_projector.state_dict())", "out == ([], [])"),
    # ── making ──
    ("out = Model(config)", "out.config.text_config.hidden_size == 32"),
    (
        "parts = config.vision_config, config.text_config; out = Model(VideoLlavaConfig(*parts, 90, 91))",
        "out.num_parameters() == Model(config).num_parameters()",
    ),
    # ── the configuration ──
    ("out = model.config", "out.text_config.hidden_size == 128 and out.model_type == 'video_llava'"),
    ("out = model.config.to_dict()", "out['text_config']['model_type'] == 'llama'"),
    ("out = model.config", "out.image_token_id == out.image_token_index == model.model_config.image_token_id"),
    ("out = model.config._name_or_path", "out == str(TINY) == model.name_or_path"),
    ("out = model.config.get_text_config().vocab_size", "out == 643"),
    ("out = model.config.vision_config.image_size, model.config.vision_config.patch_size", "out == (56, 14)"),
    ("model.config.use_cache = False; out = model.config", "out.use_cache is False and model.config is out"),
    ("out = model.config.text_config.eos_token_id", "out == model.generation_config.eos_token_id"),
    ("out = Model(config); out.config.hidden_size_of_mine = 3", "out.config is config and 'of_mine' in repr(config)"),
    (
        "old = model(**inputs)[0]; model.config.vision_feature_layer = -1; new = model(**inputs)[0]; "
        "model.config.vision_feature_layer = -2; out = model(**inputs)[0]",
        "(out == old).all() and not (new == old).all()",
    ),
    ("out = type(model.config).from_dict(model.config.to_dict())", "Model(out).num_parameters() == 1_223_936"),
]
REFUSED = [
    (
        "Model.from_pretrained(TINY, quantization_config=quantized)",
        'quantization_config=BitsAndBytesConfig is not supported: expected quantization="int8"',
    ),
    ("Model.from_pretrained(TINY, attn_implementation='flash_attention_2')", "chosen by the device"),
    ("model.train()", "videollava finetune"),
    ("Model.from_pretrained(TINY, load_in_4bit=True)", 'quantization="int8"'),
    ("Model.from_pretrained(TINY, subfolder='x')", "give the directory itself"),
    ("model.requires_grad_()", "videollava finetune"),
    ("model.gradient_checkpointing_enable()", "videollava finetune"),
    ("model(**inputs, mm_encoder_outputs={'image': 1})", "give the pixels of media"),
]
"""What transformers does with a model, and this package does not; test_usages.py runs and counts all usages."""
MISTAKES = [
    (
        "m = Model(config); config.text_config.vocab_size += 1; m(ids)",
        "config was changed to what the weights do not fit: language_model.embed_tokens.weight is [104, 32]",
    ),
    ("Model.from_pretrained(TINY, dtype='float32', torch_dtype='float32')", "two names of one thing"),
    ("Model.from_pretrained(TINY, devicemap='auto')", "did you mean 'device_map'"),
    ("Model.from_pretrained(TINY, config=config)", "config was changed to what the weights do not fit"),
    ("Model.from_pretrained(TINY, config=LlamaConfig())", "config: expected a VideoLlavaConfig, got a LlamaConfig"),
    ("model(**inputs, labls=ids)", "unknown argument 'labls'"),
]


def test_weights_by_name_are_transformers_own(torch):
    """Names, shapes and order of axes, of a model in transformers and of ours with its weights."""
    theirs = small_models.hf_model(torch, small_models.hf_config())
    ours = VideoLlavaForConditionalGeneration(
        theirs.config, {name: jnp.asarray(value) for name, value in small_models.weights_of(theirs).items()}
    )
    expected = {name: tuple(value.shape) for name, value in theirs.state_dict().items()}
    assert {name: value.shape for name, value in ours.state_dict().items()} == expected
    pixels = np.random.default_rng(0).standard_normal((2, 4, 3, 28, 28)).astype(np.float32)
    with torch.no_grad():
        found = theirs.model.get_video_features(torch.tensor(pixels)).pooler_output
    assert_close(ours.get_video_features(pixels).pooler_output, array(found), MODEL)


def test_a_model_of_a_configuration_alone_has_drawn_weights():
    """Equal for equal seeds; none is a constant where transformers draws."""
    config = ModelConfig.from_hf(small_models.hf_config())
    one, same, other = (VideoLlavaForConditionalGeneration(config, seed=seed) for seed in (0, 0, 1))
    weight = "language_model.layers.0.self_attn.q_proj.weight"
    assert (one.parameters[weight] == same.parameters[weight]).all()
    assert (one.parameters[weight] != other.parameters[weight]).any()
    assert np.isfinite(one(np.array([[1, 5, 6, 7]])).logits).all()
    assert all(value.std() > 0 for name, value in one.parameters.items() if value.ndim == 2)


def test_a_model_is_uploaded_whole(model, tmp_path, monkeypatch):
    """The hub's client is asked to make the repository and to take a directory that loads."""
    calls = []

    class Hub:
        def __init__(self, token=None):
            self.token = token

        def create_repo(self, repo_id, exist_ok, **options):
            calls.append((self.token, repo_id, exist_ok, options))
            return type("Repository", (), {"repo_id": f"me/{repo_id}"})

        def upload_folder(self, *, repo_id, folder_path, commit_message, revision):
            loaded = VideoLlavaForConditionalGeneration.from_pretrained(folder_path, verify="full")
            calls.append((repo_id, commit_message, revision, loaded.num_parameters()))
            return "https://hub/commit"

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    assert model.push_to_hub("mine", token="t", private=True) == "https://hub/commit"
    assert calls == [
        ("t", "mine", True, {"private": True}),
        ("me/mine", "Upload the model", None, model.num_parameters()),
    ]
    model.save_pretrained(tmp_path / "again", push_to_hub=True, commit_message="again")
    assert calls[2:] == [(None, "again", True, {}), ("me/again", "again", None, model.num_parameters())]


@pytest.mark.parametrize("layout", ["hub", "hf5", "memory", "orbax"])
def test_keys_of_a_configuration_that_are_none_of_the_models_are_saved(tmp_path, layout):
    """As transformers keeps them: those of the checkpoint, those of its parts, and what was set since."""
    source, ours, theirs = tmp_path / "source", tmp_path / "ours", tmp_path / "theirs"
    shutil.copytree(TINY, source)
    raw = json.loads((source / "config.json").read_text())
    raw["mine"] = {"a": [1, None]}
    raw["text_config"]["of_the_text"], raw["vision_config"]["of_vision"] = 3, "b"
    (source / "config.json").write_text(json.dumps(raw))
    loaded, reference = VideoLlavaForConditionalGeneration.from_pretrained(source), transformers_config(source)
    for config in (loaded.config, reference):
        config.set_since, config.text_config.set_since = 0.5, "since"
    loaded.save_pretrained(ours, layout=layout)
    reference.save_pretrained(theirs)
    found, expected = (json.loads((place / "config.json").read_text()) for place in (ours, theirs))
    known = transformers.VideoLlavaConfig().to_dict()
    kept = {key: value for key, value in expected.items() if key not in known}
    assert kept == {"mine": {"a": [1, None]}, "set_since": 0.5}
    assert {key: value for key, value in found.items() if key not in known} == kept
    for part, further in (
        ("text_config", {"of_the_text": 3, "set_since": "since"}),
        ("vision_config", {"of_vision": "b"}),
    ):
        for written in (found[part], expected[part]):
            assert {key: value for key, value in written.items() if key not in known[part]} == further
    again = VideoLlavaForConditionalGeneration.from_pretrained(ours)
    assert again.model_config == loaded.model_config
    assert (again.config.mine, again.config.text_config.set_since) == (loaded.config.mine, "since")


def transformers_config(directory):
    return transformers.VideoLlavaConfig.from_pretrained(directory)
