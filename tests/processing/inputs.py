"""A small processor, and images and videos of noise for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from videollava_jax.media import FramePreprocessor
from videollava_jax.processing.processor import VideoLlavaProcessor

SIDE = 28  # two patches of 14 a side: 4 tokens an image, 5 a frame

PREPROCESSING = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}


def make(tokenizer: Any, **settings_: Any) -> VideoLlavaProcessor:
    return VideoLlavaProcessor(FramePreprocessor.from_json(PREPROCESSING), tokenizer=tokenizer, **settings_)


def noise(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def image(height: int = 40, width: int = 50, seed: int = 0) -> Any:
    return noise(height, width, 3, seed=seed)


def video(frames: int = 8, height: int = 40, width: int = 50, seed: int = 0) -> Any:
    return noise(frames, height, width, 3, seed=seed)


def expanded(prompt: str, frames: int = 8) -> str:
    return prompt.replace("<video>", "<video>" * (frames * 5)).replace("<image>", "<image>" * 4)


def hf_pixels(*images: Any) -> Any:
    """Runs transformers' own image processor: float32 [N, 3, S, S]."""
    processing = pytest.importorskip("transformers.models.video_llava.image_processing_video_llava")
    reference = processing.VideoLlavaImageProcessor(**PREPROCESSING)
    return np.stack(reference(list(images), return_tensors=None, return_legacy_image_output=False)["pixel_values"])


def ask(*parts: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]}]
