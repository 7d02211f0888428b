"""Directories that hold two models, or weights that another library has quantised: refused, and named."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.small_models import random_parameters, small_config
from tests.weights.checkpoints import write_checkpoint
from videollava_jax.weights import WeightsError, open_checkpoint


@pytest.fixture
def sharded(tmp_path):
    """A checkpoint of shards with an index."""
    config = small_config()
    write_checkpoint(tmp_path / "a", config, random_parameters(config, 0), "hub", shards=2)
    return tmp_path / "a"


def everything(directory):
    return {name: array for path in directory.glob("model-*.safetensors") for name, array in load_file(path).items()}


def test_a_single_file_next_to_the_index_of_another_model(sharded):
    tensors = everything(sharded)
    assert tensors
    save_file({name: array + 1 for name, array in tensors.items()}, sharded / "model.safetensors")
    with pytest.raises(WeightsError) as refused:
        open_checkpoint(sharded)
    said = str(refused.value)
    assert "model.safetensors and model.safetensors.index.json are two models" in said
    assert "move the other away" in said
    assert "\n" not in said


def test_an_index_that_lists_the_single_file_is_its_own(sharded):
    tensors = everything(sharded)
    for path in sharded.glob("model-*.safetensors"):
        path.unlink()
    save_file(tensors, sharded / "model.safetensors")
    index = sharded / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(tensors, "model.safetensors")}))
    assert open_checkpoint(sharded).tensors


@pytest.mark.parametrize("four_bits", [True, False])
def test_a_bitsandbytes_checkpoint_names_its_quantization_config(tmp_path, four_bits):
    """Of 4 bits the weights are columns of bytes with their states, of 8 bits int8 with a scale for each row."""
    config = small_config()
    write_checkpoint(tmp_path / "a", config, random_parameters(config, 0), "hub")
    for path in (tmp_path / "a").glob("*.safetensors"):
        tensors = load_file(path)
        for name in [name for name in tensors if "language_model" in name and name.endswith("proj.weight")]:
            rows, columns = tensors[name].shape
            if four_bits:
                tensors[name] = np.zeros((rows * columns // 2, 1), np.uint8)
                tensors[f"{name}.absmax"] = np.zeros(rows * columns // 64 + 1, np.float32)
                tensors[f"{name}.quant_state.bitsandbytes__nf4"] = np.zeros(80, np.uint8)
            else:
                tensors[name] = np.zeros((rows, columns), np.int8)
                tensors[name.removesuffix("weight") + "SCB"] = np.zeros(rows, np.float32)
        save_file(tensors, path)
    raw = json.loads((tmp_path / "a" / "config.json").read_text())
    raw["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": four_bits}
    (tmp_path / "a" / "config.json").write_text(json.dumps(raw))
    with pytest.raises(WeightsError, match=r"config\.json: quantization_config says .*\(bitsandbytes\)") as refused:
        open_checkpoint(tmp_path / "a")
    assert "\n" not in str(refused.value)
