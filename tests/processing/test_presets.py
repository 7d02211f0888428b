"""Presets: the authors' ids by the real vocabulary, and what a directory, a caller and a copy say of them."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests import authors
from tests.processing.llama_vocabulary import VocabularyUnavailable, real_llama_model
from videollava_jax.media import FloatPreprocessor, FramePreprocessor, Linspace, Uniform
from videollava_jax.processing.preset import CHOICES, PRESETS, Preset
from videollava_jax.processing.processor import VideoLlavaProcessor
from videollava_jax.processing.prompt import TEMPLATES

AUTHORS = {"model_type": "llava", "mm_video_tower": "LanguageBind_Video_merge", "max_position_embeddings": 4096}
"""What their config.json has, as far as the processor reads it."""


def directory_of(path: Path, vocabulary: Path, legacy: bool | None = False, **config: Any) -> Path:
    """A directory of the authors', without weights."""
    path.mkdir()
    shutil.copy(vocabulary, path / "tokenizer.model")
    (path / "config.json").write_text(json.dumps({**AUTHORS, **config}))
    settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "legacy": legacy}
    settings = {name: value for name, value in settings.items() if value is not None}
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    return path


@pytest.fixture(scope="module")
def llama() -> Path:
    try:
        return real_llama_model()
    except VocabularyUnavailable as reason:
        pytest.skip(f"Llama's vocabulary is out of reach: {reason}")


@pytest.fixture(scope="module", params=[False, True, None], ids=["not legacy", "legacy", "nothing said"])
def original(request: pytest.FixtureRequest, llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A processor of the authors' directory, and whether its tokenizer says `legacy: false`."""
    directory = directory_of(tmp_path_factory.mktemp("authors") / "model", llama, request.param)
    return VideoLlavaProcessor.from_pretrained(directory), request.param is False


def user(*content: str) -> dict[str, Any]:
    parts = [{"type": part} if part in ("image", "video") else {"type": "text", "text": part} for part in content]
    return {"role": "user", "content": parts}


FUNNY = [user("video", "Why is this video funny?")]
# name of their prompt: the conversation, and the template where it is not the default
ASKED: dict[str, tuple[list[dict[str, Any]], str | None]] = {
    "video": (FUNNY, "llava_v1"),
    "video_vicuna": (FUNNY, None),
    "video_readme": (FUNNY, "llava_v1_spaced"),
    "video_cli_default": (FUNNY, "llava_v0"),
    "image": ([user("image", "What is unusual about this image?")], None),
    "turns": ([*FUNNY, {"role": "assistant", "content": "A baby reads."}, user("What colour is the bed?")], None),
    "video_image": ([user("video", "image", "Do they show the same thing?")], None),
    "image_video": ([user("image", "video", "Do they show the same thing?")], None),
}


def ids_of(processor: VideoLlavaProcessor, segments: Any) -> list[int]:
    """The ids with -200 for each image and each frame, as theirs have them."""
    tokens = {"image": 2, "video": 24}
    places = {"image": 1_000_000, "video": 2_000_000}
    lengths = [tokens[medium.kind] for medium in segments.media]
    ids = segments.expand(lengths, places, 3).input_ids.tolist()
    made: list[int] = []
    while ids:
        width = {1_000_000: 2, 2_000_000: 3}.get(ids[0], 0)
        assert len(set(ids[: width or 1])) == 1
        made.append(authors.PLACE if width else ids[0])
        del ids[: width or 1]
    return made


def theirs(name: str, legacy_false: bool) -> list[int]:
    ids: list[int] = authors.prompts()[name]["ids"]
    if not legacy_false:  # the first token after </s> keeps its space
        ids = [3148 if ids[i - 1] == 2 and token == 3308 else token for i, token in enumerate(ids)]
    return ids


@pytest.mark.network
@pytest.mark.parametrize("name", ASKED)
def test_ids_are_the_authors(original: tuple[VideoLlavaProcessor, bool], name: str) -> None:
    processor, legacy_false = original
    conversation, template = ASKED[name]
    segments = processor.encode(conversation, template=template)
    assert ids_of(processor, segments) == theirs(name, legacy_false)


@pytest.mark.network
@pytest.mark.parametrize("name", [name for name in ASKED if name != "video_readme"])
def test_their_prompts_as_strings_have_their_ids(original: tuple[VideoLlavaProcessor, bool], name: str) -> None:
    processor, legacy_false = original
    prompt = authors.prompts()[name]["prompt"]
    prompt = prompt.replace("<image>" * 9, "<image><video>").replace("<image>" * 8, "<video>")
    segments = processor.encoder.encode_string(prompt)
    assert ids_of(processor, segments) == theirs(name, legacy_false)


@pytest.mark.network
def test_every_prompt_of_theirs_is_compared() -> None:
    assert ASKED.keys() == authors.prompts().keys()


@pytest.mark.network
def test_the_hf_preset_writes_other_ids(llama: Path, tmp_path: Path) -> None:
    processor = VideoLlavaProcessor.from_pretrained(directory_of(tmp_path / "a", llama), preset="hf")
    turns = [*FUNNY, {"role": "assistant", "content": "A baby reads."}, user("What colour is the bed?")]
    ids = ids_of(processor, processor.encode(turns, template="vicuna_v1"))
    assert ids.count(2) == 1
    assert 11889 in ids  # USER as one token
    assert ids[ids.index(13) - 1] == authors.PLACE  # the newline follows the medium


# ── what a directory, a caller and a copy say ──


def test_a_directory_of_the_authors_has_their_preset(vocabulary: Path, tmp_path: Path) -> None:
    model = vocabulary / "tokenizer.model"
    processor = VideoLlavaProcessor.from_pretrained(directory_of(tmp_path / "a", model))
    assert processor.preset == dataclasses.replace(PRESETS["original"], template=TEMPLATES["vicuna_v1"])
    assert processor.frames() == Linspace(8)
    assert processor.frames(4) == Linspace(4)
    assert processor.frames(Uniform(3)) == Uniform(3)
    assert processor.preprocessors == {
        "image": FloatPreprocessor(),
        "video": FloatPreprocessor(interpolation="bilinear"),
    }
    padded = directory_of(tmp_path / "b", model, image_aspect_ratio="pad")
    images = VideoLlavaProcessor.from_pretrained(padded).preprocessors
    assert images == {
        "image": FloatPreprocessor(pad_to_square=True),
        "video": FloatPreprocessor(interpolation="bilinear"),
    }


def test_each_field_can_be_changed_and_is_saved(vocabulary: Path, tmp_path: Path) -> None:
    directory = directory_of(tmp_path / "a", vocabulary / "tokenizer.model")
    for field, values in {**CHOICES, "template": tuple(TEMPLATES)}.items():
        for value in values:
            processor = VideoLlavaProcessor.from_pretrained(directory, preset={field: value})
            got = getattr(processor.preset, field)
            assert getattr(got, "name", got) == value
            processor.save_pretrained(tmp_path / "saved")
            assert VideoLlavaProcessor.from_pretrained(tmp_path / "saved").preset == processor.preset


def test_a_preset_of_another_variant(vocabulary: Path, tmp_path: Path) -> None:
    directory = directory_of(tmp_path / "a", vocabulary / "tokenizer.model")
    plain = VideoLlavaProcessor.from_pretrained(directory, preset="hf")
    assert plain.preprocessors == dict.fromkeys(("image", "video"), FramePreprocessor())
    assert plain.template.name == "hf"
    given = VideoLlavaProcessor(tokenizer=plain.tokenizer, preset="original")
    assert given.preset.changed({"template": "hf"}) == PRESETS["original"].changed({"template": "hf"})
    assert given.template.name == "vicuna_v1"
    old = directory_of(tmp_path / "legacy", vocabulary / "tokenizer.model", legacy=True)
    for asked in ("original", {"name": "original", "resize": "pil"}):  # each for the directory's tokenizer
        assert VideoLlavaProcessor.from_pretrained(old, preset=asked).preset.after_end == "anew"
    # Next to a model whose own preset is another, `hf` is said too.
    plain.save_pretrained(directory)
    assert VideoLlavaProcessor.from_pretrained(directory).preset == plain.preset
    mine = Preset(template="llava_v0", resize="torch")
    assert VideoLlavaProcessor.from_pretrained(directory, preset=mine).template.name == "llava_v0"


def test_what_a_preset_is_not_is_refused(vocabulary: Path, tmp_path: Path) -> None:
    directory = directory_of(tmp_path / "a", vocabulary / "tokenizer.model")
    for preset, said in (
        ("pku", r"unknown preset 'pku'; expected one of hf, original"),
        ({"resize": "cv2"}, r"resize: expected 'pil' or 'torch', got 'cv2'"),
        ({"pad_to_square": 1}, r"pad_to_square: expected False or True, got 1"),
        ({"media_order": ["text"]}, r"media_order: expected 'first' or 'text', got \['text'\]"),
        ({"resise": "pil"}, r"preset: expected fields among template, media_order, .*; got 'resise'"),
        ({"template": "v1"}, r"unknown prompt template 'v1'"),
    ):
        with pytest.raises(ValueError, match=said):
            VideoLlavaProcessor.from_pretrained(directory, preset=preset)
    tiles = directory_of(tmp_path / "c", vocabulary / "tokenizer.model", image_aspect_ratio="anyres")
    with pytest.raises(ValueError, match=r"expected 'pad' or 'square' in config\.json, got 'anyres'"):
        VideoLlavaProcessor.from_pretrained(tiles)
    (directory / "processor_config.json").write_text('{"preset": {"name": "original", "resize": "cv2"}}')
    with pytest.raises(ValueError, match=r"processor_config\.json: resize: expected 'pil' or 'torch'"):
        VideoLlavaProcessor.from_pretrained(directory)
    processor = VideoLlavaProcessor(
        FloatPreprocessor(),
        tokenizer=VideoLlavaProcessor.from_pretrained(
            directory_of(tmp_path / "b", vocabulary / "tokenizer.model")
        ).tokenizer,
    )
    with pytest.raises(ValueError, match=r"images become pixels by FloatPreprocessor.*expected one that says the same"):
        processor.save_pretrained(tmp_path / "saved")
