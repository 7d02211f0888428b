"""Moves of weights and caches are distinguished from moves of intermediate results, on written programs."""

from __future__ import annotations

import pytest

from videollava_jax.planning.hlo.moves import moved_arguments
from videollava_jax.planning.hlo.traffic import read_program

BIG, BYTES = "f32[1024,256]{1,0}", 1024 * 256 * 4
OTHER = "f32[1024,256]{0,1}"
COMPUTATIONS = f"""%update {{
  %x = {BIG} parameter(0)
  %n = f32[1,256]{{1,0}} parameter(1)
  %i = s32[] parameter(2)
  ROOT %u = {BIG} dynamic-update-slice(%x, %n, %i, %i)
}}

%product {{
  %a = f32[1024,64]{{1,0}} parameter(0)
  %b = f32[64,256]{{1,0}} parameter(1)
  ROOT %d = {BIG} dot(%a, %b), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}
}}

%body {{
  %state = ({BIG}, s32[]) parameter(0)
  %cache = {BIG} get-tuple-element(%state), index=0
  %step = s32[] get-tuple-element(%state), index=1
  %turned = {OTHER} copy(%cache)
  ROOT %next = ({BIG}, s32[]) tuple(%cache, %step)
}}

%condition {{
  %state.1 = ({BIG}, s32[]) parameter(0)
  ROOT %go = pred[] constant(true)
}}
"""
HEAD = f"""  %p = {BIG} parameter(0)
  %q = f32[1024,64]{{1,0}} parameter(1)
  %w = f32[64,256]{{1,0}} parameter(2)
  %j = s32[] parameter(3)
  %m = f32[1,256]{{1,0}} parameter(4)
"""


def names(body: str) -> list[str]:
    text = f"HloModule m, is_scheduled=true\n\n{COMPUTATIONS}\nENTRY %main {{\n{HEAD}{body}\n}}\n"
    assert read_program(text).big_moves(BYTES)
    assert moved_arguments(text, BYTES + 1) == ()
    return [move.name for move in moved_arguments(text, BYTES)]


@pytest.mark.parametrize(
    "body",
    [
        f"  ROOT %moved = {OTHER} copy(%p)",
        "  %b = f32[262144]{0} bitcast(%p)\n  ROOT %moved = bf16[262144]{0} convert(%b)",
        f"  %u = {BIG} fusion(%p, %m, %j), kind=kLoop, calls=%update\n  ROOT %moved = {OTHER} copy(%u)",
        f"  %s = (({BIG}), f32[512,256]{{1,0:S(1)}}, s32[]{{:S(2)}}) slice-start(%p), slice={{[0:512], [0:256]}}\n"
        "  %s.1 = f32[512,256]{1,0:S(1)} slice-done(%s)\n"
        '  %c = f32[1024,256]{1,0:S(1)} custom-call(%s.1, %s.1), custom_call_target="ConcatBitcast"\n'
        f"  ROOT %moved = {OTHER} copy(%c)",
    ],
)
def test_what_stems_from_an_argument(body: str):
    assert names(body) == ["moved"]


@pytest.mark.parametrize("between", ["negate", "add"])
def test_what_is_computed_does_not(between: str):
    operands = "%d, %d" if between == "add" else "%d"
    body = f"""  %d = {BIG} fusion(%q, %w), kind=kOutput, calls=%product
  %e = {BIG} {between}({operands})
  ROOT %moved = {OTHER} copy(%e)"""
    assert names(body) == []


def test_what_a_loop_carries_is_an_argument_inside_it_and_after_it():
    body = f"""  %t = ({BIG}, s32[]) tuple(%p, %j)
  %loop = ({BIG}, s32[]) while(%t), condition=%condition, body=%body
  %g = {BIG} get-tuple-element(%loop), index=0
  ROOT %after = {OTHER} copy(%g)"""
    assert sorted(names(body)) == ["after", "turned"]
