"""The loader of the tokenizer, and text without special tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from videollava_jax.processing.segments import SegmentEncoder
from videollava_jax.processing.tokenizer import TokenIds, affixes, load_tokenizer

# ── the tokenizer's loader ──


def test_a_bare_tokenizer_model_is_made_good(tokenizer: Any) -> None:
    assert affixes(tokenizer) == ((1,), ())
    assert tokenizer.padding_side == "left"
    size = len(tokenizer)
    assert tokenizer.convert_tokens_to_ids(["<image>", "<video>", "<pad>"]) == [size - 3, size - 2, size - 1]
    assert tokenizer.pad_token == "<pad>"
    assert {"<image>", "<video>", "<pad>"} <= {
        token.content for token in tokenizer.added_tokens_decoder.values() if token.special
    }


def test_a_saved_tokenizer_loads_the_same(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    saved = tmp_path / "tokenizer_config.json"
    raw = json.loads(saved.read_text())
    for change in ({}, {"padding_side": "right"}, {"tokenizer_class": "LlamaTokenizerFast"}, None):
        if change is None:
            saved.unlink()
        else:
            saved.write_text(json.dumps(raw | change))
        again = load_tokenizer(tmp_path)
        prompt = "USER: <video>\nhi there</s>x"
        assert again(prompt)["input_ids"] == tokenizer(prompt)["input_ids"]
        assert again.padding_side == "left"
        assert again.get_vocab() == tokenizer.get_vocab()
        assert again.pad_token_id == tokenizer.pad_token_id


def test_ids_that_differ_from_the_configuration(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes((directory / "tokenizer.model").read_bytes())
    config = {"model_type": "video_llava", "image_token_index": 32000, "video_token_index": 32001}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"<image> is id 600 in the tokenizer and 32000 in the model's config"):
        load_tokenizer(tmp_path)
    with pytest.raises(ValueError, match=r"<video> is id 601 in the tokenizer and 7 in"):
        load_tokenizer(tmp_path, TokenIds(video=7))
    with pytest.raises(ValueError, match=r"the pad token is id 602 in the tokenizer and 9999 in"):
        load_tokenizer(tmp_path, TokenIds(pad=9999))
    assert load_tokenizer(tmp_path, TokenIds(pad=0)).pad_token == "<unk>"


def test_a_directory_without_a_vocabulary(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no tokenizer here; expected tokenizer\.json or tokenizer\.model"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"")
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"config\.json: expected a JSON object, got a list"):
        load_tokenizer(tmp_path)


def test_a_merge_that_spells_a_special_token_is_not_followed(directory: Path) -> None:
    from tokenizers import Tokenizer

    tokenizer = load_tokenizer(directory)
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    spec["model"]["vocab"]["</"] = 700
    spec["model"]["vocab"]["s>"] = 701
    spec["model"]["vocab"]["/"] = 702
    spec["model"]["merges"] = [["<", "/"], ["s", ">"], ["</", "s>"], *spec["model"]["merges"]]
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(spec))
    (part,) = SegmentEncoder(tokenizer).encode(["a</s>"]).parts
    assert part.ids[-2:] == (700, 701)


@pytest.mark.parametrize("named", ["Theirs", "LlamaTokenizer", None])
def test_code_of_a_checkpoint_is_never_run(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str | None
) -> None:
    """transformers would ask on the terminal whether to run it, and `yes |` answers."""
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "theirs.py").write_text(f"open({str(tmp_path / 'it-ran')!r}, 'w')\n")
    saved = tmp_path / "tokenizer_config.json"
    raw = json.loads(saved.read_text()) | {"auto_map": {"AutoTokenizer": ["theirs.Theirs", "theirs.Theirs"]}}
    saved.write_text(json.dumps(raw | {"tokenizer_class": named}))
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda *text: asked.append(*text) or "yes")
    if named == "Theirs":
        with pytest.raises(ValueError, match="its tokenizer is code of its own, which is never run"):
            load_tokenizer(tmp_path)
    else:
        assert load_tokenizer(tmp_path)("USER: hi")["input_ids"] == tokenizer("USER: hi")["input_ids"]
    assert not asked
    assert not (tmp_path / "it-ran").exists()
