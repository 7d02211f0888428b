"""The authors' config.json: a Llama configuration with a few keys for the towers; shapes of weights say the rest."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from videollava_jax.config import (
    DEEPEST_PROJECTOR,
    ModelConfig,
    RopeScaling,
    SelectStrategy,
    TextConfig,
    Variant,
    VisionConfig,
    read_rope_scaling,
)
from videollava_jax.json_files import read_object
from videollava_jax.weights.errors import WeightsError, cause
from videollava_jax.weights.files import StoredTensor

# LanguageBind's towers, as far as neither their config.json nor the weights' shapes say.
HEAD_DIM = 64
WIDEST_OF_64 = 1024
"""CLIP's towers up to ViT-L have heads of 64; ViT-H and wider ones have 16 heads whatever their width is."""
TOWER_ACT = "gelu"
TOWER_EPS = 1e-5
FEATURE_LAYER = -2
TEMPORAL_FRAMES = 8
TEMPORAL_EMBEDDING = "video_tower.encoder.layers.0.temporal_embedding"
ROW_MULTIPLE = 64
"""The vocabulary's rows are padded to a multiple of this, as transformers' conversion does."""
IMAGE_TOWER, VIDEO_TOWER = "LanguageBind_Image", "LanguageBind_Video_merge"
"""The ends of the names of the towers that the authors' code runs with LanguageBind's classes."""
PROJECTOR_TYPE = "mlp2x_gelu"
SELECT_FEATURES: Mapping[str, SelectStrategy] = {"patch": "default", "cls_patch": "full"}
"""Their words for the features of an image that are taken, and transformers'."""
ASPECT_RATIOS = (None, "pad", "square")
INPUT_KEYS = ("image_aspect_ratio",)
"""Keys of config.json that say how inputs are made. No weight depends on them; conversions keep them."""

_NEEDED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_WITHOUT_EFFECT = {
    *("mm_hidden_size", "mm_projector_lr", "mm_resampler_type", "mm_use_im_patch_token", "mm_vision_tower"),
    *("mm_image_tower", "mm_video_tower", "mm_projector_type", "mm_use_im_start_end"),  # see `refusals`
    *("mm_vision_select_feature", "mm_vision_select_layer"),
}
"""Keys of the authors' that are known here; every other one that begins with `mm_` and is set is refused."""


def padded_rows(first_media_row: int) -> int:
    """Returns the vocabulary's rows with those for images, videos and padding, rounded up to `ROW_MULTIPLE`."""
    return -(-(first_media_row + 3) // ROW_MULTIPLE) * ROW_MULTIPLE


def is_pku_config(raw: Mapping[str, Any]) -> bool:
    """Returns whether the object in a config.json is the authors'."""
    return "mm_video_tower" in raw or "mm_image_tower" in raw


def refusals(raw: Mapping[str, Any], given: Mapping[str, Any]) -> Iterator[str]:
    """Yields a sentence for each value in the authors' config.json that this model cannot do.

    Args:
      raw: the object in config.json.
      given: by "image" and "video", the towers that were given apart from the checkpoint.
    """
    for key in _NEEDED:
        if key not in raw:
            yield f"{key} is missing"
    kinds = " ".join(map(str, (raw.get("model_type"), raw.get("architectures"))))
    if "mpt" in kinds.lower():
        yield f"model_type {raw.get('model_type')!r}: the decoder is an MPT; expected a Llama"
    for kind, end in (("image", IMAGE_TOWER), ("video", VIDEO_TOWER)):
        key = f"mm_{kind}_tower"
        name = raw.get(key)
        if name is None and kind not in given:
            other = "image" if kind == "video" else "video"
            yield (
                f"{key} null: a model of {other}s alone; expected both towers: --{kind}-tower DIR gives it one, whose "
                "features its projector was not trained on"
            )
        elif name is not None and not str(name).rstrip("/").endswith(end):
            yield (
                f"{key} {name!r}: expected {end}: other towers run another activation or preprocessing than "
                "LanguageBind's, and both towers have one configuration here"
            )
    if raw.get("mm_use_im_start_end"):
        yield (
            "mm_use_im_start_end true: media stand between tokens that no template here writes; expected a model that "
            "was trained with --mm_use_im_start_end False, as the authors' scripts do"
        )
    if _projector_layers(raw, {}) is None:
        said = raw.get("mm_projector_type")
        yield f"mm_projector_type {said!r}: expected linear, mlp1x_gelu to mlp{DEEPEST_PROJECTOR}x_gelu, or identity"
    feature = raw.get("mm_vision_select_feature", "patch")
    if feature not in SELECT_FEATURES:
        yield f"mm_vision_select_feature {feature!r}: expected one of {', '.join(SELECT_FEATURES)}"
    layer = raw.get("mm_vision_select_layer", FEATURE_LAYER)
    if type(layer) is not int:
        yield f"mm_vision_select_layer {layer!r}: expected one hidden state, such as -2"
    try:
        _rope(raw)
    except ValueError as error:
        yield str(error)
    if raw.get("image_aspect_ratio") not in ASPECT_RATIOS:
        yield f"image_aspect_ratio {raw['image_aspect_ratio']!r}: expected pad, square or null"
    for key, value in raw.items():
        if key.startswith("mm_") and value and key not in _WITHOUT_EFFECT and not key.endswith("_lr"):
            yield f"{key} {value!r}: not known here, and it may change what the model computes"


def read_pku_config(
    directory: Path,
    raw: Mapping[str, Any],
    tensors: Mapping[str, StoredTensor],
    tower_config: Path | None,
    towers: Mapping[str, VisionConfig] | None = None,
) -> ModelConfig:
    """Reads the configuration of a checkpoint of the authors'.

    Args:
      directory: of the checkpoint, for messages.
      raw: the object in its config.json.
      tensors: by our names, in the shapes that the files have.
      tower_config: LanguageBind's config.json (its `vision_config` is read), or None.
      towers: by "image" and "video", the configurations of towers that were given apart from the checkpoint.

    Raises:
      WeightsError: a tensor whose shape is needed is missing, or the configuration asks for something that this model
        does not do.
    """
    problems = list(refusals(raw, towers or {}))
    if problems:
        raise WeightsError(f"{directory}: its config.json asks for what is not here:\n  " + "\n  ".join(problems))
    heads = raw["num_attention_heads"]
    first_media_row = raw["vocab_size"]
    theta, scaling = _rope(raw)
    variant: Variant = "original"
    if "video" in (towers or {}) and TEMPORAL_EMBEDDING not in tensors:
        variant, frames = "hf", TEMPORAL_FRAMES
    else:
        frames = _shape(directory, tensors, TEMPORAL_EMBEDDING)[1]
    return ModelConfig(
        vision_config=_vision(directory, tensors, tower_config, towers or {}),
        text_config=TextConfig(
            vocab_size=padded_rows(first_media_row),
            hidden_size=raw["hidden_size"],
            intermediate_size=raw["intermediate_size"],
            num_hidden_layers=raw["num_hidden_layers"],
            num_attention_heads=heads,
            num_key_value_heads=raw.get("num_key_value_heads") or heads,
            head_dim=raw.get("head_dim") or raw["hidden_size"] // heads,
            hidden_act=raw.get("hidden_act", "silu"),
            max_position_embeddings=raw.get("max_position_embeddings", 4096),
            rms_norm_eps=raw.get("rms_norm_eps", 1e-5),
            rope_theta=theta,
            rope_scaling=scaling,
            attention_bias=bool(raw.get("attention_bias", False)),
            mlp_bias=bool(raw.get("mlp_bias", False)),
            bos_token_id=raw.get("bos_token_id", 1),
            eos_token_id=raw.get("eos_token_id", 2),
            pad_token_id=first_media_row + 2,
        ),
        variant=variant,
        temporal_frames=frames,
        projector_layers=_projector_layers(raw, tensors) or 0,
        image_token_id=first_media_row,
        video_token_id=first_media_row + 1,
        vision_feature_layer=raw.get("mm_vision_select_layer", FEATURE_LAYER),
        vision_feature_select_strategy=SELECT_FEATURES[raw.get("mm_vision_select_feature", "patch")],
        tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
    )


def write_pku_config(config: ModelConfig) -> dict[str, Any]:
    """Returns the authors' config.json of a model; `read_pku_config` reads it back equal."""
    text = config.text_config
    scaling = text.rope_scaling
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
        "rope_scaling": None if scaling is None else {"type": scaling.kind, "factor": scaling.factor},
        "attention_bias": text.attention_bias,
        "mlp_bias": text.mlp_bias,
        "bos_token_id": text.bos_token_id,
        "eos_token_id": text.eos_token_id,
        "tie_word_embeddings": config.tie_word_embeddings,
        "mm_hidden_size": config.vision_config.hidden_size,
        "mm_image_tower": f"LanguageBind/{IMAGE_TOWER}",
        "mm_video_tower": f"LanguageBind/{VIDEO_TOWER}",
        # "linear" names its tensors otherwise, and computes the same.
        "mm_projector_type": f"mlp{config.projector_layers}x_gelu" if config.projector_layers else "identity",
        "mm_vision_select_layer": config.vision_feature_layer,
        "mm_vision_select_feature": "patch" if config.vision_feature_select_strategy == "default" else "cls_patch",
        "use_mm_proj": True,
    }


def _projector_layers(raw: Mapping[str, Any], tensors: Mapping[str, Any]) -> int | None:
    """Returns the number of linear layers of the projector.

    It is what `build_vision_projector` makes of `mm_projector_type`, or None for a word that it does not know. Without
    that key the weights are counted, and without weights it is `PROJECTOR_TYPE`.
    """
    weights = [name for name in tensors if name.startswith("multi_modal_projector.") and name.endswith(".weight")]
    said = str(raw.get("mm_projector_type", f"mlp{len(weights)}x_gelu" if weights else PROJECTOR_TYPE))
    if said in ("linear", "identity"):
        return int(said == "linear")
    found = re.fullmatch(r"mlp(\d{1,2})x_gelu", said)
    # Their loop makes the first layer in any case.
    return None if found is None or int(found[1]) > DEEPEST_PROJECTOR else max(1, int(found[1]))


def _rope(raw: Mapping[str, Any]) -> tuple[float, RopeScaling | None]:
    """Returns the base of the rotary embedding and its scaling, where transformers 4 or 5 writes them.

    Raises:
      ValueError: a kind of scaling that this model does not have, or no number.
    """
    parameters = raw.get("rope_parameters") or {}
    scaling = read_rope_scaling(raw.get("rope_scaling") or parameters)
    theta = raw.get("rope_theta", parameters.get("rope_theta", 10000.0) if isinstance(parameters, Mapping) else None)
    if type(theta) not in (int, float):
        raise ValueError(f"rope_theta: expected a number, got {theta!r:.100}")
    return float(theta), scaling


def _vision(
    directory: Path,
    tensors: Mapping[str, StoredTensor],
    tower_config: Path | None,
    towers: Mapping[str, VisionConfig],
) -> VisionConfig:
    """Returns the configuration of both towers: that of towers with their own, else read off the image tower's shapes.

    Raises:
      WeightsError: two towers differ, or the shapes do not say how many heads there are.
    """
    if "image" in towers and towers["image"] != towers.get("video", towers["image"]):
        pairs = [(key, getattr(towers["image"], key), getattr(towers["video"], key)) for key in vars(towers["image"])]
        differ = "; ".join(f"{key} {one!r} and {other!r}" for key, one, other in pairs if one != other)
        raise WeightsError(f"{directory}: the towers for images and videos have to be of one shape, and have {differ}")
    if tower_config is None and towers:
        return next(iter(towers.values()))
    said: dict[str, Any] = {}
    if tower_config is not None:
        said = read_json(tower_config)
        said = said.get("vision_config", said)
    patch = _shape(directory, tensors, "image_tower.embeddings.patch_embedding.weight")
    positions = _shape(directory, tensors, "image_tower.embeddings.position_embedding.weight")[0]
    layers = {name.split(".")[3] for name in tensors if name.startswith("image_tower.encoder.layers.")}
    width = patch[0]
    if "num_attention_heads" not in said and (width > WIDEST_OF_64 or width % HEAD_DIM):
        raise WeightsError(
            f"{directory}: its config.json does not say how many heads its towers have, and at a width of {width} the "
            "shapes do not (ViT-H has 16 at 1280): --tower-config gives the config.json of LanguageBind's checkpoint"
        )
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
        return read_object(path)
    except FileNotFoundError:
        raise WeightsError(f"{path}: no such file; expected the config.json of a checkpoint") from None
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({cause(error)})") from None
    except ValueError as error:
        raise WeightsError(str(error)) from None
