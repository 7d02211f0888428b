"""The programs that measure on a GPU: whole, with tiny sizes, on a CPU (slow); their reckoning at the real size."""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.training.rows import UNCHANGED
from videollava_jax.config import ModelConfig
from videollava_jax.costs.chips import CHIPS

ROOT = Path(__file__).parents[1]
HAS_TORCH = importlib.util.find_spec("torch") is not None and importlib.util.find_spec("peft") is not None


@pytest.fixture(scope="module")
def programs():
    """The modules of benchmarks/, by name; they import one another as they do when they are run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield importlib.import_module


SMALL = ("--small", "--rounds", "1", "--chip", "h200", "--minutes", "30")


def run(program: str, out: Path) -> tuple[str, dict[str, Any]]:
    """What a program prints and writes, with tiny sizes and the limits of an H200."""
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
    }
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / program, *SMALL, "--out", out],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout, json.loads(out.read_text())


def columns(reports: dict[str, Any], side: str) -> dict[str, list[str]]:
    """The ways in which each work was measured, with rates above 0."""
    found: dict[str, list[str]] = {}
    for measured in reports[side]["measured"]:
        assert all(math.isfinite(rate) and rate > 0 for rate in measured["rates"])
        found.setdefault(measured["work"], []).append(measured["way"])
    return found


@pytest.mark.slow
def test_all_of_inference_is_measured(tmp_path):
    printed, reports = run("gpu.py", tmp_path / "gpu.json")
    ours = reports["ours"]
    assert ours["missing"] == []
    assert list(columns(reports, "ours")) == [
        "copy, GB/s",
        "product, TFLOP/s",
        "encode, 1 at a time, videos/s",
        "encode, 8 at a time, videos/s",
        "prefill, tokens/s",
        "decode, one row, tokens/s",
        "decode, many rows, tokens/s",
        "one question a video, answers/s",
        "2 questions a video, answers/s",
        "captions, videos/s",
        "decode, int8, many rows, tokens/s",
        "captions, int8, videos/s",
    ]
    # A CPU is a share of an H200, and a small one: no limit is below what was measured.
    assert all(measured["limit"] > measured["rates"][0] for measured in ours["measured"])
    assert printed.count("\n| ") == 1 + 12
    if not HAS_TORCH:
        assert "needs torch" in reports["transformers"]["missing"][0]
        pytest.skip("transformers' side needs torch (extra `test`, Python 3.11); without it, it said so")
    job = ["transformers, batch 1", "batched", "static cache"]
    assert reports["transformers"]["missing"] == []
    assert columns(reports, "transformers") == {
        "encode, 1 at a time, videos/s": job[:1],
        "encode, 8 at a time, videos/s": job[1:2],
        "prefill, tokens/s": job[:1],
        "decode, one row, tokens/s": [job[0], job[2]],
        "decode, many rows, tokens/s": job[1:2],
        "one question a video, answers/s": job,
        "2 questions a video, answers/s": job,
        "captions, videos/s": job,
    }
    assert "| transformers, batch 1 | batched | static cache | ours to its best |" in printed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "works"),
    [
        ("finetune_gpu.py", ["LoRA, tokens/s", "full, tokens/s", "full, kept in bfloat16, tokens/s"]),
        ("finetune_cpu.py", ["LoRA, tokens/s", "full, tokens/s"]),
    ],
)
def test_all_of_fine_tuning_is_measured(tmp_path, program, works):
    printed, reports = run(program, tmp_path / "finetune.json")
    assert reports["ours"]["missing"] == []
    assert columns(reports, "ours") == {work: ["ours"] for work in works}
    assert printed.count("MFU") >= len(works)
    if not HAS_TORCH:
        assert "needs torch" in reports["transformers"]["missing"][0]
        pytest.skip("transformers' side needs torch and peft (extra `test`, Python 3.11); without them, it said so")
    assert reports["transformers"]["missing"] == []
    assert columns(reports, "transformers") == {work: ["transformers"] for work in works}


def test_layers_that_fit_a_device(programs):
    finetune, config = programs("finetune_work"), ModelConfig()
    work = finetune.Work()

    def layers(kind: str, chip: str) -> int:
        return finetune.fitting_layers(config, finetune.KINDS[kind], work, CHIPS[chip].hbm_bytes)

    assert layers("lora", "h100") == layers("lora", "h200") == 32
    assert layers("bf16", "h200") == 32
    assert layers("full", "h100") < layers("full", "h200") < 32
    assert finetune.fitting_layers(config, finetune.KINDS["full"], work, None) == 32
    # 22 bytes each of 6.8 G parameters are more than an H200 holds, before anything else.
    assert finetune.needed_bytes(config, finetune.KINDS["full"], work) > 22 * 6.7e9 > CHIPS["h200"].hbm_bytes
    with pytest.raises(programs("sides").CannotRun, match="not one layer"):
        finetune.fitting_layers(config, finetune.KINDS["full"], work, 4e9)


def test_the_limit_of_full_fine_tuning(programs):
    """790 TFLOP/s over the 42.5 GFLOP of a token: six for each of 6.6 G parameters, attention, the towers."""
    finetune = programs("finetune_work")
    work = finetune.Work(chip="h200", layers=32)
    measured = finetune.Sized.of("full", ModelConfig(), work, "cpu").measured("ours", [2.0, 4.0, 1.0], work)
    assert measured.work == "full, tokens/s"
    assert measured.limit == pytest.approx(790e12 / 42.5e9, rel=0.01)
    assert measured.rates == (work.tokens / 2, work.tokens / 4, work.tokens)
    assert measured.note == f"MFU {measured.median / measured.limit * 790 / 989:.1%}"
    fewer = finetune.Work(chip="h100")
    assert finetune.Sized.of("full", ModelConfig(), fewer, "cpu").layers == ", 13 of 32 layers"


def test_adapters_are_counted_as_the_model_has_them(programs):
    from videollava_jax.assets import TINY
    from videollava_jax.training.update.model import TrainingModel
    from videollava_jax.training.update.options import Lora, is_lora

    config = ModelConfig.from_hf(TINY)
    model = TrainingModel(config, preprocess=UNCHANGED, lora=Lora(rank=3))
    expected = sum(math.prod(shape) for name, shape in model.shapes.items() if is_lora(name))
    assert programs("finetune_work").adapter_parameters(config, 3) == expected


# ── sides that fail ─────────────────────────────────────────────────────────────────────────────────────────

CHILD = """
import sys, time
from pathlib import Path
sys.path.insert(0, {benchmarks!r})
from sides import CannotRun, Measured, Results

def good():
    yield Measured(work="good", way="ours", rates=(2.0, 4.0, 3.0), limit=6.0)

def bad():
    yield Measured(work="half", way="ours", rates=(1.0,))
    raise MemoryError("too little\\nof it")

def slow():
    time.sleep(600)
    yield

def begin():
    if {refused}:
        raise CannotRun("no device")
    return {{"device": "none"}}, {{"good": good, "bad": bad, "slow": slow, "never": good}}

Results(Path(sys.argv[-1])).run(begin, {sections!r})
sys.exit({status})
"""


def side(programs: Any, sections: list[str], *, refused: bool = False, status: int = 0, seconds: float = 60) -> Any:
    text = CHILD.format(benchmarks=str(ROOT / "benchmarks"), refused=refused, sections=sections, status=status)
    return programs("sides").run_side([sys.executable, "-c", text], seconds, os.environ)


def test_a_section_that_fails_is_named_and_the_others_run(programs):
    report = side(programs, ["bad", "good", "absent"])
    assert [measured.work for measured in report.measured] == ["half", "good"]
    assert report.missing == ["bad: MemoryError: too little"]
    assert report.facts == {"device": "none"}


def test_a_side_is_ended_when_its_time_is_up_and_what_it_told_stands(programs):
    started = time.monotonic()
    report = side(programs, ["good", "slow", "never"], seconds=10)
    assert time.monotonic() - started < 60
    assert [measured.rates for measured in report.measured] == [(2.0, 4.0, 3.0)]
    (sentence,) = report.missing
    assert sentence.startswith("its 10 seconds were over in the section slow")


def test_a_side_that_cannot_run_or_dies_says_so(programs):
    assert side(programs, ["good"], refused=True).missing == ["no device"]
    (sentence,) = side(programs, ["good"], status=3).missing
    assert sentence.startswith("its process ended with status 3;")


def test_the_table_has_a_row_for_each_work(programs, capsys, tmp_path):
    sides = programs("sides")

    def measured(work: str, way: str, *rates: float, **more: Any) -> Any:
        return sides.Measured(work=work, way=way, rates=rates, **more)

    ours = sides.Report(
        {"device": "a"},
        [measured("x", "ours", 1900.0, 2000.0, 2100.0, limit=4000.0, note="9 rows"), measured("y", "ours", 5.0)],
    )
    theirs = sides.Report(
        {},
        [measured("x", sides.STATIC, 400.0), measured("x", sides.ONE, 100.0), measured("z", sides.ONE, 1.0)],
        ["too slow"],
    )
    assert sides.publish({"ours": ours, "transformers": theirs}, tmp_path / "new" / "out.json") == 0
    assert capsys.readouterr().out.splitlines() == [
        "ours: device a",
        "transformers: not run",
        "",
        "|  | ours | limit | of the limit | transformers, batch 1 | static cache | ours to its best |",
        "|---|---|---|---|---|---|---|",
        "| x | 2,000 (1,900-2,100); 9 rows | 4,000 | 50% | 100.0 (100.0-100.0) | 400.0 (400.0-400.0) | 5.0 |",
        "| y | 5.00 (5.00-5.00) |  |  |  |  |  |",
        "| z |  |  |  | 1.00 (1.00-1.00) |  |  |",
        "",
        "- transformers: too slow",
    ]
    assert json.loads((tmp_path / "new" / "out.json").read_text())["ours"]["measured"][1]["rates"] == [5.0]
    assert sides.publish({"ours": sides.Report(), "transformers": theirs}, None) == 1
