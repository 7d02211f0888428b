"""Plans: the engine's own arguments, hand arithmetic, the command; and the requirements of the 7B model's programs.

python -m pytest -m slow tests/planning/test_plan.py      the whole model on four topologies, by the real TPU compiler
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.planning.plan_programs import GIB, GRIDS, MESHES, planned, required, traffic_ratio
from videollava_jax import VideoLlavaForConditionalGeneration
from videollava_jax.assets import TINY
from videollava_jax.cli import main
from videollava_jax.config import ModelConfig, TextConfig, VisionConfig
from videollava_jax.costs.chips import CHIPS, Chip
from videollava_jax.costs.work import Job, Storage, best_possible
from videollava_jax.engine.grid import new_grid
from videollava_jax.engine.sizes import PLAIN, GridShape
from videollava_jax.model.sharding import Placement, make_mesh
from videollava_jax.planning import engine_programs as programs
from videollava_jax.planning import plan
from videollava_jax.planning.devices import device_of
from videollava_jax.planning.engine_programs import (
    Program,
    Setting,
    abstract_grid,
    abstract_parameters,
    compile_program,
    shard_bytes,
)
from videollava_jax.planning.plan import PROGRAMS, PlanRequest, choose_mesh, make_plan, throughput

CONFIG = ModelConfig()
needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs libtpu, the TPU compiler (extra `tpu`)"
)


def tiny_setting(data: int, tensor: int, **options: Any) -> Setting:
    config = ModelConfig.from_hf(TINY)
    shape = GridShape(shards=data, slots=2, rows=3, prefix=192, question=32, answer=32)
    return Setting(config=config, mesh=make_mesh(data, tensor), shape=shape, **options)


def described(tree: Any) -> list[tuple[Any, ...]]:
    """Returns the shape, the dtype and the shape of one device's shard of every array."""
    leaves = jax.tree.leaves(tree)
    return [
        (x.shape, x.dtype, tuple(x.shape if x.sharding is None else x.sharding.shard_shape(x.shape))) for x in leaves
    ]


# ── the arguments are the engine's ──────────────────────────────────────────────────────────────────────────


def test_pixels_have_the_dtype_that_the_variants_preset_gives_them():
    for variant, dtype in {"hf": jnp.uint8, "original": jnp.float32}.items():
        setting = tiny_setting(1, 8)
        setting = dataclasses.replace(setting, config=dataclasses.replace(setting.config, variant=variant))
        _, arguments = programs.program_with_arguments("encode", setting)
        (pixels,) = arguments[4]
        assert pixels.dtype == dtype


@pytest.mark.parametrize("mesh", [(1, 8), (2, 4), (8, 1)])
@pytest.mark.parametrize("int8", [False, True])
def test_the_grid_is_the_one_that_the_engine_makes(mesh: tuple[int, int], int8: bool):
    setting = tiny_setting(*mesh)
    made = new_grid(
        setting.config.text_config,
        setting.shape,
        jnp.bfloat16,
        setting.placement,
        int8=int8,
        branches=PLAIN,
    )
    abstract = abstract_grid(setting.placement, setting.shape, int8=int8)
    assert jax.tree.structure(abstract) == jax.tree.structure(made)
    assert described(abstract) == described(made)


@pytest.mark.parametrize("mesh", [(2, 4), (8, 1)])
def test_the_parameters_are_those_that_are_loaded(mesh: tuple[int, int]):
    loaded = VideoLlavaForConditionalGeneration.from_pretrained(TINY, dtype="bfloat16", mesh=make_mesh(*mesh))
    graph, state = abstract_parameters(Placement(loaded.model_config, make_mesh(*mesh)), int8=False)
    assert graph == loaded.graph
    assert described(state) == described(loaded.state)


def test_int8_weights_have_scales():
    plain, int8 = (tiny_setting(1, 2, int8_weights=of).resident_bytes["weights"] for of in (False, True))
    assert 0.5 * plain < int8 < plain


@pytest.mark.parametrize("mesh", [(1, 4), (2, 4)])
@pytest.mark.parametrize(("name", "question_tokens"), [*((name, 32) for name in PROGRAMS), ("begin", 16)])
def test_programs_take_what_is_counted(mesh: tuple[int, int], name: Any, question_tokens: int, monkeypatch: Any):
    """Compiled for the CPU, the arguments fit the functions, and donated buffers are reused for results."""
    # A CPU begins slots one by one; its compiler is asked for the program that begins several on other devices.
    monkeypatch.setattr(programs, "begins_several", lambda platform, **_: True)
    setting = tiny_setting(*mesh, question_tokens=question_tokens)
    program = compile_program(name, setting, CHIPS["v5e"])
    assert program.slots == (4 if question_tokens == 16 else 1)  # short questions of several slots begin together
    function, arguments = programs.program_with_arguments(name, setting)
    memory = function.lower(*arguments).compile().memory_analysis()
    # Parameters that a program does not use are dropped, and what comes from the host is small.
    assert memory.argument_size_in_bytes <= sum(program.resident.values()) + program.inputs + 4096
    written = {"prefill": ("prefix",), "begin": ("tails", "answers"), "decode": ("tails", "answers")}.get(name, ())
    assert memory.alias_size_in_bytes == sum(program.resident[kind] for kind in written)
    if name == "encode":
        video = setting.frames * setting.config.tokens_per_frame * setting.config.text_config.hidden_size * 2
        assert program.outputs == video
    else:
        assert program.outputs < 4096
    assert program.total == sum(program.resident.values()) + program.extra
    assert program.flops > 0
    assert program.roofline.seconds > 0


def test_bytes_of_the_whole_model_by_hand():
    """7B in bfloat16 over 8 chips: only decoder and head are split; a token takes 64 KiB on each chip."""
    shape = GridShape(shards=1, slots=8, rows=8, prefix=2112, question=64, answer=128)
    setting = Setting(config=CONFIG, mesh=make_mesh(1, 8), shape=shape)
    held = setting.resident_bytes
    decoder, whole = 6_607_605_760 + 131_334_144, 2 * 303_179_776 + 20_979_712
    assert held["weights"] == pytest.approx(2 * (decoder / 8 + whole), rel=1e-3)
    assert held["prefix"] == pytest.approx(8 * 2112 * 2**16, rel=1e-3)
    assert held["tails"] == pytest.approx(64 * 192 * 2**16, rel=1e-3)
    read = 2 * (decoder - 131_334_144) / 8 + held["prefix"] + held["tails"]
    assert setting.read_once_bytes == pytest.approx(read, rel=1e-3)
    assert setting.smallest_buffer == 4096 * 512 * 2  # a chip's shard of a query projection


def test_shares_are_those_of_the_shardings():
    placement = Placement(CONFIG, make_mesh(2, 4))
    x = jax.ShapeDtypeStruct((2, 32, 5, 128), jnp.bfloat16, sharding=placement.cache(2))
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 3))
    assert shard_bytes([x, keys, None]) == 1 * 8 * 5 * 128 * 2 + 3 * 8


# ── mesh, grid, throughput ──────────────────────────────────────────────────────────────────────────────────


def plan_request(topology: str = "v5e:2x4", **options: Any) -> PlanRequest:
    return PlanRequest(topology=topology, config=CONFIG, job=options.pop("job", Job(questions=25)), **options)


@pytest.mark.parametrize(
    ("chip", "int8", "expected"),
    [("v5e", False, (2, 4)), ("v5e", True, (4, 2)), ("v6e", False, (4, 2)), ("v5p", False, (8, 1))],
)
def test_a_copy_takes_the_fewest_chips_that_leave_caches_room(chip: str, int8: bool, expected: tuple[int, int]):
    device = device_of(CHIPS[chip])
    assert choose_mesh(plan_request(storage=Storage(int8_weights=int8)), device, 8) == expected


def test_a_model_that_leaves_no_room_takes_the_most_chips():
    small = dataclasses.replace(device_of(CHIPS["v5e"]), hbm_bytes=2**30)
    assert choose_mesh(plan_request(), small, 4) == (1, 4)


def test_meshes_are_compared_and_the_best_is_named(capsys: pytest.CaptureFixture[str]):
    """On v6e eight chips a copy wait for all-reduces of a prefill, and one chip a copy leaves caches little room."""
    made = make_plan(plan_request("v6e:2x4", arithmetic=True))
    rates = [rate.answers_per_second for rate in made.meshes.values()]
    assert set(made.meshes) == {(1, 8), (2, 4), (4, 2), (8, 1)}
    assert rates == sorted(rates, reverse=True)
    assert next(iter(made.meshes)) in {(2, 4), (4, 2)}
    assert made.limit is not None
    assert rates[0] < made.limit.answers_per_second
    assert main(["plan", "--topology", "v6e:2x4", "--arithmetic"]) == 0
    data, tensor = next(iter(made.meshes))
    assert f"take --mesh {data}x{tensor}" in capsys.readouterr().out


def test_meshes_without_room_or_choice_are_not_compared():
    bfloat16 = make_plan(plan_request("l4:8", job=Job(questions=25, frames=15), arithmetic=True))
    assert (8, 1) not in bfloat16.meshes
    assert bfloat16.meshes
    assert make_plan(plan_request("h200", arithmetic=True)).meshes.keys() == {(1, 1)}
    assert not make_plan(plan_request("h100:8", mesh=(2, 4), arithmetic=True)).meshes


def test_devices_of_a_chip_share_it():
    v7x = device_of(CHIPS["v7x"])
    assert v7x.hbm_bytes < CHIPS["v7x"].hbm_bytes / 2
    assert v7x.bf16_flops == CHIPS["v7x"].bf16_flops / 2
    assert device_of(CHIPS["v5e"]).hbm_bytes == 15.75 * GIB


def test_throughput_by_hand():
    """2 shards × 3 slots of 5 rows: 12 questions per video take three rounds, each of 3 slots per shard and 9 steps."""
    shape = GridShape(shards=2, slots=3, rows=5, prefix=2112, question=64, answer=32)
    seconds = {"encode": 0.1, "prefill": 0.2, "begin": 0.05, "decode": 0.01}
    found = throughput(Job(questions=12, answer_tokens=10), shape, seconds)
    assert dict(found.phases) == pytest.approx({"encode": 0.3, "prefill": 0.6, "begin": 0.45, "decode": 0.27})
    assert found.videos_per_second == pytest.approx(6 / 1.62)
    assert found.answers_per_second == pytest.approx(12 * 6 / 1.62)
    assert found.tokens_per_second == pytest.approx(120 * 6 / 1.62)


@pytest.fixture
def compiler_of(monkeypatch: pytest.MonkeyPatch):
    """Replaces the compiler by programs of known sizes. Returns the list of compiled programs and slots."""
    seen: list[tuple[str, int]] = []

    def install(temporaries: Any) -> list[tuple[str, int]]:
        def compiled(name: Any, setting: Setting, chip: Chip) -> Program:
            seen.append((name, setting.shape.slots))
            needed = temporaries(name, setting.shape.slots)
            if needed is None:
                raise MemoryError("Ran out of memory on HBM")
            loop = programs.Traffic(hbm_read_bytes=819_000_000)
            return Program(
                name=name,
                resident=setting.resident_bytes,
                inputs=0,
                outputs=0,
                temporaries=needed,
                code=0,
                flops=0.0,
                text=programs.CompiledProgram(entry=loop, loops={"body": loop}),
                moves=(),
                kernels=0,
                chip=chip,
                tensor=8,
                compile_seconds=1.0,
            )

        monkeypatch.setattr(programs, "compile_program", compiled)
        monkeypatch.setattr(plan, "devices_of", lambda name, chip, chips: jax.devices())
        return seen

    monkeypatch.setattr(plan, "set_environment", lambda chip: None)
    return install


def test_the_largest_batch_fits_and_the_next_does_not(compiler_of: Any):
    seen = compiler_of(lambda name, slots: GIB)
    made = make_plan(plan_request(mesh=(1, 8)))
    assert made.batch is not None
    assert made.largest is not None
    assert [name for name, _ in seen] == [*PROGRAMS, "decode"]
    decode = made.largest.programs["decode"]
    per_slot = sum(size for kind, size in decode.resident.items() if kind != "weights") / made.largest.shape.slots
    assert decode.total <= made.chip.hbm_bytes < decode.total + per_slot
    assert made.largest.shape.slots > made.batch.shape.slots
    # 1 ms each; what a slot takes stays the same, and steps are shared by more.
    assert made.largest.throughput is not None
    assert made.batch.throughput is not None
    assert made.largest.throughput.videos_per_second > made.batch.throughput.videos_per_second


def test_the_largest_batch_shrinks_until_it_fits(compiler_of: Any):
    """If temporaries grow with the batch, the first guess, from the engine's grid, is too large."""
    chosen: list[int] = []

    def needed(name: str, slots: int) -> int:
        chosen.append(slots)
        return (slots - chosen[0]) * 60 * 2**20 if name == "decode" else 0

    seen = compiler_of(needed)
    made = make_plan(plan_request(mesh=(1, 8)))
    tried = [slots for name, slots in seen if name == "decode"][1:]
    assert 1 < len(tried) <= plan.TRIES
    assert tried == sorted(set(tried), reverse=True)
    assert made.largest is not None
    assert made.largest.shape.slots == tried[-1]
    assert made.largest.programs["decode"].total <= made.chip.hbm_bytes


def test_a_largest_batch_that_does_not_compile_is_made_smaller(compiler_of: Any):
    seen = compiler_of(lambda name, slots: 0)
    make_plan(plan_request(mesh=(1, 8)))
    most = max(slots for _, slots in seen)
    compiler_of(lambda name, slots: None if slots == most else 0)
    made = make_plan(plan_request(mesh=(1, 8)))
    assert made.largest is not None
    assert made.largest.shape.slots == most - 1


def test_a_program_that_does_not_fit_is_told(compiler_of: Any):
    compiler_of(lambda name, slots: None if name == "begin" else 0)
    made = make_plan(plan_request(mesh=(1, 8)))
    assert made.batch is not None
    assert made.batch.too_large == {"begin": "Ran out of memory on HBM"}
    assert not made.batch.fits("begin")
    assert made.batch.fits("decode")
    assert (made.batch.throughput, made.largest) == (None, None)


def test_a_grid_that_is_given_is_the_grid(compiler_of: Any):
    seen = compiler_of(lambda name, slots: 0)
    made = make_plan(plan_request(mesh=(2, 4), grid=(8, 5), programs=("decode",)))
    assert made.batch is not None
    assert made.batch.shape == GridShape(shards=2, slots=4, rows=5, prefix=2112, question=64, answer=32)
    assert seen == [("decode", 4)]
    assert (made.batch.throughput, made.largest) == (None, None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mesh": (3, 2)}, "mesh 3x2: expected data × tensor to be the 8 devices"),
        ({"mesh": (2, 4), "grid": (3, 1)}, "grid 3x1: .* a multiple of 2"),
        ({"topology": "v9:2x2"}, "no figures for a chip 'v9'"),
    ],
)
def test_what_does_not_fit_the_chips_is_refused(compiler_of: Any, options: dict[str, Any], message: str):
    compiler_of(lambda name, slots: 0)
    with pytest.raises(ValueError, match=message):
        make_plan(plan_request(**options))


# ── the command ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch):
    """Plans are arithmetic, also where the GPU compiler is installed."""
    monkeypatch.setattr(plan, "has_compiler", lambda chip: False)


def test_gpus_are_planned_by_arithmetic(no_compiler: None, capsys: pytest.CaptureFixture[str]):
    assert main(["plan", "--topology", "h100:8", "--questions", "10", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    limit = best_possible(Job(questions=10), CONFIG, CHIPS["h100"], 8)
    assert record["compiled"] is False
    assert record["batch"] is None
    assert record["limit"]["answers_per_second"] == limit.answers_per_second

    assert main(["plan", "--topology", "h200", "--job", "caption"]) == 0
    printed = capsys.readouterr().out
    assert "by arithmetic, not compiled" in printed
    limit = best_possible(Job(questions=1, answer_tokens=256), CONFIG, CHIPS["h200"])
    assert f"{limit.videos_per_second:.2f}" in printed


def test_pooling_and_more_frames_change_the_prefix(no_compiler: None, capsys: pytest.CaptureFixture[str]):
    assert main(["plan", "--topology", "h100", "--frames", "32", "--pool", "2"]) == 0
    assert f"{32 * 65} tokens" in capsys.readouterr().out


def test_a_model_that_no_chip_holds_is_told(no_compiler: None, capsys: pytest.CaptureFixture[str]):
    assert main(["plan", "--topology", "l4", "--frames", "240"]) == 0
    assert "the weights and one video take" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--topology", "v5e:2x"), "expected sizes such as v5e:2x4"),
        (("--topology", "h100", "--variant", "original", "--frames", "9"), "--frames"),
        (("--topology", "h100:8", "--mesh", "2x2"), "the 8 devices"),
        (("--topology", "h100", "--model", "/no/such"), "/no/such"),
    ],
)
def test_wrong_wishes_are_one_line(
    no_compiler: None, arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
):
    assert main(["plan", *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_number_out_of_range_names_its_flag(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["plan", "--topology", "h100", "--questions", "0"])
    assert "argument --questions: expected a whole number from 1 to" in capsys.readouterr().err


@pytest.mark.parametrize("pair", ["8", "2x", "0x8", "2x4x1", "axb"])
def test_a_mesh_is_two_numbers(pair: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["plan", "--topology", "v5e:2x4", "--mesh", pair])
    assert "expected two numbers such as 2x4" in capsys.readouterr().err


def test_without_the_compiler_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, capsys: Any):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(plan, "set_environment", lambda chip: None)
    assert main(["plan", "--topology", "v5e:2x4"]) == 1
    assert "pip install -e '.[tpu]'" in capsys.readouterr().err


# ── the real compiler ───────────────────────────────────────────────────────────────────────────────────────


def check(record: dict[str, Any]) -> None:
    """The requirements of the engine's programs on any TPU, with 64 rows of 2304 positions per copy."""
    found = record["batch"]["programs"]
    assert record["batch"]["too_large"] == {}
    for name in set(found) & {"prefill", "begin", "decode"}:
        assert found[name]["fits"], f"{name}: {found[name]['total']} of {record['hbm_bytes']} bytes"
        assert found[name]["big_moves"] == [], name
    assert found["decode"]["temporaries"] < 0.5 * GIB
    assert 0.99 < traffic_ratio(record) <= 1.1


@needs_compiler
@pytest.mark.tpu_compiler
class TestLive:
    def test_four_layers_of_the_7b_model(self, tmp_path: Any):
        config = ModelConfig(
            text_config=TextConfig(num_hidden_layers=4), vision_config=VisionConfig(num_hidden_layers=2)
        )
        (tmp_path / "config.json").write_text(json.dumps(config.to_hf()))
        record = required("v5e:2x4", "8 × 8", "--model", str(tmp_path), "--programs", "prefill", "begin", "decode")
        check(record)
        assert record["mesh"] == [1, 8]
        assert record["batch"]["grid"]["batch"] == 64
        decode = record["batch"]["programs"]["decode"]
        sums = {c["kind"]: c["count"] for c in decode["collectives"]}
        assert sums == {"all-reduce": 2 * 4 + 1, "all-gather": 1}  # two for each layer, the embedding's, the logits'

    @pytest.mark.parametrize(("topology", "most", "kernels", "more"), [("v6e:2x4", 1, 0, 5), ("v5p:2x2x2", 2.5, 2, 68)])
    def test_tails_are_updated_in_place(self, topology: str, most: float, kernels: int, more: int, tmp_path: Any):
        """Left to itself the compiler for these chips writes each layer's whole tails back in every step.

        That is four tails here: 50 MB of 50 on v6e, 50 of 83 on v5p, where logits are written too. There two kernels a
        layer, for prefixes and tails, keep scores out of high-bandwidth memory: with XLA's own fusions a step of these
        two layers moves 74 MiB more than it must, 10 MiB of them scores.
        """
        config = ModelConfig(text_config=TextConfig(num_hidden_layers=2))
        (tmp_path / "config.json").write_text(json.dumps(config.to_hf()))
        record = required(topology, "8 × 8", "--model", str(tmp_path), "--programs", "decode")
        decode = record["batch"]["programs"]["decode"]
        a_tail = 192 * 64 * 4 * 128 * 2  # positions, rows, a chip's heads, head size, bfloat16
        assert decode["resident"]["tails"] >= 2 * 2 * a_tail
        assert [move for move in decode["big_moves"] if move["bytes"] >= a_tail] == []
        assert decode["hbm_written"] < most * a_tail
        assert decode["kernels"] == 2 * kernels
        assert decode["hbm_read"] + decode["hbm_written"] - record["batch"]["read_once"] < more * 2**20

    def test_questions_about_four_videos_begin_with_the_weights_read_once(self, tmp_path: Any):
        """Two layers and the head: a call for one slot in each shard reads 370 MiB, four such calls 1490."""
        config = ModelConfig(text_config=TextConfig(num_hidden_layers=2))
        (tmp_path / "config.json").write_text(json.dumps(config.to_hf()))
        options = ("--mesh", "2x4", "--grid", "16x1", "--questions", "1", "--programs", "begin")
        begin = planned("v5e:2x4", *options, "--model", str(tmp_path))["batch"]["programs"]["begin"]
        assert begin["slots"] == 4
        assert begin["hbm_read"] < 560 * 2**20
        assert begin["big_moves"] == []

    def test_what_the_compiler_does_not_know_is_refused(self):
        with pytest.raises(RuntimeError, match="topology 'v5e:3x3': the TPU compiler refuses it"):
            planned("v5e:3x3")


@needs_compiler
@pytest.mark.tpu_compiler
@pytest.mark.slow
class TestTheWholeModel:
    """The whole 7B model of 32 layers; minutes for each case."""

    @pytest.mark.parametrize("topology", MESHES)
    @pytest.mark.parametrize("grid", GRIDS)
    def test_programs(self, topology: str, grid: str):
        check(required(topology, grid, "--programs", "prefill", "begin", "decode"))

    @pytest.mark.parametrize("options", [("--int8-cache",), ("--int8-weights", "--int8-cache")])
    def test_int8(self, options: tuple[str, ...]):
        check(required("v5e:2x4", "8 × 8", "--programs", "prefill", "begin", "decode", *options))

    def test_the_chosen_mesh_and_the_largest_batch(self):
        record = planned("v5e:2x4", "--questions", "25")
        assert record["mesh"] == [2, 4]
        largest = record["largest"]
        assert all(program["fits"] for program in record["batch"]["programs"].values())
        assert largest["grid"]["batch"] > record["batch"]["grid"]["batch"]
        assert largest["programs"]["decode"]["total"] <= record["hbm_bytes"]
        assert record["batch"]["throughput"]["answers_per_second"] < record["limit"]["answers_per_second"]
        assert np.isfinite(largest["throughput"]["answers_per_second"])
