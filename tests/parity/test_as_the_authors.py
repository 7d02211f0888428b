"""A checkpoint in the authors' layout answers by default as their ids and their pixels make it answer.

Their pixels are made here by torch, as their transforms make them, and compared with those that their code gave.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from tests import authors
from tests.processing.llama_vocabulary import VocabularyUnavailable, real_llama_model
from tests.small_models import small_config
from tests.weights.checkpoints import theirs
from videollava_jax.cli import main
from videollava_jax.engine import Engine, Request
from videollava_jax.face.model import VideoLlavaForConditionalGeneration
from videollava_jax.face.processor import VideoLlavaProcessor as FaceProcessor
from videollava_jax.media import Linspace, read_video
from videollava_jax.media.preprocess import CLIP_MEAN, CLIP_STD, background
from videollava_jax.model.video_llava import parameter_shapes
from videollava_jax.processing.processor import VideoLlavaProcessor
from videollava_jax.weights import convert_to_orbax

pytestmark = pytest.mark.network  # the vocabulary
TOKENS = 24
ASKED = {
    "video_vicuna": ("video", authors.CLIP, "Why is this video funny?"),
    "wide": ("image", authors.WIDE, "What is unusual about this image?"),
    "tall": ("image", authors.TALL, "What is unusual about this image?"),
}


def drawn(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Weights of unit gain, no bias 0 and no norm 1."""
    offset = 1.0 if "norm" in name and name.endswith(".weight") else 0.0
    std = float(np.prod(shape[1:])) ** -0.5 if len(shape) > 1 else 0.1
    if name in ("lm_head.weight", "language_model.embed_tokens.weight"):
        std = 1.0
    return (offset + std * rng.standard_normal(shape)).astype(np.float32)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model in the authors' layout, at 224 pixels, with Llama's vocabulary."""
    try:
        vocabulary = real_llama_model()
    except VocabularyUnavailable as reason:
        pytest.skip(f"Llama's vocabulary is out of reach: {reason}")
    directory = tmp_path_factory.mktemp("authors")
    text = {"vocab_size": 32064, "pad_token_id": 32002, "hidden_size": 32, "head_dim": 16}
    config = small_config("original", vision={"image_size": 224}, text=text)
    rng = np.random.default_rng(0)
    tensors = {}
    for name, shape in parameter_shapes(config).items():
        rows = slice(0, 32000) if shape[0] == 32064 else slice(None)
        tensors[theirs(name, "pku")] = drawn(name, shape, rng)[rows]
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    raw = {
        "model_type": "llava",
        "architectures": ["LlavaLlamaForCausalLM"],
        "vocab_size": 32000,
        "hidden_size": 32,
        "intermediate_size": config.text_config.intermediate_size,
        "num_hidden_layers": config.text_config.num_hidden_layers,
        "num_attention_heads": config.text_config.num_attention_heads,
        "num_key_value_heads": config.text_config.num_key_value_heads,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "mm_video_tower": "LanguageBind/LanguageBind_Video_merge",
        "mm_image_tower": "LanguageBind/LanguageBind_Image",
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2,
    }
    (directory / "config.json").write_text(json.dumps(raw))
    shutil.copy(vocabulary, directory / "tokenizer.model")
    settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "legacy": False}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> VideoLlavaForConditionalGeneration:
    return VideoLlavaForConditionalGeneration.from_pretrained(checkpoint)


@pytest.fixture(scope="module")
def pixels(torch: Any) -> dict[str, np.ndarray]:
    """Their pixels by torch: the clip's eight frames, both images, padded and not; those of `authors` among them."""
    statistics = [torch.tensor(numbers)[:, None, None] for numbers in (CLIP_MEAN, CLIP_STD)]

    def normalised(tensor: Any) -> Any:
        return (tensor - statistics[0]) / statistics[1]

    def resized(tensor: Any, mode: str) -> Any:
        height, width = tensor.shape[-2:]
        long = int(224 * max(height, width) / min(height, width))
        new = (224, long) if height <= width else (long, 224)
        tensor = torch.nn.functional.interpolate(tensor, size=new, mode=mode, align_corners=False)
        top, left = (round((edge - 224) / 2) for edge in new)
        return tensor[..., top : top + 224, left : left + 224]

    made = {}
    frames = torch.tensor(read_video(authors.CLIP, Linspace(8)).frames).permute(0, 3, 1, 2) / 255
    made["video"] = resized(normalised(frames), "bilinear").numpy()
    for name in ("wide", "tall"):
        image = Image.open(authors.HERE / f"{name}.png").convert("RGB")
        side = max(image.size)
        square = Image.new("RGB", (side, side), background(CLIP_MEAN))
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        for key, picture in ((name, image), (f"{name}_padded", square)):
            tensor = torch.tensor(np.array(picture)).permute(2, 0, 1)[None] / 255
            made[key] = normalised(resized(tensor, "bicubic"))[0].numpy()
    stored = authors.pixels()
    for key, got in {**made, "video": made["video"][[0, 7]]}.items():
        np.testing.assert_allclose(authors.seen(got, stored["at"]), stored[f"{key}_pixels"], rtol=0, atol=1e-5)
    return made


def their_inputs(name: str, pixels: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Their ids and their pixels."""
    kind = ASKED[name][0]
    ids = authors.prompts()["image" if kind == "image" else name]["ids"]
    token, count = {"image": (32000, 256), "video": (32001, 257)}[kind]
    spread = [i for token_id in ids for i in ([token] * count if token_id == authors.PLACE else [token_id])]
    medium = pixels["video" if kind == "video" else name]
    return {"input_ids": np.array([spread]), f"pixel_values_{kind}s": medium[None]}


def their_answer(model: VideoLlavaForConditionalGeneration, name: str, pixels: dict[str, np.ndarray]) -> list[int]:
    """The greedy tokens after their ids and their pixels."""
    inputs = their_inputs(name, pixels)
    answer = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
    return np.asarray(answer)[0, inputs["input_ids"].shape[1] :].tolist()


def conversation(kind: str, source: Path, question: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": kind, kind: str(source)}, {"type": "text", "text": question}]}]


@pytest.mark.parametrize("name", ASKED)
def test_the_command_answers_as_their_ids_and_pixels_do(
    checkpoint: Path, model: VideoLlavaForConditionalGeneration, pixels: dict[str, np.ndarray], name: str, capsys: Any
) -> None:
    expected = their_answer(model, name, pixels)
    assert len(set(expected)) > TOKENS // 3
    _, source, question = ASKED[name]
    ask = ["ask", "--model", str(checkpoint), str(source), question, "--json", "--max-new-tokens", str(TOKENS)]
    assert main(ask) == 0
    assert json.loads(capsys.readouterr().out)["token_ids"] == expected
    assert main([*ask, "--preset", "hf"]) == 0  # ids, frames and pixels matter
    assert json.loads(capsys.readouterr().out)["token_ids"] != expected


@pytest.mark.parametrize("name", ["video_vicuna", "wide"])
def test_the_logits_are_theirs_and_each_piece_matters(
    checkpoint: Path, model: VideoLlavaForConditionalGeneration, pixels: dict[str, np.ndarray], name: str
) -> None:
    theirs_ = np.asarray(model(**their_inputs(name, pixels)).logits)[0, -1]

    def difference(**changes: Any) -> float:
        processor = VideoLlavaProcessor.from_pretrained(checkpoint, preset=changes)
        inputs = processor.conversation_arrays(conversation(*ASKED[name]))
        return float(np.abs(np.asarray(model(**inputs).logits)[0, -1] - theirs_).max())

    assert difference() < 2e-3  # logits have a standard deviation of 6
    other = {"sampling": "uniform"} if name == "video_vicuna" else {"pad_to_square": True}
    for changes in ({"resize": "pil"}, {"after_media": "continued"}, other):
        assert difference(**changes) > 0.05, changes


def test_transformers_face_prepares_the_same(checkpoint: Path) -> None:
    processor, face = VideoLlavaProcessor.from_pretrained(checkpoint), FaceProcessor.from_pretrained(checkpoint)
    for asked in ASKED.values():
        expected = processor.conversation_arrays(conversation(*asked))
        for got in (
            face.apply_chat_template(
                conversation(*asked), add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="np"
            ),
            face(text=face.conversation_text(conversation(*asked)), **{f"{asked[0]}s": str(asked[1])}),
        ):
            assert got.keys() == expected.keys()
            for key, array in expected.items():
                np.testing.assert_array_equal(got[key], array)


def test_the_engine_and_a_converted_checkpoint_do_too(
    checkpoint: Path, model: VideoLlavaForConditionalGeneration, pixels: dict[str, np.ndarray], tmp_path: Path
) -> None:
    convert_to_orbax(checkpoint, tmp_path / "orbax")
    processor = VideoLlavaProcessor.from_pretrained(tmp_path / "orbax")
    converted = VideoLlavaForConditionalGeneration.from_pretrained(tmp_path / "orbax")
    engine = Engine(converted, processor, max_rows=4)
    requests = [
        Request(id=name, conversation=conversation(*asked), max_new_tokens=TOKENS) for name, asked in ASKED.items()
    ]
    for result in engine.run(requests):
        expected = their_answer(model, result.id, pixels)
        assert list(result.token_ids) == expected, result


def test_padding_is_honoured_where_their_configuration_asks_for_it(
    checkpoint: Path, pixels: dict[str, np.ndarray], tmp_path: Path
) -> None:
    shutil.copytree(checkpoint, tmp_path / "padded")
    raw = json.loads((checkpoint / "config.json").read_text())
    (tmp_path / "padded" / "config.json").write_text(json.dumps({**raw, "image_aspect_ratio": "pad"}))
    convert_to_orbax(tmp_path / "padded", tmp_path / "orbax")
    for directory in (tmp_path / "padded", tmp_path / "orbax"):
        processor = VideoLlavaProcessor.from_pretrained(directory)
        for name in ("wide", "tall"):
            inputs = processor.conversation_arrays(conversation(*ASKED[name]))
            difference = inputs["pixel_values_images"][0] - pixels[f"{name}_padded"]
            assert np.abs(difference).max() < 5e-5
