"""Adapters: PEFT's and the authors' are read, merged as PEFT merges, written for PEFT, and refused where in doubt."""

import dataclasses
import json
import sys
import warnings

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from tests import tolerances
from tests.small_models import DTYPES, ROWS, random_parameters, small_config
from tests.weights.adapters_helper import (
    LAYOUTS,
    PROJECTOR,
    Q_PROJ,
    TOWER,
    UP_PROJ,
    Drawn,
    config_of,
    draw,
    files_of,
    from_torch,
    module,
    named,
    save_bin,
    to_torch,
    write_adapter,
    write_files,
)
from tests.weights.checkpoints import assert_same_bits, read_all, write_checkpoint
from videollava_jax.cli import main
from videollava_jax.model.video_llava import parameter_shapes
from videollava_jax.weights import Options, WeightsError, convert_to_orbax, open_checkpoint, verify_checkpoint
from videollava_jax.weights.adapters import is_adapter, merge_adapter, open_adapter, write_peft
from videollava_jax.weights.stream import nonfinite

LIVE = "the comparison with live PEFT needs peft (pip install peft)"
LINEAR_1 = [PROJECTOR[0] + leaf for leaf in ("weight", "bias")]
WHOLE_PROJECTOR = [part + leaf for part in PROJECTOR for leaf in ("weight", "bias")]
CONFIG = small_config()


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A checkpoint of small whole numbers, so that sums are exact, and its arrays."""
    directory = tmp_path_factory.mktemp("base") / "hub"
    parameters = {name: np.rint(4 * value) for name, value in random_parameters(CONFIG, 0).items()}
    write_checkpoint(directory, CONFIG, parameters, "hub")
    return directory, parameters


def arrays(checkpoint):
    return {name: tensor.read() for name, tensor in checkpoint.tensors.items()}


def expected_merge(parameters, drawn):
    """W + scale · B @ A in float64, which is exact for small whole numbers."""
    merged = dict(parameters) | {name: value.astype(parameters[name].dtype) for name, value in drawn.whole.items()}
    for name, (a, b) in drawn.lora.items():
        added = drawn.scale(name) * (b.astype(np.float64) @ a.astype(np.float64))
        merged[name] = (merged[name].astype(np.float64) + added).astype(parameters[name].dtype)
    return merged


# ── reading and merging ─────────────────────────────────────────────────────────────────────────────────────


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
    """PEFT's modules_to_save, and the base layer that it saves beside the LoRA of a head: LoRA is added to that."""
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


@pytest.fixture(scope="module")
def authors(tmp_path_factory):
    """An original model, with attention over time, and its arrays."""
    config = small_config("original")
    directory = tmp_path_factory.mktemp("authors") / "pku"
    parameters = {name: np.rint(4 * value) for name, value in random_parameters(config, 1).items()}
    write_checkpoint(directory, config, parameters, "pku")
    return directory, config, arrays(open_checkpoint(directory))


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
    merged = arrays(merge_adapter(open_checkpoint(authors[0]), adapter))
    assert_same_bits(merged, expected_merge(authors[2], drawn))
    merged = arrays(merge_adapter(open_checkpoint(base[0]), adapter))  # onto transformers' as well
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
    """An Orbax directory of ours is a base like another; int8 weights are merged as the weights they stand for."""
    convert_to_orbax(base[0], tmp_path / "orbax", Options(int8=int8))
    checkpoint = open_checkpoint(tmp_path / "orbax")
    drawn = draw(CONFIG, whole=LINEAR_1, integers=True, alpha=1)
    merged = arrays(merge_adapter(checkpoint, open_adapter(write_adapter(tmp_path / "a", drawn, "hub"))))
    if not int8:
        assert_same_bits(merged, expected_merge(base[1], drawn))
    for name, value in expected_merge(arrays(checkpoint), drawn).items():
        np.testing.assert_allclose(merged[name], value, rtol=tolerances.LAYER)


# ── writing ─────────────────────────────────────────────────────────────────────────────────────────────────


@st.composite
def adapters(draw_from):
    """(layout, adapter)"""
    layout = draw_from(st.sampled_from(LAYOUTS))
    config = small_config("original" if layout == "pku" else "hf")
    layers = [n for n, s in parameter_shapes(config).items() if len(s) == 2]
    matrices = [n for n in layers if "_proj." in n or ".fc" in n]
    if layout != "pku":
        matrices += ["lm_head.weight"]
    names = draw_from(st.lists(st.sampled_from(sorted(matrices)), min_size=1, max_size=6, unique=True))
    some = st.lists(st.sampled_from(names), max_size=3, unique=True)
    whole = draw_from(st.sampled_from([[], LINEAR_1, WHOLE_PROJECTOR, ["language_model.norm.weight"]]))
    if layout != "pku" and draw_from(st.booleans()):
        whole = [*whole, names[0]]  # the base layer beside its LoRA
    return layout, draw(
        config,
        names,
        whole,
        seed=draw_from(st.integers(0, 2**32 - 1)),
        dtype=draw_from(st.sampled_from(["float32", "float16", "bfloat16"])),
        rank=draw_from(st.integers(1, 4)),
        alpha=draw_from(st.sampled_from([1, 16, 0.3])),
        ranks={name: draw_from(st.integers(1, 6)) for name in draw_from(some)},
        alphas={name: draw_from(st.sampled_from([2, 7.5])) for name in draw_from(some)},
        rslora=draw_from(st.booleans()),
    )


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(case=adapters())
def test_there_and_back_is_equal_to_the_bit(case, tmp_path_factory):
    layout, drawn = case
    place = tmp_path_factory.mktemp("adapter")
    lora, whole = files_of(drawn, layout)
    for name in drawn.whole.keys() & drawn.lora.keys():
        plain = f"base_model.model.{named(name, layout)}"
        whole[plain.removesuffix("weight") + "base_layer.weight"] = whole.pop(plain)
    adapter = open_adapter(write_files(place / "a", lora | whole, config_of(drawn, layout)))
    written = write_peft(adapter, place / "b", layout)
    assert_same_bits(read_all(place / "b"), lora | whole)
    assert written.keys() == (lora | whole).keys()
    assert verify_checkpoint(place / "b") == []
    again = open_adapter(place / "b")
    assert {n: p.scale for n, p in again.lora.items()} == {n: drawn.scale(n) for n in drawn.lora}
    assert {n: (p.rank, p.alpha, p.rslora) for n, p in again.lora.items()} == {
        n: (p.rank, p.alpha, p.rslora) for n, p in adapter.lora.items()
    }
    assert again.replaced.keys() == adapter.replaced.keys()
    assert again.config["lora_dropout"] == 0.05
    write_peft(again, place / "c", layout)
    for path in (place / "b").iterdir():
        assert path.read_bytes() == (place / "c" / path.name).read_bytes(), path.name


@pytest.mark.parametrize("first", LAYOUTS)
@pytest.mark.parametrize("second", LAYOUTS)
def test_layouts_become_one_another(tmp_path, first, second):
    drawn = draw(CONFIG, [Q_PROJ, TOWER], WHOLE_PROJECTOR, alphas={TOWER: 3}, ranks={TOWER: 1})
    adapter = open_adapter(write_adapter(tmp_path / "a", drawn, first, base_model_name_or_path="some/where"))
    write_peft(adapter, tmp_path / "b", second)
    lora, whole = files_of(drawn, second)
    assert_same_bits(read_all(tmp_path / "b"), lora | whole)
    config = json.loads((tmp_path / "b" / "adapter_config.json").read_text())
    assert config["target_modules"] == sorted(module(name, second) for name in drawn.lora)
    assert config["rank_pattern"] == {module(TOWER, second): 1}
    assert config["alpha_pattern"] == {module(TOWER, second): 3}
    assert ("base_model_name_or_path" in config) == (first == second)
    if second == "pku":
        assert (tmp_path / "b" / "non_lora_trainables.safetensors").is_file()
    else:
        assert config["modules_to_save"] == [named(part, second).rstrip(".") for part in PROJECTOR]
    assert open_adapter(tmp_path / "b").layout == second


def test_a_projector_alone_is_written_too(torch, tmp_path):
    drawn = draw(CONFIG, [], WHOLE_PROJECTOR)
    save_bin(torch, tmp_path / "a" / "mm_projector.bin", {named(n, "pku"): value for n, value in drawn.whole.items()})
    for layout in ("pku", "memory"):
        write_peft(open_adapter(tmp_path / "a"), tmp_path / layout, layout)
        again = open_adapter(tmp_path / layout)
        assert_same_bits({name: tensor.read() for name, tensor in again.replaced.items()}, drawn.whole)
        assert again.layout == layout


def test_a_directory_appears_whole_or_not_at_all(tmp_path):
    adapter = open_adapter(write_adapter(tmp_path / "a", draw(CONFIG), "hub"))

    def fails():
        raise WeightsError("the disk went away")

    pair = adapter.lora[UP_PROJ]
    broken = dataclasses.replace(pair, b=dataclasses.replace(pair.b, read=fails))
    with pytest.raises(WeightsError, match="went away"):
        write_peft(dataclasses.replace(adapter, lora={**adapter.lora, UP_PROJ: broken}), tmp_path / "b", "hub")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]
    write_peft(adapter, tmp_path / "b", "hub")
    with pytest.raises(WeightsError, match="exists"):
        write_peft(adapter, tmp_path / "b", "hub")
    with pytest.raises(WeightsError, match="layout: expected one of hub"):
        write_peft(adapter, tmp_path / "c", "vllm")


def test_what_a_layout_has_no_place_for_is_not_written(tmp_path):
    drawn = draw(CONFIG, ["lm_head.weight"], ["image_tower.embeddings.class_embedding"])
    adapter = open_adapter(write_adapter(tmp_path / "a", drawn, "hub"))
    with pytest.raises(WeightsError, match=r"lm_head.weight: its vocabulary has other rows than hub's"):
        write_peft(adapter, tmp_path / "b", "pku")
    with pytest.raises(WeightsError, match=r"class_embedding: PEFT saves modules whole"):
        write_peft(adapter, tmp_path / "b", "memory")
    assert not (tmp_path / "b").exists()


# ── live PEFT ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def peft():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("peft", reason=LIVE)


def live_model(torch, dtype, seed=0):
    from tests.small_models import hf_config, sharp_hf_model

    return sharp_hf_model(torch, hf_config(), seed).to(getattr(torch, dtype))


def live_merge(peft, model, directory):
    """PEFT's own: loaded onto a model and merged; by our names."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of transformers' own names
        merged = peft.PeftModel.from_pretrained(model, directory).merge_and_unload()
    return {name.removeprefix("model."): tensor for name, tensor in merged.state_dict().items()}


def assert_merged_alike(torch, dtype, ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        expected = from_torch(torch, tensor)
        assert ours[name].dtype == expected.dtype, name
        # One step of the dtype: sums in another order can end on the other side of a half.
        close = {"float32": tolerances.LAYER, "float16": 2**-10, "bfloat16": 2**-7}[dtype]
        np.testing.assert_allclose(
            ours[name].astype(float), expected.astype(float), rtol=close, atol=close, err_msg=name
        )


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_merged_is_what_peft_merges(torch, peft, tmp_path, dtype, rslora):
    """An adapter that PEFT wrote, over every part of a random transformers model."""
    model = live_model(torch, dtype)
    model.save_pretrained(tmp_path / "base")
    config = peft.LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=r".*(q_proj|v_proj|down_proj|fc1|linear_1|lm_head)",
        modules_to_save=["linear_2", "embed_tokens"],
        rank_pattern={"q_proj": 2, r"language_model.layers.1.mlp.down_proj": 7},
        alpha_pattern={"image_tower.encoder.layers.0.mlp.fc1": 1.5},
        use_rslora=rslora,
        init_lora_weights=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = peft.get_peft_model(model, config)
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "modules_to_save" in name:
                    parameter.normal_()
        adapted.save_pretrained(tmp_path / "adapter")
    adapter = open_adapter(tmp_path / "adapter")
    assert adapter.layout == "memory"
    assert "lm_head.weight" in adapter.replaced.keys() & adapter.lora.keys()
    assert {"multi_modal_projector.linear_2.bias", "language_model.embed_tokens.weight"} <= adapter.replaced.keys()
    merged = merge_adapter(open_checkpoint(tmp_path / "base"), adapter)
    theirs = live_merge(peft, live_model(torch, dtype), tmp_path / "adapter")
    assert_merged_alike(torch, dtype, arrays(merged), theirs)
    base = arrays(open_checkpoint(tmp_path / "base"))
    assert all((base[name] != value).any() for name, value in arrays(merged).items() if name in adapter.lora)


def test_peft_loads_what_is_written(torch, peft, tmp_path):
    """From the authors' names to transformers' in memory: every tensor is taken, without a warning, and counts."""
    model = live_model(torch, "float32")
    model.save_pretrained(tmp_path / "base")
    checkpoint = open_checkpoint(tmp_path / "base")
    drawn = draw(checkpoint.config, [Q_PROJ, UP_PROJ, TOWER], WHOLE_PROJECTOR, ranks={TOWER: 3}, alphas={Q_PROJ: 1})
    adapter = open_adapter(write_adapter(tmp_path / "a", drawn, "pku"))
    write_peft(adapter, tmp_path / "b", "memory")
    theirs = live_merge(peft, model, tmp_path / "b")
    assert_merged_alike(torch, "float32", arrays(merge_adapter(checkpoint, adapter)), theirs)


def test_peft_loads_a_projector_alone(torch, peft, tmp_path):
    model = live_model(torch, "float32")
    model.save_pretrained(tmp_path / "base")
    checkpoint = open_checkpoint(tmp_path / "base")
    drawn = draw(checkpoint.config, [], WHOLE_PROJECTOR)
    save_bin(torch, tmp_path / "mm_projector.bin", {named(n, "pku"): value for n, value in drawn.whole.items()})
    adapter = open_adapter(tmp_path)
    write_peft(adapter, tmp_path / "b", "memory")
    theirs = live_merge(peft, model, tmp_path / "b")
    assert_merged_alike(torch, "float32", arrays(merge_adapter(checkpoint, adapter)), theirs)


# ── refused ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("peft_type", "LOHA", "peft_type: expected LORA, got 'LOHA'"),
        ("peft_type", None, "peft_type: expected LORA"),
        ("use_dora", True, "use_dora: True is not supported"),
        ("fan_in_fan_out", True, "fan_in_fan_out: True is not supported"),
        ("lora_bias", True, "lora_bias: True is not supported"),
        ("bias", "all", "bias: expected none, got 'all'"),
        ("layer_replication", [[0, 2]], "layer_replication: .* is not supported"),
        ("trainable_token_indices", [1], "trainable_token_indices: .* is not supported"),
        ("something_of_next_year", {"gain": 2}, "something_of_next_year: .* is not supported"),
        ("init_lora_weights", "pissa_niter_4", "changes the base's weights"),
        ("r", 0, "r: expected a whole number above 0, got 0"),
        ("r", None, "r: expected a whole number above 0, got None"),
        ("r", 3, r"expected A \(3, in\) and B \(out, 3\) for its rank 3, got A \(2, 16\) and B \(16, 2\)"),
        ("lora_alpha", "8", "lora_alpha: expected a finite number, got '8'"),
        ("lora_alpha", float("nan"), "lora_alpha: expected a finite number"),
        ("lora_alpha", 10**400, "lora_alpha: expected a finite number"),
        ("use_rslora", "yes", "use_rslora: expected true or false"),
        ("rank_pattern", {"q_proj": -1}, "rank_pattern: expected names with numbers"),
        ("rank_pattern", ["q_proj"], "rank_pattern: expected names with numbers"),
        ("alpha_pattern", {"q_proj": "2"}, "alpha_pattern: expected names with numbers"),
        ("alpha_pattern", {"q_(proj": 2}, r"alpha_pattern: 'q_\(proj' is no regular expression"),
    ],
)
def test_configurations_that_are_refused(tmp_path, key, value, message):
    write_adapter(tmp_path, draw(CONFIG), "memory", **{key: value})
    with pytest.raises(WeightsError, match=message):
        open_adapter(tmp_path)


def _without_b(tensors):
    del tensors[next(name for name in tensors if ".lora_B" in name)]


def _other_rank(tensors):
    name = next(name for name in tensors if ".lora_B" in name)
    tensors[name] = np.zeros((16, 5), np.float32)


def _not_gathered(tensors):
    tensors[next(iter(tensors))] = np.zeros((0,), np.float32)


def _embedding(tensors):
    tensors["base_model.model.model.language_model.embed_tokens.lora_embedding_A"] = np.zeros((2, 64), np.float32)


def _magnitude(tensors):
    name = next(iter(tensors)).replace("lora_A.weight", "lora_magnitude_vector")
    tensors[name] = np.zeros(16, np.float32)


def _integers(tensors):
    tensors[next(iter(tensors))] = np.zeros((2, 16), np.int8)


def _no_layout(tensors):
    tensors["base_model.model.transformer.h.0.attn.lora_A.weight"] = np.zeros((2, 16), np.float32)
    tensors["base_model.model.transformer.h.0.attn.lora_B.weight"] = np.zeros((16, 2), np.float32)


def _twice(tensors):
    tensors[next(iter(tensors)).replace("lora_A", "lora_A.default")] = np.zeros((2, 16), np.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without_b, "q_proj: lora_A without lora_B"),
        (_other_rank, r"expected A \(2, in\) and B \(out, 2\) for its rank 2, got A \(2, 16\) and B \(16, 5\)"),
        (_not_gathered, r"got A \(0,\) .*shards were not gathered"),
        (_embedding, "lora_embedding_A: expected .lora_A.weight or .lora_B.weight"),
        (_magnitude, "DoRA's magnitudes are not supported"),
        (_integers, "dtype of .*lora_A.weight: expected one of float64, .*got int8"),
        (_no_layout, "fit none of the layouts .*transformer.h.0.attn"),
        (_twice, r"lora_A.weight of adapter_model.safetensors is also .*lora_A.default.weight"),
        (dict.clear, "no tensors in it"),
    ],
)
def test_tensors_that_are_refused(tmp_path, change, message):
    drawn = draw(CONFIG)
    tensors, _ = files_of(drawn, "memory")
    change(tensors)
    write_files(tmp_path, tensors, config_of(drawn, "memory"))
    with pytest.raises(WeightsError, match=message):
        open_adapter(tmp_path)


def test_everything_wrong_is_told_at_once(tmp_path):
    drawn = draw(CONFIG)
    tensors, _ = files_of(drawn, "memory")
    for change in (_without_b, _embedding, _no_layout):
        change(tensors)
    write_files(tmp_path, tensors, config_of(drawn, "memory") | {"use_dora": True, "bias": "all"})
    with pytest.raises(WeightsError, match="5 things are wrong") as caught:
        open_adapter(tmp_path)
    for part in ("without lora_B", "lora_embedding_A", "transformer.h.0", "use_dora", "bias"):
        assert part in str(caught.value)


def test_an_adapter_for_another_model(tmp_path, base):
    wide = small_config(text={"hidden_size": 32, "head_dim": 16, "num_hidden_layers": 3})
    third = "language_model.layers.2.self_attn.q_proj.weight"
    drawn = draw(wide, [Q_PROJ, TOWER, third], LINEAR_1)
    adapter = open_adapter(write_adapter(tmp_path, drawn, "memory"))
    with pytest.raises(WeightsError, match="4 parts of this adapter do not fit") as caught:
        merge_adapter(open_checkpoint(base[0]), adapter)
    text = str(caught.value)
    assert (
        f"shape of {adapter.lora[Q_PROJ].a.name} and its B: expected (2, 16) and (16, 2), got (2, 32) and (32, 2)"
        in text
    )
    assert f"unknown: {adapter.lora[third].a.name}" in text
    assert f"shape of {adapter.replaced[LINEAR_1[0]].name}: expected (16, 64), got (32, 64)" in text


def test_lora_of_what_is_no_matrix(tmp_path, base):
    drawn = Drawn({"language_model.norm.weight": (np.zeros((2, 16), np.float32), np.zeros((16, 2), np.float32))})
    with pytest.raises(WeightsError, match="expected to be added to a matrix"):
        merge_adapter(open_checkpoint(base[0]), open_adapter(write_adapter(tmp_path, drawn, "memory")))


@pytest.mark.parametrize("targets", [["q_proj"], r".*language_model.*\.q_proj"])
def test_an_adapter_that_was_cut_short(tmp_path, base, targets):
    """Its configuration names the q_proj of both layers, and it has one of them; the towers' are not its own."""
    checkpoint = open_checkpoint(base[0])
    adapter = open_adapter(write_adapter(tmp_path / "a", draw(CONFIG, [Q_PROJ]), "memory", target_modules=targets))
    with pytest.raises(WeightsError, match=r"(?s)1 parts .*missing: .*model.language_model.layers.1.self_attn.q_proj"):
        merge_adapter(checkpoint, adapter)
    excluded = {"target_modules": targets, "exclude_modules": ["layers.1.self_attn.q_proj"]}
    merge_adapter(checkpoint, open_adapter(write_adapter(tmp_path / "b", draw(CONFIG, [Q_PROJ]), "memory", **excluded)))


def test_files_that_are_missing(tmp_path, base):
    with pytest.raises(WeightsError, match="no such directory"):
        open_adapter(tmp_path / "nowhere")
    with pytest.raises(WeightsError, match=r"expected an adapter .* found an empty directory"):
        open_adapter(tmp_path)
    with pytest.raises(WeightsError, match=r"found config.json, model.safetensors"):
        open_adapter(base[0])
    assert not is_adapter(base[0])
    tensors, whole = files_of(draw(CONFIG, whole=WHOLE_PROJECTOR), "memory")
    write_files(tmp_path / "a", tensors)
    with pytest.raises(WeightsError, match=r"adapter_config.json is missing: .*alpha"):
        open_adapter(tmp_path / "a")
    write_files(tmp_path / "b", whole, config_of(draw(CONFIG), "memory"))
    with pytest.raises(WeightsError, match="there is no lora_A or lora_B: is adapter_model missing"):
        open_adapter(tmp_path / "b")


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000])
def test_a_configuration_that_is_none(tmp_path, text):
    write_adapter(tmp_path, draw(CONFIG), "memory")
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(WeightsError, match=r"adapter_config.json: (not valid JSON|expected a JSON object)"):
        open_adapter(tmp_path)


def test_an_empty_configuration(tmp_path):
    write_files(tmp_path, files_of(draw(CONFIG), "memory")[0], {})
    with pytest.raises(WeightsError, match="peft_type: expected LORA, got None"):
        open_adapter(tmp_path)


def test_a_damaged_file(tmp_path):
    write_adapter(tmp_path, draw(CONFIG), "memory")
    path = tmp_path / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(WeightsError, match="not a whole safetensors file"):
        open_adapter(tmp_path)


class Harmful:
    """What a pickle can be: loading it would leave a mark."""

    def __reduce__(self):
        return exec, ("import pathlib; pathlib.Path('harmed').touch()",)


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ({"model.mm_projector.0.weight": Harmful()}, "torch's safe loader refuses it .*ask its author for safetensors"),
        ({"model.mm_projector.0.weight": [1, 2]}, "expected names and tensors, got"),
        ([1, 2], "expected names and tensors, got"),
    ],
)
def test_a_bin_file_that_holds_something_else(torch, tmp_path, monkeypatch, held, message):
    monkeypatch.chdir(tmp_path)
    torch.save(held, tmp_path / "mm_projector.bin")
    with pytest.raises(WeightsError, match=message):
        open_adapter(tmp_path)
    assert not (tmp_path / "harmed").exists()


def test_a_bin_file_without_torch(tmp_path, monkeypatch):
    (tmp_path / "mm_projector.bin").write_bytes(b"PK")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(WeightsError, match=r"reading .bin files needs torch .*safetensors"):
        open_adapter(tmp_path)


def test_an_adapter_of_half_precision(tmp_path):
    """bfloat16 halves over float16: the result has the base's dtype."""
    parameters = random_parameters(CONFIG, 0, "float16")
    write_checkpoint(tmp_path / "base", CONFIG, parameters, "hub")
    drawn = draw(CONFIG, whole=LINEAR_1, dtype="bfloat16", integers=True)
    adapter = open_adapter(write_adapter(tmp_path / "a", drawn, "hub"))
    merged = merge_adapter(open_checkpoint(tmp_path / "base"), adapter)
    assert {tensor.read().dtype for tensor in merged.tensors.values()} == {np.dtype(np.float16)}
    assert {tensor.dtype for tensor in adapter.tensors} == {np.dtype(ml_dtypes.bfloat16)}


# ── the command ──


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
