"""What `failing_io` runs while reads fail: jobs, checkpoints, processors, recipes, samples, media, resumed runs."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from tests.faults.children import command, run
from tests.faults.failing_calls import READING
from tests.faults.failing_trials import (
    STEPS,
    Ended,
    Export,
    Job,
    Problem,
    SavePretrained,
    TrainingSaves,
    Trial,
    contents,
    reported,
    train,
)
from videollava_jax.assets import MEDIA, TINY


class _Reads(Trial):
    """A run that reads `source`, where its calls fail, and writes what it has read into `out/read`."""

    failures = READING
    leavings = ("read",)

    def below(self, place: Path) -> Path:
        return place.parent / "source"

    def run(self, place: Path) -> Ended:
        return reported(self._write, place)

    def _write(self, place: Path) -> None:
        text = json.dumps(self.read(place.parent / "source"))
        (place / "out" / "read").write_text(text)

    def read(self, source: Path) -> object:
        """Reads it; returns what it was, for JSON."""
        raise NotImplementedError

    def disturbed(self, place: Path, expected: dict[str, Any]) -> Problem:
        return None


class ReadJob(Job):
    """The input of a job."""

    name, failures, below = "read a job file", READING, _Reads.below


class ReadCheckpoint(Export):
    """A checkpoint in safetensors."""

    name, failures, below = "read a checkpoint", READING, _Reads.below


class ReadOrbax(Export):
    """A checkpoint of Orbax."""

    name, failures, below = "read an Orbax checkpoint", READING, _Reads.below
    may_say = "Failed to read Metadata file"

    def make(self, source: Path) -> None:
        plain = source.with_name("plain")
        super().make(plain)
        ended = run(command, "convert", str(plain), str(source), seconds=120)
        assert ended == (0, ""), ended


class ReadModel(SavePretrained):
    """A model that `from_pretrained` opens."""

    name, failures, below = "read a model", READING, _Reads.below


class ReadTokenizer(_Reads):
    """The processor's files: tokenizer, preprocessor, chat template."""

    name = "read a processor"

    def make(self, source: Path) -> None:
        source.mkdir()
        for file in TINY.iterdir():
            if file.suffix in (".json", ".model", ".jinja"):
                shutil.copy(file, source)

    def read(self, source: Path) -> object:
        from videollava_jax.processing.processor import VideoLlavaProcessor

        processor = VideoLlavaProcessor.from_pretrained(source)
        return processor(text="USER: Which way? ASSISTANT:")["input_ids"].tolist()


class ReadRecipe(_Reads):
    """The recipe of a run of fine-tuning, and its samples."""

    name = "read a recipe"

    def make(self, source: Path) -> None:
        source.mkdir()
        turns = [{"from": "human", "value": "Up?"}, {"from": "gpt", "value": "Up."}]
        (source / "data.json").write_text(json.dumps([{"id": str(i), "conversations": turns} for i in range(9)]))
        data = {"train": str(source / "data.json"), "steps": 2, "batch": 4, "row_tokens": 200, "rows": 2, "workers": 0}
        recipe = {"model": "tiny", "output": str(source.with_name("run")), "data": data}
        # JSON is YAML too.
        (source / "recipe.yaml").write_text(json.dumps({**recipe, "rates": {"lora": 0.001}, "lora": {"rank": 4}}))

    def read(self, source: Path) -> object:
        from contextlib import ExitStack

        from videollava_jax.processing.processor import VideoLlavaProcessor
        from videollava_jax.training.data.skips import SkipCounter
        from videollava_jax.training.run.inputs import batch_shape, read_data
        from videollava_jax.training.run.recipe import read_recipe

        recipe, text = read_recipe(["--config", str(source / "recipe.yaml")])
        with ExitStack() as stack:
            processor = VideoLlavaProcessor.from_pretrained(TINY)
            learnt, _ = read_data(recipe, processor, batch_shape(recipe, 1), SkipCounter(max_rate=0.0), stack)
            return [text, learnt.corpus.digest, learnt.plan.digest]


class ReadMedia(_Reads):
    """Videos and images, in one process."""

    name = "read media"

    def make(self, source: Path) -> None:
        shutil.copytree(MEDIA, source)

    def read(self, source: Path) -> object:
        from videollava_jax.media import Uniform, open_medium

        found = {}
        for file in sorted(source.iterdir()):
            if file.suffix != ".md":
                medium = open_medium(file, Uniform(8))
                found[file.name] = hashlib.sha256(medium.frames.tobytes()).hexdigest()
        return found


class Resumed(TrainingSaves):
    """A run of fine-tuning that goes on from its last checkpoint, whose reads fail."""

    name, failures = "resume training", READING

    def make(self, source: Path) -> None:
        ended = run(reported, train, source / "run", STEPS // 2, seconds=120)
        assert ended == (0, ""), ended

    def prepare(self, out: Path) -> None:
        shutil.copytree(out.parent.parent / "source" / "run", out / "run")

    def disturbed(self, place: Path, expected: dict[str, Any]) -> Problem:
        kept = contents(place.parent / "source" / "run" / "checkpoints")
        if not (place / "begun").exists() and contents(place / "out" / "run" / "checkpoints") != kept:
            return "lost", "the last checkpoint was touched"
        return super().disturbed(place, expected)


READ_TRIALS: tuple[Trial, ...] = (
    ReadJob(),
    ReadCheckpoint(),
    ReadOrbax(),
    ReadModel(),
    ReadTokenizer(),
    ReadRecipe(),
    ReadMedia(),
    Resumed(),
)
