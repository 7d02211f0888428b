"""Finds copies of whole arguments (weights, caches) in a compiled program, as opposed to copies of intermediates."""

from __future__ import annotations

import math
from collections.abc import Iterator

from videollava_jax.planning.hlo.text import Computation, Instruction, parse
from videollava_jax.planning.hlo.traffic import Move, read_program


def moved_arguments(text: str, at_least: int) -> tuple[Move, ...]:
    """Returns the moves of at least `at_least` bytes (`Traffic.big_moves`) of buffers that come from an argument.

    A buffer comes from an argument, or from the state of a loop, if it is one, a moved or converted one, or one with a
    part replaced. Size alone does not decide, as activations can be as large as weights.

    Args:
      text: `compiled.as_text()`.
      at_least: bytes.

    Raises:
      ValueError: it is not the text of an XLA module.
    """
    module = parse(text)
    homes = {i.name: c for c in module.computations.values() for i in c.instructions}
    moves = read_program(text).big_moves(at_least)
    return tuple(move for move in moves if _stems_from_argument(homes[move.name], homes[move.name].by_name[move.name]))


def _stems_from_argument(where: Computation, instruction: Instruction) -> bool:
    """Follows a buffer backwards through operands with the same number of elements, until an argument or a loop."""
    seen: set[str] = set()
    front = [instruction]
    while front:
        for operand in _carried(where, front.pop()):
            if operand.opcode in ("parameter", "while"):
                return True
            if operand.name not in seen:
                seen.add(operand.name)
                front.append(operand)
    return False


def _carried(where: Computation, instruction: Instruction) -> Iterator[Instruction]:
    """Yields the operands that may hold the buffer that an instruction returns."""
    sizes = _sizes(instruction)
    # The compiler fetches large buffers in slices and joins them without a copy.
    in_slices = instruction.custom_call == "ConcatBitcast" or instruction.opcode.startswith("slice-")
    for name in instruction.operands:
        operand = where.by_name.get(name)
        if operand is not None and (in_slices or sizes & _sizes(operand)):
            yield operand


def _sizes(instruction: Instruction) -> set[int]:
    return {math.prod(shape.dims) for shape in instruction.shapes if shape.dims}
