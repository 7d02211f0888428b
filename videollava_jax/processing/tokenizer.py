"""Loads the Llama tokenizer with the ids that the model expects, and encodes text without special tokens in it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videollava_jax.json_files import read_object
from videollava_jax.named_errors import named_errors

IMAGE_TOKEN = "<image>"
VIDEO_TOKEN = "<video>"
PAD_TOKEN = "<pad>"

_VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model")
LLAMA_CLASSES = (None, "LlamaTokenizer", "LlamaTokenizerFast")


@dataclass(frozen=True, kw_only=True)
class TokenIds:
    """The token ids in a checkpoint's configuration. None leaves an id to the tokenizer."""

    image: int | None = None
    video: int | None = None
    pad: int | None = None


def load_tokenizer(directory: str | os.PathLike[str], ids: TokenIds | None = None) -> Any:
    """Loads the Hugging Face tokenizer of a local directory, and adds settings that the directory may lack.

    For a directory with only a `tokenizer.model`, transformers 5 does not set `add_bos_token`, and `AutoTokenizer`
    chooses a generic class that pads on the right. Whatever the directory says, the tokenizer returned here

    - starts every encoding with the BOS token (1 for Llama);
    - pads on the left;
    - has `<image>`, `<video>` and a pad token as special tokens, with the ids in `ids`. A vocabulary without them
      (the authors' checkpoints have 32,000 pieces) gets them appended in that order: 32000, 32001, 32002.

    Args:
        directory: has a `tokenizer.json` or `tokenizer.model`, and perhaps a `tokenizer_config.json`.
        ids: the ids in the model's configuration; None reads them from the directory's `config.json`.

    Raises:
        ValueError: the directory has no vocabulary, or the tokenizer's ids differ from `ids`.
    """
    path = Path(directory)
    if not any((path / name).is_file() for name in _VOCABULARY_FILES):
        raise ValueError(f"{path}: no tokenizer here; expected {' or '.join(_VOCABULARY_FILES)}")
    tokenizer = _load_class(path)
    wanted = ids_from_config(read_json(path / "config.json") or {}) if ids is None else ids
    _add_special_tokens(tokenizer, wanted)
    _start_with_bos(tokenizer)
    tokenizer.padding_side = "left"
    return tokenizer


def ids_from_config(config: dict[str, Any]) -> TokenIds:
    """Returns the token ids in a transformers `config.json`, given as a dict. For other kinds of model all are None."""
    if config.get("model_type") != "video_llava":
        return TokenIds()
    return TokenIds(
        image=config.get("image_token_index", config.get("image_token_id", 32000)),
        video=config.get("video_token_index", config.get("video_token_id", 32001)),
        # Not text_config's: converted checkpoints have Vicuna's 0 there, but their tokenizer has <pad>.
        pad=config.get("pad_token_id"),
    )


def read_json(path: Path) -> dict[str, Any] | None:
    """Reads the JSON object in a file; returns None if there is no such file.

    Raises:
        ValueError: it is not JSON, or not an object.
    """
    return read_object(path) if path.is_file() else None


def _load_class(path: Path) -> Any:
    from transformers import AutoTokenizer, LlamaTokenizer

    config = read_json(path / "tokenizer_config.json") or {}
    named = config.get("tokenizer_class")
    # AutoTokenizer is not used for Llama, as it chooses a generic class if no tokenizer_class is given.
    loader = LlamaTokenizer if named in LLAMA_CLASSES else AutoTokenizer
    try:
        # Without the argument transformers asks on the terminal whether to run a checkpoint's code.
        with named_errors(path):
            tokenizer = loader.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
    except ValueError as error:
        if "auto_map" not in config:
            raise
        raise ValueError(
            f"{path}: its tokenizer is code of its own, which is never run (auto_map in tokenizer_config.json): "
            "expected a Llama tokenizer, tokenizer.model or tokenizer.json"
        ) from error
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(f"{path}: {named} has no fast tokenizer; expected one of the tokenizers library")
    return tokenizer


def _add_special_tokens(tokenizer: Any, wanted: TokenIds) -> None:
    vocabulary = tokenizer.get_vocab()
    missing = [token for token in (IMAGE_TOKEN, VIDEO_TOKEN) if token not in vocabulary]
    if missing:
        tokenizer.add_tokens(missing, special_tokens=True)
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
    if wanted.pad is not None and 0 <= wanted.pad < len(tokenizer) and tokenizer.pad_token_id != wanted.pad:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(wanted.pad)
    for token, expected in ((IMAGE_TOKEN, wanted.image), (VIDEO_TOKEN, wanted.video)):
        got = tokenizer.convert_tokens_to_ids(token)
        if expected is not None and got != expected:
            raise ValueError(
                f"{token} is id {got} in the tokenizer and {expected} in the model's configuration; expected "
                "them equal: use the tokenizer that was saved with this model"
            )
    if wanted.pad is not None and tokenizer.pad_token_id != wanted.pad:
        raise ValueError(
            f"the pad token is id {tokenizer.pad_token_id} in the tokenizer and {wanted.pad} in the model's "
            f"configuration, beyond this tokenizer's {len(tokenizer)} ids: use the one saved with this model"
        )


def _start_with_bos(tokenizer: Any) -> None:
    if tokenizer.bos_token_id is None:
        return  # the vocabulary has no BOS
    if affixes(tokenizer)[0] != (tokenizer.bos_token_id,):
        tokenizer.add_bos_token = True
    if affixes(tokenizer)[0] != (tokenizer.bos_token_id,):
        raise ValueError(
            f"{type(tokenizer).__name__} does not start an encoding with {tokenizer.bos_token!r}, "
            "even with add_bos_token=True; expected a Llama tokenizer"
        )


def affixes(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the ids that the tokenizer puts before and after every text: ((1,), ()) for Llama."""
    probe = "a"
    body = tokenizer(probe, add_special_tokens=False)["input_ids"]
    full = tokenizer(probe)["input_ids"]
    for start in range(len(full) - len(body) + 1):
        if full[start : start + len(body)] == body:
            return tuple(full[:start]), tuple(full[start + len(body) :])
    raise ValueError(f"{type(tokenizer).__name__} changes a text's own ids when it adds special tokens")


class PlainEncoder:
    """Encodes text without recognising special tokens: `</s>` and `<video>` are ordinary characters.

    It holds two copies of the tokenizer's backend, so that the pieces of a prompt get the same ids as in the whole
    prompt: Llama puts a space before the first word of a prompt, but (unless the tokenizer is a "legacy" one) not
    before a word that follows a special token.

    Args:
        tokenizer: a fast Hugging Face tokenizer.
        control: tokens to treat as special even if the tokenizer's files do not say so.

    Attributes:
        longest_piece: the most characters that one token stands for; None where a token may stand for any number.
    """

    def __init__(self, tokenizer: Any, control: Iterable[str] = (IMAGE_TOKEN, VIDEO_TOKEN, PAD_TOKEN)):
        spec = json.loads(tokenizer.backend_tokenizer.to_str())
        spec |= {"post_processor": None, "truncation": None, "padding": None}
        special = {*control, *tokenizer.all_special_tokens}
        for token in spec["added_tokens"]:
            token["special"] = token["special"] or token["content"] in special
        merges = spec["model"].get("merges")
        if merges:  # a merge that spells a special token would produce one from ordinary text
            spec["model"]["merges"] = [pair for pair in merges if _merged(pair) not in special]
        self.longest_piece = _longest_piece(spec)
        self._first = _plain_backend(spec)
        self._later = _plain_backend(_without_prefix_space(spec))
        self._spec = spec
        self._bare: Any = None

    def encode(self, text: str, first: bool) -> tuple[list[int], list[tuple[int, int]]]:
        """Returns the token ids of `text`, and the characters [start, stop) that each token covers.

        Args:
            text: any text.
            first: whether the text begins the prompt; if not, it follows a special token.

        Raises:
            ValueError: `text` is not Unicode.
        """
        require_unicode(text)
        encoding = (self._first if first else self._later).encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def encode_anew(self, text: str, trimmed: bool) -> tuple[list[int], list[tuple[int, int]]]:
        """Returns ids and characters, as `encode`, of a text that starts anew, with SentencePiece's space before it.

        Args:
            text: any text.
            trimmed: whether that space is taken away again from the first token, as transformers' slow tokenizer does
                with `legacy: false` where a text follows a special token and does not begin with a space itself.

        Raises:
            ValueError: `text` is not Unicode.
        """
        require_unicode(text)
        if not text:
            return [], []
        if self._bare is None:
            self._bare = _plain_backend(_without_prefix(self._spec))
        encoding = self._bare.encode(f" {text}", add_special_tokens=False)
        ids, offsets = encoding.ids, [(max(a - 1, 0), max(b - 1, 0)) for a, b in encoding.offsets]
        if not trimmed or text.startswith((" ", "▁")):
            return ids, offsets
        rest = encoding.tokens[0].removeprefix("▁")
        if not rest:
            return ids[1:], offsets[1:]
        found = self._bare.token_to_id(rest)
        if found is None:  # a piece that the vocabulary has only at the start of a word
            encoding = self._bare.encode(text, add_special_tokens=False)
            return encoding.ids, encoding.offsets
        return [found, *ids[1:]], offsets


def require_unicode(text: str) -> None:
    """Raises a ValueError where a text holds half of a surrogate pair, which JSON can write and tokenizers refuse."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the text is not Unicode: character {error.start} is {text[error.start]!a}, half of a surrogate pair"
        ) from None


def _longest_piece(spec: dict[str, Any]) -> int | None:
    """The most characters of a piece, where characters without a piece become bytes as in Llama's vocabulary."""
    model = spec["model"]
    if not model.get("byte_fallback"):
        return None  # any number of unknown characters may become one token
    pieces = model["vocab"]
    if isinstance(pieces, list):  # unigram models: pairs of a piece and its score
        pieces = [piece for piece, _ in pieces]
    return max(map(len, [*pieces, *(token["content"] for token in spec["added_tokens"])]))


def _merged(pair: str | list[str]) -> str:
    return pair.replace(" ", "", 1) if isinstance(pair, str) else "".join(pair)


def _plain_backend(spec: dict[str, Any]) -> Any:
    from tokenizers import Tokenizer

    backend = Tokenizer.from_str(json.dumps(spec))
    backend.encode_special_tokens = True
    return backend


def _without_prefix(spec: dict[str, Any]) -> dict[str, Any]:
    """Returns the specification of the same tokenizer without a space before any text, of whatever version it is."""
    spec = _without_prefix_space(spec, schemes=("first", "always"))
    normalizer = spec.get("normalizer") or {}
    steps = normalizer.get("normalizers", [normalizer])
    kept = [step for step in steps if step and step["type"] != "Prepend"]
    return {**spec, "normalizer": {"type": "Sequence", "normalizers": kept} if kept else None}


def _without_prefix_space(node: Any, schemes: tuple[str, ...] = ("first",)) -> Any:
    """Returns the specification of the same tokenizer without the space before the first word."""
    if isinstance(node, dict):
        if node.get("type") == "Metaspace" and node.get("prepend_scheme") in schemes:
            return {**node, "prepend_scheme": "never"}
        return {key: value if key == "model" else _without_prefix_space(value, schemes) for key, value in node.items()}
    if isinstance(node, list):
        return [_without_prefix_space(item, schemes) for item in node]
    return node
