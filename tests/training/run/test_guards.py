"""The watchdog of a run ends it with a message when a step takes too long."""

from __future__ import annotations

import os
import time
from pathlib import Path

from tests.faults.children import Child
from videollava_jax.training.run.guards import STALLED, Watchdog


def hang(place: Path, known: str) -> None:
    """Gives signs of life for longer than the watchdog waits, then none."""
    os.dup2(os.open(place, os.O_WRONLY | os.O_CREAT), 2)
    with Watchdog(1.5, "Go on so.", lambda: known) as watchdog:
        for step in range(10):
            watchdog.alive(f"step {step}")
            time.sleep(0.3)
        time.sleep(600)


def test_a_run_that_hangs_ends_and_says_what_it_knows(tmp_path):
    for known in ("", "process 1 has not answered for 4 s"):
        said = tmp_path / f"said{len(known)}"
        assert Child(hang, said, known).status(60) == STALLED
        text = said.read_text()
        assert "process 0 of 1: no progress for 2 s in step 9: " in text
        assert (known or "a disk or another process hangs") in text
        assert text.endswith("Go on so.\n")
