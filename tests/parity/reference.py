"""Random transformers models, and ours with the same weights."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from videollava_jax.config import VideoLlavaConfig
from videollava_jax.model import VideoLlava, abstract_model, with_parameters

IMAGE, VIDEO, VOCABULARY = 90, 91, 99


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
    return HFVideoLlavaConfig(
        vision_config=vision | changes.pop("vision", {}),
        text_config=text | changes.pop("text", {}),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        **changes,
    )


def hf_model(torch: Any, config: Any, seed: int = 0) -> Any:
    """A random model of transformers' own initialisation, in float32, ready to run."""
    from transformers import VideoLlavaForConditionalGeneration

    torch.manual_seed(seed)
    return VideoLlavaForConditionalGeneration(config).eval()


def ours(model: Any, dtype: Any = jnp.float32) -> VideoLlava:
    """Our model with the weights of a transformers model in memory."""
    config = VideoLlavaConfig.from_hf(model.config)
    graph, state = nnx.split(abstract_model(config, dtype=dtype))
    weights = {
        name.removeprefix("model."): jnp.asarray(tensor.float().numpy(), dtype)
        for name, tensor in model.state_dict().items()
        if not (config.tie_word_embeddings and name == "lm_head.weight")
    }
    return nnx.merge(graph, with_parameters(state, weights))


def array(tensor: Any) -> np.ndarray:
    return tensor.detach().float().numpy()


def channels_last(pixels: np.ndarray) -> jnp.ndarray:
    """transformers' [..., 3, S, S] to our [..., S, S, 3]."""
    return jnp.asarray(np.moveaxis(pixels, -3, -1))


def assert_close(got: Any, expected: Any, atol: float) -> None:
    """Absolute difference only, as the tolerances are stated."""
    np.testing.assert_allclose(np.asarray(got, np.float32), np.asarray(expected, np.float32), rtol=0, atol=atol)
