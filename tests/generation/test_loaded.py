"""The loaded model under the face: loading by path, phases that add up to a forward pass, a checkpoint's options."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.parity.reference import assert_close
from tests.tolerances import MODEL, SELF
from videollava_jax import Engine, Request
from videollava_jax.assets import MEDIA, TINY
from videollava_jax.generation.chat import Chat
from videollava_jax.generation.comparing import fixed_inputs
from videollava_jax.generation.loaded import LoadedModel

CLIP = str(MEDIA / "rising-triangle.mp4")


@pytest.fixture(scope="module")
def model():
    return LoadedModel.load(TINY)


def with_generation_config(directory, text):
    """The tiny checkpoint with another generation_config.json."""
    shutil.copytree(TINY, directory)
    (directory / "generation_config.json").write_text(text)
    return directory


def test_chats_and_engines_take_a_model_without_the_face(model, tiny_processor):
    assert Chat(model, tiny_processor, videos=[CLIP]).ask("Which way does it move?").answer == "up"
    request = Request(id="a", prompt="USER: <video>\nWhich way does it move? ASSISTANT:", videos=[CLIP])
    (result,) = Engine(model, tiny_processor).run([request])
    assert result.text == "up"


def test_the_face_adds_nothing_to_what_is_loaded(model, tiny_model):
    assert type(model) is LoadedModel
    assert (model.model_config, model.generation_defaults) == (tiny_model.model_config, tiny_model.generation_defaults)
    assert model.parameters.keys() == tiny_model.parameters.keys()
    inputs = fixed_inputs(model.model_config)
    logits, features = model.sequence_logits(**inputs)
    expected = tiny_model(**inputs)
    assert_close(logits, expected.logits, SELF)  # the face pads lengths, so that few are compiled
    np.testing.assert_array_equal(features.image, expected.image_hidden_states)


def test_prefill_and_extend_end_in_the_logits_of_a_forward_pass(model):
    inputs = fixed_inputs(model.model_config)
    ids = inputs.pop("input_ids")
    whole, _ = model.sequence_logits(ids, **inputs)
    logits, cache = model.prefill(ids[:, :-5], **inputs, capacity=1)  # too few: the cache grows
    assert_close(logits, whole[:, -6], MODEL)
    logits, cache = model.extend(ids[:, -5:], cache, capacity=3)
    assert_close(logits, whole[:, -1], MODEL)
    assert cache.free >= 3
    with pytest.raises(ValueError, match="tokens for videos"):
        model.extend(np.full((1, 3), model.model_config.video_token_id), cache, capacity=1)


def test_the_checkpoints_options_hold_where_nothing_is_said(tmp_path, tiny_model, tiny_processor):
    """suppress_tokens and stop_strings of generation_config.json were dropped without a word."""
    inputs = tiny_processor("USER: <video>\nWhich way does it move? ASSISTANT:", videos=[CLIP])
    T = inputs["input_ids"].shape[1]
    answer = tiny_model.generate(**inputs)[0, T:].tolist()
    written = {**tiny_model.generation_defaults, "suppress_tokens": answer[:1], "num_beams": None}
    face = type(tiny_model)
    other = face.from_pretrained(with_generation_config(tmp_path / "suppressed", json.dumps(written)))
    assert answer[0] not in other.generate(**inputs)[0, T:]
    assert other.generate(**inputs, suppress_tokens=[])[0, T:].tolist() == answer
    request = Request(
        id="a", prompt="USER: <video>\nWhich way does it move? ASSISTANT:", videos=[CLIP], max_new_tokens=20
    )
    (result,) = Engine(other, tiny_processor).run([request])
    assert list(result.token_ids) == other.generate(**inputs)[0, T:].tolist()
    written = {**tiny_model.generation_defaults, "stop_strings": ["u"]}
    other = face.from_pretrained(with_generation_config(tmp_path / "stopped", json.dumps(written)))
    with pytest.raises(ValueError, match="stop_strings need tokenizer="):
        other.generate(**inputs)
    assert other.generate(**inputs, tokenizer=tiny_processor.tokenizer)[0, T:].tolist() == answer[:1]


@pytest.mark.parametrize(("text", "message"), [("{", "not valid JSON"), ("[1]", "expected a JSON object, got a list")])
def test_a_damaged_generation_config_is_named(tmp_path, text, message):
    directory = with_generation_config(tmp_path / "tiny", text)
    with pytest.raises(ValueError, match=message) as refused:
        LoadedModel.load(directory)
    assert str(Path("tiny") / "generation_config.json") in str(refused.value)
