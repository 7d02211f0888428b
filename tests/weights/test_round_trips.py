"""Nothing is lost: every layout to Orbax and back is equal to the bit, and one layout can become another."""

import json

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.small_models import ROWS, random_parameters, small_config
from tests.weights.checkpoints import assert_same_bits, read_all, theirs, write_checkpoint
from videollava_jax.weights import (
    LAYOUTS,
    Options,
    WeightsError,
    compare_checkpoints,
    convert_to_orbax,
    export,
    load_checkpoint,
    open_checkpoint,
    verify_checkpoint,
)
from videollava_jax.weights.source import Source

HF = ("hub", "hf5", "memory")


@st.composite
def drawn(draw):
    """(config, layout, dtype, shards, seed)"""
    layout = draw(st.sampled_from([*HF, "pku"]))
    variant = "original" if layout == "pku" else "hf"
    width = draw(st.sampled_from([64, 128]))
    vision = {
        "hidden_size": width,
        "num_attention_heads": width // 64,
        "num_hidden_layers": draw(st.integers(1, 3)),
        "image_size": draw(st.sampled_from([14, 28])),
    }
    text = {"num_hidden_layers": draw(st.integers(1, 2)), "num_key_value_heads": draw(st.sampled_from([1, 2]))}
    changes = {"tie_word_embeddings": draw(st.booleans())}
    if layout != "pku":  # the authors' have none of these
        changes["multimodal_projector_bias"] = draw(st.booleans())
        changes["vision_feature_layer"] = draw(st.sampled_from([-2, -1, (-1, 0)]))
        text["attention_bias"] = draw(st.booleans())
    config = small_config(variant, vision=vision, text=text, **changes)
    dtype = draw(st.sampled_from(["float32", "float16", "bfloat16"]))
    return config, layout, dtype, draw(st.integers(1, 3)), draw(st.integers(0, 2**32 - 1))


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(case=drawn())
def test_there_and_back_is_equal_to_the_bit(case, tmp_path_factory):
    config, layout, dtype, shards, seed = case
    place = tmp_path_factory.mktemp("round")
    expected = write_checkpoint(place / "a", config, random_parameters(config, seed, dtype), layout, shards)
    opened = open_checkpoint(place / "a")
    assert (opened.layout, opened.config) == (layout, config)
    convert_to_orbax(place / "a", place / "orbax")
    assert open_checkpoint(place / "orbax").config == config
    assert verify_checkpoint(place / "orbax") == []
    export(place / "orbax", place / "b", layout, max_shard_bytes=20_000)
    assert_same_bits(read_all(place / "b"), expected)
    assert open_checkpoint(place / "b").config == config
    assert compare_checkpoints(open_checkpoint(place / "a"), open_checkpoint(place / "orbax")).differences == ()
    loaded_config, parameters = load_checkpoint(place / "orbax", verify="full")
    assert loaded_config == config
    for name, value in parameters.items():
        if theirs(name, layout) in expected and layout != "pku":
            assert np.asarray(value).tobytes() == expected[theirs(name, layout)].tobytes()


@pytest.mark.parametrize("first", HF)
@pytest.mark.parametrize("second", HF)
def test_transformers_layouts_become_one_another(tmp_path, first, second):
    config = small_config()
    parameters = random_parameters(config, 0)
    write_checkpoint(tmp_path / "a", config, parameters, first)
    expected = write_checkpoint(tmp_path / "expected", config, parameters, second)
    export(tmp_path / "a", tmp_path / "b", second)
    assert_same_bits(read_all(tmp_path / "b"), expected)
    assert compare_checkpoints(open_checkpoint(tmp_path / "a"), open_checkpoint(tmp_path / "b")).differences == ()


def test_the_names_of_the_authors_layout():
    """As the published checkpoint's index has them."""
    for ours, name in {
        "video_tower.encoder.layers.0.temporal_attn.q_proj.weight": (
            "model.video_tower.video_tower.encoder.layers.0.temporal_attn.q_proj.weight"
        ),
        "image_tower.pre_layrnorm.bias": "model.image_tower.image_tower.pre_layrnorm.bias",
        "multi_modal_projector.linear_2.weight": "model.mm_projector.2.weight",
        "language_model.layers.31.mlp.up_proj.weight": "model.layers.31.mlp.up_proj.weight",
        "language_model.norm.weight": "model.norm.weight",
        "lm_head.weight": "lm_head.weight",
    }.items():
        assert LAYOUTS["pku"].from_ours(ours) == name
        assert LAYOUTS["pku"].to_ours(name) == ours


def test_the_authors_vocabulary_gets_rows_that_are_never_the_likeliest(tmp_path):
    config = small_config("original")
    write_checkpoint(tmp_path / "a", config, random_parameters(config, 0), "pku")
    checkpoint = open_checkpoint(tmp_path / "a")
    head = checkpoint.tensors["lm_head.weight"].read()
    assert head.shape == (64, 16)
    hidden = np.random.default_rng(0).standard_normal((1000, 16))
    logits = hidden @ head.T
    assert (logits.argmax(axis=1) < ROWS).all()
    assert (checkpoint.config.image_token_id, checkpoint.config.video_token_id) == (ROWS, ROWS + 1)


def test_temporal_attention_is_dropped_only_when_told(tmp_path):
    config = small_config("original")
    parameters = random_parameters(config, 0)
    write_checkpoint(tmp_path / "a", config, parameters, "pku")
    convert_to_orbax(tmp_path / "a", tmp_path / "orbax")
    with pytest.raises(WeightsError, match=r"22 tensors, .* --drop-temporal"):
        export(tmp_path / "orbax", tmp_path / "b", "hub")
    assert not (tmp_path / "b").exists()
    export(tmp_path / "orbax", tmp_path / "b", "hub", drop_temporal=True)
    left = open_checkpoint(tmp_path / "b")
    assert left.config.variant == "hf"
    lost = compare_checkpoints(open_checkpoint(tmp_path / "orbax"), left).differences
    assert len(lost) == 22
    assert all(d.what == "only in the first" and ".temporal_" in d.name for d in lost)
    with pytest.raises(WeightsError, match="has none"):
        export(tmp_path / "b", tmp_path / "c", "pku")


def test_dtypes_are_cast_on_the_way(tmp_path):
    config = small_config()
    parameters = random_parameters(config, 0)
    write_checkpoint(tmp_path / "a", config, parameters, "hf5")
    convert_to_orbax(tmp_path / "a", tmp_path / "half", Options(dtype=np.dtype(ml_dtypes.bfloat16)))
    for name, tensor in open_checkpoint(tmp_path / "half").tensors.items():
        assert tensor.read().tobytes() == parameters[name].astype(ml_dtypes.bfloat16).tobytes()


def test_a_tied_head_that_differs_is_not_lost_in_silence(tmp_path):
    config = small_config(tie_word_embeddings=True)
    parameters = random_parameters(config, 0)
    twice = parameters | {"lm_head.weight": parameters["language_model.embed_tokens.weight"]}
    write_checkpoint(tmp_path / "same", config, twice, "hub")
    assert "lm_head.weight" not in open_checkpoint(tmp_path / "same").tensors
    twice["lm_head.weight"] = twice["lm_head.weight"] + 1
    write_checkpoint(tmp_path / "other", config, twice, "hub")
    with pytest.raises(WeightsError, match="ties the head"):
        open_checkpoint(tmp_path / "other")


def test_running_twice(tmp_path):
    config = small_config()
    write_checkpoint(tmp_path / "a", config, random_parameters(config, 0), "hub")
    write_checkpoint(tmp_path / "other", config, random_parameters(config, 1), "hub")
    first = convert_to_orbax(tmp_path / "a", tmp_path / "orbax")
    stamp = (tmp_path / "orbax" / "manifest.json").stat().st_mtime_ns
    again = convert_to_orbax(tmp_path / "a", tmp_path / "orbax")
    assert (first.already_there, again.already_there) == (False, True)
    assert again.tensors == first.tensors
    with pytest.raises(WeightsError, match="exists and holds something else"):
        convert_to_orbax(tmp_path / "other", tmp_path / "orbax")
    assert (tmp_path / "orbax" / "manifest.json").stat().st_mtime_ns == stamp
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "orbax", "other"]


def test_a_flipped_bit_is_found(tmp_path):
    config = small_config()
    write_checkpoint(tmp_path / "a", config, random_parameters(config, 0), "hub")
    convert_to_orbax(tmp_path / "a", tmp_path / "orbax")
    export(tmp_path / "orbax", tmp_path / "b", "hub")
    path = tmp_path / "b" / "model.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-100] ^= 4
    path.write_bytes(raw)
    problems = verify_checkpoint(tmp_path / "b")
    assert any("SHA-256" in problem for problem in problems)
    (difference,) = compare_checkpoints(open_checkpoint(tmp_path / "a"), open_checkpoint(tmp_path / "b")).differences
    assert difference.what == "values"
    assert difference.detail.startswith("1 of ")


def test_nonfinite_values_are_counted(tmp_path):
    config = small_config()
    for dtype in ("float32", "float16", "bfloat16"):
        parameters = random_parameters(config, 0, dtype)
        parameters["language_model.norm.weight"][:3] = [np.nan, np.inf, -np.inf]
        write_checkpoint(tmp_path / dtype, config, parameters, "hub")
        with pytest.raises(WeightsError, match=r"language_model.norm.weight: 1 NaN, 2 infinite"):
            convert_to_orbax(tmp_path / dtype, tmp_path / f"{dtype}-orbax")
        assert not (tmp_path / f"{dtype}-orbax").exists()
        convert_to_orbax(tmp_path / dtype, tmp_path / f"{dtype}-orbax", Options(allow_nonfinite=True))


def test_the_index_says_which_file_holds_what(tmp_path):
    config = small_config()
    expected = write_checkpoint(tmp_path / "a", config, random_parameters(config, 0), "hub")
    export(tmp_path / "a", tmp_path / "b", "hub", max_shard_bytes=30_000)
    index = json.loads((tmp_path / "b" / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == expected.keys()
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in expected.values())
    assert len(set(index["weight_map"].values())) > 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_int8_weights_are_within_half_a_scale(tmp_path, dtype):
    config = small_config()
    parameters = random_parameters(config, 0, dtype)
    parameters["language_model.layers.0.mlp.up_proj.weight"][3] = 0  # a row of zeros has no scale
    write_checkpoint(tmp_path / "a", config, parameters, "hub")
    convert_to_orbax(tmp_path / "a", tmp_path / "int8", Options(int8=True))
    assert verify_checkpoint(tmp_path / "int8") == []
    stored = Source.open(tmp_path / "int8").stored
    _, loaded = load_checkpoint(tmp_path / "int8", verify="full")
    assert loaded.keys() == parameters.keys()
    quantized = 0
    for name, value in parameters.items():
        assert loaded[name].dtype == value.dtype
        if stored[name].dtype != np.int8:
            assert np.asarray(loaded[name]).tobytes() == value.tobytes()
            continue
        quantized += 1
        scale = stored[f"{name}_scale"].read()
        assert scale.shape == value.shape[:1]
        error = np.abs(stored[name].read() * scale[:, None] - value.astype(np.float32))
        assert (error <= 0.5001 * scale[:, None]).all()
    assert quantized == 2 * 7
    export(tmp_path / "int8", tmp_path / "b", "hub")
    for name, tensor in open_checkpoint(tmp_path / "b").tensors.items():
        assert tensor.read().tobytes() == np.asarray(loaded[name]).tobytes()
    with pytest.raises(WeightsError, match="no int8"):
        export(tmp_path / "a", tmp_path / "c", "hub", Options(int8=True))
