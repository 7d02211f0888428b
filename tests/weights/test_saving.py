"""`save_pretrained`: a model in memory to a directory, and back to the bit."""

from __future__ import annotations

import fcntl
import os

import numpy as np
import pytest

from videollava_jax import VideoLlavaForConditionalGeneration, VideoLlavaProcessor
from videollava_jax.weights import WeightsError, open_checkpoint, verify_checkpoint


def load(directory):
    return VideoLlavaForConditionalGeneration.from_pretrained(directory, verify="full")


def assert_same(model, other):
    assert other.model_config == model.model_config
    assert other.parameters.keys() == model.parameters.keys()
    for name, value in model.parameters.items():
        np.testing.assert_array_equal(other.parameters[name], value, err_msg=name, strict=True)


@pytest.mark.parametrize("layout", [None, "hub", "hf5", "memory", "orbax"])
def test_it_comes_back_as_it_was(tiny_model, tmp_path, layout):
    target = tmp_path / "saved"
    tiny_model.save_pretrained(target, layout=layout)
    assert open_checkpoint(target).layout == (layout or "hub")
    again = load(target)
    assert_same(tiny_model, again)
    assert again.generation_config == tiny_model.generation_config != {}


@pytest.mark.parametrize("layout", [None, "orbax"])
def test_attention_over_time_is_kept(tiny_original, tmp_path, layout):
    tiny_original.save_pretrained(tmp_path / "saved", layout=layout)
    assert open_checkpoint(tmp_path / "saved").layout == "orbax"
    assert_same(tiny_original, load(tmp_path / "saved"))


def test_what_a_layout_cannot_hold_is_refused(tiny_original, tmp_path):
    with pytest.raises(WeightsError, match="cannot hold the video tower's attention over time"):
        tiny_original.save_pretrained(tmp_path / "saved", layout="hub")
    with pytest.raises(WeightsError, match="expected one of"):
        tiny_original.save_pretrained(tmp_path / "saved", layout="onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("first", ["model", "processor", "directory"])
def test_next_to_its_processor(tiny_model, tiny_processor, tmp_path, monkeypatch, first):
    """In either order, or into an empty directory that is there; under a relative name too."""
    monkeypatch.chdir(tmp_path)
    if first == "directory":
        (tmp_path / "saved").mkdir()
    parts = [tiny_processor, tiny_model] if first == "processor" else [tiny_model, tiny_processor]
    for part in parts:
        part.save_pretrained("saved")
    assert not [path.name for path in (tmp_path / "saved").iterdir() if path.name.startswith(".saving")]
    assert_same(tiny_model, load("saved"))
    assert verify_checkpoint(tmp_path / "saved") == []
    ids = VideoLlavaProcessor.from_pretrained(tmp_path / "saved")("USER: What is it? ASSISTANT:")["input_ids"]
    np.testing.assert_array_equal(ids, tiny_processor("USER: What is it? ASSISTANT:")["input_ids"])


def test_a_save_that_was_killed_is_made_anew(tiny_model, tmp_path):
    """Between two of its files' moves: some have their names, the configuration has not."""
    (tmp_path / "saved" / ".saving").mkdir(parents=True)
    (tmp_path / "saved" / "tokenizer.json").write_text("{}")
    (tmp_path / "saved" / "model.safetensors").write_bytes(b"half")
    (tmp_path / "saved" / ".saving" / "config.json").write_text("{}")
    tiny_model.save_pretrained(tmp_path / "saved")
    assert_same(tiny_model, load(tmp_path / "saved"))
    assert (tmp_path / "saved" / "tokenizer.json").read_text() == "{}"
    assert not (tmp_path / "saved" / ".saving").exists()


def test_two_saves_into_one_directory(tiny_model, tmp_path):
    (tmp_path / "saved").mkdir()
    descriptor = os.open(tmp_path / "saved", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(WeightsError, match="another run is writing it"):
        tiny_model.save_pretrained(tmp_path / "saved")
    os.close(descriptor)
    assert list((tmp_path / "saved").iterdir()) == []


def test_other_directories_are_left_alone(tiny_model, tiny_original, tmp_path):
    tiny_model.save_pretrained(tmp_path / "saved")
    tiny_model.save_pretrained(tmp_path / "saved")  # the same again
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    for name in ("saved", "other"):
        with pytest.raises(WeightsError, match="holds something else"):
            tiny_original.save_pretrained(tmp_path / name, layout="orbax")
    assert (tmp_path / "other" / "notes.txt").read_text() == "mine"
    assert_same(tiny_model, load(tmp_path / "saved"))


def test_weights_in_int8_are_written_as_what_they_stand_for(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path / "floats")
    narrow = VideoLlavaForConditionalGeneration.from_pretrained(tmp_path / "floats", quantization="int8")
    narrow.save_pretrained(tmp_path / "narrow")
    found = load(tmp_path / "narrow").parameters
    assert found.keys() == tiny_model.parameters.keys()
    some = "language_model.layers.0.mlp.up_proj.weight"
    expected = np.asarray(narrow.parameters[some], np.float32) * np.asarray(narrow.parameters[f"{some}_scale"])[:, None]
    np.testing.assert_array_equal(found[some], expected)


@pytest.mark.parametrize(("size", "files"), [("2MB", 3), (10**9, 1), ("1.5 MiB", 4)])
def test_shards_are_as_large_as_was_said(tiny_model, tmp_path, size, files):
    tiny_model.save_pretrained(tmp_path / "saved", max_shard_size=size)
    assert len(list((tmp_path / "saved").glob("*.safetensors"))) == files
    assert_same(tiny_model, load(tmp_path / "saved"))


def test_what_is_not_written_is_refused(tiny_model, tmp_path):
    with pytest.raises(ValueError, match="written as safetensors or Orbax"):
        tiny_model.save_pretrained(tmp_path / "saved", safe_serialization=False)
    for size in ("many", "0GB", -1):
        with pytest.raises(ValueError, match="max_shard_size: expected a size such as '5GB'"):
            tiny_model.save_pretrained(tmp_path / "saved", max_shard_size=size)
    assert not list(tmp_path.iterdir())
