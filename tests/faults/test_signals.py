"""A killed process of a run leaves nothing behind; `tests.faults.signals` strikes all processes of all runs."""

from __future__ import annotations

import os
import signal

import pytest

from tests.faults.signals import recipe, running


@pytest.mark.parametrize("who", ["main", "worker"])
def test_a_killed_process_of_training_leaves_nothing(tmp_path, who):
    place = tmp_path / "place"
    place.mkdir()
    with running(place, "train", *recipe(place, "--data.steps", "400")) as run:
        metrics = place / "run" / "metrics.jsonl"
        run.until(lambda: metrics.exists() and "\n" in metrics.read_text())
        run.note()
        assert run.held, "the workers share memory with the main process"
        os.kill(run.process.pid if who == "main" else run.workers()[0], signal.SIGKILL)
        status = run.ended(240)
        assert run.left() == ""
        if who == "main":
            assert status == -signal.SIGKILL
        else:
            assert status == 1
            assert "videollava: a process that loads data has ended" in run.said()
