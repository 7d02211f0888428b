"""Reads and writes the processor's files, with what it needs from the model's configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videollava_jax.config import ModelConfig, SelectStrategy, read_rope_scaling
from videollava_jax.named_errors import named_errors
from videollava_jax.processing.preset import PRESETS, Preset, get_preset
from videollava_jax.processing.prompt import get_template
from videollava_jax.processing.segments import MediaKind
from videollava_jax.processing.tokenizer import read_json

CHAT_TEMPLATE, CHAT_TEMPLATES = "chat_template.jinja", "additional_chat_templates"
"""The file of the default chat template, and the directory of further ones, each `NAME.jinja`."""


@dataclass(frozen=True)
class ModelFacts:
    """The parts of a model's config.json that the processor needs.

    Attributes:
        patch_size: of the vision towers.
        strategy: whether an image keeps its class token.
        max_positions: positions of the decoder; None if unknown.
        frame_window: a video's number of frames must be a multiple of this.
        preset: how the model wants to be asked.
        preprocessing: resizing, as in `preprocessor_config.json`, for directories without that file.
    """

    patch_size: int
    strategy: SelectStrategy
    max_positions: int | None
    frame_window: int
    preset: Preset
    preprocessing: dict[str, Any]


def model_facts(config: dict[str, Any]) -> ModelFacts:
    """Reads a model's config.json, ours or the authors'; {} if there is none."""
    if config.get("model_type") == "video_llava":
        model = ModelConfig.from_hf(config)
        side = model.vision_config.image_size
        return ModelFacts(
            patch_size=model.vision_config.patch_size,
            strategy=model.vision_feature_select_strategy,
            max_positions=model.text_config.max_positions,
            frame_window=model.frame_window,
            preset=_preset_of(model.variant, config),
            preprocessing=_square(side),
        )
    # The authors' checkpoints have a Llama configuration. Their towers take 224 pixels, the video tower attends over
    # 8 frames.
    preset = _preset_of("original" if config else "hf", config)
    window = 8 if "mm_video_tower" in config else 1
    return ModelFacts(14, "default", _positions_of(config), window, preset, _square(224))


def _positions_of(config: Mapping[str, Any]) -> int | None:
    """The positions of an authors' model, with those that its `rope_scaling` adds; None if unknown."""
    positions = config.get("max_position_embeddings")
    if not isinstance(positions, int):
        return None
    scaling = read_rope_scaling(config.get("rope_scaling") or config.get("rope_parameters"))
    return positions if scaling is None else int(positions * scaling.factor)


def _preset_of(variant: str, config: Mapping[str, Any]) -> Preset:
    """The preset of a variant, with padding where the authors' `image_aspect_ratio` asks for it."""
    ratio = config.get("image_aspect_ratio")
    if ratio not in (None, "square", "pad"):
        raise ValueError(f"image_aspect_ratio: expected 'pad' or 'square' in config.json, got {ratio!r}")
    return PRESETS[variant].changed({"pad_to_square": ratio == "pad"})


def _square(side: int) -> dict[str, Any]:
    return {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}


def read_settings(path: Path, preset: str | Preset | Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Reads a directory in transformers' layout: returns the arguments of `VideoLlavaProcessor` except the tokenizer.

    `image_processor` and `video_processor` (None: as images) are the content of `preprocessor_config.json`.

    Args:
        path: the directory.
        preset: instead of the directory's; or the fields of that which are to change, or under "name" of another.

    Raises:
        ValueError: a file that cannot be read, or a setting that is not supported.
    """
    config = read_json(path / "config.json") or {}
    saved = read_json(path / "processor_config.json") or {}
    image = saved.get("image_processor") or read_json(path / "preprocessor_config.json")
    video = saved.get("video_processor") or read_json(path / "video_preprocessor_config.json")
    model = model_facts(config)
    held = own = _own_preset(path, saved, model)
    if isinstance(preset, Mapping):
        start = _for_tokenizer(path, get_preset(preset["name"])) if "name" in preset else held
        own = start.changed({field: value for field, value in preset.items() if field != "name"})
    elif preset is not None:
        own = _for_tokenizer(path, get_preset(preset)) if isinstance(preset, str) else preset
    prompts = ("template", "media_order", "repeat_end")
    as_saved = all(getattr(own, field) == getattr(held, field) for field in prompts)
    return {
        "image_processor": image if image is not None else model.preprocessing,
        "video_processor": video,
        "patch_size": saved.get("patch_size", model.patch_size),
        "vision_feature_select_strategy": saved.get("vision_feature_select_strategy", model.strategy),
        "chat_template": _saved_chat_template(path, saved) if as_saved else None,
        "num_additional_image_tokens": saved.get("num_additional_image_tokens", 1),
        "preset": own,
        "template": own.template,
        "max_positions": saved.get("max_positions") if model.max_positions is None else model.max_positions,
        "video_pooling": saved.get("video_pooling", 1),
        "frame_window": model.frame_window if config else saved.get("frame_window", 1),
    }


def _own_preset(path: Path, saved: Mapping[str, Any], model: ModelFacts) -> Preset:
    """The preset that a directory holds, or that of its model."""
    preset = _for_tokenizer(path, model.preset)
    try:
        preset = Preset.from_json(saved["preset"]) if "preset" in saved else preset
        return preset.changed({"template": saved["prompt_template"]} if "prompt_template" in saved else {})
    except ValueError as error:
        raise ValueError(f"{path / 'processor_config.json'}: {error}") from None


def _for_tokenizer(path: Path, preset: Preset) -> Preset:
    """The preset for the tokenizer of a directory."""
    if preset.after_end != "trimmed":
        return preset
    # One that does not say `legacy: false` puts a space before text that follows a special token.
    legacy = (read_json(path / "tokenizer_config.json") or {}).get("legacy")
    return preset.changed({"after_end": "trimmed" if legacy is False else "anew"})


def preset_settings(preset: Preset, frame_window: int) -> dict[str, Any]:
    """Returns what `processor_config.json` says of a preset: its template, and the rest where no file means another.

    Args:
        preset: to be saved.
        frame_window: of the model; that of variant `hf`, whose own preset is `hf`, is 1.
    """
    kept = preset.to_json()
    return {
        "prompt_template": get_template(preset.template).name,
        **({"preset": kept} if frame_window != 1 or kept != PRESETS["hf"].to_json() else {}),
    }


def with_preset(path: Path, processor_config: bytes | None) -> bytes | None:
    """Returns a processor_config.json that holds the preset of a directory, for a copy whose config.json may not.

    Args:
        path: the directory.
        processor_config: what the file holds so far; None where there is none.

    Returns:
        None where nothing is to be added: the preset is in the file, or is `hf`'s.

    Raises:
        ValueError: a file of the directory that cannot be read.
    """
    settings = read_settings(path)
    made = preset_settings(settings["preset"], settings["frame_window"])
    held = {} if processor_config is None else json.loads(processor_config)
    if "preset" in held or "preset" not in made:
        return None
    return _json({**made, **held})


def _saved_chat_template(path: Path, saved: Mapping[str, Any]) -> str | dict[str, str] | None:
    """The chat template; where there are several, all of them by name."""
    raw = path / CHAT_TEMPLATE
    further = {file.stem: _text(file) for file in sorted((path / CHAT_TEMPLATES).glob("*.jinja"))}
    default = _text(raw) if raw.is_file() else None
    if default is None:
        legacy = (read_json(path / "chat_template.json") or saved).get("chat_template")
        default = legacy if isinstance(legacy, str) else None
    if not further:
        return default
    return further if default is None else {"default": default, **further}


def _text(file: Path) -> str:
    with named_errors(file):
        return file.read_text(encoding="utf-8")


def write_settings(
    path: Path,
    processor_class: str,
    preprocessing: Mapping[MediaKind, Mapping[str, Any]],
    *,
    settings: Mapping[str, Any],
    chat_template: str | Mapping[str, str],
) -> None:
    """Writes the files that `read_settings` and transformers read.

    Args:
        path: an existing directory.
        processor_class: the class's name, which transformers looks up.
        preprocessing: how images and frames become pixels, as in `preprocessor_config.json`.
        settings: the content of `processor_config.json`.
        chat_template: Jinja, or several by name.

    Raises:
        ValueError: a template's name is no file's name.
    """
    templates = {"default": chat_template} if isinstance(chat_template, str) else dict(chat_template)
    for given in templates:
        if not given or given != Path(given).name or "\\" in given:
            raise ValueError(f"chat_template: expected names that files can have, got {given!r}")
    name = {"processor_class": processor_class}
    _write_json(
        path / "preprocessor_config.json",
        {**preprocessing["image"], **name, "image_processor_type": "VideoLlavaImageProcessor"},
    )
    _write_json(
        path / "video_preprocessor_config.json",
        {**preprocessing["video"], **name, "video_processor_type": "VideoLlavaVideoProcessor"},
    )
    _write_json(path / "processor_config.json", {**name, **settings})
    if "default" in templates:
        (path / CHAT_TEMPLATE).write_text(templates.pop("default"), encoding="utf-8")
    for given, jinja in templates.items():
        (path / CHAT_TEMPLATES).mkdir(exist_ok=True)
        (path / CHAT_TEMPLATES / f"{given}.jinja").write_text(jinja, encoding="utf-8")


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_bytes(_json(value))


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()
