"""Reads a Llama tokenizer from its files without transformers, whose import takes seconds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from videollava_jax.processing.tokenizer import (
    IMAGE_TOKEN,
    LLAMA_CLASSES,
    VIDEO_TOKEN,
    TokenIds,
    affixes,
    ids_from_config,
    read_json,
)

_SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": None}
"""The special tokens that have names, with transformers' defaults."""

_USUAL_SETTINGS: Mapping[str, tuple[Any, ...]] = {
    "add_prefix_space": (None, True),
    "clean_up_tokenization_spaces": (False,),
    "legacy": (False,),
    "split_special_tokens": (False,),
    "truncation_side": ("right",),
}
"""Keys of tokenizer_config.json that change ids or texts, with the values that are read here."""

_WITHOUT_EFFECT = {
    "add_bos_token",  # tokenizer.json says which tokens start and end a text
    "add_eos_token",
    "backend",
    "chat_template",
    "is_local",
    "local_files_only",
    "padding_side",  # `load_tokenizer` pads on the left, whatever this says
    "processor_class",
    "sp_model_kwargs",
    "spaces_between_special_tokens",
    "tokenizer_class",
    "trust_remote_code",
    "use_default_system_prompt",
}


class LlamaTokenizer:
    """A tokenizer with the part of transformers' interface that this package calls, equal to `load_tokenizer`'s.

    Attributes:
        directory: the files.
        backend_tokenizer: of the tokenizers library, the same as inside transformers' object.
        bos_token, eos_token, pad_token: the special tokens.
        all_special_tokens: these and all others.
        model_max_length: the limit in the files; of most tokenizers a number that no text reaches.
        padding_side, truncation_side: of batches.
    """

    padding_side = "left"
    truncation_side = "right"

    def __init__(self, directory: Path, backend: Any, settings: Mapping[str, Any], specials: Mapping[str, str]):
        self.directory = directory
        self.backend_tokenizer = backend
        self.bos_token, self.eos_token, self.pad_token = (specials[n] for n in ("bos_token", "eos_token", "pad_token"))
        others = settings.get("extra_special_tokens") or []
        self.all_special_tokens = list(dict.fromkeys([*specials.values(), *others]))
        self.model_max_length = settings.get("model_max_length", int(1e30))

    @property
    def bos_token_id(self) -> int:
        """The id that starts a text."""
        return self.convert_tokens_to_ids(self.bos_token)

    @property
    def eos_token_id(self) -> int:
        """The id that ends an answer."""
        return self.convert_tokens_to_ids(self.eos_token)

    @property
    def pad_token_id(self) -> int:
        """The id of padding."""
        return self.convert_tokens_to_ids(self.pad_token)

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        """Encodes a text; special tokens that it spells are recognised."""
        return {"input_ids": self.backend_tokenizer.encode(text, add_special_tokens=add_special_tokens).ids}

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """Decodes ids [T] to a text."""
        text: str = self.backend_tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return text

    def convert_tokens_to_ids(self, token: str) -> int:
        """Returns the id of a token.

        Raises:
            KeyError: the vocabulary has no such token.
        """
        found: int | None = self.backend_tokenizer.token_to_id(token)
        if found is None:
            raise KeyError(token)
        return found

    def convert_ids_to_tokens(self, token_id: int) -> str:
        """Returns the token of an id of the vocabulary."""
        token: str = self.backend_tokenizer.id_to_token(token_id)
        return token


def read_llama_tokenizer(directory: Path) -> LlamaTokenizer | None:
    """Reads the tokenizer of a directory with a usual tokenizer.json.

    Returns:
        None for files that say something else: `load_tokenizer` reads them with transformers, or says what is wrong.
    """
    try:
        spec = read_json(directory / "tokenizer.json")
        settings = read_json(directory / "tokenizer_config.json")
        if spec is None or settings is None or _has_other_tokens(directory, settings):
            return None
        specials = _special_tokens(spec, settings)
        backend = None if specials is None else _backend(spec)
        if specials is None or backend is None:
            return None
        made = LlamaTokenizer(directory, backend, settings, specials)
        wanted = ids_from_config(read_json(directory / "config.json") or {})
        return made if _has_ids(made, spec, wanted) else None
    except (ValueError, TypeError, LookupError, AttributeError):  # JSON of another shape somewhere
        return None


def _has_other_tokens(directory: Path, settings: Mapping[str, Any]) -> bool:
    """Whether files that only old tokenizers have name tokens, too."""
    mapped = (directory / "special_tokens_map.json").exists() and "added_tokens_decoder" not in settings
    return mapped or (directory / "added_tokens.json").exists()


def _special_tokens(spec: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, str] | None:
    """The special tokens by their names in tokenizer_config.json; None if the files are not usual."""
    known = {*_SPECIAL, *_USUAL_SETTINGS, *_WITHOUT_EFFECT, "added_tokens_decoder", "extra_special_tokens"}
    if not settings.keys() <= known | {"model_max_length"} or settings.get("tokenizer_class") not in LLAMA_CLASSES:
        return None
    if type(settings.get("model_max_length", 1)) not in (int, float):
        return None
    if any(settings.get(key, values[0]) not in values for key, values in _USUAL_SETTINGS.items()):
        return None
    added = {str(token.pop("id")): token for token in map(dict, spec["added_tokens"])}
    if settings.get("added_tokens_decoder", added) != added:
        return None
    special = {token["content"] for token in added.values() if token["special"]}
    named = {name: settings.get(name, default) for name, default in _SPECIAL.items()}
    others = settings.get("extra_special_tokens") or []
    if not isinstance(others, list) or not {IMAGE_TOKEN, VIDEO_TOKEN, *named.values(), *others} <= special:
        return None
    return named


def _backend(spec: Mapping[str, Any]) -> Any:
    """The tokenizer that transformers' LlamaTokenizer builds of a tokenizer.json; None if it is of another kind.

    The vocabulary, the merges, the added tokens and what starts a text are the file's, all else is the class's.
    """
    from tokenizers import Tokenizer

    model = spec.get("model")
    if not isinstance(model, Mapping) or model.get("type") != "BPE" or not isinstance(model.get("vocab"), Mapping):
        return None
    if spec.get("truncation") is not None or spec.get("padding") is not None or not spec.get("post_processor"):
        return None
    fixed = {
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": True,
        "ignore_merges": False,
    }
    rebuilt = {
        **spec,
        "normalizer": None,
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False},
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {**model, **fixed},
    }
    try:
        return Tokenizer.from_str(json.dumps(rebuilt))
    except Exception:  # the library raises bare Exceptions for files that it cannot read
        return None


def _has_ids(made: LlamaTokenizer, spec: Mapping[str, Any], wanted: TokenIds) -> bool:
    """Whether the added tokens have the file's ids, media and padding the configuration's, and texts start with BOS."""
    if any(made.backend_tokenizer.token_to_id(t["content"]) != t["id"] for t in spec["added_tokens"]):
        return False
    media = ((IMAGE_TOKEN, wanted.image), (VIDEO_TOKEN, wanted.video), (made.pad_token, wanted.pad))
    if any(expected not in (None, made.convert_tokens_to_ids(token)) for token, expected in media):
        return False
    return affixes(made)[0] == (made.bos_token_id,)
