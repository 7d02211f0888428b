"""Adapters that are damaged, incomplete, of another model or of another kind are refused, everything wrong at once."""

import sys

import ml_dtypes
import numpy as np
import pytest

from tests.small_models import random_parameters, small_config
from tests.weights.adapters_helper import (
    CONFIG,
    LINEAR_1,
    Q_PROJ,
    TOWER,
    WHOLE_PROJECTOR,
    Drawn,
    config_of,
    draw,
    files_of,
    write_adapter,
    write_files,
)
from tests.weights.checkpoints import write_checkpoint
from videollava_jax.weights import WeightsError, load_checkpoint, open_checkpoint
from videollava_jax.weights.adapters import is_adapter, merge_adapter, open_adapter


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


def test_an_adapter_is_no_model(tmp_path):
    write_adapter(tmp_path, draw(CONFIG), "memory")
    for read in (open_checkpoint, load_checkpoint):
        with pytest.raises(WeightsError, match=r"an adapter, not a model: merge it into one .*--base MODEL"):
            read(tmp_path)


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
