"""What the authors' scripts start from and leave, on disk: a Llama, LanguageBind's towers, LoRA, a projector.

Names are spelt out here, apart from the tables under test.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from tests.small_models import random_parameters, small_config
from tests.weights.adapters_helper import WHOLE_PROJECTOR, Drawn, config_of, draw, files_of, save_bin
from tests.weights.checkpoints import theirs
from videollava_jax.config import ModelConfig

VICUNA = "lmsys/vicuna-7b-v1.5"
VOCABULARY = ("language_model.embed_tokens.weight", "lm_head.weight")
Arrays = Mapping[str, np.ndarray]


@dataclass
class Parts:
    """A whole model in parts.

    Attributes:
      config, parameters: of the whole; rows of the vocabulary as the authors' files have them.
      llm, image_tower, video_tower: the directories.
    """

    config: ModelConfig
    parameters: dict[str, np.ndarray]
    llm: Path
    image_tower: Path
    video_tower: Path

    @property
    def towers(self) -> list[str]:
        """The flags that give the towers."""
        return ["--image-tower", str(self.image_tower), "--video-tower", str(self.video_tower)]

    @property
    def projector(self) -> dict[str, np.ndarray]:
        """The projector's tensors."""
        return {name: self.parameters[name] for name in WHOLE_PROJECTOR}


def write_parts(place: Path, variant: str = "original", dtype: str = "float32", **changes: Any) -> Parts:
    """Draws a model and writes its parts below a directory."""
    config = small_config(variant, **changes)
    parameters = {n: np.rint(4 * v).astype(v.dtype) for n, v in random_parameters(config, 5, dtype).items()}
    parameters = without_media_rows(config, parameters)
    parts = Parts(config, parameters, place / "vicuna-7b-v1.5", place / "LB_Image", place / "LB_Video_merge")
    write_llama(parts.llm, config, parameters)
    for kind, directory in (("image", parts.image_tower), ("video", parts.video_tower)):
        write_tower(directory, config, parameters, kind)
    return parts


def without_media_rows(config: ModelConfig, parameters: Arrays) -> dict[str, np.ndarray]:
    """Returns parameters with the vocabulary's rows before those of media, as the authors' files have them."""
    first = config.image_token_id
    return {name: value[:first] if name in VOCABULARY else value for name, value in parameters.items()}


def llama_config(config: ModelConfig) -> dict[str, Any]:
    """The config.json of a Llama, as transformers 4.31 writes it."""
    text = config.text_config
    return {
        "_name_or_path": "vicuna-7b-v1.5",
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.image_token_id,
        "hidden_size": text.hidden_size,
        "intermediate_size": text.intermediate_size,
        "num_hidden_layers": text.num_hidden_layers,
        "num_attention_heads": text.num_attention_heads,
        "num_key_value_heads": text.num_key_value_heads,
        "hidden_act": "silu",
        "max_position_embeddings": text.max_position_embeddings,
        "rms_norm_eps": text.rms_norm_eps,
        "rope_scaling": None,
        "pretraining_tp": 1,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "use_cache": True,
    }


def authors_config(config: ModelConfig, **changes: Any) -> dict[str, Any]:
    """The config.json that the authors' training writes next to what it has trained."""
    return {
        **llama_config(config),
        "_name_or_path": VICUNA,
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava",
        "freeze_mm_mlp_adapter": False,
        "image_aspect_ratio": "pad",
        "mm_hidden_size": config.vision_config.hidden_size,
        "mm_image_tower": "LanguageBind/LanguageBind_Image",
        "mm_projector_lr": 2e-5,
        "mm_projector_type": "mlp2x_gelu",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_video_tower": "LanguageBind/LanguageBind_Video_merge",
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "tokenizer_model_max_length": 3072,
        "tokenizer_padding_side": "right",
        "tune_mm_mlp_adapter": False,
        "use_mm_proj": True,
        **changes,
    }


def write_llama(directory: Path, config: ModelConfig, parameters: Arrays, **changes: Any) -> Path:
    """Writes the decoder and the head as a Llama."""
    held = ("language_model.", "lm_head.")
    tensors = {theirs(name, "pku"): value for name, value in parameters.items() if name.startswith(held)}
    head_dim = config.text_config.head_dim
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(head_dim // 2, np.float32)
    return write(directory, tensors, llama_config(config) | changes)


def write_tower(directory: Path, config: ModelConfig, parameters: Arrays, kind: str, **changes: Any) -> Path:
    """Writes a tower as LanguageBind publishes it: with the text model and the projections of the whole."""
    tensors = {
        name.replace(f"{kind}_tower.", "vision_model."): value
        for name, value in parameters.items()
        if name.startswith(f"{kind}_tower.")
    }
    width = config.vision_config.hidden_size
    tensors |= {
        "text_model.final_layer_norm.weight": np.ones(8, np.float32),
        "visual_projection.weight": np.zeros((4, width), np.float32),
        "text_projection.weight": np.zeros((4, 8), np.float32),
        "logit_scale": np.zeros((), np.float32),
    }
    vision = dataclasses.asdict(config.vision_config) | {"lora_r": 0, "num_frames": 8 if kind == "video" else 1}
    vision |= {"add_time_attn": any(".temporal_" in name for name in tensors)}
    raw = {"model_type": f"LanguageBind{kind.title()}", "vision_config": vision | changes, "text_config": {}}
    return write(directory, tensors, raw)


def write(directory: Path, tensors: Arrays, config: Mapping[str, Any]) -> Path:
    """Writes a directory of safetensors with its config.json."""
    directory.mkdir(parents=True)
    save_file(dict(tensors), directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def draw_lora(config: ModelConfig, **scaling: Any) -> Drawn:
    """Draws what finetune_lora.sh trains: LoRA of all projections of the decoder, and the projector."""
    ends = ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj", "gate_proj")
    layers = range(config.text_config.num_hidden_layers)
    room = {end: "mlp" if end.split("_")[0] in ("up", "down", "gate") else "self_attn" for end in ends}
    names = [f"language_model.layers.{i}.{room[end]}.{end}.weight" for i in layers for end in ends]
    return draw(config, names, WHOLE_PROJECTOR, integers=True, **scaling)


def write_lora(torch: Any, directory: Path, config: ModelConfig, drawn: Drawn, **changes: Any) -> Path:
    """Writes what finetune_lora.sh leaves; `changes` are of adapter_config.json."""
    lora, whole = files_of(drawn, "pku")
    save_bin(torch, directory / "adapter_model.bin", lora)
    save_bin(torch, directory / "non_lora_trainables.bin", whole)
    raw = config_of(drawn, "pku") | {"base_model_name_or_path": VICUNA} | changes
    (directory / "adapter_config.json").write_text(json.dumps(raw))
    (directory / "config.json").write_text(json.dumps(authors_config(config)))
    return directory


def write_projector(torch: Any, directory: Path, config: ModelConfig, projector: Arrays, **changes: Any) -> Path:
    """Writes what pretrain.sh leaves; `changes` are of config.json."""
    save_bin(torch, directory / "mm_projector.bin", {theirs(name, "pku"): v for name, v in projector.items()})
    raw = authors_config(config, tune_mm_mlp_adapter=True, image_aspect_ratio="square") | changes
    (directory / "config.json").write_text(json.dumps(raw))
    return directory
