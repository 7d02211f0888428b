"""The configuration: reading and writing transformers' JSON, what it refuses, what it computes."""

import dataclasses
import json

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from videollava_jax.config import (
    ACTIVATION_NAMES,
    ModelConfig,
    RopeScaling,
    TextConfig,
    VisionConfig,
    usual_json,
)
from videollava_jax.config.by_transformers import read_by_transformers
from videollava_jax.config.shapes import OWN_KEYS
from videollava_jax.config.usual_json import read_usual

activations = st.sampled_from(ACTIVATION_NAMES)
token_ids = st.integers(0, 40_000)
counts = st.integers(1, 4)
eps = st.sampled_from([1e-5, 1e-6, 3e-4])


@st.composite
def vision_configs(draw):
    heads, patch = draw(counts), draw(st.sampled_from([7, 14, 16]))
    return VisionConfig(
        hidden_size=heads * draw(st.integers(1, 16)),
        intermediate_size=draw(st.integers(1, 100)),
        num_hidden_layers=draw(counts),
        num_attention_heads=heads,
        num_channels=draw(st.sampled_from([1, 3])),
        image_size=draw(st.integers(patch, 336)),
        patch_size=patch,
        hidden_act=draw(activations),
        layer_norm_eps=draw(eps),
    )


@st.composite
def text_configs(draw):
    kv_heads = draw(counts)
    heads = kv_heads * draw(counts)
    scalings = [None, None, RopeScaling(kind="linear", factor=4), RopeScaling(kind="dynamic", factor=2.5)]
    scaling = draw(st.sampled_from(scalings))
    return TextConfig(
        vocab_size=draw(st.integers(40_001, 50_000)),
        hidden_size=heads * draw(st.integers(1, 16)),
        intermediate_size=draw(st.integers(1, 100)),
        num_hidden_layers=draw(counts),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=2 * draw(st.integers(1 if scaling is None else 2, 64)),
        hidden_act=draw(activations),
        max_position_embeddings=draw(st.integers(16, 8192)),
        rms_norm_eps=draw(eps),
        rope_theta=draw(st.sampled_from([10000.0, 500000.0, 1234.5])),
        rope_scaling=scaling,
        attention_bias=draw(st.booleans()),
        mlp_bias=draw(st.booleans()),
        bos_token_id=draw(st.none() | token_ids),
        eos_token_id=draw(st.none() | token_ids | st.lists(token_ids, min_size=1, max_size=3).map(tuple)),
        pad_token_id=draw(st.none() | token_ids),
    )


@st.composite
def configs(draw, variants=("hf", "original")):
    vision, variant = draw(vision_configs()), draw(st.sampled_from(variants))
    layer = st.integers(-vision.num_hidden_layers - 1, vision.num_hidden_layers)
    image, video = draw(st.lists(token_ids, min_size=2, max_size=2, unique=True))
    return ModelConfig(
        vision_config=vision,
        text_config=draw(text_configs()),
        variant=variant,
        # An hf model does not look at this one, and its JSON is transformers' alone: no other value would come back.
        temporal_frames=draw(st.sampled_from([4, 8, 16])) if variant == "original" else 8,
        image_token_id=image,
        video_token_id=video,
        projector_hidden_act=draw(activations),
        multimodal_projector_bias=draw(st.booleans()),
        vision_feature_layer=draw(layer | st.lists(layer, min_size=1, max_size=3).map(tuple)),
        vision_feature_select_strategy=draw(st.sampled_from(["default", "full"])),
        tie_word_embeddings=draw(st.booleans()),
    )


drawn = settings(max_examples=100, deadline=None, derandomize=True)


@drawn
@given(configs())
def test_round_trip_through_json(config):
    assert ModelConfig.from_hf(json.loads(json.dumps(config.to_hf()))) == config


@drawn
@given(configs(variants=["hf"]))
def test_transformers_reads_what_we_write(config):
    """We read transformers' object of our dict as the same configuration, and transformers knows every key."""
    from transformers import VideoLlavaConfig as HFVideoLlavaConfig

    raw = config.to_hf()
    theirs = HFVideoLlavaConfig.from_dict(json.loads(json.dumps(raw)))
    assert ModelConfig.from_hf(theirs) == config
    written = theirs.to_dict()
    for part in ("vision_config", "text_config"):
        assert {key: written[part].get(key) for key in raw[part]} == raw[part]
        assert set(raw[part]) <= set(type(getattr(theirs, part))().to_dict()) | {"model_type"}
    assert {key: written.get(key) for key in raw if not key.endswith("_config")} == {
        key: value for key, value in raw.items() if not key.endswith("_config")
    }
    assert set(raw) <= set(HFVideoLlavaConfig().to_dict()) | {"model_type", "architectures"}


@drawn
@given(configs())
def test_what_the_towers_and_the_decoder_agree_on(config):
    vision, states = config.vision_config, config.vision_config.num_hidden_layers + 1
    assert vision.num_patches == (vision.image_size // vision.patch_size) ** 2
    assert config.tokens_per_frame == vision.num_patches + 1
    assert config.tokens_per_image == vision.num_patches + (config.vision_feature_select_strategy == "full")
    layers = config.vision_feature_layer
    layers = (layers,) if isinstance(layers, int) else layers
    # A list has the hidden states in order: an index into it, negative or not, is what transformers takes.
    assert config.feature_layers == tuple(list(range(states))[layer] for layer in layers)
    eos = config.text_config.eos_token_id
    assert config.eos_token_ids == (() if eos is None else (eos,) if isinstance(eos, int) else eos)


def test_the_published_model():
    """The defaults are LanguageBind/Video-LLaVA-7B-hf's shape: 256 tokens an image, 8 × 257 a video."""
    raw = ModelConfig().to_hf()
    assert (raw["image_seq_length"], raw["video_seq_length"]) == (256, 2056)
    assert (raw["image_token_index"], raw["video_token_index"]) == (32000, 32001)
    assert ModelConfig().feature_layers == (23,)
    assert VisionConfig().head_dim == 64


def test_what_the_json_leaves_out_takes_transformers_defaults():
    from transformers import VideoLlavaConfig as HFVideoLlavaConfig

    bare = {"model_type": "video_llava"}
    assert ModelConfig.from_hf(bare) == ModelConfig.from_hf(HFVideoLlavaConfig())
    raw = ModelConfig().to_hf()
    for key in ("head_dim", "num_key_value_heads"):
        del raw["text_config"][key]
    assert ModelConfig.from_hf(raw) == ModelConfig()


def test_the_published_models_json_is_read_without_transformers():
    """The keys of LanguageBind/Video-LLaVA-7B-hf's config.json, which leaves out most of the decoder's."""
    raw = {
        "architectures": ["VideoLlavaForConditionalGeneration"],
        "ignore_index": -100,
        "image_seq_length": 256,
        "image_token_index": 32000,
        "model_type": "video_llava",
        "projector_hidden_act": "gelu",
        "text_config": {
            "_name_or_path": "lmsys/vicuna-7b-v1.5",
            "architectures": ["LlamaForCausalLM"],
            "max_position_embeddings": 4096,
            "model_type": "llama",
            "pad_token_id": 0,
            "rms_norm_eps": 1e-05,
            "torch_dtype": "float16",
            "vocab_size": 32064,
        },
        "torch_dtype": "float16",
        "transformers_version": "4.42.0",
        "video_seq_length": 2056,
        "video_token_index": 32001,
        "vision_config": {
            "hidden_size": 1024,
            "image_size": 224,
            "intermediate_size": 4096,
            "model_type": "clip_vision_model",
            "num_attention_heads": 16,
            "num_hidden_layers": 24,
            "patch_size": 14,
            "projection_dim": 768,
            "vocab_size": 32000,
        },
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
    }
    usual = read_usual(raw, ())
    assert usual is not None
    assert usual == read_by_transformers(raw, OWN_KEYS)
    assert ModelConfig.from_hf(raw) == ModelConfig(text_config=TextConfig(pad_token_id=0))


ODD = [None, True, -1, 0, 3, 2.5, "", "gelu", [], [1, 2], {}, {"rope_type": "default", "rope_theta": 5e5}]
KEYS = [*usual_json._MODEL, *usual_json.VISION_DEFAULTS, *usual_json.TEXT_DEFAULTS, "model_type", "quantization_config"]
KEYS += ["rope_theta", "rope_scaling", "rope_parameters"]


@drawn
@given(configs(variants=["hf"]), st.data())
def test_what_we_read_ourselves_is_what_transformers_reads(config, data):
    """Keys are left out, and one may have a value of any kind: both read the same, or transformers reads alone."""
    raw = json.loads(json.dumps(config.to_hf()))
    parts = (raw, raw["vision_config"], raw["text_config"])
    for part in parts:
        for key in data.draw(st.sets(st.sampled_from(sorted(part)), max_size=5)):
            if key != "model_type" and not key.endswith("_config"):
                del part[key]
    if data.draw(st.booleans()):
        data.draw(st.sampled_from(parts))[data.draw(st.sampled_from(KEYS))] = data.draw(st.sampled_from(ODD))
    usual = read_usual(raw, ())
    event("ours" if usual is not None else "transformers alone")
    if usual is not None:
        try:
            theirs = read_by_transformers(raw, OWN_KEYS)
        except ValueError:  # such as an odd head_dim, which no decoder can have
            with pytest.raises(ValueError, match=r".+: .+"):
                ModelConfig.from_hf(raw)
        else:
            assert usual == theirs


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("text_config", "hidden_size", "16"),
        ("text_config", "num_hidden_layers", 2.0),
        ("text_config", "attention_bias", 0),
        ("text_config", "hidden_size", 17),
        ("text_config", "pad_token_id", True),
        ("text_config", "rope_parameters", {"rope_theta": 1e4, "rope_type": "yarn", "factor": 2.0}),
        ("text_config", "rope_parameters", {"rope_theta": 1e4, "rope_type": "linear", "factor": 2}),
        ("text_config", "rope_scaling", {"type": "linear", "factor": 2.0}),
        ("vision_config", "image_size", [28, 28]),
        ("vision_config", "model_type", "siglip_vision_model"),
    ],
)
def test_another_configuration_is_left_to_transformers(part, key, value):
    raw = ModelConfig().to_hf()
    raw[part][key] = value
    assert read_usual(raw, ()) is None


def test_keys_without_effect_are_skipped_if_they_have_their_types():
    raw = ModelConfig().to_hf()
    assert read_usual(raw | {"dtype": "float16", "use_cache": False}, ()) == read_usual(raw, ())
    assert read_usual(raw | {"use_cache": "yes"}, ()) is None
    assert read_usual(raw | {"quantization_config": {}}, ()) is None


@pytest.mark.parametrize("key", ["rope_theta", "rope_parameters"])
def test_the_rotary_base_is_read_where_old_and_new_files_have_it(key):
    raw = ModelConfig().to_hf()
    del raw["text_config"]["rope_parameters"]
    raw["text_config"][key] = 77.0 if key == "rope_theta" else {"rope_type": "default", "rope_theta": 77.0}
    assert ModelConfig.from_hf(raw).text_config.rope_theta == 77.0


@pytest.mark.parametrize("kind", ["linear", "dynamic"])
@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("named", ["type", "rope_type"])
def test_a_scaled_rotary_embedding_is_read_where_old_and_new_files_have_it(kind, key, named):
    raw = ModelConfig().to_hf()
    raw["text_config"].pop("rope_parameters")
    raw["text_config"] |= {key: {named: kind, "factor": 4}, "rope_theta": 77.0}
    text = ModelConfig.from_hf(raw).text_config
    assert (text.rope_scaling, text.rope_theta) == (RopeScaling(kind=kind, factor=4.0), 77.0)
    assert text.max_positions == 4 * text.max_position_embeddings
    assert text.max_positions_in_parts == text.max_position_embeddings * (1 if kind == "dynamic" else 4)
    written = ModelConfig(text_config=text).to_hf()
    assert read_usual(written, ())["text_config"]["rope_scaling"]["factor"] == 4.0  # without transformers
    assert ModelConfig.from_hf(written).text_config == text


def test_a_directory_and_a_file_and_a_dict_are_read_alike(tmp_path):
    config = ModelConfig(text_config=TextConfig(eos_token_id=(2, 7)), vision_feature_layer=(-2, 0))
    (tmp_path / "config.json").write_text(json.dumps(config.to_hf()))
    for source in (tmp_path, str(tmp_path), tmp_path / "config.json", config.to_hf()):
        assert ModelConfig.from_hf(source) == config


# ── the original variant ──


def test_an_original_model_adds_its_own_keys_and_an_hf_model_none():
    plain, original = ModelConfig(), ModelConfig(variant="original", temporal_frames=16)
    added = set(original.to_hf()) - set(plain.to_hf())
    assert added == {"variant", "temporal_frames"}
    assert original.to_hf()["variant"] == "original"
    assert original.to_hf()["video_seq_length"] == 16 * 257
    assert ModelConfig.from_hf(original.to_hf()) == original


def test_transformers_object_keeps_the_variant():
    """Transformers keeps keys that it does not know; without them the temporal weights would be dropped unnoticed."""
    from transformers import VideoLlavaConfig as HFVideoLlavaConfig

    original = ModelConfig(variant="original", temporal_frames=16)
    assert ModelConfig.from_hf(HFVideoLlavaConfig.from_dict(original.to_hf())) == original


# ── what is refused ──


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VisionConfig(hidden_size=100), "vision_config: hidden_size 100 does not divide into 16 equal parts"),
        (
            lambda: VisionConfig(num_attention_heads=0),
            "heads: expected a whole number from 1 to 1024, got 0",
        ),
        (lambda: VisionConfig(image_size=8), "vision_config: image_size 8 is below patch_size 14"),
        (
            lambda: VisionConfig(hidden_act="mish"),
            "vision_config.hidden_act: expected one of quick_gelu, .*, got 'mish'",
        ),
        (
            lambda: TextConfig(num_attention_heads=6, num_key_value_heads=4),
            "text_config: num_attention_heads 6 does not divide into 4 equal parts",
        ),
        (lambda: TextConfig(head_dim=7), "text_config: rotary embedding needs an even head_dim, got 7"),
        (
            lambda: TextConfig(head_dim=2, rope_scaling=RopeScaling(kind="dynamic", factor=2)),
            "text_config: dynamic rope_scaling needs a head_dim of at least 4, got 2",
        ),
        (
            lambda: RopeScaling(kind="linear", factor=10**400),
            "rope_scaling: expected a factor from 1 to 4096, got 1000",
        ),
        (
            lambda: ModelConfig(projector_layers=10**9),
            "projector_layers: expected a whole number from 0 to 16, got 1000",
        ),
        (
            lambda: ModelConfig(projector_layers=True),
            "projector_layers: expected a whole number from 0 to 16, got True",
        ),
        (lambda: RopeScaling(kind="yarn", factor=2), "rope_scaling: expected one of linear, dynamic, got 'yarn'"),
        (lambda: TextConfig(hidden_act="mish"), "text_config.hidden_act: expected one of .*, got 'mish'"),
        (lambda: ModelConfig(variant="pku"), "variant: expected one of hf, original, got 'pku'"),
        (
            lambda: ModelConfig(vision_feature_select_strategy="cls"),
            "vision_feature_select_strategy: expected one of default, full, got 'cls'",
        ),
        (lambda: ModelConfig(projector_hidden_act="x"), "projector_hidden_act: expected one of .*, got 'x'"),
        (
            lambda: ModelConfig(vision_feature_layer=25),
            r"vision_feature_layer 25 is not one of the 25 hidden states of a tower of 24 layers: expected -25..24",
        ),
        (lambda: ModelConfig(vision_feature_layer=(-2, -26)), "vision_feature_layer -26 is not one of the 25"),
        (lambda: ModelConfig(vision_feature_layer=()), "vision_feature_layer"),
        (lambda: ModelConfig(variant="original", temporal_frames=0), "temporal_frames"),
        (lambda: ModelConfig(image_token_id=7, video_token_id=7), "both 7: they must differ"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llava"}, "expected a configuration with model_type 'video_llava', got 'llava'"),
        (
            {"vision_config": {"model_type": "siglip_vision_model"}},
            "expected a clip_vision_model .* siglip_vision_model",
        ),
        ({"text_config": {"model_type": "mistral"}}, "expected a llama inside the configuration, got mistral"),
        (
            {"text_config": {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4}}},
            "rope_type 'yarn' is not supported: expected 'default', 'linear' or 'dynamic'",
        ),
        ({"text_config": {"rope_scaling": {"type": "llama3", "factor": 2.0}}}, "rope_type 'llama3' is not supported"),
        ({"text_config": {"rope_scaling": {"type": "linear"}}}, "expected a factor from 1 to 4096, got None"),
        ({"text_config": {"rope_scaling": {"type": "linear", "factor": "4"}}}, "a factor from 1 to 4096, got '4'"),
        ({"text_config": {"rope_scaling": {"type": "dynamic", "factor": 0.5}}}, "a factor from 1 to 4096, got 0.5"),
        (
            {"text_config": {"rope_scaling": {"type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}}},
            "partial_rotary_factor: expected 1, got 0.5",
        ),
        ({"vision_config": {"image_size": [224, 224]}}, "image_size"),
        ({"vision_feature_select_strategy": "cls"}, "vision_feature_select_strategy"),
        ({"image_token_index": "a"}, "image_token_index"),
        ({"variant": "pku"}, "variant: expected one of hf, original, got 'pku'"),
    ],
)
def test_a_json_of_something_else_is_refused(changes, message):
    raw = ModelConfig().to_hf()
    for key, value in changes.items():
        same = isinstance(value, dict) and value.get("model_type", raw[key]["model_type"]) == raw[key]["model_type"]
        raw[key] = raw[key] | value if same else value
    with pytest.raises(ValueError, match=message):
        ModelConfig.from_hf(raw)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such file; expected the config.json"),
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),  # deeper than Python's stack
        ("[1]", "expected a JSON object, got a list"),
    ],
)
def test_a_file_that_holds_no_configuration_is_named(tmp_path, text, message):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=f"config.json: {message}"):
        ModelConfig.from_hf(tmp_path)


def test_a_configuration_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ModelConfig().variant = "original"
    assert len({ModelConfig(), ModelConfig()}) == 1  # a key of what is compiled
