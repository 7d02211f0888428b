"""Interrupts fine-tuning at random steps until it is done, and compares the result with a run that nobody disturbed.

    python -m tests.faults.training --interruptions 100 --seed 0

A run trains LoRA with dropout on a mesh of virtual devices. It is killed (SIGKILL) or stopped (SIGTERM) when it has
done a randomly drawn step, or one time in ten before its first step, and started again, until it is done. Then its
parameters must be equal to the bit to those of the undisturbed run, and so must the samples of every step. A run that
SIGTERM stops in its steps must have saved the last one, and at no time may the last good checkpoint be missing. The
exit status is 1 if one of these is violated.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

from tests.faults.children import Child, Died
from tests.faults.tables import Tally, said, table
from tests.training.data_sets import write_data

ROOT = Path(__file__).parents[2]
STEPS, SAVE_EVERY = 12, 3
BEFORE_ITS_STEPS = 0.1
"""The share of interruptions that come while a run is starting."""


def fine_tune(output: str, data: str, mesh: tuple[int, int]) -> int:
    """Fine-tunes in this process, which has not used a device yet; returns the exit status of the run."""
    import jax

    from videollava_jax.training.run import loop, recipe

    jax.config.update("jax_num_cpu_devices", 8)
    jax.config.update("jax_compilation_cache_dir", str(ROOT / ".cache" / "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
    read, text = recipe.read_recipe(
        [
            *("--model", "tiny", "--output", output, "--data.train", str(data), "--data.steps", str(STEPS)),
            *("--rates.lora", "1e-3", "--rates.projector", "1e-3", "--lora.rank", "4", "--lora.dropout", "0.2"),
            *("--data.batch", "6", "--data.row_tokens", "400", "--data.videos_per_row", "2"),
            *("--data.images_per_row", "2", "--data.workers", "0", "--data.rows", "4"),
            *("--compute.data", str(mesh[0]), "--compute.tensor", str(mesh[1])),
            *("--compute.dtype", "float32", "--keeping.save_every", str(SAVE_EVERY)),
            *("--keeping.keep", "1"),
        ]
    )
    return loop.fine_tune(read, text)


def parameters(run: Path) -> dict[str, np.ndarray]:
    """Reads the trained parameters of a finished run."""
    from videollava_jax.model.sharding import STACKED
    from videollava_jax.weights.orbax import open_layers

    tensors = open_layers(run / "checkpoints" / str(STEPS), "trained", STACKED)
    return {name: tensor.read() for name, tensor in tensors.items()}


def consumed(run: Path) -> list[list[int]]:
    """Reads the samples of every step."""
    from videollava_jax.training.run.metrics import read_metrics

    return [line["samples"] for line in read_metrics(run) if "samples" in line]


def last_logged(run: Path) -> int:
    """Returns the last step in the log, which an earlier start may have written."""
    from videollava_jax.training.run.metrics import read_metrics

    return max((line["step"] for line in read_metrics(run)), default=0)


def log_of(run: Path) -> int:
    """Returns a number that differs for each start that has reached its steps: each writes the log as a new file."""
    file = run / "metrics.jsonl"
    return file.stat().st_ino if file.exists() else 0


def latest(run: Path) -> int:
    """Returns the step of the last complete checkpoint; 0 for none."""
    return max((int(path.name) for path in (run / "checkpoints").glob("*") if path.name.isdecimal()), default=0)


def ended_well(child: Child, seconds: float, tally: Tally) -> None:
    """Counts a violation where a run that nobody disturbed ends with a status other than 0."""
    try:
        ended = f"status {child.result(seconds)}"
    except (Died, RuntimeError) as error:
        ended = str(error)
    if ended != "status 0":
        tally.add("violation", f"a run that nobody disturbed did not end well: {ended}")


def interrupted(
    place: Path, data: Path, mesh: tuple[int, int], rng: random.Random, tally: Tally, too_late: Tally, left: int
) -> int:
    """Interrupts a run until it is done or `left` interruptions were made; returns the number of interruptions."""
    made = kept = 0
    while True:
        if latest(place) < kept:
            tally.add("lost", f"checkpoint {kept} was deleted, and {latest(place)} is the last complete one")
        kept, log = latest(place), log_of(place)
        child = Child(fine_tune, str(place), str(data), mesh)
        if made == left:
            ended_well(child, 300, tally)
            return made
        number = rng.choice((signal.SIGKILL, signal.SIGTERM))
        if starting := rng.random() < BEFORE_ITS_STEPS:
            time.sleep(rng.uniform(0, 1))
        else:
            wanted = rng.randint(kept + 1, max(kept + 1, STEPS - 1))
            deadline = time.monotonic() + 300
            while child.running and (log_of(place) == log or last_logged(place) < wanted):
                if time.monotonic() > deadline:
                    raise RuntimeError(f"step {wanted} was not reached in 300 s")
                time.sleep(0.005)
            time.sleep(rng.uniform(0, 0.05))
        if not child.running:
            ended_well(child, 10, tally)
            return made
        os.kill(child.pid, number)
        made += 1
        name = f"{signal.Signals(number).name} {'at the start' if starting else 'in its steps'}"
        try:
            status = child.result(120)
        except (Died, RuntimeError) as error:
            # Until the steps begin there is nothing to save, and SIGTERM ends the process as it ends any.
            expected = f"status {-number}" in str(error) and (starting or number == signal.SIGKILL)
            tally.add(*((name,) if expected else ("violation", f"{name}: {error}")))
            continue
        if status == 0:
            too_late.add("done before the signal was seen")
            return made - 1
        tally.add(name)
        if status != 128 + signal.SIGTERM or number != signal.SIGTERM:
            tally.add("violation", f"{name}: status {status}")
        elif latest(place) != last_logged(place):
            tally.add("lost", f"{name}: step {last_logged(place)} was done, and {latest(place)} saved")


def compared(run: Path, expected: dict[str, np.ndarray], order: list[list[int]]) -> tuple[str, ...]:
    """Compares a finished run with the undisturbed one; returns the arguments for `Tally.add`."""
    found = parameters(run)
    if found.keys() != expected.keys():
        return "violation", f"parameters {sorted(found.keys() ^ expected.keys())[:3]} are in one of the runs only"
    differing = [name for name in expected if not np.array_equal(found[name], expected[name])]
    if differing:
        return "silent", f"{len(differing)} of {len(expected)} parameters differ: {differing[:3]}"
    if consumed(run) != order:
        return "silent", f"samples {consumed(run)}, expected {order}"
    return ("equal to the bit",)


def trial(interruptions: int, seed: int, mesh: tuple[int, int]) -> list[Tally]:
    """Makes a number of interruptions, in as many runs as that takes; fewer where a run does not reach its end."""
    rng, results = random.Random(seed), Tally("runs")
    tally, too_late = Tally("interruptions"), Tally("signals after the last step")
    with tempfile.TemporaryDirectory() as directory:
        data = write_data(Path(directory) / "data", 13)
        whole = Path(directory) / "whole"
        if Child(fine_tune, str(whole), str(data), mesh).result(300) != 0:
            raise RuntimeError("the run that nobody disturbs did not end well")
        expected, order = parameters(whole), consumed(whole)
        with tqdm(total=interruptions, unit="interruption") as bar:
            while bar.n < interruptions:
                place = Path(directory) / f"run-{results.outcomes.total()}"
                bar.update(interrupted(place, data, mesh, rng, tally, too_late, interruptions - bar.n))
                if latest(place) != STEPS:
                    results.add("violation", f"a run has checkpoint {latest(place)} and not {STEPS}")
                    break
                results.add(*compared(place, expected, order))
    return [tally, too_late, results]


def part(seed: int, scale: float) -> list[Tally]:
    """Interrupts training `12 * scale` times; see `tests.faults.parts`."""
    return trial(max(2, round(12 * scale)), seed, (4, 2))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--interruptions", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mesh", default="4x2", help="data × tensor, virtual devices (4x2)")
    arguments = parser.parse_args()
    began = time.monotonic()
    data, tensor = map(int, arguments.mesh.split("x"))
    tallies = trial(arguments.interruptions, arguments.seed, (data, tensor))
    print(table(tallies))
    print(f"seed {arguments.seed}, {time.monotonic() - began:.0f} s")
    return said(tallies)


if __name__ == "__main__":
    sys.exit(main())
