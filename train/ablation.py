"""Measures two claims of the Video-LLaVA paper on the tiny model: alignment before projection, and joint training.

    python train/ablation.py --out out/ablation       # five seeds, a process a CPU core
    python train/ablation_results.py out/ablation     # the tables, from the results there are

Each seed draws scenes of its own (`videollava_jax.assets.world`) and trains, in the stages of `tiny.py`,

    towers     the image tower, and two video towers that see the same frames for as many steps:
                 aligned    starts from the image tower, and is read by its heads
                 unaligned  starts from nothing, and is read by heads of its own
    then       projector and decoder, from nothing, the towers frozen: for both video towers, on
                 images     one batch of images a step
                 clips      one batch of clips a step
                 both       the same batches of images and the same batches of clips, one of each a step

The rate is constant after its warm-up, and the running mean of the parameters is asked: so a flat curve means that
nothing more is learnt, and not that the rate has run out. Every finished condition is a line of
`OUT/results/SEED.jsonl`, the towers of a seed are kept in `OUT/towers`, and the next start measures what is missing.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tiny_data
import tiny_model
import tiny_stages
from ablation_results import DATA, KINDS, TOWERS, append, read, read_all, results_of, right, tables
from safetensors.numpy import load_file, save_file
from tiny_data import Media
from tiny_model import Parameters, Tiny
from tqdm import tqdm

from videollava_jax import compilation_cache
from videollava_jax.assets import TINY
from videollava_jax.assets.world import EVAL_SEEDS, TRAIN_SEEDS
from videollava_jax.model.video_llava import named_parameters
from videollava_jax.processing.processor import VideoLlavaProcessor
from videollava_jax.training.run.run_directory import run_directory

SCENES_OF_A_SEED = 100_000
"""The number of training seeds of scenes that belong to each seed of the ablation."""
FIRST_UNSEEN = 20_000
"""The first evaluation seed, beyond those that the shipped model was selected by."""
WARM_UP = 50
"""Steps in which the rate of projector and decoder rises."""
MEMORY = 0.98
"""The decay of the running mean of the parameters in each step; it is lower in the first steps."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings that decide the results.

    Attributes:
        tower_images, tower_clips: the number of scenes that the towers of a seed are aligned on.
        images, clips: the number of these scenes, from the first on, that projector and decoder are trained on.
        align_steps: of the image tower and of an unaligned video tower on some frames; a third as many steps follow for
            each video tower on all frames of clips, at a third of the rate.
        align_batch: frames a step.
        align_rate: peak rate of the towers.
        steps: of projector and decoder; each takes a batch of every medium that a condition has.
        image_batch, clip_batch: conversations a step.
        rate: of projector and decoder.
        questions: the most questions in a conversation.
        points: evaluations on the way, evenly spaced, the last one at the end.
        unseen_images, unseen_clips: scenes to ask one question each about, as many of every kind.
    """

    tower_images: int = 4000
    tower_clips: int = 2000
    images: int = 300
    clips: int = 400
    align_steps: int = 2400
    align_batch: int = 64
    align_rate: float = 2e-3
    steps: int = 1200
    image_batch: int = 16
    clip_batch: int = 16
    rate: float = 1e-3
    questions: int = 3
    points: int = 8
    unseen_images: int = 400
    unseen_clips: int = 700


QUICK = Settings(
    tower_images=16,
    tower_clips=8,
    images=8,
    clips=8,
    align_steps=3,
    align_batch=4,
    steps=4,
    image_batch=2,
    clip_batch=2,
    points=2,
    unseen_images=8,
    unseen_clips=14,
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures the conditions that have no results yet, and prints the tables."""
    given = parse_arguments(arguments)
    settings = QUICK if given.quick else Settings()
    facts = dataclasses.asdict(settings)
    with run_directory(given.out, facts, json.dumps(facts, indent=2) + "\n"):
        measure(given.out, settings, given.seeds, given.processes)
    print(tables(read_all(given.out)))


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parses the command line and checks the number of seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="directory for the results; a run begun there goes on")
    parser.add_argument("--seeds", type=int, default=5, help="how many, from 0 on (%(default)s)")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="seeds at a time (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="a few steps on a few scenes: does it run?")
    given = parser.parse_args(arguments)
    most = len(TRAIN_SEEDS) // SCENES_OF_A_SEED
    if not 1 <= given.seeds <= most:
        parser.error(f"--seeds: expected 1 to {most}, got {given.seeds}: there are training scenes for no more")
    return given


# ── 1. The conditions, seed by seed ─────────────────────────────────────────────────────────────────────────


def measure(out: Path, settings: Settings, seeds: int, processes: int) -> None:
    """Measures every condition of every seed that has no line in the results yet.

    The model is so small that two cores with a seed each do 1.5 times the work of two cores on one seed.
    """
    left = {seed: conditions for seed in range(seeds) if (conditions := conditions_left(out, seed))}
    if processes == 1 or len(left) < 2:
        for seed in left:
            measure_seed(out, settings, seed)
        return
    os.environ["TQDM_DISABLE"] = "1"  # hides the seeds' bars in the processes that start from here on
    try:
        with (
            ProcessPoolExecutor(
                min(processes, len(left)), multiprocessing.get_context("spawn"), initializer=use_one_thread
            ) as pool,
            tqdm(total=len(left), unit="seed", disable=False) as bar,
        ):
            for done in as_completed([pool.submit(measure_seed, out, settings, seed) for seed in left]):
                done.result()
                bar.update()
    finally:
        del os.environ["TQDM_DISABLE"]


def use_one_thread() -> None:
    """Makes JAX in this process use one thread; called before its first computation."""
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false"


def conditions_left(out: Path, seed: int) -> list[tuple[str, str]]:
    """Returns the conditions (towers, data) of a seed that have no line yet."""
    done = {(line["towers"], line["data"]) for line in read(results_of(out, seed))}
    return [condition for condition in itertools.product(TOWERS, DATA) if condition not in done]


def measure_seed(out: Path, settings: Settings, seed: int) -> None:
    """Measures every condition of this seed that has no line in the results yet."""
    compilation_cache.enable()
    processor = VideoLlavaProcessor.from_pretrained(TINY)
    unseen = draw("unseen", EVAL_SEEDS[FIRST_UNSEEN:], settings.unseen_images, settings.unseen_clips)
    scenes = TRAIN_SEEDS[seed * SCENES_OF_A_SEED :]
    seen = draw(f"seed {seed}", scenes, settings.tower_images, settings.tower_clips)
    model = Tiny(tiny_model.make_config(processor), seed)
    parts = towers_of_seed(out / "towers" / f"{seed}.safetensors", settings, seed, model, seen)
    sizes = {"images": settings.images, "clips": settings.clips}
    used = {name: head_of(media, sizes[name]) for name, media in seen.items()}
    for towers, conditions in itertools.groupby(conditions_left(out, seed), key=lambda condition: condition[0]):
        parameters = starting_point(model, parts, towers)
        states = {name: through_tower(model, parameters, media) for name, media in used.items()}
        asked = {name: through_tower(model, parameters, media) for name, media in unseen.items()}
        reading = read_by_heads(asked["clips"], parts, towers)
        for _, data in conditions:
            title = f"seed {seed}, {towers}, {data}"
            started, worked = time.monotonic(), time.process_time()
            chosen = {name: states[name] for name in DATA[data]}
            curve = train_and_ask(title, settings, seed, model, parameters, processor, chosen, asked)
            line = {"seed": seed, "towers": towers, "data": data, "curve": curve, "patches": reading}
            line["seconds"] = round(time.monotonic() - started, 1)
            line["cpu_seconds"] = round(time.process_time() - worked, 1)
            append(results_of(out, seed), line)


def draw(title: str, seeds: range, images: int, clips: int) -> dict[str, Media]:
    """Draws the first scenes of these seeds, as images and as clips."""
    with multiprocessing.get_context("spawn").Pool() as pool:
        return {
            "images": tiny_data.make(pool, tiny_data.make_image, seeds[:images], f"{title}: images"),
            "clips": tiny_data.make(pool, tiny_data.make_clip, seeds[:clips], f"{title}: clips"),
        }


def head_of(media: Media, count: int) -> Media:
    """Returns the first `count` scenes."""
    return Media(media.frames[:count], media.labels[:count], media.questions[:count])


# ── 2. Towers ───────────────────────────────────────────────────────────────────────────────────────────────


def towers_of_seed(
    file: Path, settings: Settings, seed: int, model: Tiny, seen: dict[str, Media]
) -> dict[str, Parameters]:
    """Loads or trains the image tower and both video towers of a seed, each with the heads that were trained with it.

    Returns:
        Under "image", "aligned" and "unaligned": parameters by the model's names, and heads by those of `make_heads`.
    """
    if not file.exists():
        trained = train_towers(settings, seed, model, seen)
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_suffix(".new")
        flat = {f"{part}/{name}": np.asarray(x) for part, values in trained.items() for name, x in values.items()}
        save_file(flat, unfinished)
        os.replace(unfinished, file)
    parts: dict[str, Parameters] = {}
    for name, value in load_file(file).items():
        part, _, rest = name.partition("/")
        parts.setdefault(part, {})[rest] = jnp.asarray(value)
    return parts


def train_towers(settings: Settings, seed: int, model: Tiny, seen: dict[str, Media]) -> dict[str, Parameters]:
    """Trains the image tower and the two video towers, one from the image tower, one from first values of its own."""
    parameters = tiny_model.scaled(named_parameters(model.state))
    width = model.module(parameters).config.vision_config.hidden_size
    some, every = tiny_data.some_frames(seen["images"], seen["clips"]), tiny_data.every_frame(seen["clips"])

    def align(
        title: str,
        parameters: Parameters,
        heads: Parameters,
        tower: str,
        frames: tuple[np.ndarray, np.ndarray],
        fraction: int,
    ) -> tuple[Parameters, Parameters]:
        """Aligns a tower at 1/fraction of the steps and the rate, on batches that do not depend on the tower."""
        steps = settings.align_steps // fraction
        batches = tiny_data.labelled_frames(*frames, settings.align_batch, np.random.default_rng([seed, fraction]))
        schedule = tiny_stages.make_schedule(settings.align_rate / fraction, steps)
        title = f"seed {seed}: {title}"
        return tiny_stages.align(title, model, parameters, heads, tower, batches, schedule=schedule, steps=steps)

    def first(title: str, tower: str, heads_seed: int) -> tuple[Parameters, Parameters]:
        heads = tiny_stages.make_heads(np.random.default_rng([seed, heads_seed]), width)
        return align(title, parameters, heads, tower, some, 1)

    def then(title: str, parameters: Parameters, heads: Parameters) -> tuple[Parameters, Parameters]:
        return align(title, parameters, heads, "video_tower", every, 3)

    with_images, heads = first("image tower", "image_tower", 10)
    from_images = with_images | tiny_model.video_tower_of(with_images)
    joined, joined_heads = then("aligned video tower", from_images, heads)
    apart, apart_heads = then("unaligned video tower, 2", *first("unaligned video tower, 1", "video_tower", 11))

    def of(tower: str, parameters: Parameters) -> Parameters:
        return {name: value for name, value in parameters.items() if name.startswith(tower)}

    return {
        "image": of("image_tower", with_images) | heads,
        "aligned": of("video_tower", joined) | joined_heads,
        "unaligned": of("video_tower", apart) | apart_heads,
    }


def starting_point(model: Tiny, parts: dict[str, Parameters], towers: str) -> Parameters:
    """Returns all parameters: the image tower, one of the video towers, first values of projector and decoder."""
    parameters = tiny_model.scaled(named_parameters(model.state))
    known = parts["image"] | parts[towers]
    return parameters | {name: value for name, value in known.items() if name in parameters}


def through_tower(model: Tiny, parameters: Parameters, media: Media) -> Media:
    """Replaces the frames of media by their tower's hidden states, float32 [N, F, patches + 1, D]."""
    N, F = media.frames.shape[:2]
    tower = "image_tower" if F == 1 else "video_tower"
    hidden = jax.jit(lambda frames: model.hidden(parameters, tower, frames))
    frames = media.frames.reshape(N * F, *media.frames.shape[2:])
    states = np.concatenate([np.asarray(hidden(frames[i : i + 800])) for i in range(0, len(frames), 800)])
    return dataclasses.replace(media, frames=states.reshape(N, F, *states.shape[1:]))


def read_by_heads(clips: Media, parts: dict[str, Parameters], towers: str) -> dict[str, float]:
    """Measures how well linear heads read a video tower.

    Returns:
        The share of patches that hold a shape and whose shape and colour are both named right: by the heads that were
        trained with the video tower ("own"), and by those that were trained with the image tower ("image").
    """
    states, labels = tiny_data.every_frame(clips)
    normed = jax.nn.standardize(states[:, 1:], axis=-1)

    def share(heads: Parameters) -> float:
        right = labels[:, :16] > 0
        for what, wanted in (("shape", labels[:, :16]), ("colour", labels[:, 16:32])):
            named = (normed @ heads[f"patch.{what}.weight"].T + heads[f"patch.{what}.bias"]).argmax(-1)
            right &= np.asarray(named) == wanted
        return float(right.sum() / (labels[:, :16] > 0).sum())

    return {"own": share(parts[towers]), "image": share(parts["image"])}


# ── 3. Projector and decoder ────────────────────────────────────────────────────────────────────────────────


def train_and_ask(
    title: str,
    settings: Settings,
    seed: int,
    model: Tiny,
    parameters: Parameters,
    processor: VideoLlavaProcessor,
    states: dict[str, Media],
    asked: dict[str, Media],
) -> list[dict[str, Any]]:
    """Measures one condition: trains on every medium in `states`, and asks about all in `asked` on the way.

    Returns:
        A record for each point: "step", and under the name of each medium [right, asked] by kind of question.
    """
    frozen = {name: value for name, value in parameters.items() if "_tower." in name}
    # Each medium has its own generator, so that its batches are the same in every condition that has it.
    streams = [
        tiny_data.conversations(
            processor,
            [(media, settings.image_batch if name == "images" else settings.clip_batch)],
            settings.questions,
            np.random.default_rng([seed, 20 + list(KINDS).index(name)]),
        )
        for name, media in states.items()
    ]
    batches = (tuple(array for batch in together for array in batch) for together in zip(*streams, strict=True))

    def loss(trained: Parameters, *batch: jax.Array) -> jax.Array:
        losses = [model.answer_loss(frozen | trained, *batch[i : i + 3]) for i in range(0, len(batch), 3)]
        return jnp.sum(jnp.stack(losses))

    trained = {name: value for name, value in parameters.items() if name not in frozen}
    mean = trained
    curve: list[dict[str, Any]] = []
    points = {settings.steps * (i + 1) // settings.points for i in range(settings.points)}

    def after(step: int, trained: Parameters) -> None:
        nonlocal mean
        mean = mixed(mean, trained, min(MEMORY, step / (step + 10)))
        if step in points:
            answers = {
                name: tiny_stages.accuracy(model, frozen | mean, processor, media) for name, media in asked.items()
            }
            curve.append({"step": step, **answers})
            shares = ", ".join(f"{name} {right(counts):.1f}%" for name, counts in answers.items())
            tqdm.write(f"{title}: after {step} steps {shares}", file=sys.stderr)

    schedule = optax.warmup_constant_schedule(0.0, settings.rate, min(WARM_UP, settings.steps // 4))
    tiny_stages.train(title, loss, trained, batches, schedule=schedule, steps=settings.steps, after=after)
    return curve


@jax.jit
def mixed(mean: Parameters, new: Parameters, memory: float) -> Parameters:
    """Returns memory × mean + (1 − memory) × new."""
    return jax.tree.map(lambda x, y: memory * x + (1 - memory) * y, mean, new)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
