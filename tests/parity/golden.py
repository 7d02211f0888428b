"""What transformers on torch says with the tiny model's weights, written down for Pythons without torch.

    python -m tests.parity.golden        writes golden.json next to this file

Variant "hf" is transformers' own class. "original" is that class with the video tower of `original_tower`, in which
attention over time has the weights that `tiny_original` draws with numpy's `default_rng(0)`: its stream is the same in
every version. Pictures are drawn scenes as rendered, so that the numbers do not depend on a video decoder.
"""

from __future__ import annotations

import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from videollava_jax.assets.world import EVAL_SEEDS, sample_clip, sample_image

FILE = Path(__file__).with_suffix(".json")
NEW_TOKENS = 8
EVERY = 8
"""Every eighth logit is kept, and the logarithm of the sum of the exponentials of all."""


def inputs(processor: Any) -> dict[str, np.ndarray]:
    """Four padded rows as the processor gives them: about a clip, an image, both, and about nothing."""
    clips = [sample_clip(seed) for seed in EVAL_SEEDS[:2]]
    images = [sample_image(seed) for seed in EVAL_SEEDS[:2]]
    text = [
        f"USER: <video>\n{clips[0].questions[0].text} ASSISTANT:",
        f"USER: <image>\n{images[0].questions[0].text} ASSISTANT:",
        f"USER: <image><video>\n{clips[1].questions[0].text} ASSISTANT:",
        "USER: What colour is it? ASSISTANT:",
    ]
    frames = [clip.frames[:: len(clip.frames) // 8][:8] for clip in clips]
    given = processor(
        text=text, videos=frames, images=[image.frames[0] for image in images], padding=True, return_tensors="np"
    )
    return {name: np.asarray(value) for name, value in given.items()}


def summary(logits: Any, tokens: Any) -> dict[str, Any]:
    """What the file keeps of each row's last logits, [B, V], and of its new tokens."""
    logits = np.asarray(logits, np.float64)
    top = logits.max(-1, keepdims=True)
    sums = np.log(np.exp(logits - top).sum(-1)) + top[:, 0]
    return {
        "logits": np.round(logits[:, ::EVERY], 6).tolist(),
        "log_sum_exp": np.round(sums, 6).tolist(),
        "tokens": np.asarray(tokens).tolist(),
    }


def ours(model: Any, given: dict[str, np.ndarray]) -> dict[str, Any]:
    """The same of our model."""
    tokens = model.generate(**given, max_new_tokens=NEW_TOKENS)
    return summary(model(**given).logits[:, -1], tokens[:, given["input_ids"].shape[1] :])


def transformers(torch: Any, model: Any, given: dict[str, np.ndarray]) -> dict[str, Any]:
    """The same of a transformers model."""
    tensors = {name: torch.from_numpy(value) for name, value in given.items()}
    with torch.no_grad():
        logits = model(**tensors).logits[:, -1]
        tokens = model.generate(**tensors, max_new_tokens=NEW_TOKENS, do_sample=False)
    return summary(logits.numpy(), tokens.numpy()[:, given["input_ids"].shape[1] :])


def reference(torch: Any, variant: str, original: Any) -> Any:
    """The tiny model in transformers; for "original" with its video tower, and the weights of `original` in that."""
    from transformers import VideoLlavaForConditionalGeneration

    from tests.parity.original_tower import see_through_it
    from videollava_jax.assets import TINY

    model = VideoLlavaForConditionalGeneration.from_pretrained(TINY, dtype=torch.float32).eval()
    if variant == "original":
        see_through_it(torch, model, original.model_config.vision_config, original.parameters)
    return model


def main() -> None:
    import torch

    from tests.small_models import tiny_original
    from videollava_jax import VideoLlavaForConditionalGeneration, VideoLlavaProcessor
    from videollava_jax.assets import TINY

    given = inputs(VideoLlavaProcessor.from_pretrained(TINY))
    original = tiny_original(VideoLlavaForConditionalGeneration.from_pretrained(TINY))
    made_with = {name: version(name) for name in ("transformers", "torch", "numpy")} | {
        "python": platform.python_version()
    }
    found = {name: transformers(torch, reference(torch, name, original), given) for name in ("hf", "original")}
    FILE.write_text(json.dumps({"made by": "python -m tests.parity.golden", "with": made_with, **found}) + "\n")
    print(f"{FILE}: {FILE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
