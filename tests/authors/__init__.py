"""What the authors' own code gives: prompts, labels, ids and pixels, made by PKU-YuanGroup/Video-LLaVA at 984e65b.

`prompts.json`: prompts as their templates write them, and their token ids by the real Llama-2 vocabulary; -200 stands
for one image, or for one frame of a video. `labels.json`: samples with the ids and labels of their training code.
`clip.mp4`, `wide.png`, `tall.png`: media of this project's. `pixels.npz`: what their transforms give for them, without
the flip of videos, float32, normalised, channels first, in the rows and columns `at`; `frame_indices`: their eight
frames; `video_pixels`: the first and the last of them. `wide_pixels` is their command line's image,
`wide_padded_pixels` the image padded to a square first, as in fine-tuning; `tall` likewise.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
CLIP, WIDE, TALL = HERE / "clip.mp4", HERE / "wide.png", HERE / "tall.png"
PLACE = -200
"""The id of one image, or one frame, in their ids."""


def prompts() -> dict[str, dict[str, Any]]:
    """Prompts and ids by name."""
    found: dict[str, dict[str, Any]] = json.loads((HERE / "prompts.json").read_text(encoding="utf-8"))
    return found


def samples() -> list[dict[str, Any]]:
    """The samples of `labels.json`."""
    found: list[dict[str, Any]] = json.loads((HERE / "labels.json").read_text(encoding="utf-8"))["samples"]
    return found


def pixels() -> dict[str, np.ndarray]:
    """The arrays of `pixels.npz`, by name."""
    return dict(np.load(HERE / "pixels.npz"))


def seen(pixels: np.ndarray, at: np.ndarray) -> np.ndarray:
    """The rows and columns `at` of pixels [..., S, S]."""
    return pixels[..., at, :][..., at]
