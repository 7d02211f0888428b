"""Fine-tuning by two processes of four virtual devices each: they learn what one learns, and when one of them ends or
hangs, the other does not wait for ever."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from tests.compiling import ENVIRONMENT
from tests.faults.training import consumed
from tests.loopback import free_port
from tests.tolerances import SELF
from tests.training.conftest import ROOT, program
from tests.training.data_sets import write_data
from videollava_jax.cli import main as videollava
from videollava_jax.model.sharding import STACKED
from videollava_jax.training.run import base_model as loading
from videollava_jax.training.run import processes
from videollava_jax.training.run.guards import STALLED
from videollava_jax.training.run.metrics import read_metrics
from videollava_jax.training.run.peers import SILENCE
from videollava_jax.training.run.recipe import Compute
from videollava_jax.training.run.run_directory import run_directory
from videollava_jax.weights.orbax import open_layers

STEPS = 6
PATIENCE = 240
"""Seconds to wait for what takes ten on an idle machine."""


class Pair:
    """Two processes that run `train/finetune.py`.

    Args:
      output: of the run; the files with what each process prints are next to it.
      arguments: of both, without the output.

    Attributes:
      children: the processes.
    """

    def __init__(self, output: Path, arguments: list[str]):
        port = free_port()
        self._output, self._errors = output, [output.with_suffix(f".{i}") for i in range(2)]
        self.children = []
        for i in range(2):
            surroundings = ENVIRONMENT | {
                "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
                "JAX_NUM_PROCESSES": "2",
                "JAX_PROCESS_ID": str(i),
                "JAX_NUM_CPU_DEVICES": "4",
                "JAX_DEFAULT_MATMUL_PRECISION": "highest",
            }
            with open(self._errors[i], "w") as errors:
                child = subprocess.Popen(
                    [sys.executable, "train/finetune.py", *arguments, "--output", str(output)],
                    cwd=ROOT,
                    env=os.environ | surroundings,
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                )
            self.children.append(child)

    def said(self, i: int) -> str:
        """What one of them has said on standard error."""
        return self._errors[i].read_text(errors="replace")

    def reach(self, step: int) -> None:
        """Waits until this pair has done a step."""
        deadline = time.monotonic() + PATIENCE
        # Until it prints where it begins, the metrics are those of the previous pair.
        while "from step" not in self.said(0) or not any(line["step"] >= step for line in read_metrics(self._output)):
            assert all(child.poll() is None for child in self.children), self.said(0)[-3000:] + self.said(1)[-3000:]
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def statuses(self, seconds: float = PATIENCE) -> list[int]:
        """Waits for both to end; returns their exit statuses."""
        deadline = time.monotonic() + seconds
        return [child.wait(max(0.1, deadline - time.monotonic())) for child in self.children]


@contextmanager
def pair(arguments: list[str], output: Path) -> Iterator[Pair]:
    """Starts two processes, and kills those that are left at the end."""
    found = Pair(output, arguments)
    try:
        yield found
    finally:
        for child in found.children:
            child.kill()  # one that is stopped too
            child.wait()


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    """A recipe of LoRA on a mesh of 4 × 2, with held-out samples; all but the output."""
    train = write_data(tmp_path_factory.mktemp("train"), 9, media="cit")
    held_out = write_data(tmp_path_factory.mktemp("held_out"), 3, first=800_000, media="cit")
    return [
        *("--model", "tiny", "--data.train", str(train), "--data.held_out", str(held_out), "--data.steps", str(STEPS)),
        *("--rates.lora", "1e-3", "--rates.projector", "1e-3", "--lora.rank", "4", "--lora.dropout", "0.2"),
        *("--data.batch", "6", "--data.rows", "4", "--data.row_tokens", "200", "--data.images_per_row", "1"),
        *("--data.workers", "0", "--compute.data", "4", "--compute.tensor", "2", "--compute.dtype", "float32"),
        *("--keeping.save_every", "3"),
    ]


@pytest.fixture(scope="module")
def undisturbed(arguments, tmp_path_factory):
    """The run of two processes."""
    output = tmp_path_factory.mktemp("two") / "run"
    with pair(arguments, output) as both:
        assert both.statuses() == [0, 0], both.said(0)[-3000:] + both.said(1)[-3000:]
        assert f"done: {STEPS} steps" in both.said(0)
        assert both.said(1) == ""  # one speaks for both
    return output


def learnt(run: Path) -> dict[str, np.ndarray]:
    """The parameters of a finished run."""
    tensors = open_layers(run / "checkpoints" / str(STEPS), "trained", STACKED)
    return {name: tensor.read() for name, tensor in tensors.items()}


def test_two_processes_learn_what_one_learns(arguments, undisturbed, tmp_path):
    """Not to the bit: sums over processes are taken in another order than sums within one. In these six steps
    parameters of up to 0.4 come to differ by 1e-6, a thousandth of what one step changes in them."""
    alone = tmp_path / "run"
    assert program("finetune").main([*arguments, "--output", str(alone)]) == 0
    assert consumed(undisturbed) == consumed(alone)
    lines, expected = read_metrics(undisturbed), read_metrics(alone)
    assert [line["step"] for line in lines] == [line["step"] for line in expected] == [*range(1, STEPS + 1), STEPS]
    for name in ("tokens", "targets", "padding", "left_out", "held_out_exact"):
        assert [line.get(name) for line in lines] == [line.get(name) for line in expected], name
    for name in ("loss", "gradient_norm", "held_out_loss"):
        values, wanted = ([line[name] for line in of if name in line] for of in (lines, expected))
        np.testing.assert_allclose(values, wanted, rtol=SELF, atol=SELF, err_msg=name)
    found, wanted = learnt(undisturbed), learnt(alone)
    assert found.keys() == wanted.keys()
    for name in wanted:
        np.testing.assert_allclose(found[name], wanted[name], rtol=0, atol=SELF, err_msg=name)


def test_two_processes_score_a_task_as_one(arguments, tmp_path):
    """Both answer the same questions on the mesh that they share; the first one writes."""
    data = tmp_path / "shapes"
    assert videollava(["eval", "world", "msvd_qa", "--data", str(data), "--media", "3"]) == 0
    more = ["--data.evaluate", "msvd_qa", "--data.evaluate_data", str(data)]
    more += ["--data.steps", "2", "--rates.lora", "6e-2"]
    with pair([*arguments, *more], tmp_path / "two") as both:
        assert both.statuses() == [0, 0], both.said(0)[-3000:] + both.said(1)[-3000:]
        assert both.said(1) == ""
    assert program("finetune").main([*arguments, *more, "--output", str(tmp_path / "one")]) == 0
    of = [tmp_path / name / "evaluations" / "msvd_qa" / "2" for name in ("one", "two")]
    for name in ("answers.jsonl", "records.jsonl", "report.json"):
        assert (of[1] / name).read_text() == (of[0] / name).read_text()
    assert json.loads((of[1] / "report.json").read_text())["score"] < 100  # it has learnt, at a high rate


def test_whatever_ends_a_run_it_goes_on(arguments, undisturbed, tmp_path):
    """One of two is stopped, is killed, hangs: each time the other ends too, and says why.

    Then the run goes on, and its result equals that of an undisturbed run to the bit.
    """
    output = tmp_path / "run"
    going_on = "The same command goes on from the last checkpoint."
    with pair(arguments, output) as both:
        both.reach(1)
        both.children[1].terminate()
        assert both.statuses() == [128 + signal.SIGTERM] * 2
        assert f"which is saved. {going_on}" in both.said(0)
    with pair(arguments, output) as both:
        both.reach(3)
        both.children[1].kill()
        assert both.statuses(60) == [1, -signal.SIGKILL]
        assert "process 0 of 2 ends: " in both.said(0)
        assert "does not answer, that one's output says why" in both.said(0)
        assert going_on in both.said(0)
    with pair(arguments, output) as both:
        both.reach(4)
        both.children[1].send_signal(signal.SIGSTOP)
        assert both.children[0].wait(SILENCE + 20) == STALLED, both.said(0)[-3000:]
        assert "process 0 of 2 ends: process 1 has not answered for" in both.said(0)
        assert going_on in both.said(0)
        both.children[1].send_signal(signal.SIGCONT)
        # It goes on without the coordinator, and either JAX aborts it or it says that its peer is gone.
        assert both.children[1].wait(60) in (1, -signal.SIGABRT)
        assert "process 1 of 2 ends: " in both.said(1) or "another task died" in both.said(1)
    with pair(arguments, output) as both:
        assert both.statuses() == [0, 0], both.said(0)[-3000:] + both.said(1)[-3000:]
    assert consumed(output) == consumed(undisturbed)
    found, expected = learnt(output), learnt(undisturbed)
    assert [name for name in expected if not np.array_equal(found[name], expected[name])] == []


def test_an_error_of_one_of_several_ends_it_at_once(monkeypatch, capsys):
    def exited(status: int) -> None:
        raise SystemExit(status)

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(os, "_exit", exited)
    for error, traced in ((ValueError("no such data"), False), (RuntimeError("a bug"), True)):
        with pytest.raises(SystemExit, match="1"), processes.ended_at_once((ValueError,), "Go on so."):
            raise error
        said = capsys.readouterr().err
        assert f"process 1 of 2 ends: {type(error).__name__}: {error}. If another" in said
        assert ("Traceback" in said, said.endswith("Go on so.\n")) == (traced, True)


def test_an_error_of_the_only_process_is_raised_as_ever():
    with pytest.raises(ValueError, match="no such data"), processes.ended_at_once((ValueError,), "Go on so."):
        raise ValueError("no such data")


def test_a_directory_that_hosts_do_not_share_is_refused(monkeypatch, tmp_path):
    with run_directory(tmp_path / "run", {}, ""):
        monkeypatch.setattr(jax, "process_index", lambda: 1)
        with run_directory(tmp_path / "run", {}, ""):
            pass
        with (
            pytest.raises(ValueError, match="made by the first process, not seen by this one"),
            run_directory(tmp_path / "other", {}, ""),
        ):
            pass


def test_processes_that_know_different_things_are_told_so(monkeypatch):
    processes.require_agreement({"data": "a", "step": 3})
    monkeypatch.setattr(
        processes, "gathered", lambda numbers: np.stack([numbers, numbers ^ np.array([0, 1], np.int32)])
    )
    with pytest.raises(ValueError, match=r"the processes differ: step is 3 here\. Expected the same"):
        processes.require_agreement({"data": "a", "step": 3})


def test_a_decoder_over_two_processes_is_refused(monkeypatch):
    devices = np.array([[SimpleNamespace(process_index=i // 4) for i in range(8)]])
    monkeypatch.setattr(
        loading, "make_mesh", lambda data, tensor: SimpleNamespace(devices=devices.reshape(data, tensor))
    )
    loading.mesh_of(Compute(data=2, tensor=4))
    with pytest.raises(ValueError, match=r"compute\.tensor: 8 devices of different processes"):
        loading.mesh_of(Compute(data=1, tensor=8))
