"""Metrics of a run: a line of JSON for each logged step, the same numbers for TensorBoard, and a progress bar."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from videollava_jax.named_errors import named_errors
from videollava_jax.training.data.loader import HostBatch
from videollava_jax.training.data.skips import BadSample
from videollava_jax.training.run.processes import gathered, summed

FILE = "metrics.jsonl"


class StepCounts:
    """Counts of one process in one step.

    Attributes:
      seen: the number of samples, those left out included.
      bad: the samples that were left out.
      tokens, positions: tokens in its rows, and the positions of these rows.
      waited: seconds spent waiting for data.
    """

    def __init__(self) -> None:
        self.seen, self.tokens, self.positions, self.waited = 0, 0, 0, 0.0
        self.bad: list[BadSample] = []
        self._samples: list[npt.NDArray[np.int32]] = []
        self._began = time.perf_counter()

    def over(self, batches: Iterator[HostBatch]) -> Iterator[HostBatch]:
        """Yields the micro-batches of one step and counts them."""
        while True:
            asked = time.perf_counter()
            batch = next(batches)
            self.waited += time.perf_counter() - asked
            segments, samples = batch.arrays["segments"], batch.arrays["samples"]
            self.seen += batch.seen
            self.bad += batch.bad
            self._samples.append(samples)
            self.tokens += int((segments > 0).sum())
            self.positions += segments.size
            yield batch
            if batch.last:
                return

    def samples(self) -> list[int]:
        """Returns the numbers in the corpus of all samples of the step, of all processes, row by row.

        All processes call this together.
        """
        rows = gathered(np.stack(self._samples))  # [process, micro-batch, row, sample in the row]
        found = rows.swapaxes(0, 1).ravel()
        return [int(sample) for sample in found[found >= 0]]

    @property
    def seconds(self) -> float:
        """Seconds since the step began."""
        return time.perf_counter() - self._began


class Metrics:
    """Writes metrics in the first process; in the others all methods do nothing.

    Args:
      directory: of the run, for `metrics.jsonl` and, in `tensorboard`, event files.
      step: that the run goes on from. Lines of later steps are deleted, since these steps are done again.
      steps: of the whole run.
    """

    def __init__(self, directory: Path, step: int, steps: int):
        self._bar: Any = None
        self._written: set[tuple[int, str]] = set()
        if jax.process_index():
            return
        self._file = directory / FILE
        kept = [line for line in read_metrics(directory) if line["step"] <= step]
        self._written = {(line["step"], name) for line in kept for name in line}
        unfinished = self._file.with_suffix(".new")
        with named_errors(unfinished):
            unfinished.write_text("".join(json.dumps(line) + "\n" for line in kept))
            os.replace(unfinished, self._file)
        self._board = _Board(directory / "tensorboard", step + 1)
        self._bar = tqdm(total=steps, initial=step, unit="step", disable=None, dynamic_ncols=True)

    def write(self, step: int, values: Mapping[str, float | list[int]]) -> None:
        """Writes one line, and its numbers to TensorBoard.

        Raises:
          OSError: the disk does not take them; with the file's name.
        """
        if self._bar is None:
            return
        with named_errors(self._file), open(self._file, "a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        self._board.write(step, {name: value for name, value in values.items() if isinstance(value, (int, float))})

    def has(self, step: int, name: str) -> bool:
        """Returns whether an earlier start has written a metric, or one whose name goes on with a slash.

        All processes call this together.
        """
        found = any(at == step and f"{key}/".startswith(f"{name}/") for at, key in self._written)
        return bool(summed(found)[0])

    def advance(self, loss: float, rate: float) -> None:
        """Moves the bar by one step, and shows its loss and the tokens a second."""
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {loss:.3f}, {rate:.0f} tokens/s", refresh=False)
            self._bar.update()

    def say(self, text: str) -> None:
        """Prints a line above the bar."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)

    def close(self) -> None:
        """Closes the files and the bar."""
        if self._bar is not None:
            self._bar.close()
            self._board.close()


class _Board:
    """A file of events for TensorBoard, written at once.

    tensorboardX's own writer has a thread and a queue, and waits for ever for a thread that a full disk has ended.

    Args:
      directory: made where it does not exist.
      step: the first that this start does; TensorBoard hides what an earlier one has written of it and later ones.
    """

    def __init__(self, directory: Path, step: int):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self._directory, self._event = directory, Event
        with named_errors(directory):
            directory.mkdir(exist_ok=True)
            # The name has the second in it; a start in the same second must not overwrite the file of another.
            self._writer = EventsWriter(str(directory / "events"), f".{os.getpid()}")
            self._writer.write_event(Event(step=step, file_version="brain.Event:2"))
            self._writer.write_event(Event(step=step, session_log=SessionLog(status=SessionLog.START)))
            self._writer.flush()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes numbers by name."""
        from tensorboardX.summary import scalar

        with named_errors(self._directory):
            for name, value in values.items():
                event = self._event(summary=scalar(name, value), step=step, wall_time=time.time())
                self._writer.write_event(event)
            self._writer.flush()

    def close(self) -> None:
        with named_errors(self._directory):
            self._writer.close()


def read_metrics(directory: Path) -> list[dict[str, Any]]:
    """Reads the lines that a run has written; a line that its end has cut short is left out."""
    file = directory / FILE
    lines = []
    with named_errors(file):
        text = file.read_text() if file.exists() else ""
    for line in text.splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return lines
