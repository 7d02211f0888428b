"""Adapters, PEFT's and the authors', are read and merged as PEFT merges; the commands with adapters."""

import dataclasses
import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests import tolerances
from tests.small_models import DTYPES, ROWS, random_parameters, small_config
from tests.weights.adapters_helper import (
    CONFIG,
    LAYOUTS,
    LINEAR_1,
    Q_PROJ,
    TOWER,
    UP_PROJ,
    WHOLE_PROJECTOR,
    arrays,
    config_of,
    draw,
    expected_merge,
    files_of,
    from_torch,
    named,
    save_bin,
    to_torch,
    write_adapter,
    write_files,
)
from tests.weights.checkpoints import assert_same_bits, write_checkpoint
from videollava_jax.cli import main
from videollava_jax.model.video_llava import parameter_shapes
from videollava_jax.weights import Options, WeightsError, convert_to_orbax, open_checkpoint
from videollava_jax.weights.adapters import is_adapter, merge_adapter, open_adapter, write_peft
from videollava_jax.weights.stream import nonfinite


@pytest.mark.parametrize("names", [(Q_PROJ, UP_PROJ), (TOWER,), (TOWER, Q_PROJ, "lm_head.weight")])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_layout_is_read_off_the_names(tmp_path, base, layout, names):
    directory, parameters = base
    if layout == "pku":
        names = [name for name in names if name != "lm_head.weight"]  # has fewer rows there
    drawn = draw(CONFIG, names, integers=True)
    adapter = open_adapter(write_adapter(tmp_path, drawn, layout))
    same = {"hub": ("hub",), "hf5": ("hub", "hf5"), "memory": ("memory",), "memory4": ("memory", "memory4")}
    if TOWER in names:
        assert adapter.layout == layout
    else:  # the decoder's names alone do not tell these apart
        assert adapter.layout in same.get(layout, (layout,))
    assert adapter.lora.keys() == drawn.lora.keys()
    assert adapter.size == sum(a.size + b.size for a, b in drawn.lora.values())
    assert_same_bits(arrays(merge_adapter(open_checkpoint(directory), adapter)), expected_merge(parameters, drawn))


def test_the_state_of_a_model_in_training_has_the_adapters_name_in_it(tmp_path, base):
    drawn = draw(CONFIG, integers=True)
    with_name = open_adapter(write_adapter(tmp_path / "a", drawn, "memory", adapter_name=".default"))
    without = open_adapter(write_adapter(tmp_path / "b", drawn, "memory"))
    first, second = (arrays(merge_adapter(open_checkpoint(base[0]), it)) for it in (with_name, without))
    assert_same_bits(first, second)


@pytest.mark.parametrize("rslora", [False, True])
def test_ranks_and_alphas_by_patterns(tmp_path, base, rslora):
    """As PEFT matches them: the first that fits the end of the name, as a regular expression."""
    names = [f"language_model.layers.{i}.self_attn.{p}_proj.weight" for i in (0, 1) for p in "qk"]
    drawn = draw(
        CONFIG,
        names,
        integers=True,
        rank=4,
        alpha=16,
        ranks={names[0]: 1, names[2]: 1, names[3]: 16},
        alphas={names[1]: 0.5, names[3]: 4},
        rslora=rslora,
    )
    patterns = {
        "rank_pattern": {"q_proj": 1, "self_attn.q_proj": 9, "^model.language_model.layers.1.self_attn.k_proj": 16},
        "alpha_pattern": {r"layers\.0\.self_attn\.k_proj": 0.5, r"layers.1.\w+.k_proj": 4},
    }
    adapter = open_adapter(write_adapter(tmp_path, drawn, "memory", **patterns))
    assert {name: pair.scale for name, pair in adapter.lora.items()} == {name: drawn.scale(name) for name in names}
    merged = arrays(merge_adapter(open_checkpoint(base[0]), adapter))
    assert_same_bits(merged, expected_merge(base[1], drawn))


@pytest.mark.parametrize("of_adapter", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("of_base", ["float64", "float32", "float16", "bfloat16"])
def test_merging_is_pefts_formula_in_torch(torch, tmp_path, of_base, of_adapter):
    """`weight.data += (B @ A) * scaling` with A and B in float32, as PEFT casts them; float64 stays float64."""
    rng = np.random.default_rng(0)
    dtype = np.float64 if of_base == "float64" else DTYPES[of_base]
    parameters = {n: rng.standard_normal(s).astype(dtype) for n, s in parameter_shapes(CONFIG).items()}
    write_checkpoint(tmp_path / "base", CONFIG, parameters, "hub")
    for integers in (True, False):
        drawn = draw(CONFIG, dtype=of_adapter, integers=integers, rank=4, alpha=2)
        adapter = open_adapter(write_adapter(tmp_path / str(integers), drawn, "hub"))
        merged = merge_adapter(open_checkpoint(tmp_path / "base"), adapter)
        for name, (a, b) in drawn.lora.items():
            wide = torch.float64 if of_base == "float64" else torch.float32
            weight = to_torch(torch, parameters[name])
            weight += (to_torch(torch, b).to(wide) @ to_torch(torch, a).to(wide)) * drawn.scale(name)
            got, expected = merged.tensors[name].read(), from_torch(torch, weight)
            assert got.dtype == expected.dtype == merged.tensors[name].dtype
            if integers:
                assert got.tobytes() == expected.tobytes()
            else:  # the sums of a product may be taken in another order, and so end on the other side of a half
                close = {"float64": 1e-14, "float32": tolerances.LAYER, "float16": 2**-10, "bfloat16": 2**-7}[of_base]
                np.testing.assert_allclose(got.astype(float), expected.astype(float), rtol=close, atol=close)
                assert (got == expected).mean() > 0.99 or of_base in ("float64", "float32")


def test_whole_tensors_take_the_place_of_others(tmp_path, base):
    """PEFT's modules_to_save, and the base layer that it saves with the LoRA of a head: LoRA is added to that."""
    drawn = draw(CONFIG, ["lm_head.weight"], [*WHOLE_PROJECTOR, "lm_head.weight"], integers=True)
    lora, whole = files_of(drawn, "memory")
    whole["base_model.model.lm_head.base_layer.weight"] = whole.pop("base_model.model.lm_head.weight")
    config = config_of(drawn, "memory") | {"modules_to_save": ["multi_modal_projector"]}
    adapter = open_adapter(write_files(tmp_path, lora | whole, config))
    assert adapter.replaced.keys() == drawn.whole.keys()
    merged = arrays(merge_adapter(open_checkpoint(base[0]), adapter))
    assert_same_bits(merged, expected_merge(base[1], drawn))


def test_nothing_is_read_before_its_turn(tmp_path, base):
    drawn = draw(CONFIG, whole=LINEAR_1, integers=True)
    adapter = open_adapter(write_adapter(tmp_path, drawn, "hub"))
    read = []

    def watched(tensor):
        return dataclasses.replace(tensor, read=lambda: (read.append(tensor.name), tensor.read())[1])

    adapter = dataclasses.replace(
        adapter,
        lora={n: dataclasses.replace(p, a=watched(p.a), b=watched(p.b)) for n, p in adapter.lora.items()},
        replaced={n: watched(tensor) for n, tensor in adapter.replaced.items()},
    )
    opened = open_checkpoint(base[0])
    opened = dataclasses.replace(opened, tensors={n: watched(tensor) for n, tensor in opened.tensors.items()})
    merged = merge_adapter(opened, adapter)
    assert read == []
    merged.tensors[Q_PROJ].read()
    assert sorted(read) == sorted([Q_PROJ, adapter.lora[Q_PROJ].a.name, adapter.lora[Q_PROJ].b.name])
    read.clear()
    merged.tensors[LINEAR_1[0]].read()
    assert read == [adapter.replaced[LINEAR_1[0]].name]


def test_what_is_not_finite_is_there_to_be_counted(tmp_path):
    """Merging neither hides it nor warns of it: conversion counts it, with the names."""
    parameters = random_parameters(CONFIG, 0, "float16")
    write_checkpoint(tmp_path / "base", CONFIG, parameters, "hub")
    drawn = draw(CONFIG, whole=LINEAR_1)
    drawn.lora[Q_PROJ][1][3, 0] = np.nan
    drawn.lora[UP_PROJ][1][2] = 1e6  # beyond float16
    drawn.whole[LINEAR_1[1]][:2] = 1e6
    merged = merge_adapter(open_checkpoint(tmp_path / "base"), open_adapter(write_adapter(tmp_path, drawn, "hub")))
    found = {name: nonfinite(value) for name, value in arrays(merged).items()}
    found = {name: counts for name, counts in found.items() if counts != (0, 0)}
    assert found.keys() == {Q_PROJ, UP_PROJ, LINEAR_1[1]}
    assert found[Q_PROJ] == (16, 0)
    assert found[UP_PROJ][1] > 0
    assert found[LINEAR_1[1]] == (0, 2)


# ── the authors' ────────────────────────────────────────────────────────────────────────────────────────────


def test_the_authors_lora_directory(torch, tmp_path, authors):
    """adapter_model.bin, non_lora_trainables.bin; target modules by their ends, the towers untouched."""
    directory, config, parameters = authors
    ends = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj", "gate_proj"]
    names = [
        n
        for n in parameters
        if n.startswith("language_model.layers") and n.split(".")[-2] in ends and n[-6:] == "weight"
    ]
    drawn = draw(config, names, WHOLE_PROJECTOR, integers=True, rank=8, alpha=16)
    lora, whole = files_of(drawn, "pku")
    assert "base_model.model.model.mm_projector.0.weight" in whole
    save_bin(torch, tmp_path / "adapter_model.bin", lora)
    save_bin(torch, tmp_path / "non_lora_trainables.bin", whole)
    (tmp_path / "adapter_config.json").write_text(json.dumps(config_of(drawn, "pku") | {"target_modules": ends}))
    (tmp_path / "config.json").write_text((directory / "config.json").read_text())
    assert is_adapter(tmp_path)
    adapter = open_adapter(tmp_path)
    assert adapter.layout == "pku"
    merged = arrays(merge_adapter(open_checkpoint(directory), adapter))
    assert_same_bits(merged, expected_merge(parameters, drawn))
    (tmp_path / "non_lora_trainables.bin").unlink()
    with pytest.raises(WeightsError, match=r"non_lora_trainables.bin is missing"):
        open_adapter(tmp_path)


@pytest.mark.parametrize("prefix", ["base_model.model.model.", "model.", ""])
def test_the_authors_projector_alone(torch, tmp_path, authors, base, prefix):
    drawn = draw(CONFIG, [], WHOLE_PROJECTOR, integers=True)
    whole = {prefix + named(name, "pku").removeprefix("model."): value for name, value in drawn.whole.items()}
    assert f"{prefix}mm_projector.2.bias" in whole
    save_bin(torch, tmp_path / "mm_projector.bin", whole)
    adapter = open_adapter(tmp_path)
    assert (adapter.layout, dict(adapter.lora), adapter.config) == ("pku", {}, {})
    merged = arrays(merge_adapter(open_checkpoint(authors[0]), adapter, trust_base=True))
    assert_same_bits(merged, expected_merge(authors[2], drawn))
    merged = arrays(merge_adapter(open_checkpoint(base[0]), adapter, trust_base=True))  # onto transformers' as well
    assert_same_bits(merged, expected_merge(base[1], drawn))


def test_the_authors_vocabulary_leaves_the_rows_of_media(tmp_path, authors):
    directory, config, parameters = authors
    embedding = "language_model.embed_tokens.weight"
    drawn = draw(config, ["lm_head.weight", Q_PROJ], [embedding], integers=True)
    a, b = drawn.lora["lm_head.weight"]
    drawn.lora["lm_head.weight"] = a, b[:ROWS]
    drawn.whole[embedding] = drawn.whole[embedding][:ROWS]
    adapter = open_adapter(write_adapter(tmp_path, drawn, "pku"))
    merged = arrays(merge_adapter(open_checkpoint(directory), adapter))
    first = {
        name: value[:ROWS] if name in (embedding, "lm_head.weight") else value for name, value in parameters.items()
    }
    expected = expected_merge(first, drawn)
    for name in (embedding, "lm_head.weight"):
        expected[name] = np.concatenate([expected[name], parameters[name][ROWS:]])
    assert_same_bits(merged, expected)


def test_attention_over_time_can_have_an_adapter(tmp_path, authors, base):
    directory, config, parameters = authors
    name = "video_tower.encoder.layers.0.temporal_attn.q_proj.weight"
    drawn = draw(config, [name], ["video_tower.encoder.layers.0.temporal_embedding"], integers=True)
    adapter = open_adapter(write_adapter(tmp_path / "a", drawn, "pku"))
    assert_same_bits(arrays(merge_adapter(open_checkpoint(directory), adapter)), expected_merge(parameters, drawn))
    with pytest.raises(WeightsError, match=r"(?s)2 parts of .* do not fit .*unknown: .*temporal_attn.q_proj.lora_A"):
        merge_adapter(open_checkpoint(base[0]), adapter)
    with pytest.raises(WeightsError, match="cannot hold attention over time"):
        write_peft(adapter, tmp_path / "b", "memory")


def test_transformers_adapter_of_the_video_tower_fits_an_original_model(tmp_path, authors):
    """Its configuration names every q_proj, and it has none for attention over time, which transformers lack."""
    directory, config, parameters = authors
    names = [f"video_tower.encoder.layers.{i}.self_attn.q_proj.weight" for i in (0, 1)]
    adapter = open_adapter(
        write_adapter(tmp_path, draw(config, names, integers=True), "hf5", target_modules=["q_proj"])
    )
    merged = arrays(merge_adapter(open_checkpoint(directory), adapter))
    assert_same_bits(merged, expected_merge(parameters, draw(config, names, integers=True)))


@pytest.mark.parametrize("int8", [False, True])
def test_onto_a_converted_checkpoint(tmp_path, base, int8):
    """An Orbax directory is a base like any other; int8 weights become floats and are merged."""
    convert_to_orbax(base[0], tmp_path / "orbax", Options(int8=int8))
    checkpoint = open_checkpoint(tmp_path / "orbax")
    drawn = draw(CONFIG, whole=LINEAR_1, integers=True, alpha=1)
    merged = arrays(merge_adapter(checkpoint, open_adapter(write_adapter(tmp_path / "a", drawn, "hub"))))
    if not int8:
        assert_same_bits(merged, expected_merge(base[1], drawn))
    for name, value in expected_merge(arrays(checkpoint), drawn).items():
        np.testing.assert_allclose(merged[name], value, rtol=tolerances.LAYER)


# ── the command ─────────────────────────────────────────────────────────────────────────────────────────────


def test_the_command_merges_and_keeps_apart(tmp_path, capsys):
    config = small_config()
    parameters = random_parameters(config, 0)
    write_checkpoint(tmp_path / "base", config, parameters, "hub")
    name = "language_model.layers.0.self_attn.q_proj.weight"
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((2, 16)).astype(np.float32), rng.standard_normal((16, 2)).astype(np.float32)
    (tmp_path / "adapter").mkdir()
    module = "base_model.model.model.language_model.layers.0.self_attn.q_proj"
    save_file(
        {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}, tmp_path / "adapter" / "adapter_model.safetensors"
    )
    raw = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": [module.removeprefix("base_model.model.")]}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(raw))
    base, adapter = str(tmp_path / "base"), str(tmp_path / "adapter")

    assert main(["convert", adapter, str(tmp_path / "alone")]) == 1
    assert "an adapter, not a model: --base" in capsys.readouterr().err
    assert main(["convert", adapter, str(tmp_path / "merged"), "--base", base]) == 0
    assert main(["export", base, str(tmp_path / "hf"), "--layout", "hf5", "--adapter", adapter]) == 0
    for merged in ("merged", "hf"):
        tensors = open_checkpoint(tmp_path / merged).tensors
        np.testing.assert_allclose(tensors[name].read(), parameters[name] + 2 * b @ a, rtol=0, atol=1e-5)
        other = "language_model.layers.1.self_attn.q_proj.weight"
        np.testing.assert_array_equal(tensors[other].read(), parameters[other])
    assert main(["export", adapter, str(tmp_path / "peft"), "--layout", "hub", "--dtype", "bfloat16"]) == 1
    assert "--dtype does not apply" in capsys.readouterr().err
    assert main(["export", adapter, str(tmp_path / "peft"), "--layout", "hub"]) == 0
    kept = open_adapter(tmp_path / "peft")
    assert kept.layout == "hub"
    np.testing.assert_array_equal(kept.lora[name].a.read(), a)
