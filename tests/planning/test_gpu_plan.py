"""Plans for GPUs that are not here: their descriptions, what is read in their programs, and the real compiler.

python -m pytest -m slow tests/planning/test_gpu_plan.py      the whole 7B model, where `jax[cuda12]` is installed
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.planning.gpu_loops import thunks
from tests.planning.gpu_programs import HEADS, B, D, H, M, S
from tests.planning.hlo_modules import example, module
from tests.planning.plan_programs import planned, traffic_ratio
from videollava_jax.cli import main
from videollava_jax.config import ModelConfig, TextConfig, VisionConfig
from videollava_jax.costs.chips import CHIPS, chip_of
from videollava_jax.planning import devices
from videollava_jax.planning.devices import device_of, devices_of, gpu_target
from videollava_jax.planning.hlo.traffic import Collective, read_program

GPUS = [name for name, chip in CHIPS.items() if chip.kind == "gpu"]
BF16 = 2
needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda12_plugin") is None,
    reason="needs the GPU compiler, which is in jax[cuda12] (extra `cuda`)",
)

# ── chips ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", GPUS)
def test_every_gpu_is_described_under_the_name_that_its_driver_gives_it(name: str):
    target = gpu_target(CHIPS[name])
    kind = target.rpartition("device_description_str: ")[2].strip().strip('"')
    found = chip_of(kind)
    assert found is not None
    assert found.name == name.removesuffix("-measured")
    assert f"device_memory_size: {CHIPS[name].hbm_bytes}" in target


def test_a_gpu_has_the_share_of_its_memory_that_jax_takes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(devices.MEMORY_FRACTION, raising=False)
    assert device_of(CHIPS["h100"]).hbm_bytes == 60_000_000_000
    monkeypatch.setenv(devices.MEMORY_FRACTION, "0.95")
    assert device_of(CHIPS["h100"]).hbm_bytes == 76_000_000_000


@pytest.mark.parametrize("fraction", ["all", "0", "-1", "2", "nan"])
def test_a_share_that_is_none_is_refused(
    fraction: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv(devices.MEMORY_FRACTION, fraction)
    with pytest.raises(ValueError, match=f"{devices.MEMORY_FRACTION}: expected a number above 0"):
        device_of(CHIPS["h100"])


def test_more_gpus_than_a_host_has_are_whole_hosts():
    with pytest.raises(ValueError, match="'h100:12': expected up to 8 GPUs, or whole hosts"):
        devices_of("h100:12", CHIPS["h100"], 12)


# ── what the GPU compiler writes ────────────────────────────────────────────────────────────────────────────


def test_product_in_parts():
    """XLA splits the sum of the product: one kernel writes 4 parts in float32, the other adds them and applies SiLU."""
    traffic = read_program(example("gpu_product")).entry
    parts = 4 * B * M * 4
    assert traffic.hbm_read_bytes == (D * M + B * D) * BF16 + parts
    assert traffic.hbm_written_bytes == parts + B * M * BF16
    assert traffic.product_flops == 2 * B * D * M
    assert traffic.launches == 2
    assert traffic.moves == ()


def test_attention_of_cudnn():
    traffic = read_program(example("gpu_attention")).entry
    assert traffic.product_flops == 4 * S * S * HEADS * H / 2
    assert traffic.launches == 1
    assert traffic.hbm_read_bytes == 3 * traffic.hbm_written_bytes == 3 * S * HEADS * H * BF16


def test_sum_over_eight_devices():
    traffic = read_program(example("gpu_sum")).entry
    assert traffic.collectives == (Collective("all-reduce", 1, B * D * BF16),)
    assert traffic.product_flops == 2 * B * D * M / 8
    assert traffic.launches == 3


def test_loop_whose_count_is_not_known():
    """A step writes one position of the cache in place and reads all of it, twice."""
    program = read_program(example("gpu_loop"))
    assert list(program.iterations.values()) == [None]
    cache, position, scores = S * B * HEADS * H * BF16, B * HEADS * H * BF16, S * B * HEADS
    assert program.loop.launches == 8 + 1  # those of the body, and the condition
    # The scores: float32 written, read for the maximum, for exp, written, read for the sum and the division; bfloat16.
    assert program.loop.hbm_read_bytes == pytest.approx(2 * cache + (4 * 4 + 2) * scores + 2 * position, rel=0.01)
    assert program.loop.hbm_written_bytes == pytest.approx((4 + 4 + 2) * scores + 2 * position, rel=0.01)
    assert program.entry.hbm_bytes < 4 * position
    with pytest.raises(ValueError, match="loops that run a known number of times"):
        _ = program.total


def test_a_fusion_of_several_results_of_one_reduction():
    """The greatest value and its index come from one instruction, next to another result of the same fusion."""
    computations = """%pick {
  %a = f32[] parameter(0)
  %i = s32[] parameter(1)
  %b = f32[] parameter(2)
  %j = s32[] parameter(3)
  %m = f32[] maximum(%a, %b)
  %k = s32[] maximum(%i, %j)
  ROOT %t = (f32[], s32[]) tuple(%m, %k)
}

%f {
  %x = f32[64,256]{1,0} parameter(0)
  %y = s32[64,256]{1,0} parameter(1)
  %zero = f32[] constant(0)
  %none = s32[] constant(0)
  %best = (f32[64]{0}, s32[64]{0}) reduce(%x, %y, %zero, %none), dimensions={1}, to_apply=%pick
  %turned = f32[256,64]{1,0} transpose(%x), dimensions={1,0}
  ROOT %both = ((f32[64]{0}, s32[64]{0}), f32[256,64]{1,0}) tuple(%best, %turned)
}
"""
    body = """  %x = f32[64,256]{1,0} parameter(0)
  %y = s32[64,256]{1,0} parameter(1)
  ROOT %r = ((f32[64]{0}, s32[64]{0}), f32[256,64]{1,0}) fusion(%x, %y), kind=kInput, calls=%f"""
    traffic = read_program(module(body, computations=computations)).entry
    assert (traffic.hbm_read_bytes, traffic.hbm_written_bytes) == (2 * 64 * 256 * 4, 64 * 4 * 2 + 64 * 256 * 4)
    assert [(move.kind, move.bytes) for move in traffic.moves] == [("transpose", 64 * 256 * 4)]


def test_products_of_cublas_count():
    body = """  %x = bf16[64,4096]{1,0} parameter(0)
  %w = bf16[512,4096]{1,0} parameter(1)
  ROOT %g = (bf16[64,512]{1,0}, s8[4096]{0}) custom-call(%x, %w), custom_call_target="__cublas$gemm", \
backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],\
"rhs_contracting_dimensions":["1"]}}}"""
    assert read_program(module(body)).entry.product_flops == 2 * 64 * 512 * 4096


# ── the command ─────────────────────────────────────────────────────────────────────────────────────────────


def test_without_the_compiler_the_plan_is_arithmetic(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(devices.importlib.util, "find_spec", lambda name: None)
    assert main(["plan", "--topology", "a100-80:4", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["compiled"], record["batch"], record["chips"]) == (False, None, 4)


def test_arithmetic_compiles_nothing_for_any_chip(capsys: pytest.CaptureFixture[str]):
    for topology, chips in (("h200", 1), ("v5e:2x4", 8)):
        assert main(["plan", "--topology", topology, "--arithmetic", "--json"]) == 0
        record = json.loads(capsys.readouterr().out)
        assert (record["compiled"], record["batch"], record["chips"]) == (False, None, chips)
        assert record["limit"]["answers_per_second"] > 0


def few_layers(directory: Path, layers: int = 4) -> str:
    config = ModelConfig(
        text_config=TextConfig(num_hidden_layers=layers), vision_config=VisionConfig(num_hidden_layers=2)
    )
    (directory / "config.json").write_text(json.dumps(config.to_hf()))
    return str(directory)


def required(topology: str, *arguments: str, **options: Any) -> dict[str, Any]:
    """Plans 8 prefixes with 8 rows of 2304 positions each."""
    sizes = ("--grid", "8x8", "--questions", "8", "--question-tokens", "64", "--answer-tokens", "128")
    return planned(topology, *sizes, *arguments, **options)


def tabulated(*arguments: str) -> list[dict[str, Any]]:
    """Returns the rows of the table of docs/planning.md."""
    command = [sys.executable, "-m", "tests.planning.gpu_tables", "--json", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=3000)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


BOUNDS = {
    ("prefill", 1, False): (16, 150, None),
    ("prefill", 1, True): (22, 150, None),
    ("prefill", 8, False): (17, 95, None),
    ("prefill", 8, True): (22, 95, None),
    ("begin", 1, False): (24, 70, None),
    ("begin", 1, True): (26, 80, None),
    ("begin", 8, False): (26, 45, None),
    ("begin", 8, True): (29, 45, None),
    ("decode", 1, False): (12, 12, 1.1),
    ("decode", 1, True): (12, 12, 1.15),
    ("decode", 8, False): (14.5, 10, 1.4),
    ("decode", 8, True): (15.5, 20, 1.95),
}
"""Of a program, by the number of GPUs and whether weights and cache are int8: the most launches that a layer may add,
MiB of temporaries, and the ratio of what a step reads and writes to the weights and the cache read once."""


def required_of_a_program(row: dict[str, Any]) -> None:
    """Checks a row: its bounds, no attention with a bias, and no copy of a weight or a cache."""
    launches, mib, ratio = BOUNDS[row["program"], row["gpus"], row["int8"]]
    assert row["bias"] == row["moves"] == 0, row
    assert row["a_layer"] <= launches, row
    assert row["temporaries"] < mib * 2**20, row
    if ratio is not None:
        assert row["ratio"] < ratio, row


@needs_compiler
@pytest.mark.gpu_compiler
class TestLive:
    @pytest.mark.parametrize("topology", ["h200", "h100:8", "a100-80:4", "l4"])
    def test_four_layers_of_the_7b_model(self, topology: str, tmp_path: Any):
        count = int(topology.partition(":")[2] or 1)
        record = required(topology, "--model", few_layers(tmp_path), "--mesh", f"1x{count}")
        batch = record["batch"]
        assert record["compiled"]
        assert record["mesh"] == [1, count]
        assert batch["too_large"] == {}
        for name in ("prefill", "begin", "decode"):
            assert batch["programs"][name]["big_moves"] == [], name
            assert batch["programs"][name]["fits"], name
        # Over several GPUs the weights of each are few, and activations and parts of sums weigh more.
        assert 0.99 < traffic_ratio(record) < (1.5 if count == 1 else 2)
        sums = {c["kind"]: c["count"] for c in batch["programs"]["decode"]["collectives"]}
        assert sums == ({"all-reduce": 2 * 4 + 1, "all-gather": 1} if count > 1 else {})

    @pytest.mark.parametrize("program", ["product", "attention", "sum", "loop"])
    def test_the_kept_examples_are_what_is_compiled(self, program: str):
        command = [sys.executable, "-m", "tests.planning.gpu_programs", "--short", "h200", program]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500)
        assert done.returncode == 0, done.stderr[-2000:]
        now, kept = read_program(done.stdout), read_program(example(f"gpu_{program}"))
        assert (now.entry.product_flops, now.entry.collectives) == (kept.entry.product_flops, kept.entry.collectives)
        assert now.entry.hbm_bytes == pytest.approx(kept.entry.hbm_bytes, rel=0.5)

    def test_launches_and_temporaries_of_four_layers(self):
        rows = tabulated()
        assert len(rows) == 12
        for row in rows:
            required_of_a_program(row)

    @pytest.mark.slow
    @pytest.mark.parametrize("gpus", ["1", "8"])
    def test_launches_and_temporaries_of_the_whole_7b_model(self, gpus: str):
        rows = tabulated("--layers", "4", "32", "--gpus", gpus)
        assert len(rows) == 6
        for row in rows:
            required_of_a_program(row)
            assert row["temporaries_a_layer"] < 2**20, row

    @pytest.mark.parametrize(("topology", "recorded"), [("h200", "program"), ("h200:8", "parts of the loop's body")])
    def test_the_loop_of_decode_is_recorded(self, topology: str, recorded: str, tmp_path: Any):
        """What XLA will run, in its own words: on one GPU a single command buffer, with the loop in it."""
        count = topology.partition(":")[2] or "1"
        arguments = ("--model", few_layers(tmp_path, 1), "--mesh", f"1x{count}", "--programs", "decode")
        flags = f"--xla_dump_to={tmp_path / 'dump'} --xla_dump_hlo_as_text"
        required(topology, *arguments, environment={"XLA_FLAGS": flags})
        (sequence,) = (tmp_path / "dump").glob("*jit_decode*.thunk_sequence_after_thunk_passes.txt")
        found = thunks(sequence.read_text())
        if recorded == "program":
            assert found["outermost"] == ["kCommandBuffer"]
            assert found["all"]["kWhile"] == 1
        else:
            assert "kWhile" in found["outermost"]
            assert found["all"]["kCommandBuffer"] > 1

    @pytest.mark.parametrize("program", ["decode", "decode_part"])
    def test_the_loops_of_a_session_are_recorded_with_their_branches(self, program: str):
        """Rows that draw, and those that want log-probabilities, make branches in the loop."""
        command = [sys.executable, "-m", "tests.planning.gpu_loops", program]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500)
        assert done.returncode == 0, done.stderr[-2000:]
        found = json.loads(done.stdout.splitlines()[-1])
        assert found["outermost"] == ["kCommandBuffer"]
        assert (found["all"]["kWhile"], found["all"]["kConditional"]) == (1, 2)
