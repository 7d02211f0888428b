"""What stands in for the names in the documents: the one table, and what makes each.

A page says in its source which names its reader brings (`<!-- given: 7b-orbax clip.mp4 -->`). Before the page is read,
each of them is put under that name into the directory in which the page is typed.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from tests.loopback import free_port
from videollava_jax.assets import MEDIA, TINY
from videollava_jax.training.run.named_recipes import RECIPES

Made = Callable[[Path], None]
"""Makes something under a path that does not exist yet, in a directory that does."""


def _bundled(name: str) -> Made:
    return lambda target: shutil.copy(MEDIA / name, target)


def _clips(*names: str) -> Made:
    """A directory of clips and images, by the names that a page's questions have."""

    def make(target: Path) -> None:
        for name in names:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(_THREE if name.endswith(".png") else MEDIA / "rising-triangle.mp4", target / name)

    return make


_THREE = MEDIA / "three-triangles.png"


def _tiny(target: Path) -> None:
    """The bundled tiny model, in transformers' layout."""
    shutil.copytree(TINY, target)


@functools.cache
def _converted() -> Path:
    from videollava_jax.cli import main

    target = Path(tempfile.mkdtemp()) / "converted"
    assert main(["convert", str(TINY), str(target)]) == 0
    return target


def _orbax(target: Path) -> None:
    """The bundled tiny model, as `videollava convert` writes it."""
    shutil.copytree(_converted(), target)


def _authors(target: Path) -> None:
    """A random model in the authors' layout, attention over time included."""
    from tests.small_models import random_parameters, small_config
    from tests.weights.checkpoints import write_checkpoint

    config = small_config("original")
    write_checkpoint(target, config, random_parameters(config, 1), "pku")


def _adapter(target: Path) -> None:
    """A random adapter of the tiny model, as PEFT writes it."""
    from tests.weights.adapters_helper import draw, write_adapter
    from videollava_jax.config import ModelConfig

    write_adapter(target, draw(ModelConfig.from_hf(json.loads((TINY / "config.json").read_text()))), "memory")


@functools.cache
def _started() -> tuple[Any, dict[str, Any]]:
    """(configuration, arrays) of what the authors' scripts start from: the tiny model, with attention over time."""
    import numpy as np

    from tests.weights.parts import without_media_rows
    from videollava_jax.config import ModelConfig
    from videollava_jax.model.video_llava import parameter_shapes
    from videollava_jax.weights import open_checkpoint

    config = dataclasses.replace(ModelConfig.from_hf(TINY), variant="original")
    held, rng = open_checkpoint(TINY).tensors, np.random.default_rng(0)
    arrays = {
        name: held[name].read() if name in held else rng.normal(0, shape[-1] ** -0.5, shape).astype(np.float32)
        for name, shape in parameter_shapes(config).items()
    }
    return config, without_media_rows(config, arrays)


def _vicuna(target: Path) -> None:
    """The tiny model's decoder and tokenizer, as a Llama."""
    from tests.weights.parts import write_llama

    write_llama(target, *_started())
    for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json"):
        shutil.copy(TINY / name, target / name)


def _tower(kind: str) -> Made:
    """A tower of the tiny model, as LanguageBind publishes its own."""

    def make(target: Path) -> None:
        from tests.weights.parts import write_tower

        write_tower(target, *_started(), kind)

    return make


def _trained(target: Path) -> None:
    """What the authors' finetune_lora.sh leaves."""
    import torch

    from tests.weights.parts import draw_lora, write_lora

    config, _ = _started()
    write_lora(torch, target, config, draw_lora(config, rank=4, alpha=8))


def _pretrained(target: Path) -> None:
    """What the authors' pretrain.sh leaves."""
    import torch

    from tests.weights.parts import write_projector

    config, arrays = _started()
    projector = {name: array for name, array in arrays.items() if name.startswith("multi_modal_projector.")}
    write_projector(torch, target, config, projector)


def _without_towers(target: Path) -> None:
    """A whole model of the authors', saved without its towers."""
    from tests.weights.checkpoints import theirs
    from tests.weights.parts import authors_config, write

    config, arrays = _started()
    held = {theirs(name, "pku"): array for name, array in arrays.items() if "_tower." not in name}
    write(target, held, authors_config(config))


def _recipe(name: str) -> Made:
    """A recipe of the 7B with steps of seconds on a CPU; a file of this name goes before the package's recipe."""

    def make(target: Path) -> None:
        recipe = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
        recipe["data"] |= {"batch": 1, "row_tokens": 320, "images_per_row": 0, "workers": 0}
        recipe["data"].pop("loss_samples", None)  # it divides the batch
        recipe["compute"] = recipe.get("compute", {}) | {"dtype": "float32"}
        if "lora" in recipe:
            recipe["lora"] |= {"rank": 4}
        target.write_text(yaml.safe_dump(recipe))

    return make


def _samples(target: Path) -> None:
    """One sample to train on, in LLaVA's format, with its clip next to it."""
    shutil.copy(MEDIA / "rising-triangle.mp4", target.parent / "rising.mp4")
    turns = [{"from": "human", "value": "<video>\nWhat happens?"}, {"from": "gpt", "value": "A triangle moves up."}]
    target.write_text(json.dumps([{"id": "1", "video": "rising.mp4", "conversations": turns}]))


def _talk(target: Path) -> None:
    """One sample of text alone."""
    turns = [{"from": "human", "value": "What is a triangle?"}, {"from": "gpt", "value": "A shape."}]
    target.write_text(json.dumps([{"id": "2", "conversations": turns}]))


def _questions(*videos: str) -> Made:
    """Questions for `videollava batch`, two about each video."""

    def make(target: Path) -> None:
        asked = ("Which way does it move?", "What shape is it?")
        lines = [{"id": f"{v}-{i}", "video": v, "prompt": q} for v in videos for i, q in enumerate(asked)]
        target.write_text("".join(json.dumps(line) + "\n" for line in lines))

    return make


def _interrupted(target: Path) -> None:
    """The directory of a job that is not finished."""
    from videollava_jax.cli import main

    place = Path(tempfile.mkdtemp())
    _questions(str(MEDIA / "rising-triangle.mp4"))(place / "questions.jsonl")
    output = place / "answers.jsonl"
    assert main(["batch", str(place / "questions.jsonl"), str(output), "--keep-ledger", "--workers", "1"]) == 0
    shutil.move(f"{output}.partial", target)


def _drawn_task(name: str) -> Made:
    """The drawn world as a published task's data."""

    def make(target: Path) -> None:
        from videollava_jax.evaluation.world import write

        write(name, target, media=2)

    return make


def _answered(name: str) -> Made:
    """What the authors' program writes for the drawn world as a task of theirs: right answers."""

    def make(target: Path) -> None:
        from videollava_jax.evaluation.tasks import TASKS

        place = Path(tempfile.mkdtemp()) / "data"
        _drawn_task(name)(place)
        _, asked = TASKS[name].questions(place)
        rows = [{"id": q.id, "question": q.text, "answer": q.target, "pred": q.target} for q in asked]
        target.write_text("".join(json.dumps(row) + "\n" for row in rows))

    return make


STAND_INS: dict[str, Made] = {
    # models
    "LanguageBind/Video-LLaVA-7B-hf": _tiny,
    "Video-LLaVA-7B-hf": _tiny,
    "Video-LLaVA-7B": _authors,
    "7b-orbax": _orbax,
    "ADAPTER": _adapter,
    "LORA": _trained,
    "PRETRAINED": _pretrained,
    "WITHOUT_TOWERS": _without_towers,
    "lmsys/vicuna-7b-v1.5": _vicuna,
    "LanguageBind/LanguageBind_Image": _tower("image"),
    "LanguageBind/LanguageBind_Video_merge": _tower("video"),
    # media
    "clip.mp4": _bundled("rising-triangle.mp4"),
    "talk.mp4": _bundled("circle-then-square.mp4"),
    "picture.png": _bundled("three-triangles.png"),
    "clips": _clips("a.mp4", "1.mp4"),
    "media": _clips("clips/a.mp4", "b.png", "00/v000001.mp4", "00/v000002.mp4"),
    # questions and answers
    "questions.jsonl": _questions("00/v000001.mp4", "00/v000002.mp4"),
    "part-1.jsonl": _questions("00/v000001.mp4"),
    "part-2.jsonl": _questions("00/v000002.mp4"),
    "answers.jsonl.partial": _interrupted,
    "MSVD_Zero_Shot_QA": _drawn_task("msvd_qa"),
    "merge.jsonl": _answered("msvd_qa"),
    # fine-tuning
    "mine.json": _samples,
    "data/llava_image_.json": _samples,
    "data/valley_.json": _samples,
    "data/llava_image_tune_.json": _samples,
    "data/videochatgpt_tune_.json": _samples,
    "data/nlp_tune.json": _talk,
    "paper_pretrain": _recipe("paper_pretrain"),
    "paper_finetune": _recipe("paper_finetune"),
    "paper_lora": _recipe("paper_lora"),
    "lora": _recipe("lora"),
    "qlora": _recipe("qlora"),
    "pretrain": _recipe("pretrain"),
    "finetune": _recipe("finetune"),
}
"""What is put under a name that a page's reader brings."""


_PORT = free_port()
WORDS: dict[str, str] = {
    "--port 8000": f"--port {_PORT}",
    "127.0.0.1:8000": f"127.0.0.1:{_PORT}",
    "/shared/": "{here}/shared/",
    "tensor=8": "tensor=2",  # the tiny model's heads are not divisible by 8
    "num_gpus=1": "num_cpus=1",
    "max_size=8, initial_size=8": "max_size=1, initial_size=1",
}
"""What is typed instead of words of the documents, where a file under their name does not do."""

CHECKOUT = ("benchmarks", "convert", "docs", "pyproject.toml", "tests", "train", "videollava_jax")
"""What a reader who has cloned the project has in the directory: linked into each page's."""
