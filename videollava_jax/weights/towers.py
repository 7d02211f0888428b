"""Vision towers in checkpoints of their own, LanguageBind's or CLIP's, by our names; no tensor is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from videollava_jax.config import VisionConfig
from videollava_jax.config.usual_json import VISION_DEFAULTS
from videollava_jax.hub import StrPath, local_path
from videollava_jax.weights.errors import WeightsError
from videollava_jax.weights.files import StoredTensor
from videollava_jax.weights.layouts import TEMPORAL, learnt
from videollava_jax.weights.pku import IMAGE_TOWER, VIDEO_TOWER, read_json
from videollava_jax.weights.source import CONFIG, Source

Kind = Literal["image", "video"]
KINDS: tuple[Kind, ...] = ("image", "video")
PUBLISHED = {"image": f"LanguageBind/{IMAGE_TOWER}", "video": f"LanguageBind/{VIDEO_TOWER}"}
"""The towers that the authors train with."""

_PREFIX = "vision_model."
_REST = ("text_model.", "visual_projection.", "text_projection.", "logit_scale")
"""What the checkpoints hold of the contrastive model that the tower was a half of: it is left out."""


@dataclass(frozen=True)
class Tower:
    """A vision tower on disk.

    Attributes:
      directory: that it was found in.
      config: of the tower.
      tensors: by our names (`image_tower.…` or `video_tower.…`).
    """

    directory: Path
    config: VisionConfig
    tensors: Mapping[str, StoredTensor]


def holds_tower(source: Source) -> bool:
    """Returns whether a directory has the names of LanguageBind's and CLIP's checkpoints."""
    return not source.is_orbax and any(name.startswith(_PREFIX) for name in source.stored)


def open_tower(directory: StrPath | Source, kind: Kind, tower_config: StrPath | None = None) -> Tower:
    """Opens the vision tower of a checkpoint of LanguageBind's, or of a CLIP model of transformers'.

    Args:
      directory: with config.json and the tensors.
      kind: the media that the tower is for.
      tower_config: a config.json that is read instead of the directory's.

    Raises:
      WeightsError: the names are others, or this is no tower for these media.
    """
    source = Source.open(directory)
    flag = f"--{kind}-tower {source.directory}"
    stored = source.stored
    lora = [name for name in stored if ".lora_" in name]
    if lora:
        raise WeightsError(
            f"{flag}: a tower with LoRA that is not merged ({lora[0]}): expected {PUBLISHED[kind]}, in which it is"
        )
    tensors = {
        f"{kind}_tower.{name.removeprefix(_PREFIX)}": stored[name]
        for name in learnt(stored)
        if not name.startswith(_REST)
    }
    unknown = [name for name in learnt(stored) if not name.startswith((_PREFIX, *_REST))]
    if unknown or not tensors:
        raise WeightsError(
            f"{flag}: expected a vision tower as LanguageBind publishes it ({PUBLISHED[kind]}), with names that begin "
            f"with {_PREFIX}; found {', '.join((unknown or list(stored))[:3])}"
        )
    if kind == "image" and any(TEMPORAL in name for name in tensors):
        raise WeightsError(f"{flag}: this tower attends over time: expected one for images, {PUBLISHED['image']}")
    if tower_config is None:
        config = _config_of(source.directory / CONFIG, source.config)
    else:
        config = _config_of(local_path(tower_config), read_json(local_path(tower_config)))
    return Tower(source.directory, config, tensors)


def _config_of(path: Path, raw: Mapping[str, Any]) -> VisionConfig:
    vision = raw
    if "vision_config" in raw or "vision_config_dict" in raw:
        # The latter goes before the former, as in LanguageBind's and transformers' classes.
        parts = [raw.get(key) or {} for key in ("vision_config", "vision_config_dict")]
        if not all(isinstance(part, Mapping) for part in parts):
            raise WeightsError(f"{path}: vision_config: expected an object")
        vision = {**parts[0], **parts[1]}
    try:
        # LanguageBind's `CLIPVisionConfig` has the defaults of transformers' one.
        return VisionConfig(**{key: vision.get(key, default) for key, default in VISION_DEFAULTS.items()})
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{path}: {error}") from None
