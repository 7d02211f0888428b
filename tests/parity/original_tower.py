"""The original video tower in torch, written from its description: time first, then space."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tests.small_models import array
from videollava_jax.config import VisionConfig

FRAMES = 8


def hidden_states(torch: Any, config: VisionConfig, weights: Mapping[str, Any], pixels: np.ndarray) -> list[Any]:
    """Hidden states [F, 1 + patches, D] before the first layer and after each, with torch's own modules.

    Args:
      weights: by our names within the tower.
      pixels: float32 [F, 3, S, S], one clip.
    """
    from transformers.activations import ACT2FN

    F = torch.nn.functional
    w = {name: torch.tensor(np.asarray(value)) for name, value in weights.items()}

    def norm(x: Any, name: str) -> Any:
        return F.layer_norm(x, (config.hidden_size,), w[f"{name}.weight"], w[f"{name}.bias"], config.layer_norm_eps)

    def linear(x: Any, name: str) -> Any:
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def attend(x: Any, name: str) -> Any:
        heads = [
            linear(x, f"{name}.{part}_proj").unflatten(-1, (config.num_attention_heads, -1)).transpose(1, 2)
            for part in "qkv"
        ]
        return linear(F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2), f"{name}.out_proj")

    patches = F.conv2d(torch.tensor(pixels), w["embeddings.patch_embedding.weight"], stride=config.patch_size)
    patches = patches.flatten(2).transpose(1, 2)
    classes = w["embeddings.class_embedding"].expand(len(pixels), 1, -1)
    x = torch.cat([classes, patches], dim=1) + w["embeddings.position_embedding.weight"]
    x = norm(x, "pre_layrnorm")
    hidden = [x]
    for i in range(config.num_hidden_layers):
        layer = f"encoder.layers.{i}"
        over_time = x.transpose(0, 1) + w[f"{layer}.temporal_embedding"]  # [positions, frames, D]
        attended = attend(norm(over_time, f"{layer}.temporal_layer_norm1"), f"{layer}.temporal_attn")
        x = (over_time + attended).transpose(0, 1)
        x = x + attend(norm(x, f"{layer}.layer_norm1"), f"{layer}.self_attn")
        mlp = ACT2FN[config.hidden_act](linear(norm(x, f"{layer}.layer_norm2"), f"{layer}.mlp.fc1"))
        x = x + linear(mlp, f"{layer}.mlp.fc2")
        hidden.append(x)
    return hidden


def see_through_it(torch: Any, model: Any, config: VisionConfig, weights: Mapping[str, Any]) -> None:
    """Replaces the video tower of a transformers model with this one.

    Args:
      weights: of the whole model, by our names.
    """
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    own = {n.removeprefix("video_tower."): w for n, w in weights.items() if n.startswith("video_tower.")}

    class Tower(torch.nn.Module):  # type: ignore[misc]
        def forward(self, pixel_values: Any, **_: Any) -> Any:
            clips = [hidden_states(torch, config, own, array(clip)) for clip in pixel_values.split(FRAMES)]
            states = tuple(torch.cat(layer) for layer in zip(*clips, strict=True))
            return BaseModelOutputWithPooling(last_hidden_state=states[-1], hidden_states=states)

    model.model.video_tower = Tower()
