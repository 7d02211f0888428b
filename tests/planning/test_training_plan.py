"""`videollava plan --train`: a recipe's step on chips that are not here."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from tests.planning.plan_programs import planned
from videollava_jax.cli import main
from videollava_jax.config import ModelConfig
from videollava_jax.costs.chips import CHIPS
from videollava_jax.planning.hlo.traffic import Collective, CompiledProgram, Traffic
from videollava_jax.planning.training_plan import TrainingPlan, plan_training, record, text
from videollava_jax.planning.training_programs import CompiledStep
from videollava_jax.training.run.recipe import Recipe, read_recipe

GIVEN = ["--model", "tiny", "--output", "run", "--data.train", "mine.json"]
MIB = 2**20
has_libtpu = importlib.util.find_spec("libtpu") is not None


def recipe(*arguments: str) -> Recipe:
    return read_recipe([*arguments, *GIVEN])[0]


def step(temporaries: int, traffic: Traffic) -> CompiledStep:
    resident = {"trained": 10 * MIB, "frozen": 20 * MIB, "optimizer": 30 * MIB, "gradients": 5 * MIB}
    return CompiledStep(
        resident=resident,
        batch=2 * MIB,
        temporaries=temporaries,
        code=MIB,
        flops=0.0,
        kernels=0,
        text=CompiledProgram(entry=traffic),
    )


def plan(temporaries: int = 7 * MIB) -> TrainingPlan:
    sent = Collective(kind="all-gather", count=3, bytes=2 * 10**9)
    traffic = Traffic(hbm_read_bytes=2 * 10**9, hbm_written_bytes=10**9, collectives=(sent,))
    return TrainingPlan(
        topology="v5e:2x4",
        recipe=recipe("--config", "lora"),
        chip=CHIPS["v5e"],
        mesh=(4, 2),
        rows=4,
        programs={"accumulate": step(temporaries, traffic), "update": step(0, Traffic(hbm_read_bytes=10**6))},
        too_large={},
        flops=1e12,
        seconds={"accumulate": 1.0, "update": 2.0},
    )


def test_memory_is_summed_and_the_slowest_of_three_bounds_a_program() -> None:
    made, chip = plan(), CHIPS["v5e"]
    found = record(made)["programs"]
    assert found["accumulate"]["total"] == (10 + 20 + 30 + 5 + 2 + 7 + 1) * MIB
    assert found["accumulate"]["fits"]
    assert found["accumulate"]["bound"] == "interconnect"
    assert found["accumulate"]["seconds"] == pytest.approx(2e9 / chip.interconnect_bytes_per_second)
    assert found["update"]["bound"] == "memory"  # the micro-batch's operations are not its own
    assert made.tokens_per_second == pytest.approx(4 * 3072 / found["accumulate"]["seconds"])
    words = text(made)
    assert "v5e:2x4: 8 × v5e of 16.00 GiB, mesh 4 × 2 (data × tensor)" in words
    assert "trained: projector, lora; micro-batches of 4 rows of 3072 tokens, each with 6 images and 1 videos" in words
    (line,) = [line for line in words.splitlines() if line.startswith("accumulate") and line.endswith("yes")]
    assert line.split()[1:] == ["10", "20", "30", "5", "2", "7", "1", "75", "yes"]


def test_what_does_not_fit_is_said() -> None:
    made = plan(temporaries=17 * 2**30)
    assert not record(made)["programs"]["accumulate"]["fits"]
    assert "NO" in text(made).split()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--train", "tiny_lora", "--questions", "5"),
            "--questions: no effect with --train; expected it in the",
        ),
        (("--train", "tiny_lora", "--int8-weights"), "--int8-weights: no effect with --train"),
        (("--train", "none_such"), "--config: expected a YAML file, or one of finetune, lora"),
    ],
)
def test_options_of_jobs_and_unknown_recipes_are_refused(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = main(["plan", "--topology", "v5e:2x2", *arguments])
    except SystemExit as ended:
        status = int(ended.code or 0)
    assert status == 2
    assert message in capsys.readouterr().err


def test_what_cannot_be_planned_is_refused() -> None:
    with pytest.raises(ValueError, match=r"data\.features: a step without towers is not planned; expected null"):
        plan_training("v5e:2x2", recipe("--config", "lora", "--data.features", "features"), ModelConfig())
    if not has_libtpu:
        with pytest.raises(ValueError, match="a training step is compiled, and the compiler for v5e is missing: pip"):
            plan_training("v5e:2x2", recipe("--config", "lora"), ModelConfig())


@pytest.mark.skipif(not has_libtpu, reason="needs libtpu, the TPU compiler (extra `tpu`)")
@pytest.mark.tpu_compiler
class TestLive:
    def test_a_step_of_the_tiny_model(self) -> None:
        found: dict[str, Any] = planned("v5e:2x2", "--train", "tiny_lora", "--model", "tiny", "--mesh", "2x2")
        assert (found["mesh"], found["too_large"]) == ([2, 2], {})
        assert found["flops"] > 0
        assert found["tokens_per_second"] > 0
        for program in found["programs"].values():
            assert program["fits"]
            assert program["hbm_read"] > 0
        accumulate = found["programs"]["accumulate"]
        assert {"all-gather", "all-reduce"} <= {c["kind"] for c in accumulate["collectives"]}
        assert accumulate["resident"]["optimizer"] == pytest.approx(2 * accumulate["resident"]["trained"], rel=0.01)

    def test_another_mesh_than_there_are_chips_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text(json.dumps(ModelConfig().to_hf()))
        with pytest.raises(RuntimeError, match="mesh 4x2: expected data × tensor to be the 4 devices of v5e:2x2"):
            planned("v5e:2x2", "--train", "lora", "--model", str(tmp_path), "--mesh", "4x2")
