"""Every key of the authors' config.json that says what a model computes: honoured, or refused by name."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.small_models import ROWS, array, random_parameters, small_config, with_weights
from tests.weights.adapters_helper import arrays
from tests.weights.checkpoints import assert_same_bits, read_all, theirs
from tests.weights.parts import authors_config, write, write_parts, write_tower
from videollava_jax.cli import main
from videollava_jax.config import RopeScaling
from videollava_jax.costs.work import parameters as counted
from videollava_jax.weights import WeightsError, convert_to_orbax, export, open_checkpoint, open_towers
from videollava_jax.weights.pku import read_pku_config

PROJECTORS = {"linear": 1, "mlp1x_gelu": 1, "mlp2x_gelu": 2, "mlp3x_gelu": 3, "mlp0x_gelu": 1, "identity": 0}
SQUARE = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
"""A decoder as wide as the towers."""


@pytest.fixture(scope="module")
def tensors():
    """The tensors of a checkpoint of the authors', by their names."""
    return whole(small_config("original"))


def whole(config, rename=theirs):
    drawn = random_parameters(config, 3)
    held = {rename(name, "pku"): value for name, value in drawn.items()}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        held[name] = held[name][: config.image_token_id]
    return held


def opened(tmp_path, tensors, config=None, towers=None, tower_config=None, **changes):
    raw = authors_config(config or small_config("original"), **changes)
    return open_checkpoint(write(tmp_path / "authors", tensors, raw), tower_config, towers)


# ── projectors ──


def torch_projector(torch, said, config):
    """`build_vision_projector` of the authors' multimodal_projector/builder.py, in their words' order."""
    width, D = config.vision_config.hidden_size, config.text_config.hidden_size
    if said == "identity":
        return torch.nn.Identity()
    if said == "linear":
        return torch.nn.Linear(width, D)
    modules = [torch.nn.Linear(width, D)]
    for _ in range(1, int(said[3])):
        modules += [torch.nn.GELU(), torch.nn.Linear(D, D)]
    return torch.nn.Sequential(*modules)


@pytest.mark.parametrize("said", PROJECTORS)
def test_projectors_are_those_of_their_builder(torch, tmp_path, said):
    config = small_config("original", text=SQUARE, projector_layers=PROJECTORS[said])
    reference = torch_projector(torch, said, config)
    held = whole(config, lambda name, layout: name if name.startswith("multi_") else theirs(name, layout))
    held = {name: value for name, value in held.items() if not name.startswith("multi_")}
    held |= {f"model.mm_projector.{name}": array(value) for name, value in reference.state_dict().items()}
    checkpoint = opened(tmp_path, held, config, mm_projector_type=said)
    assert checkpoint.config.projector_layers == PROJECTORS[said]
    assert checkpoint.size == counted(checkpoint.config).total
    weights = arrays(checkpoint)
    features = np.random.default_rng(0).standard_normal((2, 5, 64)).astype(np.float32)
    model = with_weights(checkpoint.config, weights)
    with torch.no_grad():
        expected = array(reference(torch.tensor(features)))
    np.testing.assert_allclose(model.multi_modal_projector(jnp.asarray(features)), expected, rtol=0, atol=2e-5)
    pixels = jnp.asarray(np.random.default_rng(1).standard_normal((1, 28, 28, 3)), jnp.float32)
    assert nnx.jit(type(model).encode_images)(model, pixels).shape == (1, 4, 64)

    convert_to_orbax(checkpoint, tmp_path / "orbax")
    again = open_checkpoint(tmp_path / "orbax")
    assert again.config == checkpoint.config
    assert_same_bits(arrays(again), weights)
    export(again, tmp_path / "pku", "pku")
    assert open_checkpoint(tmp_path / "pku").config == checkpoint.config
    if said != "linear":  # which is written as mlp1x_gelu
        assert_same_bits(read_all(tmp_path / "pku"), held)
    if PROJECTORS[said] != 2:
        with pytest.raises(WeightsError, match=r"layout hub has a projector of 2 layers, and that of this model has"):
            export(again, tmp_path / "hub", "hub", drop_temporal=True)


def test_without_the_key_the_weights_are_counted(torch, tmp_path):
    config = small_config("original", projector_layers=3)
    held = whole(small_config("original"))
    reference = torch_projector(torch, "mlp3x_gelu", config)
    held |= {f"model.mm_projector.{name}": array(value) for name, value in reference.state_dict().items()}
    raw = authors_config(config)
    del raw["mm_projector_type"]
    assert open_checkpoint(write(tmp_path / "a", held, raw)).config.projector_layers == 3


def test_a_projector_that_is_none_needs_towers_of_the_decoders_width(tmp_path, tensors):
    held = {name: value for name, value in tensors.items() if "mm_projector" not in name}
    with pytest.raises(WeightsError, match="projector_layers 0: expected features as wide as the decoder, 16, got 64"):
        opened(tmp_path, held, mm_projector_type="identity")


@pytest.mark.parametrize("said", ["mlp3x_gelu", "linear", "identity"])
def test_a_new_model_with_another_projector(tmp_path, said):
    parts = write_parts(tmp_path / "parts", text=SQUARE)
    arguments = ["assemble", str(tmp_path / "out"), "--llm", str(parts.llm), *parts.towers, "--new-projector", "0"]
    assert main([*arguments, "--projector-type", said]) == 0
    made = open_checkpoint(tmp_path / "out")
    assert made.config.projector_layers == PROJECTORS[said]
    assert sum("multi_modal_projector" in name for name in made.tensors) == 2 * PROJECTORS[said]
    with pytest.raises(SystemExit):
        main([*arguments[:-2], "--projector", "p.bin", "--projector-type", said])


# ── refused ──


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end true: media stand between tokens"),
        ({"mm_video_tower": None}, "mm_video_tower null: a model of images alone; .*--video-tower DIR gives it one"),
        ({"mm_image_tower": None}, "mm_image_tower null: a model of videos alone; .*--image-tower DIR gives it one"),
        (
            {"mm_image_tower": "openai/clip-vit-large-patch14-336"},
            "mm_image_tower 'openai/clip-vit-large-patch14-336': expected LanguageBind_Image",
        ),
        ({"mm_video_tower": "LanguageBind/LanguageBind_Video"}, "expected LanguageBind_Video_merge"),
        (
            {"mm_projector_type": "resampler"},
            "mm_projector_type 'resampler': expected linear, mlp1x_gelu to mlp16x_gelu",
        ),
        ({"mm_projector_type": "mlp17x_gelu"}, "mm_projector_type 'mlp17x_gelu'"),
        ({"mm_vision_select_feature": "cls"}, "mm_vision_select_feature 'cls': expected one of patch, cls_patch"),
        ({"mm_vision_select_layer": "-2"}, "mm_vision_select_layer '-2': expected one hidden state"),
        ({"mm_vision_select_layer": 9}, "vision_feature_layer 9 is not one of the 3 hidden states"),
        ({"rope_scaling": {"type": "yarn", "factor": 2}}, "rope_type 'yarn' is not supported"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling: expected a factor from 1 to 4096, got None"),
        ({"rope_scaling": [2]}, r"rope_scaling: expected an object or null, got \[2\]"),
        ({"rope_parameters": [2]}, r"rope_scaling: expected an object or null, got \[2\]"),
        ({"rope_theta": None}, "rope_theta: expected a number, got None"),
        ({"image_aspect_ratio": "anyres"}, "image_aspect_ratio 'anyres': expected pad, square or null"),
        ({"mm_patch_merge_type": "spatial"}, "mm_patch_merge_type 'spatial': not known here"),
        ({"model_type": "llava_mpt"}, "model_type 'llava_mpt': the decoder is an MPT"),
        ({"architectures": ["LlavaMPTForCausalLM"]}, "the decoder is an MPT"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "the weights are quantised"),
    ],
)
def test_what_is_refused_by_name(tmp_path, tensors, changes, words, capsys):
    with pytest.raises(WeightsError, match=words):
        opened(tmp_path, tensors, **changes)
    assert main(["convert", str(tmp_path / "authors"), str(tmp_path / "out")]) == 1
    assert "Traceback" not in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_everything_that_is_refused_is_told_at_once(tmp_path, tensors):
    with pytest.raises(WeightsError, match=r"(?s)mm_image_tower null.*mm_use_im_start_end.*mm_projector_type"):
        opened(tmp_path, tensors, mm_use_im_start_end=True, mm_image_tower=None, mm_projector_type="x")


def test_names_of_clips_tower_are_explained_by_the_configuration(tmp_path, tensors):
    """Their CLIPVisionTower names its weights otherwise, so that the names alone would say nothing."""
    held = {
        name.replace("image_tower.image_tower.", "image_tower.vision_tower.vision_model."): v
        for name, v in tensors.items()
    }
    with pytest.raises(WeightsError, match="mm_image_tower 'openai/clip-vit-large-patch14': expected LanguageBind_Im"):
        opened(tmp_path, held, mm_image_tower="openai/clip-vit-large-patch14")


# ── honoured ──


@pytest.mark.parametrize("kind", ["video", "image"])
def test_a_model_of_one_kind_of_media_can_be_given_the_other_tower(tmp_path, tensors, kind):
    parts = write_parts(tmp_path / "parts")
    held = {name: value for name, value in tensors.items() if f"{kind}_tower" not in name}
    towers = open_towers(**{"image": None, "video": None, kind: getattr(parts, f"{kind}_tower")})
    checkpoint = opened(tmp_path, held, towers=towers, **{f"mm_{kind}_tower": None})
    assert checkpoint.config == dataclasses.replace(small_config("original"), text_config=checkpoint.config.text_config)
    name = f"{kind}_tower.pre_layrnorm.weight"
    np.testing.assert_array_equal(checkpoint.tensors[name].read(), parts.parameters[name])


def test_values_that_change_the_model(tmp_path, tensors):
    checkpoint = opened(
        tmp_path,
        tensors,
        rope_scaling={"type": "dynamic", "factor": 2.0},
        rope_theta=5000.0,
        mm_vision_select_layer=-1,
        mm_vision_select_feature="cls_patch",
        max_position_embeddings=512,
        rms_norm_eps=1e-6,
    )
    config, text = checkpoint.config, checkpoint.config.text_config
    assert text.rope_scaling == RopeScaling(kind="dynamic", factor=2.0)
    assert (text.rope_theta, text.max_position_embeddings, text.rms_norm_eps) == (5000.0, 512, 1e-6)
    assert (config.vision_feature_layer, config.vision_feature_select_strategy) == (-1, "full")
    export(checkpoint, tmp_path / "again", "pku")
    assert open_checkpoint(tmp_path / "again").config == config


def test_the_rotary_embedding_as_transformers_5_writes_it():
    raw = authors_config(small_config("original"))
    raw |= {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 77.0}}
    del raw["rope_scaling"]
    text = read_pku_config(None, raw, random_parameters(small_config("original"), 0), None).text_config
    assert (text.rope_theta, text.rope_scaling) == (77.0, RopeScaling(kind="linear", factor=4.0))


def test_values_that_no_answer_depends_on(tmp_path, tensors):
    plain = opened(tmp_path / "a", tensors).config
    flags = {
        **dict.fromkeys(("tune_mm_mlp_adapter", "freeze_mm_mlp_adapter", "unfreeze_mm_vision_tower"), True),
        **dict.fromkeys(("tune_mm_vision_resampler", "use_mm_proj", "mm_use_im_patch_token"), True),
        "mm_projector_lr": 1e-4,
        "mm_vision_tower_lr": 1e-6,
        "mm_resampler_type": None,
        "mm_patch_merge_type": None,
        "tokenizer_model_max_length": 3072,
        "pretraining_tp": 2,
        "X": ["Image", "Video"],
    }
    assert opened(tmp_path / "b", tensors, **flags).config == plain


def test_the_row_of_the_image_patch_token_is_kept(tmp_path, tensors):
    """mm_use_im_patch_token adds a token that no prompt uses: media come behind it."""
    rng = np.random.default_rng(0)
    longer = {
        name: np.concatenate([tensors[name], rng.standard_normal((1, 16)).astype(np.float32)])
        for name in ("model.embed_tokens.weight", "lm_head.weight")
    }
    checkpoint = opened(tmp_path, tensors | longer, mm_use_im_patch_token=True, vocab_size=ROWS + 1)
    assert (checkpoint.config.image_token_id, checkpoint.config.video_token_id) == (ROWS + 1, ROWS + 2)
    export(checkpoint, tmp_path / "pku", "pku")
    assert_same_bits(read_all(tmp_path / "pku"), tensors | longer)


@pytest.mark.parametrize("said", ["pad", "square"])
def test_the_way_to_make_inputs_is_kept(tmp_path, tensors, said):
    checkpoint = opened(tmp_path, tensors, image_aspect_ratio=said)
    convert_to_orbax(checkpoint, tmp_path / "orbax")
    export(tmp_path / "orbax", tmp_path / "pku", "pku")
    export(tmp_path / "orbax", tmp_path / "hub", "hub", drop_temporal=True)
    for form in ("orbax", "pku", "hub"):
        assert json.loads((tmp_path / form / "config.json").read_text())["image_aspect_ratio"] == said
        assert open_checkpoint(tmp_path / form).inputs == {"image_aspect_ratio": said}


# ── heads ──


def test_heads_of_wide_towers_come_from_the_towers_own_configuration(tmp_path):
    """ViT-H has 16 heads at 1280; width // 64 would make 20 of them."""
    vision = {"hidden_size": 1280, "num_attention_heads": 16, "num_hidden_layers": 1, "intermediate_size": 8}
    config = small_config("original", vision=vision, vision_feature_layer=-1)
    held = whole(config)
    with pytest.raises(WeightsError, match=r"how many heads .*width of 1280 .*--tower-config gives the config.json"):
        opened(tmp_path / "a", held, config, mm_vision_select_layer=-1)
    tower = write_tower(tmp_path / "LanguageBind_Video_Huge", config, random_parameters(config, 0), "video")
    checkpoint = opened(tmp_path / "b", held, config, tower_config=tower / "config.json", mm_vision_select_layer=-1)
    assert checkpoint.config.vision_config.num_attention_heads == 16


@pytest.mark.parametrize("width", [96, 48])
def test_heads_that_no_width_says(tmp_path, width):
    config = small_config("original", vision={"hidden_size": width, "num_attention_heads": 3})
    with pytest.raises(WeightsError, match=f"at a width of {width} the shapes do not"):
        opened(tmp_path, whole(config), config)
