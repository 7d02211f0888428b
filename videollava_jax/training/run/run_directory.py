"""The directory of a run: the facts that it began with, and the lock that keeps other runs out."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils

from videollava_jax.named_errors import named_errors
from videollava_jax.training.run.recipe import Recipe, read_recipe

CHECKPOINTS, RECIPE, FACTS, LOCK = "checkpoints", "recipe.yaml", "run.json", "lock"


@contextmanager
def run_directory(directory: Path, facts: Mapping[str, Any], recipe: str) -> Iterator[None]:
    """Makes the directory of a run, or checks that it belongs to this run; locks it while the context lasts.

    Args:
      directory: of the run.
      facts: the values that two starts of one run have in common, for JSON.
      recipe: the recipe's text, which is written into a new directory.

    Raises:
      ValueError: the directory belongs to another run (the message says what differs), is not empty and not a run's, or
        is not shared by all processes.
      OSError: another process is at work in it.
    """
    if jax.process_index():  # only the first process makes and locks it
        multihost_utils.sync_global_devices(LOCK)
        if not (directory / FACTS).exists():
            raise ValueError(
                f"{directory}: made by the first process, not seen by this one; expected one that all hosts share"
            )
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
            with named_errors(file):
                held = json.loads(file.read_text())
            _require_same(directory, held, json.loads(json.dumps(facts)))
        else:
            with named_errors(directory):
                (directory / RECIPE).write_text(recipe)
                written = file.with_suffix(".new")
                written.write_text(json.dumps(facts, indent=2) + "\n")
                written.rename(file)
        multihost_utils.sync_global_devices(LOCK)
        yield
    finally:
        with suppress(OSError):  # a disk that fails; the lock is released all the same
            os.close(descriptor)


def _require_empty_or_a_runs(directory: Path) -> None:
    """An earlier start may have ended before it had written all of these files."""
    ours = {LOCK, RECIPE, FACTS, Path(FACTS).with_suffix(".new").name}
    if directory.exists() and not (directory / FACTS).exists() and not {p.name for p in directory.iterdir()} <= ours:
        raise ValueError(f"{directory} is not empty and no run's: choose another output")


def _require_same(directory: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    differing = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if differing:
        values = "; ".join(f"{name} was {before.get(name)}, now {now.get(name)}" for name in differing)
        raise ValueError(
            f"{directory} holds another run: {values}. Use the recipe in {directory / RECIPE}, or another output"
        )


def recipe_of(directory: Path) -> Recipe:
    """Reads the recipe of a run.

    Raises:
      ValueError: this is not the directory of a run.
    """
    file = directory / RECIPE
    if not file.exists():
        raise ValueError(f"{directory}: expected the directory of a run, with {RECIPE} in it")
    return read_recipe(["--config", str(file)])[0]
