"""Counting the traffic of real programs: texts of the TPU compiler, kept and (with libtpu) live, and the CPU's."""

from __future__ import annotations

import importlib.util

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, PartitionSpec

from tests.planning.hlo_modules import example
from tests.planning.tpu_programs import (
    HEADS,
    LAYERS,
    PREFIX,
    PREFIXES,
    ROWS,
    TAIL,
    TENSOR,
    D,
    H,
    M,
    compiled_text,
    shortened,
)
from videollava_jax.planning.hlo.traffic import Collective, Traffic, read_program

MIB = 2**20
BF16 = 2

ROWS_A_CHIP = PREFIXES * ROWS // 2

HEADS_A_CHIP = HEADS // TENSOR

SLICE = ROWS_A_CHIP * HEADS_A_CHIP * H * BF16
"""One position of one layer's keys, on one chip."""

LAYER = (4 * D * HEADS * H + 3 * D * M) * BF16 // TENSOR
"""One layer's weights, on one chip."""

PREFIX_CACHE = PREFIXES // 2 * HEADS_A_CHIP * PREFIX * H * BF16

LOOP_CACHE = 2304 * SLICE


# ── what the TPU compiler wrote ─────────────────────────────────────────────────────────────────────────────


def test_product():
    """A product of [64, 4096] and a chip's [4096, 11008] reads weights and activations and writes the result."""
    traffic = read_program(example("product")).entry
    assert traffic.hbm_read_bytes == (D * M + 64 * D) * BF16
    assert traffic.hbm_written_bytes == 64 * M * BF16
    assert traffic.moves == ()


def test_update_of_a_donated_cache_and_of_another():
    donated, kept = read_program(example("update")).entry, read_program(example("update_copied")).entry
    assert (donated.hbm_read_bytes, donated.hbm_written_bytes, donated.moves) == (SLICE, SLICE, ())
    cache = 2048 * SLICE
    assert (kept.hbm_read_bytes, kept.hbm_written_bytes) == (cache + SLICE, cache + SLICE)
    assert [(move.kind, move.bytes) for move in kept.big_moves(cache)] == [("copy", cache)]


@pytest.mark.parametrize(
    ("name", "kinds", "read"), [("transpose", ("copy", "transpose"), 2), ("convert", ("convert",), 1)]
)
def test_moves_of_weights(name: str, kinds: tuple[str, ...], read: int):
    traffic = read_program(example(name)).entry
    size = D * 16384 // TENSOR
    assert (traffic.hbm_read_bytes, traffic.hbm_written_bytes) == (read * size, BF16 * size)
    (move,) = traffic.big_moves(BF16 * size)
    assert move.kind in kinds


def check_decode(loop: Traffic, layers: int) -> None:
    """Checks that a step reads weights, prefixes and tails once, and writes only its slices."""
    expected = layers * (LAYER + 2 * PREFIX_CACHE + 2 * TAIL * SLICE)
    assert loop.hbm_read_bytes == pytest.approx(expected, rel=0.05)
    assert loop.hbm_written_bytes >= (2 * layers - 1) * SLICE
    # Some tails are written back whole, but nothing is copied.
    assert loop.hbm_written_bytes <= 0.05 * expected
    assert loop.big_moves(PREFIX_CACHE // 4) == ()
    (reduced,) = loop.collectives
    assert (reduced.kind, reduced.count) == ("all-reduce", 2 * layers)
    assert reduced.bytes == 2 * layers * ROWS_A_CHIP * D * BF16


def test_one_layer_of_decoding():
    program = read_program(example("decode"))
    assert program.entry.hbm_bytes < MIB
    loop = program.loop
    # One layer's tails stay on the chip, so that only the newest keys are written back, with their array.
    assert loop.hbm_read_bytes == pytest.approx(LAYER + 2 * PREFIX_CACHE + 2 * TAIL * SLICE, rel=0.05)
    assert loop.hbm_written_bytes == pytest.approx(TAIL * SLICE, rel=0.05)
    assert [move.kind for move in loop.moves] == ["write-back"]
    assert program.big_moves(MIB) == ()
    assert loop.collectives == (Collective("all-reduce", 2, 2 * ROWS_A_CHIP * D * BF16),)


def test_a_cache_with_heads_first_is_copied_around_the_loop():
    program = read_program(example("loop_heads_first"))
    assert [(m.kind, m.bytes) for m in program.big_moves(LOOP_CACHE)] == [("copy", LOOP_CACHE)] * 2
    assert program.entry.hbm_bytes == pytest.approx(4 * LOOP_CACHE, rel=0.01)
    # Inside it the cache is read twice, as keys and as values, and one position of it is written.
    assert program.loop.hbm_read_bytes == pytest.approx(2 * LOOP_CACHE, rel=0.01)
    assert program.loop.hbm_written_bytes == SLICE


@pytest.mark.tpu_compiler
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu, the TPU compiler (extra `tpu`)")
class TestLive:
    """The same programs, compiled now."""

    @pytest.mark.parametrize("topology", ["v5e:2x4", "v6e:2x4", "v5p:2x2x2"])
    def test_decode(self, topology: str):
        text = compiled_text(topology, "decode")
        program = read_program(text)
        check_decode(program.loop, LAYERS)
        assert program.entry.hbm_bytes < MIB
        assert read_program(shortened(text)).loop.hbm_bytes == program.loop.hbm_bytes

    @pytest.mark.parametrize(("program", "copies"), [("loop", 0), ("loop_heads_first", 2)])
    def test_only_the_layout_with_positions_first_is_updated_without_copies(self, program: str, copies: int):
        assert len(read_program(compiled_text("v5e:2x4", program)).big_moves(LOOP_CACHE)) == copies


# ── CPU ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_programs_of_other_compilers_are_read():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Explicit,))

    def run(cache: jax.Array, w: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        def body(i: jax.Array, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            cache, x = state
            x = jnp.einsum("bd,do->bo", x, w, out_sharding=PartitionSpec(None, None))
            return jax.lax.dynamic_update_slice_in_dim(cache, x, i, axis=0), x

        return jax.lax.fori_loop(0, x[0, 0].astype(jnp.int32), body, (cache, x))

    with jax.set_mesh(mesh):
        x = jax.sharding.reshard(jnp.ones((1, 512)), PartitionSpec(None, "x"))
        w = jax.sharding.reshard(jnp.ones((512, 512)), PartitionSpec("x", None))
        compiled = jax.jit(lambda c, w, x: run(c, w, x @ jnp.eye(512)), donate_argnums=0)
        text = compiled.lower(jnp.zeros((4096, 512)), w, x).compile().as_text()
    program = read_program(text)
    weights, cache = 512 * 512 * 4 // 8, 4096 * 512 * 4
    assert weights < program.loop.hbm_read_bytes < cache
    assert program.loop.hbm_written_bytes < cache
    assert sum(c.count for c in program.loop.collectives) == 1
    assert program.big_moves(cache) == ()
