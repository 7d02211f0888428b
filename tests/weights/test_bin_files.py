"""torch's `.bin` files: read like safetensors, and never run."""

import json
import os
import pickle
import sys

import numpy as np
import pytest

from tests.small_models import random_parameters, small_config
from tests.weights.checkpoints import assert_same_bits, read_all, write_checkpoint
from videollava_jax.weights import WeightsError, convert_to_orbax, export, open_checkpoint


def to_torch(torch, array):
    tensor = torch.from_numpy(np.array(array).reshape(-1).view(np.uint8))
    return tensor.view(getattr(torch, array.dtype.name)).reshape(array.shape)


@pytest.fixture
def pickled(torch, tmp_path):
    """The authors' checkpoint as they publish it: two .bin files and an index; and its tensors by their names."""
    config = small_config("original")
    expected = write_checkpoint(tmp_path / "pku", config, random_parameters(config, 0, "float16"), "pku")
    (tmp_path / "pku" / "model.safetensors").unlink()
    names = list(expected)
    weight_map = {}
    for i in range(2):
        file = f"pytorch_model-{i + 1:05d}-of-00002.bin"
        held = {name: to_torch(torch, expected[name]) for name in names[i::2]}
        held |= {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)} if i == 0 else {}
        torch.save(held, tmp_path / "pku" / file)
        weight_map |= dict.fromkeys(held, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (tmp_path / "pku" / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return tmp_path, expected


def test_they_convert_there_and_back(pickled):
    place, expected = pickled
    assert open_checkpoint(place / "pku").layout == "pku"
    convert_to_orbax(place / "pku", place / "orbax")
    export(place / "orbax", place / "back", "pku")
    assert_same_bits(read_all(place / "back"), expected)


class Malice:
    def __reduce__(self):
        return os.mkdir, (os.environ["MARK"],)


@pytest.mark.parametrize("kind", ["pickle", "torch"])
def test_code_in_them_is_not_run(torch, pickled, monkeypatch, kind):
    place, _ = pickled
    monkeypatch.setenv("MARK", str(place / "it-ran"))
    path = place / "pku" / "pytorch_model-00001-of-00002.bin"
    if kind == "torch":
        torch.save({"model.norm.weight": Malice()}, path)
    else:
        path.write_bytes(pickle.dumps({"model.norm.weight": Malice()}))
    with pytest.raises(WeightsError, match=r"00001-of-00002.bin: .*ask its author for safetensors"):
        open_checkpoint(place / "pku")
    assert not (place / "it-ran").exists()
    torch.load(path, weights_only=False) if kind == "torch" else pickle.loads(path.read_bytes())
    assert (place / "it-ran").exists()  # it would have


def test_a_file_cut_short(pickled):
    place, _ = pickled
    path = place / "pku" / "pytorch_model-00002-of-00002.bin"
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(WeightsError, match=r"00002-of-00002\.bin"):
        open_checkpoint(place / "pku")


def test_without_torch_the_advice_is_safetensors(tmp_path, monkeypatch):
    write_checkpoint(tmp_path, small_config(), random_parameters(small_config(), 0), "hub")
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(WeightsError, match=r"pytorch_model.bin: .*needs torch.*safetensors"):
        open_checkpoint(tmp_path)
