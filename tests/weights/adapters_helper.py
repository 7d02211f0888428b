"""Random adapters on disk, as PEFT and the authors write them; names spelt out apart from the table under test."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from tests.small_models import DTYPES, small_config
from tests.weights.checkpoints import theirs
from videollava_jax.config import ModelConfig
from videollava_jax.model.video_llava import parameter_shapes
from videollava_jax.weights import Checkpoint

LAYOUTS = ("hub", "hf5", "memory", "memory4", "pku")
Q_PROJ = "language_model.layers.0.self_attn.q_proj.weight"
UP_PROJ = "language_model.layers.1.mlp.up_proj.weight"
TOWER = "image_tower.encoder.layers.1.mlp.fc1.weight"
PROJECTOR = ("multi_modal_projector.linear_1.", "multi_modal_projector.linear_2.")
LINEAR_1 = [PROJECTOR[0] + leaf for leaf in ("weight", "bias")]
WHOLE_PROJECTOR = [part + leaf for part in PROJECTOR for leaf in ("weight", "bias")]
CONFIG = small_config()


@dataclass
class Drawn:
    """An adapter to be written, by our names.

    Attributes:
      lora: A float [r, in] and B float [out, r].
      whole: tensors that take the place of others.
      ranks, alphas: of the weights in `lora` that have others than `rank` and `alpha`.
    """

    lora: dict[str, tuple[np.ndarray, np.ndarray]]
    whole: dict[str, np.ndarray] = field(default_factory=dict)
    rank: int = 2
    alpha: float = 8
    ranks: dict[str, int] = field(default_factory=dict)
    alphas: dict[str, float] = field(default_factory=dict)
    rslora: bool = False

    def scale(self, name: str) -> float:
        rank, alpha = self.ranks.get(name, self.rank), self.alphas.get(name, self.alpha)
        return alpha / rank**0.5 if self.rslora else alpha / rank


def draw(
    config: ModelConfig,
    names: Any = (Q_PROJ, UP_PROJ),
    whole: Any = (),
    seed: int = 0,
    dtype: str = "float32",
    integers: bool = False,
    **scaling: Any,
) -> Drawn:
    """A random adapter; of small whole numbers, whose products and sums are exact in any order, if `integers`."""
    rng = np.random.default_rng(seed)
    shapes = parameter_shapes(config)

    def array(*shape: int) -> np.ndarray:
        drawn = rng.integers(-3, 4, shape) if integers else rng.standard_normal(shape)
        return drawn.astype(DTYPES[dtype])

    drawn = Drawn({}, {name: array(*shapes[name]) for name in whole}, **scaling)
    for name in names:
        rank = drawn.ranks.get(name, drawn.rank)
        out, width = shapes[name]
        drawn.lora[name] = (array(rank, width), array(out, rank))
    return drawn


def named(name: str, layout: str) -> str:
    """A layout's name for one of our tensors."""
    if layout == "memory4":
        return theirs(name, "memory").replace("_tower.", "_tower.vision_model.")
    return theirs(name, layout)


def module(name: str, layout: str) -> str:
    return named(name, layout).removesuffix(".weight")


def files_of(drawn: Drawn, layout: str, adapter_name: str = "") -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(lora, whole) tensors by the names that PEFT gives them."""
    lora = {}
    for name, pair in drawn.lora.items():
        for half, value in zip("AB", pair, strict=True):
            lora[f"base_model.model.{module(name, layout)}.lora_{half}{adapter_name}.weight"] = value
    return lora, {f"base_model.model.{named(name, layout)}": value for name, value in drawn.whole.items()}


def config_of(drawn: Drawn, layout: str) -> dict[str, Any]:
    """adapter_config.json as PEFT writes it, with the keys it has for what is not used."""
    return {
        "peft_type": "LORA",
        "r": drawn.rank,
        "lora_alpha": drawn.alpha,
        "rank_pattern": {module(name, layout): value for name, value in drawn.ranks.items()},
        "alpha_pattern": {module(name, layout): value for name, value in drawn.alphas.items()},
        "use_rslora": drawn.rslora,
        "target_modules": [module(name, layout) for name in drawn.lora],
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "lora_dropout": 0.05,
        "use_dora": False,
        "loftq_config": {},
        "megatron_config": None,
        "megatron_core": "megatron.core",
        "qalora_group_size": 16,
        "task_type": "CAUSAL_LM",
    }


def write_adapter(directory: Path, drawn: Drawn, layout: str, adapter_name: str = "", **config: Any) -> Path:
    """Writes it as PEFT does: everything in adapter_model.safetensors."""
    lora, whole = files_of(drawn, layout, adapter_name)
    return write_files(directory, lora | whole, config_of(drawn, layout) | config)


def write_files(directory: Path, tensors: Mapping[str, np.ndarray], config: Any = None) -> Path:
    """Writes adapter_model.safetensors and, unless it is None, adapter_config.json."""
    directory.mkdir(parents=True, exist_ok=True)
    save_file(dict(tensors), directory / "adapter_model.safetensors", metadata={"format": "pt"})
    if config is not None:
        (directory / "adapter_config.json").write_text(json.dumps(config))
    return directory


def save_bin(torch: Any, path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """A torch file, as torch.save writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({name: to_torch(torch, value) for name, value in tensors.items()}, path)


def to_torch(torch: Any, value: np.ndarray) -> Any:
    if value.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(value.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(value.copy())


def from_torch(torch: Any, tensor: Any) -> np.ndarray:
    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def arrays(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    """Reads all tensors of a checkpoint."""
    return {name: tensor.read() for name, tensor in checkpoint.tensors.items()}


def expected_merge(parameters: Mapping[str, np.ndarray], drawn: Drawn) -> dict[str, np.ndarray]:
    """Computes W + scale · B @ A in float64, which is exact for small whole numbers."""
    merged = dict(parameters) | {name: value.astype(parameters[name].dtype) for name, value in drawn.whole.items()}
    for name, (a, b) in drawn.lora.items():
        added = drawn.scale(name) * (b.astype(np.float64) @ a.astype(np.float64))
        merged[name] = (merged[name].astype(np.float64) + added).astype(parameters[name].dtype)
    return merged
