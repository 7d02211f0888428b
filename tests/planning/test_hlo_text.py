"""Parsing the text of XLA modules: shapes, instructions, refusals."""

from __future__ import annotations

import pytest

from tests.planning.hlo_modules import module
from videollava_jax.planning.hlo.text import Shape, parse
from videollava_jax.planning.hlo.traffic import read_program

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
    """A Pallas kernel's metadata is on separate lines, and its closing brackets are at the start of a line."""
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
