"""Reads a configuration with transformers: its configuration objects, and JSON that `usual_json` does not know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from videollava_jax.config.ranges import TEXT_RANGES, VISION_RANGES, checked_rope, require_ranges
from videollava_jax.config.usual_json import TEXT_DEFAULTS, VISION_DEFAULTS


def read_by_transformers(source: Mapping[str, Any] | Any, own_keys: tuple[str, ...]) -> dict[str, Any]:
    """Returns what `usual_json.read_usual` returns, of any JSON that transformers can read.

    Args:
        source: the JSON object, or transformers' configuration.
        own_keys: of the model, unknown to transformers; they are passed on unchecked.

    Raises:
        ValueError: not a Video-LLaVA configuration, or one that asks for something this model does not do.
    """
    if isinstance(source, Mapping) and source.get("model_type") != "video_llava":
        raise ValueError(
            f"expected a configuration with model_type 'video_llava', got {source.get('model_type')!r:.100}"
        )

    from huggingface_hub.errors import StrictDataclassError
    from transformers import VideoLlavaConfig as HFVideoLlavaConfig

    if isinstance(source, HFVideoLlavaConfig):
        # Transformers keeps keys that it does not know as attributes of its configuration.
        own = {key: getattr(source, key) for key in own_keys if hasattr(source, key)}
        hf = source
    else:
        raw = {key: _without_labels(value) for key, value in _without_labels(source).items()}
        own = {key: raw.pop(key) for key in own_keys if key in raw}
        _check_parts(raw)
        try:
            hf = HFVideoLlavaConfig.from_dict(raw)
        except StrictDataclassError as error:
            raise ValueError(f"transformers refuses the configuration: {_one_line(error)}") from None
        except Exception as error:  # of any kind, by what a damaged file asks for
            raise ValueError(f"transformers cannot read the configuration ({_one_line(error)})") from None
    vision, text = hf.vision_config, hf.text_config
    for part, expected in ((vision, "clip_vision_model"), (text, "llama")):
        if part.model_type != expected:
            raise ValueError(f"expected a {expected} inside the configuration, got {part.model_type}")
    rope = dict(text.rope_parameters or {})
    return {
        "vision_config": {name: getattr(vision, name) for name in VISION_DEFAULTS},
        "text_config": {
            **{name: getattr(text, name) for name in TEXT_DEFAULTS if name != "tie_word_embeddings"},
            "rope_theta": float(rope.get("rope_theta", 10000.0)),
            "rope_scaling": None if rope.get("rope_type", "default") == "default" else rope,
        },
        "image_token_index": hf.image_token_index,
        "video_token_index": hf.video_token_index,
        "projector_hidden_act": hf.projector_hidden_act,
        "multimodal_projector_bias": hf.multimodal_projector_bias,
        "vision_feature_layer": hf.vision_feature_layer,
        "vision_feature_select_strategy": hf.vision_feature_select_strategy,
        "tie_word_embeddings": bool(hf.tie_word_embeddings),
        **own,
    }


def _check_parts(raw: Mapping[str, Any]) -> None:
    """Refuses values about which transformers' own errors are KeyErrors, divisions by zero and warnings."""
    vision, text = raw.get("vision_config"), raw.get("text_config")
    if isinstance(vision, Mapping):
        require_ranges("vision_config", vision, VISION_RANGES)
    if isinstance(text, Mapping):
        require_ranges("text_config", text, TEXT_RANGES)
        for key in ("rope_parameters", "rope_scaling"):
            checked_rope(text.get(key))


def _without_labels(part: Any) -> Any:
    """Returns a part of the JSON without the labels of classifiers: transformers makes a dictionary of any number."""
    labels = ("num_labels", "id2label", "label2id")
    return {key: value for key, value in part.items() if key not in labels} if isinstance(part, Mapping) else part


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
