"""Trains the tiny Video-LLaVA that ships with the package, from nothing, in about half an hour on two CPU cores.

    python train/tiny.py --out out/tiny

This file is the run from top to bottom. `tiny_data.py` draws scenes and writes conversations, `tiny_model.py` is the
model, `tiny_stages.py` the training, and `tiny_card.py` writes the checkpoint and its card.

It makes its own data (`videollava_jax.assets.world`: coloured shapes in images and in real H.264 clips, with questions
whose answers are known), its own tokenizer, and then trains in the stages of the real recipe:

    1  align      the image tower learns to name what its patches show; the video tower starts from it
    2  project    towers frozen: the projector, and the decoder, which has no language to start from
    3  fine-tune  everything, at a lower rate

At the end it asks 300 clips and 300 images that it has never seen, prints the accuracy of each kind of question,
and writes a checkpoint in transformers' layout with its card. Two things make a model of a million
parameters learn this fast: stage 1 supervises every patch (the class token of an image never reaches the
decoder), and a medium is encoded once for several questions, asked as one conversation.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from tiny_card import FIRST_WIDE, print_table, save, write_card
from tiny_data import (
    conversations,
    every_frame,
    labelled_frames,
    make,
    make_clip,
    make_image,
    make_processor,
    some_frames,
)
from tiny_model import Parameters, Tiny, make_config, scaled, video_tower_of
from tiny_stages import accuracy, align, make_heads, make_schedule, train

from videollava_jax.assets.world import EVAL_SEEDS, TRAIN_SEEDS
from videollava_jax.model.video_llava import named_parameters


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The settings of a run; the card lists them all."""

    seed: int = 0
    clips: int = 8000
    images: int = 16000
    align_steps: int = 3500
    align_batch: int = 64
    align_rate: float = 2e-3
    project_steps: int = 700
    tune_steps: int = 300
    clip_batch: int = 24
    image_batch: int = 24
    project_rate: float = 1e-3
    tune_rate: float = 7e-4
    questions: int = 3
    evaluated: int = 300
    evaluated_wide: int = 1400


QUICK = Recipe(
    clips=28,
    images=28,
    align_steps=6,
    align_batch=8,
    project_steps=2,
    tune_steps=2,
    clip_batch=4,
    image_batch=4,
    evaluated=14,
    evaluated_wide=14,
)


def main() -> None:
    """Runs all stages, from top to bottom."""
    recipe, out = parse_arguments()
    started = time.monotonic()
    rng = np.random.default_rng(recipe.seed)

    with multiprocessing.get_context("spawn").Pool() as pool:
        clips = make(pool, make_clip, TRAIN_SEEDS[: recipe.clips], "clips")
        images = make(pool, make_image, TRAIN_SEEDS[: recipe.images], "images")
        wide = EVAL_SEEDS[FIRST_WIDE : FIRST_WIDE + recipe.evaluated_wide]
        unseen = {
            "clips": make(pool, make_clip, EVAL_SEEDS[: recipe.evaluated], "unseen clips"),
            "images": make(pool, make_image, EVAL_SEEDS[: recipe.evaluated], "unseen images"),
            "more clips": make(pool, make_clip, wide, "more unseen clips"),
            "more images": make(pool, make_image, wide, "more unseen images"),
        }

    questions = [question for media in (clips, images) for asked in media.questions for question in asked]
    with tempfile.TemporaryDirectory() as directory:
        processor = make_processor(questions, Path(directory))
        tokenizer_model = (Path(directory) / "tokenizer.model").read_bytes()
    config = make_config(processor)
    tiny = Tiny(config, recipe.seed)
    parameters = scaled(named_parameters(tiny.state))

    # Stage 1: the image tower on images and on frames of clips; the video tower starts from it.
    heads = make_heads(rng, config.vision_config.hidden_size)
    for tower, (x, y), steps, rate in (
        ("image_tower", some_frames(images, clips), recipe.align_steps, recipe.align_rate),
        ("video_tower", every_frame(clips), recipe.align_steps // 3, recipe.align_rate / 3),
    ):
        if tower == "video_tower":
            parameters |= video_tower_of(parameters)
        batches = labelled_frames(x, y, recipe.align_batch, rng)
        parameters, heads = align(
            f"1 align {tower}",
            tiny,
            parameters,
            heads,
            tower,
            batches,
            schedule=make_schedule(rate, steps),
            steps=steps,
        )

    # Stages 2 and 3: the same conversations, first with the towers frozen.
    for title, frozen_towers, steps, rate in (
        ("2 project", ("image_tower", "video_tower"), recipe.project_steps, recipe.project_rate),
        ("3 fine-tune", (), recipe.tune_steps, recipe.tune_rate),
    ):
        frozen = {name: value for name, value in parameters.items() if name.startswith(frozen_towers or ("-",))}

        def answer_loss(trained: Parameters, *batch: jax.Array, frozen=frozen) -> jax.Array:
            everything = frozen | trained
            return tiny.answer_loss(everything, *batch[:3]) + tiny.answer_loss(everything, *batch[3:])

        sources = ((clips, recipe.clip_batch), (images, recipe.image_batch))
        batches = conversations(processor, sources, recipe.questions, rng)
        trained = {name: value for name, value in parameters.items() if name not in frozen}
        trained = train(title, answer_loss, trained, batches, schedule=make_schedule(rate, steps), steps=steps)
        parameters |= trained
        report = {name: accuracy(tiny, parameters, processor, media) for name, media in unseen.items()}
        print_table(title, report)

    save(out, parameters, config, processor, tokenizer_model)
    minutes = (time.monotonic() - started) / 60
    write_card(out, dataclasses.asdict(recipe), report, parameters, minutes)
    print(f"{minutes:.1f} minutes; written to {out}")


def parse_arguments() -> tuple[Recipe, Path]:
    """Returns the recipe and the directory for the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="directory for the checkpoint")
    parser.add_argument("--quick", action="store_true", help="a few steps on a few scenes: does it run?")
    for field in dataclasses.fields(Recipe):
        flag = "--" + field.name.replace("_", "-")
        parser.add_argument(flag, type=type(field.default), help=f"default: {field.default}")
    arguments = vars(parser.parse_args())
    given = {field.name: arguments[field.name] for field in dataclasses.fields(Recipe)}
    chosen = {name: value for name, value in given.items() if value is not None}
    recipe = dataclasses.replace(QUICK if arguments["quick"] else Recipe(), **chosen)
    if not 1 <= recipe.clips <= len(TRAIN_SEEDS) or not 1 <= recipe.images <= len(TRAIN_SEEDS):
        parser.error(f"--clips and --images: expected 1 to {len(TRAIN_SEEDS)}, the seeds kept for training")
    return recipe, arguments["out"]


if __name__ == "__main__":
    main()
