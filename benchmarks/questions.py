"""Makes questions about videos of random pixels, and runs transformers' `generate` on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from videollava_jax.assets import TINY
from videollava_jax.engine import Request
from videollava_jax.media import FramePreprocessor
from videollava_jax.processing.processor import VideoLlavaProcessor

FRAMES = 8
TEXT_IDS = (3, 600)
"""The range [from, to) of the bundled tokenizer's ids without special and media tokens."""


def processor_for_224_pixels() -> VideoLlavaProcessor:
    """Returns a processor with the bundled tokenizer and the preprocessing of the 7B model."""
    bundled = VideoLlavaProcessor.from_pretrained(TINY)
    return VideoLlavaProcessor(FramePreprocessor(), tokenizer=bundled.tokenizer, patch_size=14, max_positions=4096)


def random_videos(rng: np.random.Generator, count: int, side: int = 224) -> list[np.ndarray]:
    """Draws videos, uint8 [8, side, side, 3] each."""
    return [rng.integers(0, 256, (FRAMES, side, side, 3), dtype=np.uint8) for _ in range(count)]


def question_words(processor: VideoLlavaProcessor, rng: np.random.Generator, count: int, tokens: int) -> list[str]:
    """Draws questions of `tokens` tokens each, including the end of the template."""
    vocabulary = ["what", "colour", "is", "the", "shape", "where", "does", "it", "go", "how", "many", "are", "there"]
    questions = []
    for _ in range(count):
        text = ""
        while True:
            longer = f"{text} {rng.choice(vocabulary)}".strip()
            after = processor.encoder.encode_string(prompt_of(longer)).split()[1]
            if after.text_length > tokens:
                break
            text = longer
        questions.append(text)
    return questions


def prompt_of(question: str) -> str:
    """Writes a question about a video in the model's template."""
    return f"USER: <video>\n{question} ASSISTANT:"


def requests_of(videos: Sequence[np.ndarray], words: Sequence[str], new_tokens: int) -> list[Request]:
    """Returns a request for every question about every video; those about the same video are far apart."""
    return [
        Request(id=f"{v}-{q}", prompt=prompt_of(question), videos=[video], max_new_tokens=new_tokens)
        for q, question in enumerate(words)
        for v, video in enumerate(videos)
    ]


def reference(
    model: Any,
    processor: VideoLlavaProcessor,
    requests: Sequence[Request],
    batch: int,
    eos: Sequence[int],
    tokens: dict[str, list[int]],
    **options: Any,
) -> None:
    """Answers requests with transformers' `generate`, greedily.

    Args:
      model: of transformers, on any device.
      processor: ours.
      requests: to answer.
      batch: how many at a time.
      eos: tokens that are never chosen, so that all answers have the same length.
      tokens: receives the tokens of the answers, by id.
      options: more options of `generate`.
    """
    import torch  # here, because the JAX side runs without torch

    for start in range(0, len(requests), batch):
        chosen = requests[start : start + batch]
        inputs = processor(text=[r.prompt for r in chosen], videos=[v for r in chosen for v in r.videos], padding=True)
        prompt = inputs["input_ids"].shape[1]
        given = {name: torch.tensor(value).to(model.device) for name, value in inputs.items()}
        out = model.generate(
            **{name: x.to(model.dtype) if x.is_floating_point() else x for name, x in given.items()},
            max_new_tokens=chosen[0].max_new_tokens,
            do_sample=False,
            suppress_tokens=list(eos),
            pad_token_id=processor.tokenizer.pad_token_id,
            **options,
        )
        tokens |= {r.id: ids for r, ids in zip(chosen, out[:, prompt:].tolist(), strict=True)}
