"""Reads the usual `config.json` of a Video-LLaVA checkpoint without transformers, whose import takes seconds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_MODEL: Mapping[str, Any] = {
    "image_token_index": 32000,
    "video_token_index": 32001,
    "projector_hidden_act": "gelu",
    "vision_feature_select_strategy": "default",
    "vision_feature_layer": -2,
    "multimodal_projector_bias": True,
    "tie_word_embeddings": False,
}
"""Defaults of transformers' `VideoLlavaConfig`: what a key that the JSON leaves out means."""

VISION_DEFAULTS: Mapping[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
"""Defaults of transformers' `CLIPVisionConfig`."""

TEXT_DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,  # as many as num_attention_heads
    "head_dim": None,  # hidden_size / num_attention_heads
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "mlp_bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
    "tie_word_embeddings": None,  # as the model's
}
"""Defaults of transformers' `LlamaConfig`, without the rotary embedding."""

_ROPE_THETA = 10000.0

_OPTIONAL_NUMBERS = ("num_key_value_heads", "head_dim", "bos_token_id", "eos_token_id", "pad_token_id")
_NUMBERS_OR_LISTS = ("eos_token_id", "vision_feature_layer")

_WITHOUT_EFFECT: Mapping[str, tuple[type, ...]] = {
    "_name_or_path": (str,),
    "architectures": (list,),
    "attention_dropout": (float,),
    "dtype": (str, type(None)),
    "image_aspect_ratio": (str,),  # of the authors'; the processor reads it
    "ignore_index": (int,),
    "image_seq_length": (int,),
    "initializer_factor": (float,),
    "initializer_range": (float,),
    "pad_token_id": (int, type(None)),  # of the model; the tokenizer reads it
    "pretraining_tp": (int,),
    "projection_dim": (int,),
    "torch_dtype": (str, type(None)),
    "transformers_version": (str, type(None)),
    "use_cache": (bool,),
    "video_seq_length": (int,),
}
"""Keys that checkpoints have and that no answer depends on, with their types."""


def read_usual(raw: Mapping[str, Any], own_keys: tuple[str, ...]) -> dict[str, Any] | None:
    """Fills in what a usual configuration leaves out, as transformers does.

    Args:
        raw: the JSON object.
        own_keys: of the model, unknown to transformers; they are passed on unchecked.

    Returns:
        The values by transformers' keys, with dictionaries under `vision_config` and `text_config`; the rotary
        embedding is `rope_theta` and `rope_scaling` in the latter. None for JSON with another key, or a value of
        another type: let transformers read it, or say what is wrong with it.
    """
    model = _part(raw, "video_llava", _MODEL, (*own_keys, "vision_config", "text_config"))
    vision = _part(raw.get("vision_config"), "clip_vision_model", VISION_DEFAULTS, ("vocab_size",))
    text = _text(raw.get("text_config"))
    if model is None or vision is None or text is None:
        return None
    if model["vision_feature_select_strategy"] not in ("default", "full"):
        return None
    if text.pop("tie_word_embeddings") not in (None, model["tie_word_embeddings"]):
        return None
    if not _heads_fit(vision) or not _heads_fit(text):
        return None
    heads = text["num_attention_heads"]
    for key, value in (("num_key_value_heads", heads), ("head_dim", text["hidden_size"] // heads)):
        text[key] = value if text[key] is None else text[key]
    own = {key: raw[key] for key in own_keys if key in raw}
    return {**model, "vision_config": vision, "text_config": text, **own}


def _part(
    raw: Any, model_type: str, defaults: Mapping[str, Any], others: tuple[str, ...] = ()
) -> dict[str, Any] | None:
    """The values of a part's keys; None if it is another model, has an unknown key, or a value of another type."""
    if not isinstance(raw, Mapping) or raw.get("model_type") != model_type:
        return None
    if not raw.keys() <= {"model_type", *defaults, *_WITHOUT_EFFECT, *others}:
        return None
    for key, value in raw.items():
        if key in defaults:
            if not _has_type(key, value, defaults[key]):
                return None
        elif key in _WITHOUT_EFFECT and type(value) not in _WITHOUT_EFFECT[key]:
            return None
    return {key: raw.get(key, default) for key, default in defaults.items()}


def _has_type(key: str, value: Any, default: Any) -> bool:
    """Whether a value has a type that transformers takes under this key."""
    if key in _NUMBERS_OR_LISTS and isinstance(value, list):
        return bool(value) and all(type(item) is int for item in value)
    if key in _OPTIONAL_NUMBERS:
        return value is None or type(value) is int
    return type(value) is (bool if key == "tie_word_embeddings" else type(default))


def _text(raw: Any) -> dict[str, Any] | None:
    rotary = ("rope_theta", "rope_scaling", "rope_parameters")
    text = _part(raw, "llama", TEXT_DEFAULTS, rotary)
    rope = None if text is None else _rope(raw)
    return None if text is None or rope is None else {**text, **rope}


def _rope(text: Mapping[str, Any]) -> dict[str, Any] | None:
    """The rotary embedding, plain or scaled; None for another kind, or another way to say it."""
    if text.get("rope_scaling") is not None:
        return None
    parameters, scaling = text.get("rope_parameters"), None
    if parameters is None:
        theta = text.get("rope_theta", _ROPE_THETA)
    elif "rope_theta" in text or not isinstance(parameters, Mapping):
        return None
    else:
        theta = parameters.get("rope_theta")
        kind, factor = parameters.get("rope_type"), parameters.get("factor")
        if kind in ("linear", "dynamic") and len(parameters) == 3 and type(factor) is float:
            scaling = dict(parameters)
        elif kind != "default" or len(parameters) != 2:
            return None
    return {"rope_theta": theta, "rope_scaling": scaling} if type(theta) is float else None


def _heads_fit(part: Mapping[str, Any]) -> bool:
    heads = part["num_attention_heads"]
    return bool(heads > 0 and part["hidden_size"] % heads == 0)
