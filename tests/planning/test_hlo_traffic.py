"""Reading compiled programs: texts of the TPU compiler, kept and (with libtpu) live, against hand arithmetic."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, PartitionSpec

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
from videollava_jax.planning.hlo.text import Shape, parse
from videollava_jax.planning.hlo.traffic import Collective, Move, Traffic, read_program

EXAMPLES = Path(__file__).parent / "hlo_examples"
KIB, MIB = 2**10, 2**20
BF16 = 2

ROWS_A_CHIP = PREFIXES * ROWS // 2
HEADS_A_CHIP = HEADS // TENSOR
SLICE = ROWS_A_CHIP * HEADS_A_CHIP * H * BF16
"""One position of one layer's keys, on one chip."""
LAYER = (4 * D * HEADS * H + 3 * D * M) * BF16 // TENSOR
"""One layer's weights, on one chip."""
PREFIX_CACHE = PREFIXES // 2 * HEADS_A_CHIP * PREFIX * H * BF16
LOOP_CACHE = 2304 * SLICE


def example(name: str) -> str:
    return (EXAMPLES / f"{name}.txt").read_text()


def module(body: str, *, alias: str = "", computations: str = "") -> str:
    """A module whose entry holds these lines."""
    return f"HloModule m, is_scheduled=true{alias}\n\n{computations}\nENTRY %main {{\n{body}\n}}\n"


# ── shapes ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("bf16[64,4096]{1,0:T(8,128)(2,1)}", 64 * 4096 * 2),
        ("bf16[64,4096]{1,0}", 64 * 4096 * 2),
        ("f32[2304,4,64]{1,2,0:T(8,128)}", 2304 * 64 * 128 * 4),  # 4 is the minor axis, padded to 128
        ("f32[3,5]{0,1:T(8,128)}", 8 * 128 * 4),
        ("bf16[75]{0:T(1024)(128)(2,1)}", 1024 * 2),
        ("s4[16,128]{1,0:T(32,128)(8,1)}", 32 * 128 // 2),
        ("f8e4m3fn[128]", 128),
        ("pred[3,3]", 9),
        ("f32[7,100]{1,0:T(*,128)}", 7 * 128 * 4),
        ("f32[]", 4),
        ("token[]", 0),
    ],
)
def test_a_shape_takes_the_padding_of_its_tiles(text: str, size: int):
    shape = parse(module(f"  ROOT %x = {text} parameter(0)")).entry.root.shapes[0]
    assert shape.bytes == size


def test_memory_spaces_are_read():
    text = "(f32[8]{0:T(128)S(1)}, (s32[]{:S(2)}, bf16[2,4]{1,0:T(2,128)(2,1)}), /*index=3*/u32[4]{0:T(128)S(6)})"
    instruction = parse(module(f"  ROOT %x = {text} parameter(0)")).entry.root
    assert [shape.memory_space for shape in instruction.shapes] == [1, 2, 0, 6]
    assert [shape.in_hbm for shape in instruction.shapes] == [False, False, True, False]
    assert instruction.shapes[2] == Shape("bf16", (2, 4), (1, 0), (2, 128), 0)


# ── the parser ──────────────────────────────────────────────────────────────────────────────────────────────


def test_strings_comments_and_constants_over_lines_do_not_confuse_it():
    body = """  %p = f32[2,2]{1,0} parameter(0), metadata={op_name="a \\"quoted\\" } ) calls=%nothing, {" file="x,y"}
  %c = f32[2,2]{1,0} constant({
    { 1, 2 },
    { 3, /*here*/ 4 }
  })
  ROOT %sum = f32[2,2]{1,0} add(%p, /*index=1*/%c), backend_config={"a":"to_apply=%no","b":["{"]}"""
    entry = parse(module(body)).entry
    assert [(i.name, i.opcode, i.operands) for i in entry.instructions] == [
        ("p", "parameter", ()),
        ("c", "constant", ()),
        ("sum", "add", ("p", "c")),
    ]
    assert all(not i.called for i in entry.instructions)
    assert entry.root.name == "sum"


def test_what_a_kernel_says_of_itself_ends_no_computation():
    """A Pallas kernel's metadata stands on lines of their own, and its closing brackets at the start of a line."""
    body = """  %p = f32[2]{0} parameter(0)
  %k = f32[2]{0} custom-call(%p), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 768}"
}}, metadata={op_name="jit(f)/pallas_call"}
  ROOT %n = f32[2]{0} negate(%k)"""
    entry = parse(module(body)).entry
    assert [(i.name, i.custom_call, i.source) for i in entry.instructions] == [
        ("p", "", ""),
        ("k", "tpu_custom_call", "jit(f)/pallas_call"),
        ("n", "", ""),
    ]


def test_operands_may_carry_their_types():
    body = "  a = f32[2]{0} parameter(0)\n  ROOT b = (f32[2]{0}, f32[2]{0}) tuple(f32[2]{0} %a, f32[2]{0} a)"
    assert parse(module(body)).entry.root.operands == ("a", "a")


def test_donated_parameters_are_read():
    alias = (
        ", input_output_alias={ {0}: (3, {}, may-alias), {1, 0}: (11, {2}, must-alias) }, entry={(f32[]{:T(1)})->f32[]}"
    )
    assert parse(module("  ROOT %x = f32[] parameter(0)", alias=alias)).donated == {3, 11}
    assert parse(module("  ROOT %x = f32[] parameter(0)")).donated == frozenset()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "begins with HloModule"),
        ("module @jit_f { }", "begins with HloModule"),
        ("HloModule m\n\n%f {\n  ROOT %x = f32[] parameter(0)\n}\n", "no ENTRY computation"),
        (module("  ROOT %x = nonsense parameter(0)"), "expected a shape"),
        (module("  ROOT %x = f32[2] add(%a, %b"), "never closed"),
    ],
)
def test_what_is_no_module_is_refused(text: str, message: str):
    with pytest.raises(ValueError, match=message):
        read_program(text)


# ── what is counted, on written programs ────────────────────────────────────────────────────────────────────

BIG = "f32[1024,256]{1,0}"
BYTES = 1024 * 256 * 4


def counted(body: str, **parts: str) -> tuple[int, int]:
    traffic = read_program(module(body, **parts)).entry
    return traffic.hbm_read_bytes, traffic.hbm_written_bytes


def test_buffers_on_the_chip_do_not_count():
    body = f"""  %p = {BIG} parameter(0)
  %q = f32[1024,256]{{1,0:S(1)}} negate(%p)
  ROOT %r = {BIG} negate(%q)"""
    assert counted(body) == (BYTES, BYTES)


def test_what_only_names_a_buffer_is_free():
    body = f"""  %p = ({BIG}, {BIG}) parameter(0)
  %a = {BIG} get-tuple-element(%p), index=0
  %b = f32[256,1024]{{1,0}} bitcast(%a)
  ROOT %t = (f32[256,1024]{{1,0}}, {BIG}) tuple(%b, %a)"""
    assert counted(body) == (0, 0)


def test_an_operand_given_twice_is_read_once():
    assert counted(f"  %p = {BIG} parameter(0)\n  ROOT %r = {BIG} multiply(%p, %p)") == (BYTES, BYTES)


@pytest.mark.parametrize(
    "line",
    [
        "slice(%p), slice={[0:8], [0:256]}",
        "dynamic-slice(%p, %i, %i), dynamic_slice_sizes={8,256}",
        "fusion(%p, %i), kind=kLoop, calls=%f",
        "fusion(%p, %i), kind=kLoop, calls=%outer",
    ],
)
def test_a_slice_reads_what_it_takes(line: str):
    computations = f"""%f {{
  %x = {BIG} parameter(0)
  %j = s32[] parameter(1)
  %y = {BIG} bitcast(%x)
  ROOT %s = f32[8,256]{{1,0}} dynamic-slice(%y, %j, %j), dynamic_slice_sizes={{8,256}}
}}

%same {{
  %x.1 = {BIG} parameter(0)
  ROOT %y.1 = {BIG} bitcast(%x.1)
}}

%outer {{
  %x.2 = {BIG} parameter(0)
  %j.2 = s32[] parameter(1)
  %y.2 = {BIG} fusion(%x.2), kind=kLoop, calls=%same
  ROOT %s.2 = f32[8,256]{{1,0}} fusion(%y.2, %j.2), kind=kLoop, calls=%f
}}
"""
    body = f"  %p = {BIG} parameter(0)\n  %i = s32[] parameter(1)\n  ROOT %r = f32[8,256]{{1,0}} {line}"
    assert counted(body, computations=computations) == (8 * KIB, 8 * KIB)


def test_a_fusion_that_renames_and_then_reads_everything_reads_everything():
    """As the TPU compiler wraps the operands of a product."""
    computations = f"""%same {{
  %x.1 = {BIG} parameter(0)
  ROOT %y.1 = {BIG} bitcast(%x.1)
}}

%f {{
  %x = {BIG} parameter(0)
  %y = {BIG} fusion(%x), kind=kLoop, calls=%same
  ROOT %s = f32[256]{{0}} reduce(%y), dimensions={{0}}
}}
"""
    body = f"  %p = {BIG} parameter(0)\n  ROOT %r = f32[256]{{0}} fusion(%p), kind=kLoop, calls=%f"
    assert counted(body, computations=computations) == (BYTES, KIB)


UPDATE = f"""%f {{
  %x = {BIG} parameter(0)
  %new = f32[8,256]{{1,0}} parameter(1)
  %j = s32[] parameter(2)
  ROOT %s = {BIG} dynamic-update-slice(%x, %new, %j, %j)
}}
"""
DONATED = ", input_output_alias={ {}: (0, {}, may-alias) }"


@pytest.mark.parametrize("line", ["dynamic-update-slice(%p, %n, %i, %i)", "fusion(%p, %n, %i), kind=kLoop, calls=%f"])
def test_an_update_in_place_writes_its_slice(line: str):
    head = f"  %p = {BIG} parameter(0)\n  %n = f32[8,256]{{1,0}} parameter(1)\n  %i = s32[] parameter(2)\n"
    body = f"{head}  ROOT %r = {BIG} {line}"
    assert counted(body, computations=UPDATE, alias=DONATED) == (8 * KIB, 8 * KIB)
    # Without donation the caller keeps the old buffer, so that all of it is copied ...
    assert counted(body, computations=UPDATE) == (BYTES + 8 * KIB, BYTES)
    # ... as when something reads the old contents afterwards.
    body = f"{head}  %m = {BIG} negate(%p)\n  %u = {BIG} {line.replace('%p', '%m')}\n  ROOT %r = {BIG} add(%m, %u)"
    read, written = counted(body, computations=UPDATE)
    assert (read, written) == (BYTES + (BYTES + 8 * KIB) + 2 * BYTES, 3 * BYTES)


def test_an_update_that_moves_onto_the_chip_reads_everything():
    body = f"""  %p = {BIG} parameter(0)
  %n = f32[8,256]{{1,0}} parameter(1)
  %i = s32[] parameter(2)
  %u = f32[1024,256]{{1,0:S(1)}} fusion(%p, %n, %i), kind=kLoop, calls=%f
  ROOT %r = f32[] reduce(%u), dimensions={{0,1}}"""
    assert counted(body, computations=UPDATE, alias=DONATED) == (BYTES + 8 * KIB, 0)


@pytest.mark.parametrize("updated", ["dynamic-update-slice(%x, %new, %j, %j)", "fusion(%x, %new, %j), calls=%f"])
def test_a_fusion_that_updates_and_uses_a_buffer_reads_all_of_it(updated: str):
    computations = f"""{UPDATE}
%both {{
  %x = {BIG} parameter(0)
  %new = f32[8,256]{{1,0}} parameter(1)
  %j = s32[] parameter(2)
  %u = {BIG} {updated}
  %s = f32[256]{{0}} reduce(%u), dimensions={{0}}
  ROOT %t = ({BIG}, f32[256]{{0}}) tuple(%u, %s)
}}
"""
    body = f"""  %p = {BIG} parameter(0)
  %n = f32[8,256]{{1,0}} parameter(1)
  %i = s32[] parameter(2)
  ROOT %r = ({BIG}, f32[256]{{0}}) fusion(%p, %n, %i), kind=kLoop, calls=%both"""
    read, _ = counted(body, computations=computations, alias=DONATED)
    assert read == BYTES + 8 * KIB


def test_asynchronous_transfers_count_where_they_start():
    on_chip = "f32[1024,256]{1,0:S(1)}"
    computations = f"""%wrapped {{
  %x = {BIG} parameter(0)
  %j = s32[] parameter(1)
  ROOT %s = f32[8,256]{{1,0:S(1)}} dynamic-slice(%x, %j, %j), dynamic_slice_sizes={{8,256}}
}}
"""
    body = f"""  %p = {BIG} parameter(0)
  %i = s32[] parameter(1)
  %c = ({on_chip}, {BIG}, u32[]{{:S(2)}}) copy-start(%p)
  %s = (({BIG}), f32[16,256]{{1,0:S(1)}}, s32[]{{:S(2)}}) slice-start(%p), slice={{[0:16], [0:256]}}
  %a = (({BIG}, s32[]), f32[8,256]{{1,0:S(1)}}, s32[]{{:S(2)}}) async-start(%p, %i), calls=%wrapped
  %a.1 = f32[8,256]{{1,0:S(1)}} async-done(%a), calls=%wrapped
  %s.1 = f32[16,256]{{1,0:S(1)}} slice-done(%s)
  %c.1 = {on_chip} copy-done(%c)
  %back = ({BIG}, {on_chip}, u32[]{{:S(2)}}) copy-start(%c.1)
  ROOT %back.1 = {BIG} copy-done(%back)"""
    program = read_program(module(body, computations=computations))
    assert program.entry.hbm_read_bytes == BYTES + 16 * KIB + 8 * KIB
    assert program.entry.hbm_written_bytes == BYTES
    # A prefetch is no move; neither, for a threshold, is what is written back unchanged.
    assert [move.kind for move in program.entry.moves] == ["write-back"]
    assert program.big_moves(1) == ()


def test_loops_and_conditionals():
    computations = f"""%cond {{
  %s.1 = ({BIG}, s32[]) parameter(0)
  %e.1 = {BIG} get-tuple-element(%s.1), index=0
  %f.1 = f32[8,256]{{1,0}} slice(%e.1), slice={{[0:8], [0:256]}}
  ROOT %lt = pred[] reduce(%f.1), dimensions={{0,1}}
}}

%inner {{
  %s.2 = ({BIG}, s32[]) parameter(0)
  %a.2 = {BIG} get-tuple-element(%s.2), index=0
  %i.2 = s32[] get-tuple-element(%s.2), index=1
  %b.2 = {BIG} negate(%a.2)
  ROOT %t.2 = ({BIG}, s32[]) tuple(%b.2, %i.2)
}}

%outer {{
  %s.3 = ({BIG}, s32[]) parameter(0)
  ROOT %w.3 = ({BIG}, s32[]) while(%s.3), condition=%cond, body=%inner
}}

%cheap {{
  ROOT %c.1 = {BIG} parameter(0)
}}

%dear {{
  %d.1 = {BIG} parameter(0)
  ROOT %d.2 = {BIG} negate(%d.1)
}}
"""
    body = f"""  %p = ({BIG}, s32[]) parameter(0)
  %w = ({BIG}, s32[]) while(%p), condition=%cond, body=%outer
  %g = {BIG} get-tuple-element(%w), index=0
  %i = s32[] get-tuple-element(%w), index=1
  ROOT %r = {BIG} conditional(%i, %g, %g), branch_computations={{%cheap, %dear}}"""
    program = read_program(module(body, computations=computations))
    assert (program.entry.hbm_read_bytes, program.entry.hbm_written_bytes) == (BYTES, BYTES)
    assert {name: loop.hbm_bytes for name, loop in program.loops.items()} == {
        "outer": 3 * 8 * KIB,
        "inner": 2 * BYTES + 3 * 8 * KIB,
    }
    with pytest.raises(ValueError, match="expected a program with one loop, got 2: outer, inner"):
        _ = program.loop
    assert program.iterations == {"outer": None, "inner": None}
    with pytest.raises(ValueError, match="expected loops that run a known number of times; outer does not"):
        _ = program.total


def counting(start: str = "constant(2)", step: str = "add(%i.1, %step)", compared: str = "compare(%i.2, %stop)") -> str:
    """A loop `for (i = 2; i < 9; i += 3)` as the TPU compiler writes it, in which an array is summed over devices."""
    computations = f"""%cond {{
  %stop = s32[] constant(9)
  %s.2 = (s32[], {BIG}) parameter(0)
  %i.2 = s32[] get-tuple-element(%s.2), index=0
  ROOT %lt = pred[] {compared}, direction=LT
}}

%body {{
  %s.1 = (s32[], {BIG}) parameter(0)
  %i.0 = s32[] get-tuple-element(%s.1), index=0
  %i.1 = s32[]{{:S(6)}} copy(%i.0)
  %a.1 = {BIG} get-tuple-element(%s.1), index=1
  %b.1 = {BIG} all-reduce(%a.1), to_apply=%add
  %step = s32[] constant(3)
  %j.1 = s32[] {step}
  ROOT %t.1 = (s32[], {BIG}) tuple(%j.1, %b.1)
}}
"""
    body = f"""  %p = {BIG} parameter(0)
  %n = s32[] {start}
  %start = s32[] copy(%n)
  %t = (s32[], {BIG}) tuple(%start, %p)
  %w = (s32[], {BIG}) while(%t), condition=%cond, body=%body
  ROOT %r = {BIG} get-tuple-element(%w), index=1"""
    return module(body, computations=computations)


def test_iterations_are_counted():
    program = read_program(counting())
    assert program.iterations == {"body": 3}
    assert program.loop.collectives == (Collective("all-reduce", 1, BYTES),)
    assert program.total.collectives == (Collective("all-reduce", 3, 3 * BYTES),)
    assert program.total.hbm_read_bytes == program.entry.hbm_read_bytes + 3 * program.loop.hbm_read_bytes
    # Starting behind its end it never runs, and what the compiler says of itself comes first.
    assert read_program(counting("constant(9)")).iterations == {"body": 0}
    said = counting().replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"5"}}')
    assert read_program(said).iterations == {"body": 5}


@pytest.mark.parametrize(
    "other",
    [
        {"start": "parameter(1)"},
        {"step": "multiply(%i.1, %step)"},
        {"step": "add(%step, %step)"},
        {"compared": "compare(%i.2, %i.2)"},
        {"compared": "compare(%stop, %i.2)"},
        {"compared": "and(%i.2, %stop)"},
    ],
)
def test_other_loops_run_nobody_knows_how_often(other: dict[str, str]):
    assert read_program(counting(**other)).iterations == {"body": None}


def test_a_loop_in_a_loop_runs_as_often_as_both():
    text = counting()
    inner = text[text.index("%body {") : text.index("}\n\nENTRY")]
    outer = f"""%outer {{
  %s.3 = (s32[], {BIG}) parameter(0)
  %i.3 = s32[] get-tuple-element(%s.3), index=0
  %a.3 = {BIG} get-tuple-element(%s.3), index=1
  %zero = s32[] constant(0)
  %t.3 = (s32[], {BIG}) tuple(%zero, %a.3)
  %w.3 = (s32[], {BIG}) while(%t.3), condition=%cond, body=%body
  %a.4 = {BIG} get-tuple-element(%w.3), index=1
  %one = s32[] constant(1)
  %j.3 = s32[] add(%i.3, %one)
  ROOT %t.4 = (s32[], {BIG}) tuple(%j.3, %a.4)
"""
    text = text.replace(inner, f"{inner}}}\n\n{outer}").replace("body=%body\n  ROOT", "body=%outer\n  ROOT")
    assert read_program(text).iterations == {"outer": 7, "body": 21}


def test_collectives_are_added_up_by_kind():
    body = f"""  %p = {BIG} parameter(0)
  %r1 = {BIG} all-reduce(%p), to_apply=%add
  %r2 = {BIG} all-reduce-start(%r1), to_apply=%add
  %r3 = {BIG} all-reduce-done(%r2)
  %g = ({BIG}, f32[4096,256]{{1,0}}) all-gather-start(%r3), dimensions={{0}}
  %g.1 = f32[4096,256]{{1,0}} all-gather-done(%g)
  %s = f32[256,256]{{1,0}} reduce-scatter(%p), to_apply=%add
  ROOT %f = f32[4096,256]{{1,0}} fusion(%p), kind=kCustom, calls=%gathers"""
    computations = f"""%gathers {{
  %x = {BIG} parameter(0)
  ROOT %y = f32[4096,256]{{1,0}} all-gather(%x), dimensions={{0}}
}}
"""
    assert read_program(module(body, computations=computations)).entry.collectives == (
        Collective("all-gather", 2, 2 * 4 * BYTES),
        Collective("all-reduce", 2, 2 * BYTES),
        Collective("reduce-scatter", 1, BYTES),
    )


@pytest.mark.parametrize(
    "reduced",
    [
        f"%y = {BIG} all-reduce(%x), to_apply=%add",
        f"%r = ({BIG}) all-reduce(%x), to_apply=%add\n  %y = {BIG} get-tuple-element(%r), index=0",
    ],
)
def test_a_fusion_that_keeps_a_slice_of_an_all_reduce_is_a_reduce_scatter(reduced: str):
    computations = f"""%all-reduce-scatter {{
  %x = {BIG} parameter(0)
  %i = s32[] parameter(1)
  {reduced}
  ROOT %z = f32[8,256]{{1,0}} dynamic-slice(%y, %i, %i), dynamic_slice_sizes={{8,256}}
}}
"""
    body = f"""  %p = {BIG} parameter(0)
  %j = s32[] parameter(1)
  ROOT %f = f32[8,256]{{1,0}} fusion(%p, %j), kind=kCustom, calls=%all-reduce-scatter"""
    found = read_program(module(body, computations=computations)).entry.collectives
    assert found == (Collective("reduce-scatter", 1, BYTES),)
    # One that returns the sum too keeps all of it, and outside a fusion all of it arrives, whatever is kept.
    kept = computations.replace("ROOT %z", "%z")[:-2] + f"  ROOT %t = (f32[8,256], {BIG}) tuple(%z, %y)\n}}\n"
    both = body.replace("f32[8,256]{1,0} fusion", f"(f32[8,256], {BIG}) fusion")
    assert read_program(module(both, computations=kept)).entry.collectives == (Collective("all-reduce", 1, BYTES),)
    apart = f"""  %p = {BIG} parameter(0)
  %j = s32[] parameter(1)
  %y = {BIG} all-reduce(%p), to_apply=%add
  ROOT %z = f32[8,256]{{1,0}} dynamic-slice(%y, %j, %j), dynamic_slice_sizes={{8,256}}"""
    assert read_program(module(apart)).entry.collectives == (Collective("all-reduce", 1, BYTES),)


def test_a_collective_behind_other_work_counts_where_it_starts():
    """Fusions that go on with it name it again, and are given its semaphores."""
    whole, semaphore = "f32[4096,256]{1,0}", "u32[]{:S(2)}"
    computations = f"""%start {{
  %x = {BIG} parameter(0)
  %g.1 = {whole} all-gather(%x), dimensions={{0}}
  ROOT %s = ({BIG}, {whole}, {semaphore}) custom-call(%g.1), custom_call_target="AsyncCollectiveStart"
}}

%done {{
  %x.2 = {BIG} parameter(0)
  %so_far = {whole} parameter(1)
  %wait = {semaphore} parameter(2)
  %g.2 = {whole} all-gather(%x.2), dimensions={{0}}
  ROOT %d = {whole} custom-call(%x.2, %so_far, %g.2, %wait), custom_call_target="AsyncCollectiveDone"
}}
"""
    body = f"""  %p = {BIG} parameter(0)
  %f = ({BIG}, {whole}, {semaphore}) fusion(%p), kind=kCustom, calls=%start
  %a = {BIG} get-tuple-element(%f), index=0
  %b = {whole} get-tuple-element(%f), index=1
  %c = {semaphore} get-tuple-element(%f), index=2
  ROOT %e = {whole} fusion(%a, %b, %c), kind=kCustom, calls=%done"""
    found = read_program(module(body, computations=computations)).entry.collectives
    assert found == (Collective("all-gather", 1, 4 * BYTES),)


@pytest.mark.parametrize(
    ("lines", "kind"),
    [
        (("%y = f32[1024,256]{0,1} copy(%x)",), "copy"),
        (("%y = f32[256,1024]{1,0} transpose(%x), dimensions={1,0}",), "transpose"),
        (("%y = f32[512,512]{1,0} reshape(%x)",), "reshape"),
        (("%y = bf16[1024,256]{1,0} convert(%x)",), "convert"),
        (("%b = f32[262144]{0} bitcast(%x)", "%y = bf16[262144]{0} convert(%b)"), "convert"),
        (("%b = bf16[1024,256]{1,0} convert(%x)", "%y = bf16[512,512]{1,0} reshape(%b)"), "convert"),
        (("%b = f32[512,512]{1,0} reshape(%x)", "%y = bf16[512,512]{1,0} convert(%b)"), "convert"),
        (("%b = f32[1024,256]{1,0} negate(%x)", "%y = bf16[1024,256]{1,0} convert(%b)"), None),
        (("%y = bf16[256]{0} reduce(%x)",), None),
    ],
)
def test_moves_are_found_alone_and_in_fusions(lines: tuple[str, ...], kind: str | None):
    result = lines[-1].split("= ")[1].split(" ")[0]
    inside = "\n  ".join((f"%x = {BIG} parameter(0)", *lines[:-1], "ROOT " + lines[-1]))
    fused = f"  %p = {BIG} parameter(0)\n  ROOT %moved = {result} fusion(%p), kind=kLoop, calls=%f"
    source = ', metadata={op_name="jit(f)/there"}'
    programs = [module(fused + source, computations=f"%f {{\n  {inside}\n}}\n")]
    if len(lines) == 1:
        alone = lines[0].replace("%x", "%p").replace("%y", "%moved")
        programs.append(module(f"  %p = {BIG} parameter(0)\n  ROOT {alone}{source}"))
    expected = () if kind is None else (Move("moved", kind, BYTES, "jit(f)/there"),)
    for program in map(read_program, programs):
        assert program.big_moves(BYTES) == expected
        assert program.big_moves(BYTES + 1) == ()


# ── what the TPU compiler wrote ─────────────────────────────────────────────────────────────────────────────


def test_product():
    """[64, 4096] times a chip's [4096, 11008]: the weights, the activations, the result."""
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
    """A step reads weights, prefixes and tails once, and writes its slices."""
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
    """The same, compiled now."""

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
