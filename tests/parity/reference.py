"""Random transformers models, ours with the same weights, and batches for both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from videollava_jax.config import VideoLlavaConfig
from videollava_jax.generation.pretrained import VideoLlavaForConditionalGeneration
from videollava_jax.model.video_llava import VideoLlava, abstract_model, with_parameters

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
def _abstract(config: VideoLlavaConfig, dtype: Any) -> tuple[Any, Any]:
    return nnx.split(abstract_model(config, dtype=dtype))


def ours(model: Any, dtype: Any = jnp.float32) -> VideoLlava:
    """Our model with the weights of a transformers model in memory."""
    config = VideoLlavaConfig.from_hf(model.config)
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
    return VideoLlavaForConditionalGeneration(VideoLlavaConfig.from_hf(model.config), weights, generation_config)


def with_weights(config: VideoLlavaConfig, weights: dict[str, np.ndarray], dtype: Any = jnp.float32) -> VideoLlava:
    graph, state = _abstract(config, dtype)
    return nnx.merge(graph, with_parameters(state, {n: jnp.asarray(w, dtype) for n, w in weights.items()}))


@dataclass(frozen=True)
class Batch:
    """Prompts padded on the left, and their media as processors give them.

    Attributes:
      ids, mask: int [B, T].
      images: float32 [N, 3, S, S], None for none.
      videos: float32 [V, F, 3, S, S], None for none.
    """

    ids: np.ndarray
    mask: np.ndarray
    images: np.ndarray | None
    videos: np.ndarray | None

    def for_ours(self) -> dict[str, np.ndarray | None]:
        """Arguments of our `VideoLlavaForConditionalGeneration`."""
        return {
            "input_ids": self.ids,
            "attention_mask": self.mask,
            "pixel_values_images": self.images,
            "pixel_values_videos": self.videos,
        }

    def for_torch(self, torch: Any) -> dict[str, Any]:
        """Arguments of transformers' model; pixels in float32."""
        given = self.for_ours()
        given["pixel_values"] = given.pop("pixel_values_images")
        return {name: torch.tensor(value) for name, value in given.items() if value is not None}


@dataclass(frozen=True)
class Row:
    """One prompt: ids [T], images [n, 3, S, S], videos [m, F, 3, S, S]."""

    ids: np.ndarray
    images: np.ndarray
    videos: np.ndarray


def drawn_row(config: VideoLlavaConfig, rng: np.random.Generator, media: str, frames: int) -> Row:
    """A drawn prompt with drawn media; text of drawn lengths stands before, between and behind them.

    Args:
      media: in their order: `"iv"` is an image and then a video, `""` text alone.
    """
    size = config.vision_config.image_size
    places = {
        "i": [config.image_token_id] * config.tokens_per_image,
        "v": [config.video_token_id] * config.tokens_per_frame * frames,
    }
    ids = list(rng.integers(3, TEXT, rng.integers(1, 5)))
    for medium in media:
        ids += [*places[medium], *rng.integers(3, TEXT, rng.integers(1, 6))]
    return Row(
        ids=np.array(ids),
        images=rng.standard_normal((media.count("i"), 3, size, size)).astype(np.float32),
        videos=rng.standard_normal((media.count("v"), frames, 3, size, size)).astype(np.float32),
    )


def collate(rows: Sequence[Row], *, pad: int = 0, padding: int = 0) -> Batch:
    """The rows as one batch, with `padding` more columns than the longest needs."""
    length = padding + max(len(row.ids) for row in rows)
    images, videos = (np.concatenate([getattr(row, kind) for row in rows]) for kind in ("images", "videos"))
    return Batch(
        ids=np.array([np.pad(row.ids, (length - len(row.ids), 0), constant_values=pad) for row in rows]),
        mask=np.array([[0] * (length - len(row.ids)) + [1] * len(row.ids) for row in rows]),
        images=images if len(images) else None,
        videos=videos if len(videos) else None,
    )


def batch(config: VideoLlavaConfig, rng: np.random.Generator, media: Sequence[str], frames: int = 2) -> Batch:
    """A batch of drawn prompts, one for each entry of `media`."""
    return collate([drawn_row(config, rng, row, frames) for row in media])


def hf_logits(torch: Any, model: Any, given: Batch) -> np.ndarray:
    """float32 [B, T, V] of a transformers model, computed in the dtype of its weights."""
    arguments = given.for_torch(torch)
    for name in ("pixel_values", "pixel_values_videos"):
        if name in arguments:
            arguments[name] = arguments[name].to(model.dtype)
    with torch.no_grad():
        return array(model(**arguments).logits)


@partial(jax.jit, static_argnums=0)
def _logits(graph: Any, state: Any, given: dict[str, jax.Array | None]) -> jax.Array:
    model: VideoLlava = nnx.merge(graph, state)
    features = [
        None if given[name] is None else encode(jnp.moveaxis(given[name], -3, -1))
        for name, encode in (("images", model.encode_images), ("videos", model.encode_videos))
    ]
    return model(given["ids"], given["mask"], *features)


def logits(model: VideoLlava, given: Batch) -> np.ndarray:
    """float32 [B, T, V] of our model: encode, then the whole sequences."""
    return np.asarray(_logits(*nnx.split(model), vars(given)), np.float32)


def array(tensor: Any) -> np.ndarray:
    return tensor.detach().float().numpy()


def channels_last(pixels: np.ndarray) -> jnp.ndarray:
    """transformers' [..., 3, S, S] to our [..., S, S, 3]."""
    return jnp.asarray(np.moveaxis(pixels, -3, -1))


def assert_close(got: Any, expected: Any, atol: float) -> None:
    """Absolute difference only, as the tolerances are stated."""
    np.testing.assert_allclose(np.asarray(got, np.float32), np.asarray(expected, np.float32), rtol=0, atol=atol)
