"""The directory of a run: what it was begun with, and whether another may go on in it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from videollava_jax.training.recipe import Recipe, read_recipe

CHECKPOINTS, RECIPE, FACTS = "checkpoints", "recipe.yaml", "run.json"


def begin_or_go_on(directory: Path, facts: Mapping[str, Any], recipe: str) -> None:
    """Makes the directory of a run, or makes sure that it is this run's.

    Args:
      facts: what decides the run, for JSON.
      recipe: as text, to be kept.

    Raises:
      ValueError: another run's directory, with what differs; or one that is no run's and not empty.
    """
    file = directory / FACTS
    if file.exists():
        before = json.loads(file.read_text())
        # As JSON has it: tuples are lists there.
        now = json.loads(json.dumps(facts))
        differing = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        if differing:
            told = "; ".join(f"{name} was {before.get(name)}, now {now.get(name)}" for name in differing)
            raise ValueError(
                f"{directory} holds another run: {told}. Use the recipe in {directory / RECIPE}, or another output"
            )
        return
    if directory.exists() and any(directory.iterdir()):
        raise ValueError(f"{directory} is not empty and no run's: choose another output")
    if jax.process_index() == 0:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / RECIPE).write_text(recipe)
        (directory / FACTS).write_text(json.dumps(facts, indent=2) + "\n")


def recipe_of(directory: Path) -> Recipe:
    """The recipe of a run.

    Raises:
      ValueError: the directory is no run's.
    """
    file = directory / RECIPE
    if not file.exists():
        raise ValueError(f"{directory}: expected the directory of a run, with {RECIPE} in it")
    return read_recipe(["--config", str(file)])[0]
