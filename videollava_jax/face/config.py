"""`VideoLlavaConfig` as transformers' users make and read it, and its translation to and from the core's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import VideoLlavaConfig as TransformersConfig

from videollava_jax.config import ModelConfig
from videollava_jax.json_files import read_object

_POSITIONAL = (
    "image_token_index",
    "video_token_index",
    "projector_hidden_act",
    "vision_feature_select_strategy",
    "vision_feature_layer",
    "image_seq_length",
    "video_seq_length",
    "multimodal_projector_bias",
)


class VideoLlavaConfig(TransformersConfig):  # type: ignore[misc]
    """transformers' `VideoLlavaConfig`, which needs no torch; it also takes arguments by position, as 4.x did.

    `from_pretrained`, `save_pretrained`, `to_dict`, `push_to_hub` and the rest are transformers' own. Our keys
    `variant` and `temporal_frames` are kept among its attributes.

    Args:
        vision_config: a `CLIPVisionConfig`, its dict, or None for ViT-L/14 at 224.
        text_config: a `LlamaConfig`, its dict, or None for transformers' default Llama.
        further: `image_token_index` and what follows it in transformers' documentation, in its order.
        named: any of them by name, and further keys.

    Raises:
        TypeError: more arguments by position than there are, or one given twice.
        huggingface_hub.errors.StrictDataclassError: a value of a wrong type.
    """

    def __init__(self, vision_config: Any = None, text_config: Any = None, *further: Any, **named: Any):
        if len(further) > len(_POSITIONAL):
            raise TypeError(
                f"VideoLlavaConfig: expected at most {len(_POSITIONAL) + 2} arguments by position, got "
                f"{len(further) + 2}"
            )
        for name, value in zip(_POSITIONAL, further, strict=False):
            if name in named:
                raise TypeError(f"VideoLlavaConfig: {name} was given twice, by position and by name")
            named[name] = value
        super().__init__(vision_config=vision_config, text_config=text_config, **named)


def to_model_config(config: Any) -> ModelConfig:
    """Returns the core's configuration of a transformers one, ours or transformers' own, or of its dict.

    Raises:
        ValueError: it asks for something that this model does not do.
    """
    return config if isinstance(config, ModelConfig) else ModelConfig.from_hf(config)


def from_model_config(config: ModelConfig) -> VideoLlavaConfig:
    """Returns transformers' configuration of the core's; `to_model_config` reads it back equal."""
    return VideoLlavaConfig(**config.to_hf())


def further_keys(config: Any, model: ModelConfig) -> dict[str, Any]:
    """Returns what a configuration holds that is none of the model's fields, for its config.json.

    Args:
        config: transformers' configuration of the model.
        model: the core's of the same.

    Returns:
        The further keys. A part that has some, `text_config` or `vision_config`, comes whole: with the model's fields.
    """
    given, own, written = config.to_dict(), from_model_config(model).to_dict(), model.to_hf()
    kept = {key: value for key, value in given.items() if key not in own and not key.startswith("_")}
    for part in ("text_config", "vision_config"):
        if further := {key: value for key, value in given[part].items() if key not in own[part]}:
            kept[part] = {**written[part], **further}
    return kept


def of_checkpoint(directory: Path, config: ModelConfig) -> VideoLlavaConfig:
    """Returns the configuration of a checkpoint, with every key of its config.json where that is transformers'.

    Args:
        directory: of the checkpoint.
        config: that it was loaded with.
    """
    try:
        written = read_object(directory / "config.json")
        if written.get("model_type") == "video_llava":
            found: VideoLlavaConfig = VideoLlavaConfig.from_dict(written)
            if to_model_config(found) == config:
                return found
    except (OSError, ValueError):
        pass  # the authors' layout, or files that are gone: what the model was loaded with says it all
    return from_model_config(config)
