"""What a run of `tiny.py` writes: the checkpoint as transformers saves it, its card, and the tables on the terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tiny_model import Parameters

from videollava_jax.assets.world import CLIP_KINDS, EVAL_SEEDS, IMAGE_KINDS
from videollava_jax.config import ModelConfig
from videollava_jax.processing.processor import VideoLlavaProcessor

Report = dict[str, dict[str, list[int]]]
"""[right, asked] by kind of question, by name of the media."""
FIRST_WIDE = 10_000
"""The wide evaluation begins this many seeds after the evaluation of 300, in the range of evaluation seeds."""


def save(
    out: Path,
    parameters: Parameters,
    config: ModelConfig,
    processor: VideoLlavaProcessor,
    tokenizer_model: bytes,
) -> None:
    """Writes the checkpoint as transformers 5 saves it."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "tokenizer.model").write_bytes(tokenizer_model)
    processor.save_pretrained(out)
    (out / "config.json").write_text(json.dumps({**config.to_hf(), "dtype": "float32"}, indent=2) + "\n")
    generation = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": processor.tokenizer.pad_token_id}
    (out / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    tensors = {stored_name(name): np.asarray(value, np.float32) for name, value in parameters.items()}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})


def stored_name(name: str) -> str:
    """Returns the name that transformers 5 stores a parameter under."""
    if name.startswith("lm_head."):
        return f"language_model.{name}"
    return name.replace("language_model.", "language_model.model.", 1)


def print_table(title: str, report: Report) -> None:
    """Prints the share of right answers, in all and by kind."""
    print(f"\nafter stage {title}: exact answers on unseen media")
    for name, counts in report.items():
        kinds = CLIP_KINDS if "clips" in name else IMAGE_KINDS
        cells = [f"{kind} {percent(counts[kind])}" for kind in kinds if kind in counts]
        print(f"  {name:12} {percent(total(counts)):>6}   " + "  ".join(cells))
    print()


def percent(counts: list[int]) -> str:
    """Formats [right, asked] as a percentage."""
    return f"{100 * counts[0] / counts[1]:.1f}%"


def total(counts: dict[str, list[int]]) -> list[int]:
    """Sums [right, asked] over all kinds."""
    return [sum(count[i] for count in counts.values()) for i in range(2)]


def write_card(
    out: Path,
    recipe: Mapping[str, Any],
    report: Report,
    parameters: Parameters,
    minutes: float,
) -> None:
    """Writes `card.json` for programs and `README.md` for people: data, steps, seed, right answers by kind."""
    size = sum(value.size for value in parameters.values())
    card = {
        "parameters": size,
        "recipe": dict(recipe),
        "minutes": round(minutes, 1),
        "train_seeds": {"clips": [0, recipe["clips"]], "images": [0, recipe["images"]]},
        "eval_seeds": [EVAL_SEEDS.start, EVAL_SEEDS.start + recipe["evaluated"]],
        "wide_eval_seeds": [
            EVAL_SEEDS.start + FIRST_WIDE,
            EVAL_SEEDS.start + FIRST_WIDE + recipe["evaluated_wide"],
        ],
        "accuracy": report,
    }
    (out / "card.json").write_text(json.dumps(card, indent=2) + "\n")
    rows = []
    for name, counts in report.items():
        kinds = CLIP_KINDS if "clips" in name else IMAGE_KINDS
        for kind in (*(kind for kind in kinds if kind in counts), "all"):
            right, asked = total(counts) if kind == "all" else counts[kind]
            rows.append(f"| {name} | {kind} | {right} of {asked} | {percent([right, asked])} |")
    (out / "README.md").write_text(CARD.format(size=size, rows="\n".join(rows), minutes=minutes, **recipe))


CARD = """# A tiny Video-LLaVA that answers

{size:,} parameters, trained from nothing by `train/tiny.py` on procedurally made images and H.264 clips of
coloured shapes (`videollava_jax.assets.world`). It knows that world and nothing else: what is there (colour, shape),
where, how many, which way it moves, what came first or last, and whether it changed colour. It is here so that the
whole pipeline can be tried and tested without a download.

Ask it as in training: `USER: <video>\\nWhich way does it move? ASSISTANT:`. Frames are 56 pixels, 8 a clip.

## Training
- data: {clips} clips and {images} images, made with seeds from the training range
- steps: {align_steps} to align the image tower (batch {align_batch}, rate {align_rate}) and a third as many for the
  video tower, {project_steps} with the towers frozen (rate {project_rate}), {tune_steps} of everything
  (rate {tune_rate}), each on {clip_batch} clips and {image_batch} images
- seed {seed}; {minutes:.0f} minutes on the machine that made this card

## Exact answers on unseen media
One question a medium, greedy, float32. Seeds are from the evaluation range, which training never draws from.

| media | kind | right | |
|---|---|---|---|
{rows}
"""
