"""Loading, forward and generation through the public class, against transformers on the same directory."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from transformers import GenerationConfig, TextIteratorStreamer

from tests.parity.reference import assert_close
from tests.small_models import IMAGE, VIDEO, array, hf_config, hf_model
from tests.tolerances import MODEL
from videollava_jax.face.model import VideoLlavaForConditionalGeneration
from videollava_jax.weights import convert_to_orbax, recognise


@pytest.fixture(scope="module")
def reference(torch, tmp_path_factory):
    """A random transformers model with sharp logits, and the directory it saved."""
    model = hf_model(torch, hf_config(text={"eos_token_id": 2}), seed=3)
    with torch.no_grad():
        model.lm_head.weight.mul_(20)
        model.model.language_model.embed_tokens.weight.mul_(20)
    directory = tmp_path_factory.mktemp("hf")
    model.save_pretrained(directory)
    return model, Path(directory)


@pytest.fixture(scope="module")
def model(reference):
    return VideoLlavaForConditionalGeneration.from_pretrained(reference[1])


@pytest.fixture(scope="module")
def inputs():
    """Four rows, left-padded: an image, a video, text only, both media."""
    rng = np.random.default_rng(1)
    text = lambda n: list(rng.integers(3, 80, n))  # noqa: E731
    rows = [
        [*text(3), *[IMAGE] * 4, *text(5)],
        [*text(1), *[VIDEO] * 10, *text(9)],
        text(6),
        [*text(2), *[VIDEO] * 10, *text(1), *[IMAGE] * 4, *text(2)],
    ]
    width = max(map(len, rows))
    return {
        "input_ids": np.array([[0] * (width - len(r)) + r for r in rows]),
        "attention_mask": np.array([[0] * (width - len(r)) + [1] * len(r) for r in rows]),
        "pixel_values_images": rng.standard_normal((2, 3, 28, 28)).astype(np.float32),
        "pixel_values_videos": rng.standard_normal((2, 2, 3, 28, 28)).astype(np.float32),
    }


def for_torch(torch, inputs):
    renamed = {"pixel_values_images": "pixel_values"}
    return {renamed.get(k, k): torch.tensor(v) for k, v in inputs.items()}


def test_forward_and_loss(torch, reference, model, inputs):
    mask = inputs["attention_mask"]
    labels = np.where((mask == 1) & (inputs["input_ids"] < 80), inputs["input_ids"], -100)
    labels[np.arange(4), mask.argmax(axis=1)] = -100  # predicted from padding, whose logits mean nothing
    with torch.no_grad():
        expected = reference[0](**for_torch(torch, inputs), labels=torch.tensor(labels))
    got = model(**inputs, labels=labels)
    # Logits are 400 times those of transformers' own initialisation, and so is the tolerance's unit.
    scale = float(np.abs(array(expected.logits)).max())
    assert_close(np.asarray(got.logits)[mask == 1] / scale, array(expected.logits)[mask == 1] / scale, MODEL / 10)
    assert_close(got.loss, array(expected.loss), MODEL)
    assert_close(got.image_hidden_states, array(expected.image_hidden_states), MODEL)
    assert_close(got.video_hidden_states, array(expected.video_hidden_states), MODEL)


def test_greedy_tokens_equal_transformers(torch, reference, model, inputs):
    expected = reference[0].generate(**for_torch(torch, inputs), max_new_tokens=24, do_sample=False, pad_token_id=0)
    np.testing.assert_array_equal(model.generate(**inputs, max_new_tokens=24, pad_token_id=0), expected.numpy())


def test_a_max_length_within_the_prompt_is_refused_as_transformers_refuses_it(torch, reference, model, inputs):
    """As on transformers' page, whose `max_length=50` is shorter than the tokens of a video."""
    for generate, given in ((reference[0].generate, for_torch(torch, inputs)), (model.generate, inputs)):
        with pytest.raises(ValueError, match="max_length"):
            generate(**given, max_length=9, do_sample=False, pad_token_id=0)


def test_repetition_penalty_equals_transformers(torch, reference, model):
    ids = np.random.default_rng(2).integers(3, 80, (1, 7))
    arguments = dict(max_new_tokens=20, do_sample=False, repetition_penalty=1.7, pad_token_id=0)
    expected = reference[0].generate(torch.tensor(ids), **arguments)
    np.testing.assert_array_equal(model.generate(ids, **arguments), expected.numpy())


def test_samples_and_chunks(model, inputs):
    ids = inputs["input_ids"][2:3][:, -6:]
    samples = model.generate(ids, max_new_tokens=16, do_sample=True, num_return_sequences=3, top_k=0, pad_token_id=0)
    assert samples.shape[0] == 3
    assert len({tuple(row) for row in samples.tolist()}) == 3
    parts = []
    streamed = model.generate(ids, max_new_tokens=16, on_tokens=parts.append, pad_token_id=0)
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), streamed[:, 6:])
    np.testing.assert_array_equal(streamed, model.generate(ids, max_new_tokens=16, pad_token_id=0))
    banned = int(streamed[0, 6])
    assert banned not in model.generate(ids, max_new_tokens=16, suppress_tokens=[banned], pad_token_id=0)[0, 6:]


def test_the_mask_of_padded_rows_is_inferred_as_transformers_does(torch, reference, model, inputs):
    """Without a mask, ours attended to the padding: other answers, without a word."""
    given = {name: value for name, value in inputs.items() if name != "attention_mask"}
    greedy = dict(max_new_tokens=24, do_sample=False)
    assert reference[0].generation_config.pad_token_id == 0
    for options in ({}, {"pad_token_id": 2}, {"pad_token_id": 0, "eos_token_id": [0, 2]}, {"pad_token_id": 7}):
        expected = reference[0].generate(**for_torch(torch, given), **greedy, **options)
        np.testing.assert_array_equal(model.generate(**given, **greedy, **options), expected.numpy(), err_msg=options)
    np.testing.assert_array_equal(model.generate(**given, **greedy), model.generate(**inputs, **greedy))


def test_a_generation_config_is_taken_and_kept(torch, reference, model, inputs, tmp_path):
    """As an argument, as the model's attribute, and through a file: the same tokens as transformers."""
    config = GenerationConfig(max_new_tokens=12, repetition_penalty=1.3, eos_token_id=[2, 40], pad_token_id=0)
    expected = reference[0].generate(**for_torch(torch, inputs), generation_config=config).numpy()
    np.testing.assert_array_equal(model.generate(**inputs, generation_config=config), expected)
    assert model.generation_config.eos_token_id == reference[0].generation_config.eos_token_id == 2
    assert model.generation_config.pad_token_id == reference[0].generation_config.pad_token_id == 0
    model.save_pretrained(tmp_path / "saved")
    again = VideoLlavaForConditionalGeneration.from_pretrained(tmp_path / "saved")
    for name, value in config.to_dict().items():
        setattr(again.generation_config, name, value)
    np.testing.assert_array_equal(again.generate(**inputs), expected)
    again.generation_config.sequence_bias = {(5, 6): 1.0}
    again.generation_config.max_new_tokens = 3
    again.save_pretrained(tmp_path / "changed")
    last = VideoLlavaForConditionalGeneration.from_pretrained(tmp_path / "changed")
    assert last.generation_config.sequence_bias == [[[5, 6], 1.0]]
    last.generation_config.sequence_bias = None
    np.testing.assert_array_equal(last.generate(**inputs), expected[:, : inputs["input_ids"].shape[1] + 3])
    with pytest.raises(ValueError, match="generation_config: expected transformers' GenerationConfig"):
        model.generate(**inputs, generation_config=7)


class Recorder:
    """A streamer that keeps what it is given."""

    def __init__(self):
        self.given = []

    def put(self, value):
        self.given.append(value.tolist())

    def end(self):
        self.given.append("the end")


def test_streamers_are_given_what_transformers_gives_them(torch, reference, model, inputs):
    expected, got, arguments = Recorder(), Recorder(), dict(max_new_tokens=24, do_sample=False, pad_token_id=0)
    reference[0].generate(**for_torch(torch, inputs), **arguments, streamer=expected)
    parts = []
    model.generate(**inputs, **arguments, streamer=got, on_tokens=parts.append)
    assert got.given == expected.given
    assert np.concatenate(parts, axis=1).T.tolist() == got.given[1:-1]

    streamer = TextIteratorStreamer(Words(), skip_prompt=True)
    answer = model.generate(inputs["input_ids"][2:3, -6:], **arguments, streamer=streamer)[0, 6:]
    assert "".join(streamer) == Words().decode(answer)


class Words:
    """A tokenizer with a word for each token."""

    def decode(self, tokens):
        return "".join(f"w{token} " for token in tokens)


@pytest.mark.parametrize("layout", ["hub", "hf5", "memory"])
def test_every_layout_loads(reference, model, inputs, tmp_path, layout):
    tensors = {}
    for name, value in load_file(reference[1] / "model.safetensors").items():
        if layout == "hub" and "_tower." in name:
            name = name.replace("_tower.", "_tower.vision_model.")
            tensors["image_tower.vision_model.embeddings.position_ids"] = np.arange(5)[None]
        if layout == "memory":
            name = name.replace("language_model.lm_head", "lm_head").replace("language_model.model", "language_model")
            name = name if name.startswith("lm_head") else f"model.{name}"
        tensors[name] = value
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((reference[1] / "config.json").read_text())
    assert recognise(tensors).name == layout
    loaded = VideoLlavaForConditionalGeneration.from_pretrained(tmp_path)
    for name, value in model.parameters.items():
        np.testing.assert_array_equal(loaded.parameters[name], value)


def test_an_orbax_directory_loads(reference, model, tmp_path):
    convert_to_orbax(reference[1], tmp_path / "orbax")
    loaded = VideoLlavaForConditionalGeneration.from_pretrained(tmp_path / "orbax")
    assert loaded.model_config == model.model_config
    for name, value in model.parameters.items():
        np.testing.assert_array_equal(loaded.parameters[name], value)


def test_what_does_not_fit_is_listed_at_once(reference, tmp_path):
    tensors = load_file(reference[1] / "model.safetensors")
    del tensors["image_tower.pre_layrnorm.bias"]
    tensors["language_model.model.norm.weight"] = np.zeros(7, np.float32)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((reference[1] / "config.json").read_text())
    with pytest.raises(ValueError, match="2 tensors do not fit") as caught:
        VideoLlavaForConditionalGeneration.from_pretrained(tmp_path)
    assert "missing: image_tower.pre_layrnorm.bias" in str(caught.value)
    assert "language_model.model.norm.weight: expected (32,), got (7,)" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pixel_values_videos": None}, "20 tokens for videos"),
        ({"input_ids": np.full((4, 20), 200)}, "0..98"),
        ({"attention_mask": np.ones((4, 3))}, "shape of input_ids"),
        ({"max_new_tokens": 250}, "256 positions"),
        ({"top_p": 0.0}, "top_p"),
        ({"attention_mask": np.array([[1] * 5 + [0] * 15] * 4)}, "row 0 ends in padding"),
        ({"pixel_values_images": np.zeros((2, 28, 28, 3))}, r"\[N, 3, 28, 28\]"),
    ],
)
def test_bad_arguments(model, inputs, change, message):
    with pytest.raises(ValueError, match=message):
        model.generate(**({"max_new_tokens": 4} | inputs | change))


def test_what_is_saved_is_what_transformers_loads(torch, reference, model, inputs, tmp_path):
    model.save_pretrained(tmp_path / "saved")
    again = type(reference[0]).from_pretrained(tmp_path / "saved")
    for name, value in reference[0].state_dict().items():
        np.testing.assert_array_equal(array(again.state_dict()[name]), array(value), err_msg=name)
    assert again.generation_config.eos_token_id == reference[0].generation_config.eos_token_id
