"""Which moves of a compiled program are of its arguments, weights and caches say, and not of what it computes."""

from __future__ import annotations

import math
from collections.abc import Iterator

from videollava_jax.planning.hlo.text import Computation, Instruction, parse
from videollava_jax.planning.hlo.traffic import Move, read_program


def moved_arguments(text: str, at_least: int) -> tuple[Move, ...]:
    """Moves of `at_least` so many bytes (`Traffic.big_moves`) of buffers that stem from an argument.

    A buffer stems from an argument, or from what a loop carries, when it is one, is one that was moved or converted,
    or is one with a part of it replaced. Sizes alone do not tell: activations can be as large as weights.

    Args:
      text: `compiled.as_text()`.

    Raises:
      ValueError: not the text of an XLA module.
    """
    module = parse(text)
    homes = {i.name: c for c in module.computations.values() for i in c.instructions}
    moves = read_program(text).big_moves(at_least)
    return tuple(move for move in moves if _stems_from_argument(homes[move.name], homes[move.name].by_name[move.name]))


def _stems_from_argument(where: Computation, instruction: Instruction) -> bool:
    """Follows a buffer backwards, through operands with as many elements as it has."""
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
    """The operands that may hold the buffer that an instruction gives on."""
    sizes = _sizes(instruction)
    # Large buffers are fetched in slices and put together without a copy.
    in_slices = instruction.custom_call == "ConcatBitcast" or instruction.opcode.startswith("slice-")
    for name in instruction.operands:
        operand = where.by_name.get(name)
        if operand is not None and (in_slices or sizes & _sizes(operand)):
            yield operand


def _sizes(instruction: Instruction) -> set[int]:
    return {math.prod(shape.dims) for shape in instruction.shapes if shape.dims}
