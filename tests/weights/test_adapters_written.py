"""Adapters are written for PEFT with the names of any layout, and PEFT itself loads and merges them alike."""

import dataclasses
import json
import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import tolerances
from tests.small_models import small_config
from tests.weights.adapters_helper import (
    CONFIG,
    LAYOUTS,
    LINEAR_1,
    PROJECTOR,
    Q_PROJ,
    TOWER,
    UP_PROJ,
    WHOLE_PROJECTOR,
    arrays,
    config_of,
    draw,
    files_of,
    from_torch,
    module,
    named,
    save_bin,
    write_adapter,
    write_files,
)
from tests.weights.checkpoints import assert_same_bits, read_all
from videollava_jax.model.video_llava import parameter_shapes
from videollava_jax.weights import WeightsError, open_checkpoint, verify_checkpoint
from videollava_jax.weights.adapters import merge_adapter, open_adapter, write_peft


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
        whole = [*whole, names[0]]  # the base layer of a module with LoRA
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
    assert_merged_alike(torch, "float32", arrays(merge_adapter(checkpoint, adapter, trust_base=True)), theirs)


def test_an_unknown_layout_is_refused(tmp_path):
    with pytest.raises(WeightsError, match="layout: expected one of hub, hf5, memory, pku, memory4, got 'hbu'"):
        write_peft(None, tmp_path / "out", "hbu")
