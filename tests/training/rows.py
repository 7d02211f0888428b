"""Drawn samples, as micro-batches of training and as arguments of transformers' model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.small_models import TEXT
from videollava_jax.config import ModelConfig
from videollava_jax.media.preprocess import FramePreprocessor
from videollava_jax.model.sharding import Placement, put
from videollava_jax.processing.segments import MediaKind
from videollava_jax.training.update.model import Batch

FRAMES = 2
UNCHANGED: dict[MediaKind, FramePreprocessor] = dict.fromkeys(
    ("image", "video"), FramePreprocessor(mean=(0, 0, 0), std=(1, 1, 1))
)
"""For a `TrainingModel` that takes pixels on the scale 0-1."""


@dataclass(frozen=True)
class Drawn:
    """One sample: ids and labels [T] (-100 where nothing is learnt), images [n, S, S, 3], videos [m, F, S, S, 3]."""

    ids: np.ndarray
    labels: np.ndarray
    images: np.ndarray
    videos: np.ndarray

    def for_torch(self, torch: Any) -> dict[str, Any]:
        """Arguments of transformers' model; pixels are normalised by nothing but 255."""
        given = {
            "input_ids": self.ids[None],
            "labels": self.labels[None],
            "attention_mask": np.ones_like(self.ids)[None],
        }
        for name, pixels in (("pixel_values", self.images), ("pixel_values_videos", self.videos)):
            if len(pixels):
                given[name] = (np.moveaxis(pixels, -1, -3) / 255).astype(np.float32)
        return {name: torch.tensor(value) for name, value in given.items()}


def drawn(config: ModelConfig, rng: np.random.Generator, media: str) -> Drawn:
    """A sample with media in this order (`"iv"`: an image, then a video), a question and an answer of drawn lengths."""
    S = config.vision_config.image_size
    places = {
        "i": [config.image_token_id] * config.tokens_per_image,
        "v": [config.video_token_id] * config.tokens_per_frame * FRAMES,
    }
    ids = [1, *rng.integers(3, TEXT, rng.integers(1, 4))]
    for medium in media:
        ids += [*places[medium], *rng.integers(3, TEXT, rng.integers(1, 4))]
    question, answer = len(ids), rng.integers(3, TEXT, rng.integers(1, 9))
    ids = np.array([*ids, *answer])
    return Drawn(
        ids=ids,
        labels=np.where(np.arange(len(ids)) >= question, ids, -100),
        images=rng.integers(0, 256, (media.count("i"), S, S, 3), dtype=np.uint8),
        videos=rng.integers(0, 256, (media.count("v"), FRAMES, S, S, 3), dtype=np.uint8),
    )


def packed(
    config: ModelConfig,
    rows: Sequence[Sequence[Drawn]],
    length: int,
    *,
    images: int = 4,
    videos: int = 2,
    placement: Placement | None = None,
) -> Batch:
    """Packs samples into rows of `length` tokens and of image and video slots; on the devices of a placement."""
    R, S = len(rows), config.vision_config.image_size
    arrays = {name: np.zeros((R, length), np.int32) for name in ("input_ids", "positions", "segments")}
    targets, media_index = (np.full((R, length), fill, np.int32) for fill in (-100, -1))
    image_pixels = np.zeros((R, images, S, S, 3), np.uint8)
    video_pixels = np.zeros((R, videos, FRAMES, S, S, 3), np.uint8)
    for r, row in enumerate(rows):
        start, next_image, next_video = 0, 0, images * config.tokens_per_image
        seen = [0, 0]
        for segment, sample in enumerate(row, 1):
            here = slice(start, start + len(sample.ids))
            arrays["input_ids"][r, here] = sample.ids
            arrays["positions"][r, here] = np.arange(len(sample.ids))
            arrays["segments"][r, here] = segment
            targets[r, here] = [*sample.labels[1:], -100]
            for i, token in enumerate(sample.ids, start):
                if token == config.image_token_id:
                    media_index[r, i], next_image = next_image, next_image + 1
                elif token == config.video_token_id:
                    media_index[r, i], next_video = next_video, next_video + 1
            image_pixels[r, seen[0] : seen[0] + len(sample.images)] = sample.images
            video_pixels[r, seen[1] : seen[1] + len(sample.videos)] = sample.videos
            seen = [seen[0] + len(sample.images), seen[1] + len(sample.videos)]
            start = here.stop
    batch = Batch(
        **{name: jnp.asarray(x) for name, x in arrays.items()},
        targets=jnp.asarray(targets),
        media_index=jnp.asarray(media_index),
        images=jnp.asarray(image_pixels),
        videos=jnp.asarray(video_pixels),
    )
    return batch if placement is None else jax.tree.map(lambda x: put(x, placement.batch(R)), batch)
