"""A killed process of a run leaves nothing behind; `tests.faults.signals` strikes all processes of all runs."""

from __future__ import annotations

import os
import signal

from tests.faults.signals import recipe, running

# One process loads data, one micro-batch ahead: a killed one is noticed at once, and a start is cheap.
SMALL = ("--data.workers", "1", "--data.ahead", "1", "--data.steps", "200")


def shares_memory(run):
    """Whether the process that loads data has handed over some."""
    run.note()
    return any(name.startswith("psm_") for name in run.held)


def test_a_killed_process_of_training_leaves_nothing(tmp_path):
    place = tmp_path / "place"
    place.mkdir()
    with running(place, "train", *recipe(place, *SMALL)) as run:
        run.until(lambda: shares_memory(run))
        os.kill(run.process.pid, signal.SIGKILL)
        status = run.ended(240)
        assert run.left() == ""
        assert status == -signal.SIGKILL


def test_a_killed_process_that_loads_data_ends_training_and_a_changed_recipe_does_not(tmp_path):
    place = tmp_path / "place"
    place.mkdir()
    config = place / "recipe.yaml"
    config.write_text("keeping: {log_every: 1}\n")
    _, *arguments = recipe(place, *SMALL)
    with running(place, "train", "finetune", "--config", str(config), *arguments) as run:
        run.until(run.workers)
        config.write_text("no recipe: [")
        metrics = place / "run" / "metrics.jsonl"
        run.until(lambda: metrics.exists() and "\n" in metrics.read_text())
        assert shares_memory(run)
        os.kill(run.workers()[0], signal.SIGKILL)
        status = run.ended(240)
        assert run.left() == ""
        assert status == 1
        assert "videollava: a process that loads data has ended" in run.said()
        assert "log_every: 1" in (place / "run" / "recipe.yaml").read_text(), "the recipe that the run began with"
