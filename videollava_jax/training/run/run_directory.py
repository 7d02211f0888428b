"""The directory of a run: what it was begun with, and whether another may go on in it."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils

from videollava_jax.training.run.recipe import Recipe, read_recipe

CHECKPOINTS, RECIPE, FACTS, LOCK = "checkpoints", "recipe.yaml", "run.json", "lock"


@contextmanager
def run_directory(directory: Path, facts: Mapping[str, Any], recipe: str) -> Iterator[None]:
    """Makes the directory of a run, or makes sure that it is this run's, and holds it against others.

    Args:
      facts: what decides the run, for JSON.
      recipe: as text, to be kept.

    Raises:
      ValueError: another run's directory, with what differs; or one that is no run's and not empty; or processes that
        do not share it.
      OSError: another run is at work in it.
    """
    if jax.process_index():  # the first process looks after it for all
        multihost_utils.sync_global_devices(LOCK)
        if not (directory / FACTS).exists():
            raise ValueError(f"{directory}: the first process made it elsewhere; expected a directory of all hosts")
        yield
        return
    _require_empty_or_a_runs(directory)
    directory.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(f"{directory}: another run is at work in it; expected one at a time") from None
        file = directory / FACTS
        if file.exists():
            _require_same(directory, json.loads(file.read_text()), json.loads(json.dumps(facts)))
        else:
            (directory / RECIPE).write_text(recipe)
            written = file.with_suffix(".new")
            written.write_text(json.dumps(facts, indent=2) + "\n")
            written.rename(file)
        multihost_utils.sync_global_devices(LOCK)
        yield
    finally:
        os.close(descriptor)


def _require_empty_or_a_runs(directory: Path) -> None:
    """A directory may have been begun and then left before anything was in it."""
    ours = {LOCK, RECIPE, FACTS}
    if directory.exists() and not (directory / FACTS).exists() and not {p.name for p in directory.iterdir()} <= ours:
        raise ValueError(f"{directory} is not empty and no run's: choose another output")


def _require_same(directory: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    differing = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if differing:
        told = "; ".join(f"{name} was {before.get(name)}, now {now.get(name)}" for name in differing)
        raise ValueError(
            f"{directory} holds another run: {told}. Use the recipe in {directory / RECIPE}, or another output"
        )


def recipe_of(directory: Path) -> Recipe:
    """The recipe of a run.

    Raises:
      ValueError: the directory is no run's.
    """
    file = directory / RECIPE
    if not file.exists():
        raise ValueError(f"{directory}: expected the directory of a run, with {RECIPE} in it")
    return read_recipe(["--config", str(file)])[0]
