"""What `failing_io` runs while calls fail: a job, conversions, exports, saved models and adapters."""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.faults.batch import FakeRunner, asked, committed, write_job
from tests.faults.children import command
from tests.faults.failing_calls import FAILURES, Failure
from tests.small_models import random_parameters, small_config
from tests.weights.adapters_helper import draw, write_adapter
from tests.weights.checkpoints import write_checkpoint

Ended = tuple[int, str]
"""The exit status of a run and what it said on standard error."""
Problem = tuple[str, str] | None
"""What is wrong, as an outcome of `tables.BAD` and in words; None where nothing is."""

LEFT = "left behind"
_SMALL = {"hidden_size": 8, "intermediate_size": 12, "image_size": 4, "patch_size": 2, "num_hidden_layers": 1}


class Trial:
    """A run whose calls fail, in a directory of its own.

        HOME/source     made once, read by all runs
        HOME/PLACE/out  where calls fail that write; whatever else is in PLACE is for the trial

    Attributes:
      name: in the table.
      leavings: what may be in `out` when a run has ended well.
      failures: the ways in which its calls fail.
      may_be_interrupted: whether an interrupted call may end it with an error. The kernel gives signals to the main
        thread first, whose calls Python makes again; those of TensorStore's threads come back only on file systems over
        a network.
      may_say: what a library may log of a failure that does no harm.
    """

    may_be_interrupted = False
    may_say = ""
    failures: Sequence[Failure] = FAILURES

    name: str
    leavings: tuple[str, ...]

    def below(self, place: Path) -> Path:
        """Returns the directory below which calls fail."""
        return place / "out"

    def make(self, source: Path) -> None:
        """Makes what all runs read."""

    def prepare(self, out: Path) -> None:
        """Puts into `out` what must still be there afterwards."""

    def run(self, place: Path) -> Ended:
        """Runs it as a command that prints its errors; a second time, it goes on. Called in a child."""
        raise NotImplementedError

    def result(self, place: Path) -> dict[str, Any]:
        """Returns what a run that ended well has left, to be compared with that of an undisturbed one."""
        return contents(place / "out")

    def disturbed(self, place: Path, expected: dict[str, Any]) -> Problem:
        """Returns what is wrong after a run that said an error."""
        raise NotImplementedError

    def resumed(self, place: Path) -> Problem:
        """Returns what is wrong after a run that ended well, but for its result."""
        left = {path.name for path in (place / "out").iterdir()} - set(self.leavings)
        return ("violation", f"{LEFT}: {sorted(left)}") if left else None


def contents(directory: Path) -> dict[str, bytes]:
    """Returns the bytes of every file by its path."""
    paths = sorted(directory.rglob("*"))
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in paths if path.is_file()}


def reported(function: Callable[..., Any], *arguments: Any) -> Ended:
    """Calls a function as a command is called: its errors are said in a line."""
    from videollava_jax.cli.errors import report

    with contextlib.redirect_stderr(io.StringIO()) as words, contextlib.redirect_stdout(io.StringIO()):
        try:
            function(*arguments)
            status = 0
        except Exception as error:
            status = report(error, [])
    return status, words.getvalue()


class Job(Trial):
    """A job without a model: each committed line stays committed, and none is asked again."""

    name = "ledger"
    leavings = ("output.jsonl", "output.jsonl.job.json")

    def make(self, source: Path) -> None:
        source.mkdir()
        write_job(source / "input.jsonl", 10)

    def run(self, place: Path) -> Ended:
        from videollava_jax.batch.runner import BatchOptions, run_batch

        runner, source = FakeRunner(place / "asked", 0, 0.0), place.parent / "source" / "input.jsonl"
        options = BatchOptions(max_error_rate=1)
        return reported(run_batch, source, place / "out" / "output.jsonl", lambda: runner, options)

    def disturbed(self, place: Path, expected: dict[str, Any]) -> Problem:
        output = place / "out" / "output.jsonl"
        asked(place)
        (place / "kept").write_text(" ".join(map(str, committed(output))))
        if output.exists() and output.read_bytes() != expected["output.jsonl"]:
            return "silent", "an output that is not whole"
        return None

    def resumed(self, place: Path) -> Problem:
        kept = {int(line) for line in (place / "kept").read_text().split()} if (place / "kept").exists() else set()
        if again := asked(place) & kept:
            return "doubled", f"asked again, though committed: {sorted(again)}"
        return super().resumed(place)


class _Directory(Trial):
    """A directory that appears whole or not at all, next to another one."""

    leavings = ("target", "other")

    def make(self, source: Path) -> None:
        config = small_config(vision=_SMALL, text={"num_hidden_layers": 1})
        write_checkpoint(source, config, random_parameters(config, 0), "hub", shards=2)
        (source / "tokenizer.json").write_text("{}\n")

    def prepare(self, out: Path) -> None:
        shutil.copytree(out.parent.parent / "source", out / "other")

    def result(self, place: Path) -> dict[str, Any]:
        from videollava_jax.weights import verify_checkpoint

        target = place / "out" / "target"
        return {**super().result(place), "problems": verify_checkpoint(target)}

    def disturbed(self, place: Path, expected: dict[str, Any]) -> Problem:
        out = place / "out"
        if contents(out / "other") != contents(place.parent / "source"):
            return "lost", "another directory was touched"
        if (out / "target").exists() and self.result(place) != expected:
            return "silent", "a target that is not whole"
        return None


class Convert(_Directory):
    """`videollava convert`, whose files have random names and times: the tensors and their hashes are compared."""

    name = "convert to Orbax"

    def run(self, place: Path) -> Ended:
        return command("convert", str(place.parent / "source"), str(place / "out" / "target"))

    def result(self, place: Path) -> dict[str, Any]:
        from videollava_jax.weights import verify_checkpoint
        from videollava_jax.weights.manifest import read_manifest

        target = place / "out" / "target"
        manifest = read_manifest(target)
        tensors = {} if manifest is None else dict(manifest.tensors)
        files = {name: (target / name).read_bytes() for name in ("config.json", "tokenizer.json")}
        return {**tensors, **files, "problems": verify_checkpoint(target), "manifest": manifest is not None}


class Export(_Directory):
    """`videollava export` to safetensors."""

    name = "export"

    def run(self, place: Path) -> Ended:
        return command("export", str(place.parent / "source"), str(place / "out" / "target"))


class WriteAdapter(_Directory):
    """An adapter written for PEFT."""

    name = "write an adapter"

    def make(self, source: Path) -> None:
        write_adapter(source, draw(small_config(vision=_SMALL)), "memory")

    def run(self, place: Path) -> Ended:
        return reported(_copy_adapter, place.parent / "source", place / "out" / "target")

    def result(self, place: Path) -> dict[str, Any]:
        return contents(place / "out")


def _copy_adapter(source: Path, target: Path) -> None:
    from videollava_jax.weights.adapters import open_adapter
    from videollava_jax.weights.adapters.writing import write_peft

    write_peft(open_adapter(source), target, "memory")


class SavePretrained(_Directory):
    """`save_pretrained` of a model into the directory of its processor, which stays."""

    name = "save_pretrained"
    leavings = ("target",)

    def prepare(self, out: Path) -> None:
        (out / "target").mkdir()
        (out / "target" / "tokenizer.json").write_text("{}\n")

    def run(self, place: Path) -> Ended:
        return reported(_save, place.parent / "source", place / "out" / "target")

    def result(self, place: Path) -> dict[str, Any]:
        return contents(place / "out")

    def disturbed(self, place: Path, expected: dict[str, Any]) -> Problem:
        target = place / "out" / "target"
        if (target / "tokenizer.json").read_text() != "{}\n":
            return "lost", "a file of the processor was touched"
        whole = {f"target/{name}": content for name, content in contents(target).items()}
        if "config.json" in whole and whole != expected:
            return "silent", "a configuration, and not all weights"
        return None


def _save(source: Path, target: Path) -> None:
    from videollava_jax import VideoLlavaForConditionalGeneration

    VideoLlavaForConditionalGeneration.from_pretrained(source).save_pretrained(target)


class TrainingSaves(Trial):
    """The files of a run of fine-tuning, as `loop.fine_tune` writes them, around steps that only count.

    A checkpoint that was complete stays until a newer one is, and the run goes on from it.
    """

    name = "training saves"
    may_be_interrupted = True
    leavings = ("run",)

    def run(self, place: Path) -> Ended:
        return reported(train, place / "out" / "run")

    def result(self, place: Path) -> dict[str, Any]:
        from videollava_jax.model.sharding import STACKED
        from videollava_jax.training.run.metrics import read_metrics
        from videollava_jax.weights.orbax import open_layers

        run = place / "out" / "run"
        saved = open_layers(run / "checkpoints" / str(STEPS), "trained", STACKED)
        metrics = [line["step"] for line in read_metrics(run)]
        return {"metrics": metrics, **{name: tensor.read().tolist() for name, tensor in saved.items()}}

    def disturbed(self, place: Path, expected: dict[str, Any]) -> Problem:
        saved, logged = last_checkpoint(place / "out" / "run"), place / "begun"
        begun = [int(step) for step in logged.read_text().split()] if logged.exists() else [0]
        # Saving a step begins when the one before it is complete.
        if saved < max(step for step in (0, *begun)) - EVERY:
            return "lost", f"checkpoint {saved} is the last one, after saving that of step {begun[-1]} had begun"
        return None


STEPS, EVERY = 4, 2


def last_checkpoint(run: Path) -> int:
    """Returns the step of the last complete checkpoint of a run; 0 for none."""
    return max((int(path.name) for path in (run / "checkpoints").glob("*") if path.name.isdecimal()), default=0)


def train(output: Path, steps: int = STEPS) -> None:
    """Trains nothing, and writes what a run of fine-tuning writes."""
    import jax
    import numpy as np

    from videollava_jax.training.run.checkpoints import Checkpoints
    from videollava_jax.training.run.metrics import Metrics
    from videollava_jax.training.run.run_directory import run_directory
    from videollava_jax.training.update.step import TrainState

    def put(value: object) -> jax.Array:
        """Puts a value onto the device; nothing is compiled, since this runs again and again."""
        return jax.device_put(np.asarray(value))

    new = np.zeros(500, np.float32)
    trained = {"lora.a": put(new), "lora.b": put(new)}
    state = TrainState(trained, {"moments": put(new)}, put(np.int32(0)), put(np.int32(0)))
    with contextlib.ExitStack() as stack:
        stack.enter_context(run_directory(output, {"model": "none"}, "model: none\n"))
        checkpoints = Checkpoints(output / "checkpoints", keep=1)
        step = checkpoints.latest or 0
        if step:
            state, notes = checkpoints.restore(step, state)
            assert notes == {"step": step}, notes
        metrics = Metrics(output, step, steps)
        stack.callback(metrics.close)
        stack.callback(checkpoints.close)
        while step < steps:
            step += 1
            trained = {name: put(np.asarray(value) + np.float32(step)) for name, value in state.trained.items()}
            state = TrainState(trained, state.optimizer, put(np.int32(step)), state.skipped)
            metrics.write(step, {"loss": 1 / step})
            checkpoints.require_written()
            if step % EVERY == 0:
                checkpoints.save(step, state, {"step": step})
                with open(output.parent.parent / "begun", "a") as begun:
                    begun.write(f"{step}\n")
        checkpoints.wait()


TRIALS: tuple[Trial, ...] = (Job(), Convert(), Export(), WriteAdapter(), SavePretrained(), TrainingSaves())
