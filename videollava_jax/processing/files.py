"""The processor's files, and what a model's configuration tells the processor."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videollava_jax.config import SelectStrategy, VideoLlavaConfig
from videollava_jax.processing.tokenizer import read_json


@dataclass(frozen=True)
class ModelFacts:
    """What a model's config.json tells the processor."""

    patch_size: int
    strategy: SelectStrategy
    max_positions: int | None
    frame_window: int
    template: str
    preprocessing: dict[str, Any]


def model_facts(config: dict[str, Any]) -> ModelFacts:
    if config.get("model_type") == "video_llava":
        model = VideoLlavaConfig.from_hf(config)
        side = model.vision_config.image_size
        return ModelFacts(
            patch_size=model.vision_config.patch_size,
            strategy=model.vision_feature_select_strategy,
            max_positions=model.text_config.max_position_embeddings,
            frame_window=model.frame_window,
            template="hf" if model.variant == "hf" else "vicuna_v1",
            preprocessing=_square(side),
        )
    # The authors' own checkpoints: a Llama configuration, towers of 224 pixels, the video tower attending over 8
    # frames, trained with Vicuna's prompt.
    template = "vicuna_v1" if config else "hf"
    window = 8 if "mm_video_tower" in config else 1
    return ModelFacts(14, "default", config.get("max_position_embeddings"), window, template, _square(224))


def _square(side: int) -> dict[str, Any]:
    return {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}


def saved_chat_template(path: Path, saved: Mapping[str, Any]) -> str | None:
    raw = path / "chat_template.jinja"
    if raw.is_file():
        return raw.read_text(encoding="utf-8")
    legacy = (read_json(path / "chat_template.json") or saved).get("chat_template")
    return legacy if isinstance(legacy, str) else None


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
