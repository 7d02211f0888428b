"""`videollava finetune` and `videollava train-export`: a run by a recipe, and a model or an adapter from it."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from videollava_jax.cli.common import argument_type, begin_command, print_json
from videollava_jax.generation.kinds import whole

FINETUNE = """\
Fine-tune Video-LLaVA by a recipe; the same command goes on where a run was stopped.

  videollava finetune --config lora --model 7b-orbax --output runs/mine --data.train mine.json
  videollava finetune --as paper --config lora ...         as the authors' scripts train
  videollava finetune --config lora --print_config         the whole recipe as YAML, to edit
  videollava train-export runs/mine mine-hf                the model that it has learnt

docs/training.md has the recipes, the data's format, meshes and what happens when something goes wrong. On several
machines the same command runs on each of them."""


def add_finetune(made: argparse.ArgumentParser) -> None:
    """Fills the parser of `finetune`, whose arguments are a recipe's: `read_recipe` parses them, `--help` too."""
    made.add_argument("arguments", nargs="*")
    made.set_defaults(run=finetune)


def finetune(arguments: argparse.Namespace) -> None:
    """Reads the recipe and runs it.

    Raises:
      SystemExit: with the run's exit status where that is not 0, or with 2 for wrong arguments.
    """
    from videollava_jax.training.run.recipe import read_recipe

    recipe, text = read_recipe(arguments.arguments, description=FINETUNE, prog="videollava finetune")

    from videollava_jax.training.run.loop import fine_tune  # imports JAX

    if status := fine_tune(recipe, text):
        raise SystemExit(status)


def add_train_export(made: argparse.ArgumentParser) -> None:
    """Fills the parser of `train-export`."""
    begin_command(
        made,
        train_export,
        "  videollava train-export runs/mine mine-hf                  the model with it, as transformers loads it\n"
        "  videollava train-export runs/mine mine-hf --layout orbax   the same, as an Orbax directory\n"
        "  videollava train-export runs/mine mine-lora --adapter      only what was trained, for PEFT\n\n"
        "One machine without an accelerator is enough. A model needs the one that the run began with.",
    )
    made.add_argument("run_directory", type=Path, metavar="RUN", help="a run's directory")
    made.add_argument("target", type=Path, metavar="TARGET", help="must not exist, or hold exactly this already")
    made.add_argument("--adapter", action="store_true", help="only what was trained, for PEFT")
    made.add_argument(
        "--layout",
        metavar="NAME",
        help="of names: hub, hf5, memory, pku, or orbax for a model; hub, hf5, memory, memory4 (transformers 4.52 to "
        "4.57) or pku for an adapter; default: hub for a model, memory (transformers 5's names) for an adapter",
    )
    made.add_argument(
        "--step", type=argument_type(whole(0)), metavar="N", help="of the checkpoint; default: the last one"
    )
    made.add_argument(
        "--model", help="where the model that the run began with is now; default: where the run's recipe says"
    )


def train_export(arguments: argparse.Namespace) -> None:
    """Writes the model or the adapter, and says what was written."""
    from videollava_jax.training.run.export import export_run

    done = export_run(
        arguments.run_directory,
        arguments.target,
        layout=arguments.layout,
        adapter=arguments.adapter,
        step=arguments.step,
        model=arguments.model,
    )
    if arguments.json:
        print_json({name: str(x) if isinstance(x, Path) else x for name, x in dataclasses.asdict(done).items()})
    else:
        print(done)
