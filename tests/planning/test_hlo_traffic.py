"""Counting the traffic of written programs, against hand arithmetic."""

from __future__ import annotations

import pytest

from tests.planning.hlo_modules import module
from videollava_jax.planning.hlo.traffic import Collective, Move, read_program

KIB, MIB = 2**10, 2**20

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
    """Nested fusions as the TPU compiler writes them around the operands of a product."""
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
    """Returns a loop `for (i = 2; i < 9; i += 3)` as the TPU compiler writes it, which sums an array over devices."""
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
    # A loop that starts after its end never runs; a trip count from the compiler takes precedence.
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
    """Fusions that continue a collective name it again and take its semaphores; it counts once, where it starts."""
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
