"""Compares the logits of two checkpoints on one fixed prompt: has a conversion changed what the model computes?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from jax.typing import DTypeLike

from videollava_jax.config import ModelConfig
from videollava_jax.generation.loaded import LoadedModel

TEXT_TOKENS = 16


@dataclass(frozen=True)
class LogitDifference:
    """How much the logits of two models differ.

    Attributes:
      largest: the largest absolute difference.
      rms: root mean square of the differences, divided by that of the first model's logits.
      same_choice: the share of positions at which both have the same likeliest token.
    """

    largest: float
    rms: float
    same_choice: float

    def __str__(self) -> str:
        return (
            f"logits differ by up to {self.largest:.3g} (rms {self.rms:.3g} of the logits' own); "
            f"the same token is likeliest at {self.same_choice:.1%} of the positions"
        )


def compare_logits(first: Path, second: Path, *, dtype: DTypeLike | None = None) -> LogitDifference:
    """Runs two checkpoints, one after the other, on text with one image and one clip.

    Args:
      first, second: directories in any layout.
      dtype: to run both in; None runs each in its own.

    Raises:
      ValueError: the checkpoints have different vocabularies, or one of them does not load.
    """
    a, b = _logits(first, dtype), _logits(second, dtype)
    if a.shape != b.shape:
        raise ValueError(f"{first} and {second}: logits of shapes {a.shape} and {b.shape} cannot be compared")
    apart = a - b
    return LogitDifference(
        largest=float(np.abs(apart).max()),
        rms=float(np.sqrt(np.square(apart).mean() / np.square(a).mean())),
        same_choice=float((a.argmax(-1) == b.argmax(-1)).mean()),
    )


def fixed_inputs(config: ModelConfig) -> dict[str, npt.NDArray[np.generic]]:
    """Returns one row of text, an image of noise, text, a clip of noise and text, drawn with a fixed seed."""
    rng = np.random.default_rng(0)
    side, frames = config.vision_config.image_size, config.temporal_frames
    words = config.text_vocab_size

    def text() -> list[int]:
        return [int(token) for token in rng.integers(min(3, words - 1), words, TEXT_TOKENS)]

    image = [config.image_token_id] * config.tokens_per_image
    left = config.text_config.max_positions - 3 * TEXT_TOKENS - len(image)
    if left < frames * config.tokens_per_frame:
        image = []  # a small model has no positions for both
    clip = [config.video_token_id] * (frames * config.tokens_per_frame)
    inputs: dict[str, npt.NDArray[np.generic]] = {
        "input_ids": np.array([text() + image + text() + clip + text()]),
        "pixel_values_videos": rng.standard_normal((1, frames, 3, side, side), np.float32),
    }
    if image:
        inputs["pixel_values_images"] = rng.standard_normal((1, 3, side, side), np.float32)
    return inputs


def _logits(path: Path, dtype: DTypeLike | None) -> npt.NDArray[np.float32]:
    model = LoadedModel.load(path, dtype=dtype)
    logits, _ = model.sequence_logits(**fixed_inputs(model.model_config))
    return np.asarray(logits, np.float32)
