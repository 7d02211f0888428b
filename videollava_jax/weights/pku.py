"""The authors' config.json: a Llama configuration with a few keys for the towers; shapes of weights say the rest."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from videollava_jax.config import ModelConfig, TextConfig, VisionConfig
from videollava_jax.weights.errors import WeightsError, cause
from videollava_jax.weights.files import StoredTensor

# LanguageBind's towers, as far as neither their config.json nor the weights' shapes say.
HEAD_DIM = 64
TOWER_ACT = "gelu"
TOWER_EPS = 1e-5
FEATURE_LAYER = -2
ROW_MULTIPLE = 64
"""The vocabulary's rows are padded to a multiple of this, as transformers' conversion does."""


def padded_rows(first_media_row: int) -> int:
    """Returns the vocabulary's rows with those for images, videos and padding, rounded up to `ROW_MULTIPLE`."""
    return -(-(first_media_row + 3) // ROW_MULTIPLE) * ROW_MULTIPLE


def is_pku_config(raw: Mapping[str, Any]) -> bool:
    """Returns whether the object in a config.json is the authors'."""
    return "mm_video_tower" in raw


def read_pku_config(
    directory: Path, raw: Mapping[str, Any], tensors: Mapping[str, StoredTensor], tower_config: Path | None
) -> ModelConfig:
    """Reads the configuration of a checkpoint of the authors'.

    Args:
      directory: of the checkpoint, for messages.
      raw: the object in its config.json.
      tensors: by our names, in the shapes that the files have.
      tower_config: LanguageBind's config.json (its `vision_config` is read), or None.

    Raises:
      WeightsError: a tensor whose shape is needed is missing, or the configuration asks for something that this model
        does not do.
    """
    projector = raw.get("mm_projector_type", "mlp2x_gelu")
    if projector != "mlp2x_gelu":
        raise WeightsError(f"{directory}: mm_projector_type {projector!r} is not supported: expected 'mlp2x_gelu'")
    heads = raw["num_attention_heads"]
    first_media_row = raw["vocab_size"]
    return ModelConfig(
        vision_config=_vision(directory, tensors, tower_config),
        text_config=TextConfig(
            vocab_size=padded_rows(first_media_row),
            hidden_size=raw["hidden_size"],
            intermediate_size=raw["intermediate_size"],
            num_hidden_layers=raw["num_hidden_layers"],
            num_attention_heads=heads,
            num_key_value_heads=raw.get("num_key_value_heads", heads),
            head_dim=raw["hidden_size"] // heads,
            hidden_act=raw.get("hidden_act", "silu"),
            max_position_embeddings=raw.get("max_position_embeddings", 4096),
            rms_norm_eps=raw.get("rms_norm_eps", 1e-5),
            rope_theta=float(raw.get("rope_theta", 10000.0)),
            bos_token_id=raw.get("bos_token_id", 1),
            eos_token_id=raw.get("eos_token_id", 2),
            pad_token_id=first_media_row + 2,
        ),
        variant="original",
        temporal_frames=_shape(directory, tensors, "video_tower.encoder.layers.0.temporal_embedding")[1],
        image_token_id=first_media_row,
        video_token_id=first_media_row + 1,
        vision_feature_layer=raw.get("mm_vision_select_layer", FEATURE_LAYER),
        vision_feature_select_strategy="default" if raw.get("mm_vision_select_feature", "patch") == "patch" else "full",
        tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
    )


def write_pku_config(config: ModelConfig) -> dict[str, Any]:
    """Returns the authors' config.json of a model; `read_pku_config` reads it back equal."""
    text = config.text_config
    return {
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava",
        "vocab_size": min(config.image_token_id, config.video_token_id),
        "hidden_size": text.hidden_size,
        "intermediate_size": text.intermediate_size,
        "num_hidden_layers": text.num_hidden_layers,
        "num_attention_heads": text.num_attention_heads,
        "num_key_value_heads": text.num_key_value_heads,
        "hidden_act": text.hidden_act,
        "max_position_embeddings": text.max_position_embeddings,
        "rms_norm_eps": text.rms_norm_eps,
        "rope_theta": text.rope_theta,
        "bos_token_id": text.bos_token_id,
        "eos_token_id": text.eos_token_id,
        "tie_word_embeddings": config.tie_word_embeddings,
        "mm_hidden_size": config.vision_config.hidden_size,
        "mm_image_tower": "LanguageBind/LanguageBind_Image",
        "mm_video_tower": "LanguageBind/LanguageBind_Video_merge",
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": config.vision_feature_layer,
        "mm_vision_select_feature": "patch" if config.vision_feature_select_strategy == "default" else "cls_patch",
        "use_mm_proj": True,
    }


def _vision(directory: Path, tensors: Mapping[str, StoredTensor], tower_config: Path | None) -> VisionConfig:
    said: dict[str, Any] = {}
    if tower_config is not None:
        said = read_json(tower_config)
        said = said.get("vision_config", said)
    patch = _shape(directory, tensors, "image_tower.embeddings.patch_embedding.weight")
    positions = _shape(directory, tensors, "image_tower.embeddings.position_embedding.weight")[0]
    layers = {name.split(".")[3] for name in tensors if name.startswith("image_tower.encoder.layers.")}
    width = patch[0]
    return VisionConfig(
        hidden_size=width,
        intermediate_size=_shape(directory, tensors, "image_tower.encoder.layers.0.mlp.fc1.weight")[0],
        num_hidden_layers=len(layers),
        num_attention_heads=said.get("num_attention_heads", max(1, width // HEAD_DIM)),
        num_channels=patch[1],
        image_size=math.isqrt(positions - 1) * patch[-1],
        patch_size=patch[-1],
        hidden_act=said.get("hidden_act", TOWER_ACT),
        layer_norm_eps=said.get("layer_norm_eps", TOWER_EPS),
    )


def _shape(directory: Path, tensors: Mapping[str, StoredTensor], name: str) -> tuple[int, ...]:
    if name not in tensors:
        raise WeightsError(f"{directory}: expected a tensor for {name}, whose shape says the towers' sizes; found none")
    return tensors[name].shape


def read_json(path: Path) -> dict[str, Any]:
    """Reads the object in a config.json.

    Raises:
      WeightsError: no such file, or something else in it.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe or a device could be read without an end
            raise WeightsError(f"{path}: expected a file")
        raw = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise WeightsError(f"{path}: no such file; expected the config.json of a checkpoint") from None
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({cause(error)})") from None
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: not valid JSON ({cause(error)})") from None
    if not isinstance(raw, dict):
        raise WeightsError(f"{path}: expected a JSON object, got a {type(raw).__name__}")
    return raw
