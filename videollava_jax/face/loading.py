"""The arguments of `from_pretrained`: of the hub, of the processor and its parts, and hints that ask for nothing."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videollava_jax.face.arguments import IMAGES, VIDEOS
from videollava_jax.hub import Wanted, find_model

_HUB = ("revision", "token", "cache_dir", "local_files_only", "force_download")
_OWN = (
    "patch_size",
    "vision_feature_select_strategy",
    "image_token",
    "video_token",
    "chat_template",
    "num_additional_image_tokens",
    "max_positions",
    "video_pooling",
    "frame_window",
)
_TOKENIZER = ("padding_side", "truncation_side", "model_max_length", "add_eos_token", "split_special_tokens")
_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_PARTS = ("image_processor", "video_processor", "tokenizer")
_HINTS = (
    "use_fast",
    "backend",
    "trust_remote_code",
    "code_revision",
    "resume_download",
    "proxies",
    "use_auth_token",
    "subfolder",
    "_from_auto",
    "_from_pipeline",
    "torch_dtype",
    "dtype",
    "device_map",
    "device",
)


@dataclass(frozen=True)
class Loading:
    """Sorted arguments.

    Attributes:
        hub: of the hub.
        own: of the processor.
        images, videos, tokenizer: settings of its parts.
        special_tokens: by their role; the tokenizer gets those that it has not.
        parts: an image processor, a video processor or a tokenizer that takes the place of the saved one.
    """

    hub: dict[str, Any]
    own: dict[str, Any]
    images: dict[str, Any]
    videos: dict[str, Any]
    tokenizer: dict[str, Any]
    special_tokens: dict[str, Any]
    parts: dict[str, Any]


def sort(kwargs: Mapping[str, Any]) -> Loading:
    """Sorts the arguments of `from_pretrained`.

    Raises:
        TypeError: an unknown one.
        ValueError: a subfolder, or proxies.
    """
    parts = {"hub": _HUB, "own": _OWN, "tokenizer": _TOKENIZER, "special_tokens": _SPECIAL_TOKENS, "parts": _PARTS}
    parts |= {"images": tuple(IMAGES), "videos": tuple(VIDEOS - IMAGES)}
    known = {*_HINTS, *(name for names in parts.values() for name in names)}
    for name, value in kwargs.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            raise TypeError(
                f"from_pretrained: unknown argument {name!r}" + (f": did you mean {near[0]!r}?" if near else "")
            )
        if name == "subfolder" and value:
            raise ValueError("subfolder: give the directory itself, as the model's name or path")
        if name == "proxies" and value:
            raise ValueError("proxies: set HTTPS_PROXY in the environment, which the hub's client reads")
    given = {k: v for k, v in kwargs.items() if v is not None and k != "device"}
    return Loading(**{part: {k: v for k, v in given.items() if k in names} for part, names in parts.items()})


def directory(name: str | os.PathLike[str], hub: Mapping[str, Any]) -> Path:
    """Returns the directory of a model's side files, fetched from the hub where it is not here."""
    return find_model(name, Wanted.SIDE_FILES, **hub)


def settings(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of a saved sub-processor without the names of classes."""
    named = ("image_processor_type", "video_processor_type", "processor_class", "feature_extractor_type", "auto_map")
    return {name: value for name, value in plain_json(raw).items() if name not in named}


def plain_json(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Returns settings as JSON has them: sizes as dicts without what is absent, filters as numbers."""
    plain: dict[str, Any] = {}
    for name, value in raw.items():
        if hasattr(value, "items"):
            value = {key: size for key, size in value.items() if size is not None}
        plain[name] = int(value) if name == "resample" and value is not None else value
    return plain
