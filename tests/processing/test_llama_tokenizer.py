"""The tokenizer that is read without transformers: the same backend, ids and texts as transformers' own."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from videollava_jax.assets import TINY
from videollava_jax.processing.llama_tokenizer import read_llama_tokenizer
from videollava_jax.processing.processor import VideoLlavaProcessor
from videollava_jax.processing.segments import SegmentEncoder
from videollava_jax.processing.tokenizer import load_tokenizer

TEXTS = ["USER: <video>\nhi there</s>x", "", " ", "  two\tand three\n", "日本 äöü \0 \x7f 🙂", "<pad><s>▁a"]

LEGACY = {
    "normalizer": {
        "type": "Sequence",
        "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ],
    },
    "pre_tokenizer": None,
}
"""What transformers 4 wrote, and the hub's checkpoint has."""


def saved(tokenizer: Any, place: Path, spec: dict[str, Any], settings: dict[str, Any]) -> Path:
    """Saves a tokenizer and changes keys of its files; None takes a key out."""
    tokenizer.save_pretrained(place)
    for name, changes in (("tokenizer.json", spec), ("tokenizer_config.json", settings)):
        raw = json.loads((place / name).read_text()) | changes
        (place / name).write_text(json.dumps({k: v for k, v in raw.items() if v is not None or k in LEGACY}))
    return place


def as_on_the_hub(directory: Path) -> dict[str, Any]:
    """The keys that the hub's tokenizer_config.json has and a saved one has not."""
    added = json.loads((directory / "tokenizer.json").read_text())["added_tokens"]
    decoder = {str(token["id"]): {k: v for k, v in token.items() if k != "id"} for token in added}
    return {
        "add_bos_token": True,
        "add_eos_token": False,
        "add_prefix_space": None,
        "added_tokens_decoder": decoder,
        "legacy": False,
        "padding_side": "right",
        "processor_class": "VideoLlavaProcessor",
        "sp_model_kwargs": {},
        "trust_remote_code": False,
    }


def require_alike(directory: Path) -> None:
    ours, theirs = read_llama_tokenizer(directory), load_tokenizer(directory)
    assert ours is not None
    assert json.loads(ours.backend_tokenizer.to_str()) == json.loads(theirs.backend_tokenizer.to_str())
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "eos_token", "model_max_length", "truncation_side"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert (ours.padding_side, set(ours.all_special_tokens)) == (theirs.padding_side, set(theirs.all_special_tokens))
    for text in TEXTS:
        ids = theirs(text)["input_ids"]
        assert ours(text)["input_ids"] == ids
        assert ours(text, add_special_tokens=False)["input_ids"] == theirs(text, add_special_tokens=False)["input_ids"]
        for skip in (False, True):
            assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)
        assert [ours.convert_ids_to_tokens(i) for i in ids] == theirs.convert_ids_to_tokens(ids)
        assert SegmentEncoder(ours).encode_string(text) == SegmentEncoder(theirs).encode_string(text)
        assert SegmentEncoder(ours).encode([text]) == SegmentEncoder(theirs).encode([text])


def test_the_bundled_tokenizer() -> None:
    require_alike(TINY)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("hub", [False, True])
def test_a_saved_tokenizer_and_the_hubs(tokenizer: Any, tmp_path: Path, legacy: bool, hub: bool) -> None:
    saved(tokenizer, tmp_path, LEGACY if legacy else {}, {})
    if hub:
        saved(tokenizer, tmp_path, LEGACY if legacy else {}, as_on_the_hub(tmp_path))
        (tmp_path / "special_tokens_map.json").write_text('{"eos_token": "<unk>"}')  # nobody reads it then
    require_alike(tmp_path)


def _without_bos(spec: dict[str, Any], settings: dict[str, Any]) -> None:
    spec["post_processor"]["single"] = [{"Sequence": {"id": "A", "type_id": 0}}]


def _moved(spec: dict[str, Any], settings: dict[str, Any]) -> None:
    spec["added_tokens"][-1]["id"] += 5


def _other(key: str, value: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    def change(spec: dict[str, Any], settings: dict[str, Any]) -> None:
        (spec if key in spec else settings)[key] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        _without_bos,
        _moved,
        _other("tokenizer_class", "GPT2Tokenizer"),
        _other("legacy", True),
        _other("clean_up_tokenization_spaces", True),
        _other("eos_token", "<nothing>"),
        _other("eos_token", {"content": "</s>"}),
        _other("pad_token", None),
        _other("something_new", 1),
        _other("model_max_length", "long"),
        _other("added_tokens_decoder", {}),
        _other("truncation", {"max_length": 5}),
        _other("added_tokens", [7]),
        _other("added_tokens", None),
        _other("model", {"type": "Unigram", "vocab": []}),
        _other("model", {"type": "BPE", "vocab": {"a": "b"}, "merges": [[]]}),
        _other("post_processor", None),
    ],
)
def test_anything_else_is_left_to_transformers(tmp_path: Path, change: Callable[..., None]) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / name, tmp_path / name)
    assert read_llama_tokenizer(tmp_path) is not None
    spec, settings = (json.loads((TINY / name).read_text()) for name in ("tokenizer.json", "tokenizer_config.json"))
    change(spec, settings)
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert read_llama_tokenizer(tmp_path) is None


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("added_tokens.json", "{}"),
        ("special_tokens_map.json", "{}"),
        ("tokenizer.json", "{"),
        ("config.json", '{"model_type": "video_llava", "image_token_index": 5}'),
        ("config.json", '{"model_type": "video_llava", "pad_token_id": 0}'),
    ],
)
def test_another_file_is_left_to_transformers(tmp_path: Path, name: str, text: str) -> None:
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / file, tmp_path / file)
    (tmp_path / name).write_text(text)
    assert read_llama_tokenizer(tmp_path) is None


def test_the_processors_tokenizer_is_transformers_and_comes_when_it_is_asked_for() -> None:
    processor = pickle.loads(pickle.dumps(VideoLlavaProcessor.from_pretrained(TINY)))
    light, encoder = processor.light_tokenizer, processor.encoder
    assert type(light).__module__.startswith("videollava_jax")
    tokenizer = processor.tokenizer
    assert type(tokenizer).__module__.startswith("transformers")
    assert processor.light_tokenizer is processor.tokenizer is tokenizer
    assert processor.encoder is encoder
    assert processor.encoder.encode_string(TEXTS[0]) == SegmentEncoder(light).encode_string(TEXTS[0])
