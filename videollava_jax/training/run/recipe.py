"""The recipe of a run: all of its settings, documented, read from YAML and the command line. No JAX in here."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from videollava_jax.evaluation.tasks import TASKS
from videollava_jax.extras import installs
from videollava_jax.generation.kinds import Kind, number, whole
from videollava_jax.hub import BUNDLED, local_path
from videollava_jax.named_errors import named_errors
from videollava_jax.processing.preset import CHOICES, Resize, Sampling
from videollava_jax.processing.prompt import MediaOrder
from videollava_jax.processing.segments import AfterEnd, AfterMedia
from videollava_jax.training.data.authors import Version
from videollava_jax.training.data.packing import Order
from videollava_jax.training.run.named_recipes import (
    NOT_NF4,
    PAPER,
    PAPERS,
    as_paper,
    names,
    recipe_files,
    with_recipe_files,
)
from videollava_jax.training.update.options import RANGES as UPDATE_RANGES
from videollava_jax.training.update.options import Lora, Optimizer, Rates, Remat, require_ranges

_PATHS = ("train", "held_out", "evaluate_data", "media_root", "image_root", "video_root", "features")
"""The fields of `Data` that are paths."""
RANGES: dict[str, Kind] = {
    **UPDATE_RANGES,
    "data.epochs": number(0.0, 1e6, above=True),
    "data.steps": whole(1),
    "data.batch": whole(1),
    "data.loss_samples": whole(1),
    "data.rows": whole(1),
    "data.row_tokens": whole(2),
    "data.images_per_row": whole(0, 4096),
    "data.videos_per_row": whole(0, 4096),
    "data.buckets": whole(2),
    "data.frames": whole(1, 4096),
    "data.workers": whole(0, 1024),
    "data.ahead": whole(1, 1024),
    "data.max_bad": number(0.0, 1.0),
    "data.evaluate_limit": whole(1),
    "data.evaluate_max_missing": number(0.0, 1.0),
    "compute.data": whole(1),
    "compute.tensor": whole(1),
    "compute.loss_chunk": whole(1),
    "keeping.save_every": whole(1),
    "keeping.keep": whole(1),
    "keeping.log_every": whole(1),
    "keeping.evaluate_every": whole(0),
    "max_skipped": whole(0),
    "stall_seconds": number(0.0, 1e7, above=True),
    "seed": whole(0),
}
"""The type and range of every number of a recipe, by its path."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """The data and its layout.

    Attributes:
      train: a file in LLaVA's format, JSON or JSONL, or a list of files.
      held_out: the same, for evaluation while training; an empty list for none.
      evaluate: a task of `videollava eval`, answered and scored while training (docs/training.md); null for none.
      evaluate_data: the directory of the task's files, as `videollava eval list TASK` names them.
      evaluate_as: how the task is asked: model as this run asks, paper as the authors' program for the task, hf as
        transformers' documentation.
      evaluate_limit: ask only about this number of videos or images, the first ones; null for all.
      evaluate_max_missing: the share of questions that may lack their media; these count as wrong.
      media_root: the directory that paths of media are relative to; null for the directory of each file.
      image_root: the same for images; null for media_root.
      video_root: the same for videos; null for media_root.
      epochs: how often each sample is used.
      steps: optimiser steps, instead of `epochs`.
      batch: samples of an optimiser step, on all hosts together.
      loss_samples: the loss of a step is the mean over groups of this many samples of each group's mean loss, as the
        authors' code has it with that many samples on a device; null: the mean over all answer tokens of the step.
      loss_vocabulary: the ids among which the loss tells a target: all, as in transformers; or text, without the ids of
        media, of padding and of rows that fill up the vocabulary, which the authors' model does not have.
      order: of an epoch's samples: random, or modality, in which the samples of a step all have media or all have none,
        in groups of loss_samples and of even lengths, as the authors' code has them.
      rows: of a micro-batch, on all hosts together: a multiple of the mesh's batch shards; null takes one for each.
      row_tokens: tokens of a row, media included; longer samples are cut to this length.
      images_per_row: slots for images in each row.
      videos_per_row: slots for videos in each row.
      layout: packed puts several samples into a row; padded gives each a row of its own, padded to one of the buckets.
      buckets: lengths of padded rows; the last one is row_tokens.
      frames: the number of frames of a video.
      preset: how prompts, frames and pixels are made, hf or original; null for the model's own (docs/presets.md).
      sampling: which frames, uniform or linspace; null for the preset's.
      image_aspect_ratio: pad makes images squares with the mean colour, square crops them; null for the preset's.
      resize: how media are resized, pil or torch; null for the preset's.
      media_order: where the media of a turn stand, first or text; null for the preset's.
      after_media: how text is tokenised after a medium; null for the preset's.
      after_end: how text is tokenised after the end of an answer; null for the preset's.
      repeat_end: whether earlier answers end twice; null for the preset's.
      version: v1 or plain gives samples the ids and labels of the authors' training code, its masks of whole samples
        and its cut at 2048 ids included; null gives them this package's.
      features: a directory for the outputs of frozen towers: each medium is encoded once, before the first step, and
        then read from there, by later runs too. null encodes media anew in each step.
      template: of prompts; null for the preset's. Conversations of the template hf never end in </s>, so a model
        trained with it does not learn to stop; vicuna_v1_no_system is the same with it.
      workers: processes on each host that read media ahead; 0 reads them when a micro-batch is needed.
      ahead: micro-batches that each worker holds ready.
      max_bad: the share of samples that may be left out (files that cannot be read, say) before the run stops.
    """

    train: list[str] | str
    held_out: list[str] | str = field(default_factory=list)
    evaluate: str | None = None
    evaluate_data: str | None = None
    evaluate_as: Literal["model", "paper", "hf"] = "model"
    evaluate_limit: int | None = None
    evaluate_max_missing: float = 0.0
    media_root: str | None = None
    image_root: str | None = None
    video_root: str | None = None
    epochs: float = 1.0
    steps: int | None = None
    batch: int = 128
    loss_samples: int | None = None
    loss_vocabulary: Literal["all", "text"] = "all"
    order: Order = "random"
    rows: int | None = None
    row_tokens: int = 3072
    images_per_row: int = 6
    videos_per_row: int = 1
    layout: Literal["packed", "padded"] = "packed"
    buckets: list[int] = field(default_factory=list)
    frames: int = 8
    preset: Literal["hf", "original"] | None = None
    sampling: Sampling | None = None
    image_aspect_ratio: Literal["pad", "square"] | None = None
    resize: Resize | None = None
    media_order: MediaOrder | None = None
    after_media: AfterMedia | None = None
    after_end: AfterEnd | None = None
    repeat_end: bool | None = None
    version: Version | None = None
    features: str | None = None
    template: str | None = None
    workers: int = 4
    ahead: int = 2
    max_bad: float = 0.01

    def __post_init__(self) -> None:
        if not self.train:
            raise ValueError("data.train: expected files in LLaVA's format, got none")
        require_ranges(self, "data.", RANGES)
        if self.loss_samples is not None and self.batch % self.loss_samples:
            raise ValueError(
                f"data.loss_samples: expected a number that divides data.batch ({self.batch}), got {self.loss_samples}"
            )
        if self.evaluate is not None and self.evaluate not in TASKS:
            raise ValueError(f"data.evaluate: expected one of {', '.join(TASKS)}, got {self.evaluate!r}")
        if (self.evaluate is None) != (self.evaluate_data is None):
            raise ValueError("data.evaluate and data.evaluate_data: expected both or neither: a task and its directory")
        if self.version is not None and self.template is not None:
            raise ValueError("data.template: no effect with data.version, which has a template of its own")
        if self.layout == "packed" and self.buckets:
            raise ValueError("data.buckets: packed rows all have row_tokens; expected no buckets, or layout: padded")

    @property
    def preset_changes(self) -> dict[str, Any]:
        """What of the model's preset is to be another, as `VideoLlavaProcessor.from_pretrained` takes it."""
        ratio = self.image_aspect_ratio
        changes = {
            "name": self.preset,
            "template": self.template,
            "pad_to_square": None if ratio is None else ratio == "pad",
            **{name: getattr(self, name) for name in CHOICES if name != "pad_to_square"},
        }
        return {name: value for name, value in changes.items() if value is not None}

    @property
    def files(self) -> list[str]:
        """The files of `train`, as a list."""
        return [self.train] if isinstance(self.train, str) else self.train

    @property
    def held_out_files(self) -> list[str]:
        """The files of `held_out`, as a list."""
        return [self.held_out] if isinstance(self.held_out, str) else self.held_out


@dataclass(frozen=True, kw_only=True)
class Compute:
    """Devices, dtypes and memory.

    Attributes:
      data: batch shards, each on its own devices; null takes all devices, divided by tensor.
      tensor: devices that share a copy of the decoder.
      dtype: of compute.
      trained_dtype: of the trained parameters; in bfloat16 small updates would be rounded away.
      int8: the frozen decoder's projections in int8 (with lora: QLoRA).
      remat: what the forward pass keeps for the backward pass: full keeps only the layers' inputs and computes the rest
        again, dots keeps the products with weights, none keeps everything.
      loss_chunk: tokens of a row whose logits are in memory at the same time.
    """

    data: int | None = None
    tensor: int = 1
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    trained_dtype: Literal["bfloat16", "float32"] = "float32"
    int8: bool = False
    remat: Remat = "full"
    loss_chunk: int = 512

    def __post_init__(self) -> None:
        require_ranges(self, "compute.", RANGES)


@dataclass(frozen=True, kw_only=True)
class Keeping:
    """Checkpoints, metrics and evaluation.

    Attributes:
      save_every: steps between two checkpoints; one is also written at the end, and when a signal stops the run.
      keep: the number of latest checkpoints that stay.
      log_every: steps between two lines of metrics.
      evaluate_every: steps between two evaluations on data.held_out and of data.evaluate, which also has one before the
        first step; 0 evaluates at the end only.
    """

    save_every: int = 200
    keep: int = 2
    log_every: int = 1
    evaluate_every: int = 0

    def __post_init__(self) -> None:
        require_ranges(self, "keeping.", RANGES)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A fine-tuning run.

    Attributes:
      model: a directory in any known layout, or a name on the Hugging Face hub; "tiny" for the bundled model.
      output: the run's directory; the same command goes on from what it holds.
      rates: the peak learning rate of each group of parameters; null freezes it.
      data: the data and its layout.
      lora: low-rank adapters of the decoder; null for none.
      optimizer: AdamW.
      compute: devices, dtypes and memory.
      keeping: checkpoints, metrics and evaluation.
      max_skipped: the number of steps with gradients that are not finite to leave out; the next one stops the run.
      stall_seconds: a run whose step takes longer ends with a message: a process or a disk hangs.
      seed: of the samples' order, of the adapters' first values and of dropout.
    """

    model: str
    output: str
    rates: Rates
    data: Data
    lora: Lora | None = None
    optimizer: Optimizer = field(default_factory=Optimizer)
    compute: Compute = field(default_factory=Compute)
    keeping: Keeping = field(default_factory=Keeping)
    max_skipped: int = 0
    stall_seconds: float = 1800.0
    seed: int = 0

    def __post_init__(self) -> None:
        require_ranges(self, "", RANGES)
        if (self.lora is None) != (self.rates.lora is None):
            raise ValueError(
                "lora and rates.lora: expected both or neither: the adapters' shape and their learning rate"
            )
        if self.compute.int8 and self.rates.decoder is not None:
            raise ValueError("compute.int8: int8 weights are not trained; expected rates.decoder null (QLoRA: lora)")
        if self.data.features is not None and (self.rates.image_tower, self.rates.video_tower) != (None, None):
            raise ValueError(
                "data.features: a tower that is trained gives other features after each step; expected "
                "rates.image_tower and rates.video_tower null, or data.features null"
            )

    @property
    def decisive(self) -> dict[str, Any]:
        """The settings that two starts of one run must have in common, by their path in the recipe.

        Devices, memory, workers, paths, what is evaluated and the times of checkpoints may differ.
        """
        whole = dataclasses.asdict(self)
        for name in ("output", "model", "keeping", "stall_seconds", "max_skipped"):
            del whole[name]
        evaluation = ("evaluate", "evaluate_as", "evaluate_limit", "evaluate_max_missing")
        for name in (*_PATHS, *evaluation, "workers", "ahead", "max_bad"):
            del whole["data"][name]
        for name in ("data", "tensor", "remat", "loss_chunk"):
            del whole["compute"][name]
        return _flat(whole)


def _flat(tree: dict[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{before}{name}.")
        else:
            found[f"{before}{name}"] = list(value) if isinstance(value, tuple) else value
    return found


def read_recipe(
    arguments: Sequence[str] | None = None, *, description: str = "", prog: str | None = None
) -> tuple[Recipe, str]:
    """Parses a command line into a recipe; also returns the complete recipe as YAML.

    Args:
      arguments: of the command line; None for the program's own. `--config FILE` reads YAML, or a recipe of the
        package by its name (`--config lora`), and what follows it changes single fields: `--data.epochs 2`.
        `--as paper --config lora` is the packaged recipe that trains as the authors' script does.
      description, prog: of `--help`.

    Raises:
      SystemExit: a field that is not known, is missing or has a wrong value, said on standard error; or `--help`.
      ValueError: jsonargparse is not installed.
      OSError: the disk fails while a recipe is read.
    """
    require_packages("jsonargparse")
    from jsonargparse import ActionConfigFile, ArgumentParser, DefaultHelpFormatter

    class Formatter(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):  # type: ignore[misc]
        """Keeps the lines of the description, and shows defaults."""

    class Parser(ArgumentParser):  # type: ignore[misc]
        """Says the range of a number that is none."""

        def error(self, message: str, *rest: Any) -> None:
            super().error(_with_range(message), *rest)

    parser = Parser(prog=prog, description=description, allow_abbrev=False, formatter_class=Formatter)
    parser.add_argument(
        "--config",
        action=ActionConfigFile,
        help=f"a recipe: a YAML file, or one of {names()}; what follows it changes single fields. "
        f"With --as {PAPER} before it, {PAPERS} train as the authors' scripts do",
    )
    parser.add_class_arguments(Recipe)
    given = sys.argv[1:] if arguments is None else arguments
    try:
        complete = with_recipe_files(given)
        with named_errors(" or ".join(recipe_files(complete))):
            chosen = parser.parse_args(complete)
        if chosen.compute.int8 and as_paper(given):
            raise ValueError(f"compute.int8: {NOT_NF4}; expected no compute.int8 with --as {PAPER}")
        _make_absolute(chosen)
    except ValueError as error:
        parser.error(str(error))
    text = parser.dump(chosen, skip_unset=False)
    try:
        fields = vars(parser.instantiate(chosen))
        return Recipe(**{name: fields[name] for name in (f.name for f in dataclasses.fields(Recipe))}), str(text)
    except ValueError as error:
        parser.error(str(error))
        raise  # not reached: it has ended the program


def _with_range(message: str) -> str:
    """Returns jsonargparse's message; where it is about a number, one line with the field's range instead."""
    for found in re.finditer(r"([\w.]+): expected [^\n]*", message):
        if (kind := RANGES.get(found[1])) is not None and f": expected {kind.expected}" in found[0]:
            return found[0]
    name = ".".join(re.findall(r'Parser key "([^"]+)"', message))
    value = re.search(r"(?:Got|Given) value: ([^\n]*)", message)
    if not value or (kind := RANGES.get(name)) is None:
        return message
    null = ", or null" if "NoneType" in message and not name.startswith("lora.") else ""
    return f"{name}: expected {kind.expected}{null}, got {value[1]}"


def require_packages(*names: str) -> None:
    """Raises a ValueError that names the extra to install, where one of its packages is not installed."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"fine-tuning needs {', '.join(missing)}, not installed here: {installs('train')}")


def _make_absolute(chosen: Any) -> None:
    """Makes a recipe's paths absolute, so that the copy in the run's directory means the same from anywhere."""

    def absolute(path: Any) -> Any:
        if isinstance(path, list):
            return [absolute(one) for one in path]
        return path if not path else str(local_path(path))

    # Anything else is a name on the hub, or a directory that is not here.
    if chosen.model not in (None, BUNDLED) and local_path(chosen.model).is_dir():
        chosen.model = absolute(chosen.model)
    chosen.output = absolute(chosen.output)
    for name in _PATHS:
        chosen.data[name] = absolute(chosen.data[name])
