"""Every small model of the tests: configurations, random weights, and the same weights in transformers' classes.

A new shape is compiled anew, in every program: take one of these where it will do.

    parity    `hf_config`: width 32 throughout, 2 layers of decoder; a transformers model and ours with its weights
    weights   `small_config`: heads of 64 in the towers, as LanguageBind's have; random arrays by our names
    training  `SMALL`: more layers than parts of them that run together, widths that divide over a mesh of 8
    engine    `random_model`: the bundled tiny model's shape, so that its processor serves it; random and sharp
"""

from __future__ import annotations

import dataclasses
from functools import lru_cache
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import nnx

from videollava_jax.config import ModelConfig, TextConfig, VisionConfig
from videollava_jax.face.model import VideoLlavaForConditionalGeneration
from videollava_jax.model.sharding import Placement, put
from videollava_jax.model.video_llava import (
    VideoLlava,
    abstract_model,
    named_parameters,
    parameter_shapes,
    with_parameters,
)

# ── parity: transformers' models and ours with their weights ──────────────────────────────────────────────────────

IMAGE, VIDEO, VOCABULARY = 90, 91, 99
TEXT = 80  # ids from 3 to here are text in the tests' prompts


def hf_config(**changes: Any) -> Any:
    """A small transformers configuration; `vision` and `text` change the parts, other names the whole."""
    from transformers import VideoLlavaConfig as HFVideoLlavaConfig

    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": 28,
        "patch_size": 14,
    }
    text = {
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 256,
        "pad_token_id": 0,
    }
    media = {"image_token_index": IMAGE, "video_token_index": VIDEO}
    parts = {"vision_config": vision | changes.pop("vision", {}), "text_config": text | changes.pop("text", {})}
    return HFVideoLlavaConfig(**(media | parts | changes))


def hf_model(torch: Any, config: Any, seed: int = 0) -> Any:
    """A random model of transformers' own initialisation, in float32, ready to run."""
    from transformers import VideoLlavaForConditionalGeneration

    torch.manual_seed(seed)
    return VideoLlavaForConditionalGeneration(config).eval()


def sharp_hf_model(torch: Any, config: Any, seed: int = 0) -> Any:
    """A random model in which every part matters: projections of unit gain, no bias 0 and no norm 1.

    With transformers' own initialisation and so small a width, scores of attention are near 0, logits near 0.02:
    attention averages whatever the positions are, and a wrong rotary base would stay within the tolerance.
    """
    model = hf_model(torch, config, seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
            else:
                parameter.normal_(0, parameter[0].numel() ** -0.5)
    return model


@lru_cache
def _abstract(config: ModelConfig, dtype: Any) -> tuple[Any, Any]:
    return nnx.split(abstract_model(config, dtype=dtype))


def ours(model: Any, dtype: Any = jnp.float32) -> VideoLlava:
    """Our model with the weights of a transformers model in memory."""
    config = ModelConfig.from_hf(model.config)
    return with_weights(config, weights_of(model), dtype)


def weights_of(model: Any) -> dict[str, np.ndarray]:
    """The weights of a transformers model by our names."""
    tied = model.config.tie_word_embeddings
    return {
        name.removeprefix("model."): array(tensor)
        for name, tensor in model.state_dict().items()
        if not (tied and name == "lm_head.weight")
    }


def public(model: Any, **generation_config: Any) -> VideoLlavaForConditionalGeneration:
    """Our public class with the weights of a transformers model in memory."""
    weights = {name: jnp.asarray(weight) for name, weight in weights_of(model).items()}
    return VideoLlavaForConditionalGeneration(ModelConfig.from_hf(model.config), weights, generation_config)


def with_weights(config: ModelConfig, weights: dict[str, np.ndarray], dtype: Any = jnp.float32) -> VideoLlava:
    graph, state = _abstract(config, dtype)
    return nnx.merge(graph, with_parameters(state, {n: jnp.asarray(w, dtype) for n, w in weights.items()}))


def array(tensor: Any) -> np.ndarray:
    return tensor.detach().float().numpy()


# ── weights: arrays by our names ──────────────────────────────────────────────────────────────────────────────────

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
ROWS = 40
"""Rows of the authors' vocabulary; media and padding have the ids behind them."""


def small_config(variant: str = "hf", **changes: Any) -> ModelConfig:
    """A model of a few thousand parameters, with heads of 64 in the towers as LanguageBind's have."""
    vision = dict(hidden_size=64, intermediate_size=24, num_hidden_layers=2, num_attention_heads=1, image_size=28)
    text = dict(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        pad_token_id=ROWS + 2,
    )
    act = "gelu" if variant == "original" else "quick_gelu"
    return ModelConfig(
        vision_config=VisionConfig(**(vision | {"hidden_act": act} | changes.pop("vision", {}))),
        text_config=TextConfig(**(text | changes.pop("text", {}))),
        variant=variant,
        image_token_id=ROWS,
        video_token_id=ROWS + 1,
        **changes,
    )


def random_parameters(config: ModelConfig, seed: int, dtype: str = "float32") -> dict[str, np.ndarray]:
    """Arrays by our names."""
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(DTYPES[dtype]) for name, shape in parameter_shapes(config).items()}


# ── training ──────────────────────────────────────────────────────────────────────────────────────────────────────

SMALL = ModelConfig(
    vision_config=VisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=2, image_size=28
    ),
    text_config=TextConfig(
        vocab_size=128, hidden_size=64, intermediate_size=96, num_hidden_layers=5, num_attention_heads=4,
        num_key_value_heads=4, head_dim=16,
    ),
    image_token_id=100,
    video_token_id=101,
)  # fmt: skip


# ── engine: the bundled model's shape ─────────────────────────────────────────────────────────────────────────────


def random_model(tiny, *, heads=8, kv_heads=8, mesh=None, **changes):
    """A random float32 model that the tiny one's processor serves, with logits far apart.

    Args:
      changes: of its configuration.
    """
    text = dataclasses.replace(
        tiny.model_config.text_config,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=16,
        vocab_size=-(-tiny.model_config.text_config.vocab_size // 8) * 8,
    )
    config = dataclasses.replace(tiny.model_config, text_config=text, **changes)
    return on_mesh(VideoLlavaForConditionalGeneration(config, dict(_sharp_parameters(config))), mesh)


@lru_cache
def _sharp_parameters(config: ModelConfig) -> dict[str, Any]:
    parameters = named_parameters(nnx.state(VideoLlava(config, rngs=nnx.Rngs(3))))
    for name in ("lm_head.weight", "language_model.embed_tokens.weight"):
        if name in parameters:
            parameters[name] = parameters[name] * 20
    return parameters


def on_mesh(model, mesh):
    """The same model on a mesh."""
    if mesh is None:
        return model
    place = Placement(model.model_config, mesh).parameter
    parameters = {name: put(np.asarray(x), place(name, x.shape)) for name, x in model.parameters.items()}
    return VideoLlavaForConditionalGeneration(
        model.model_config, parameters, dict(model.generation_defaults), mesh=mesh
    )


def poisoned(model, name):
    """The same model with one NaN in a parameter."""
    parameters = dict(model.parameters)
    parameters[name] = parameters[name].at[0, 0].set(jnp.nan)
    return VideoLlavaForConditionalGeneration(model.model_config, parameters, dict(model.generation_defaults))


def tiny_original(tiny):
    """The bundled model as an "original" one: its own weights, and attention over 8 frames that is drawn.

    golden.json holds what it says: numpy's `default_rng` draws the same on every version."""
    config = dataclasses.replace(tiny.model_config, variant="original")
    rng, weights = np.random.default_rng(0), dict(tiny.parameters)
    for name, shape in parameter_shapes(config).items():
        if ".temporal_" in name:
            weights[name] = jnp.asarray(shape[-1] ** -0.5 * rng.standard_normal(shape), jnp.float32)
    return VideoLlavaForConditionalGeneration(config, weights)
