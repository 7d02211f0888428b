"""Checkpoints on disk, in any layout, written with the safetensors library and names spelt out here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from tests.small_models import ROWS
from videollava_jax.config import ModelConfig


def theirs(name: str, layout: str) -> str:
    """A layout's name for one of our parameters, by string replacement: written apart from the table under test."""
    tower = "_tower." in name
    if layout == "memory":
        return name if name.startswith("lm_head") else f"model.{name}"
    if layout == "pku":
        if tower:
            kind = name.split("_tower.")[0]
            return name.replace(f"{kind}_tower.", f"model.{kind}_tower.{kind}_tower.")
        name = name.replace("multi_modal_projector.linear_1", "model.mm_projector.0")
        name = name.replace("multi_modal_projector.linear_2", "model.mm_projector.2")
        return name.replace("language_model.", "model.")
    if tower:
        return name.replace("_tower.", "_tower.vision_model.") if layout == "hub" else name
    return name.replace("language_model.", "language_model.model.").replace("lm_head", "language_model.lm_head")


def write_checkpoint(
    directory: Path, config: ModelConfig, parameters: dict[str, np.ndarray], layout: str, shards: int = 1
) -> dict[str, np.ndarray]:
    """Writes a checkpoint as its authors would; the tensors by the layout's names."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {theirs(name, layout): value for name, value in parameters.items()}
    if layout == "pku":
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            if name in tensors:
                tensors[name] = tensors[name][:ROWS]
        text = config.text_config
        raw: dict[str, Any] = {
            "model_type": "llava",
            "architectures": ["LlavaLlamaForCausalLM"],
            "vocab_size": ROWS,
            "hidden_size": text.hidden_size,
            "intermediate_size": text.intermediate_size,
            "num_hidden_layers": text.num_hidden_layers,
            "num_attention_heads": text.num_attention_heads,
            "num_key_value_heads": text.num_key_value_heads,
            "rms_norm_eps": 1e-5,
            "mm_video_tower": "LanguageBind/LanguageBind_Video_merge",
            "mm_image_tower": "LanguageBind/LanguageBind_Image",
            "mm_projector_type": "mlp2x_gelu",
            "mm_vision_select_layer": -2,
            "tie_word_embeddings": config.tie_word_embeddings,
        }
    else:
        raw = config.to_hf()
    (directory / "config.json").write_text(json.dumps(raw))
    names = list(tensors)
    if shards == 1:
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    else:
        weight_map = {}
        for i in range(shards):
            file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
            save_file({name: tensors[name] for name in names[i::shards]}, directory / file, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(names[i::shards], file)
        index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return tensors


def read_all(directory: Path) -> dict[str, np.ndarray]:
    """Every tensor of a directory of safetensors, by the library."""
    from safetensors.numpy import load_file

    tensors: dict[str, np.ndarray] = {}
    for path in sorted(directory.glob("*.safetensors")):
        tensors |= load_file(path)
    return tensors


def assert_same_bits(got: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert got[name].dtype == value.dtype, name
        assert got[name].shape == value.shape, name
        assert got[name].tobytes() == value.tobytes(), name
