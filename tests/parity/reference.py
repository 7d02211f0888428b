"""Drawn prompts and batches for transformers and for ours, and the logits of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tests.small_models import TEXT, array
from videollava_jax.config import ModelConfig
from videollava_jax.model.video_llava import VideoLlava


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


def drawn_row(config: ModelConfig, rng: np.random.Generator, media: str, frames: int) -> Row:
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


def batch(config: ModelConfig, rng: np.random.Generator, media: Sequence[str], frames: int = 2) -> Batch:
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


def channels_last(pixels: np.ndarray) -> jnp.ndarray:
    """transformers' [..., 3, S, S] to our [..., S, S, 3]."""
    return jnp.asarray(np.moveaxis(pixels, -3, -1))


def assert_close(got: Any, expected: Any, atol: float) -> None:
    """Absolute difference only, as the tolerances are stated."""
    np.testing.assert_allclose(np.asarray(got, np.float32), np.asarray(expected, np.float32), rtol=0, atol=atol)
