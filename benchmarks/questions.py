"""Questions about videos of random pixels, and transformers' `generate` that is asked them."""

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
"""Of the bundled tokenizer: from the first that is not special to below those of media."""


def processor_for_224_pixels() -> VideoLlavaProcessor:
    """The bundled tokenizer with the preprocessing of the real model."""
    bundled = VideoLlavaProcessor.from_pretrained(TINY)
    return VideoLlavaProcessor(FramePreprocessor(), tokenizer=bundled.tokenizer, patch_size=14, max_positions=4096)


def random_videos(rng: np.random.Generator, count: int, side: int = 224) -> list[np.ndarray]:
    """Frames uint8 [8, side, side, 3] of each."""
    return [rng.integers(0, 256, (FRAMES, side, side, 3), dtype=np.uint8) for _ in range(count)]


def question_words(processor: VideoLlavaProcessor, rng: np.random.Generator, count: int, tokens: int) -> list[str]:
    """Different questions of exactly as many tokens as asked for, the template's end included."""
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
    """A question about a video in the model's template."""
    return f"USER: <video>\n{question} ASSISTANT:"


def requests_of(videos: Sequence[np.ndarray], words: Sequence[str], new_tokens: int) -> list[Request]:
    """Every question about every video, those about one video far apart."""
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
    """transformers' `generate`, so many questions at a time; their tokens by id.

    Args:
      model: of transformers, on any device.
      eos: tokens that are never chosen, so that all answers are of one length.
      options: for `generate`, beside those that make it greedy.
    """
    import torch  # here, as the side of JAX does without

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
