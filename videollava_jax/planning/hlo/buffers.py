"""Decides which part of each buffer an instruction reads and writes, and whether an update happens in place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from videollava_jax.planning.hlo.text import Computation, Instruction, Module, Shape

READS_A_PART = frozenset(("slice", "dynamic-slice", "gather"))


@dataclass(frozen=True)
class _Use:
    """How a fusion uses a parameter that it does not read as a whole.

    Attributes:
      part_bytes: bytes of the slices that it reads.
      updated: whether it returns the parameter with a slice replaced.
      passed_on: whether it returns the parameter unchanged, perhaps in another shape.
    """

    part_bytes: int = 0
    updated: bool = False
    passed_on: bool = False


class Buffers:
    """Finds what the instructions of a module read and write in high-bandwidth memory."""

    def __init__(self, module: Module):
        self.module = module

    def inside(self, instruction: Instruction) -> Computation | None:
        """Returns the computation inside a fusion or an asynchronous start; None for other instructions."""
        if "calls" not in instruction.called or not instruction.opcode.startswith(("fusion", "async-start")):
            return None
        return self.module.computations[instruction.called["calls"]]

    def reads(self, where: Computation, instruction: Instruction) -> dict[str, int]:
        """Returns the bytes that an instruction reads from high-bandwidth memory, by operand.

        Args:
          where: the computation that contains the instruction.
          instruction: any but a loop, call or conditional.
        """
        reads: dict[str, int] = {}
        for index, name in enumerate(instruction.operands):
            shapes = where.by_name[name].shapes if name in where.by_name else ()
            in_hbm = [shape for shape in shapes if shape.in_hbm and shape.dims]
            if not in_hbm:
                continue
            whole = sum(shape.bytes for shape in in_hbm)
            part = whole if len(in_hbm) > 1 else self._part_read(where, instruction, index, in_hbm[0])
            reads[name] = max(reads.get(name, 0), min(part, whole))
        return reads

    def _part_read(self, where: Computation, instruction: Instruction, index: int, shape: Shape) -> int:
        inside = self.inside(instruction)
        if inside is not None:
            used = self._use(inside, index)
            if used is None or used.passed_on or (used.updated and not self._in_place(where, instruction, index)):
                return shape.bytes
            return used.part_bytes
        opcode = instruction.base_opcode
        if opcode in READS_A_PART and index == 0:
            return sum(part.bytes for part in instruction.result_shapes)
        if opcode == "dynamic-update-slice" and index == 0:
            return 0 if self._in_place(where, instruction, 0) else shape.bytes
        return shape.bytes

    def _use(self, inside: Computation, index: int) -> _Use | None:
        """Returns how a fusion uses its parameter `index`; None if it reads the whole parameter."""
        if index not in inside.parameters:
            return _Use()
        parts, updated, passed_on = 0, False, False
        front = [inside.parameters[index]]
        while front:
            name = front.pop()
            passed_on |= name == inside.root.name
            for user in inside.users.get(name, ()):
                position = user.operands.index(name)
                nested = self.inside(user)
                if user.opcode == "bitcast":
                    front.append(user.name)
                elif user.opcode in READS_A_PART and position == 0:
                    parts += user.shapes[0].bytes
                elif user.opcode == "dynamic-update-slice" and position == 0:
                    if not self._only_returned(inside, user.name):
                        return None
                    updated = True
                elif nested is not None and (used := self._use(nested, position)) is not None:
                    if used.updated and not self._only_returned(inside, user.name):
                        return None
                    if used.passed_on:
                        front.append(user.name)
                    parts, updated = parts + used.part_bytes, updated or used.updated
                else:
                    return None
        return _Use(parts, updated, passed_on)

    def _only_returned(self, inside: Computation, name: str) -> bool:
        users = inside.users.get(name, ())
        return all(
            user.opcode == "tuple" or (user.opcode == "bitcast" and self._only_returned(inside, user.name))
            for user in users
        )

    def _in_place(self, where: Computation, instruction: Instruction, index: int) -> bool:
        """Returns whether an update of operand `index` may reuse its buffer: nothing later needs the old contents."""
        operand = where.by_name[instruction.operands[index]]
        results = [shape for shape in instruction.result_shapes if shape.dims]
        if not any(shape.in_hbm for shape in results):
            return False  # the result is in on-chip memory, so the old contents are fetched
        while operand.opcode in ("bitcast", "get-tuple-element") and operand.operands[0] in where.by_name:
            if self._needed_after(where, operand.name, instruction):
                return False
            operand = where.by_name[operand.operands[0]]
        if operand.opcode == "parameter" and where is self.module.entry:
            return operand.parameter in self.module.donated
        return operand.opcode == "parameter" or not self._needed_after(where, operand.name, instruction)

    def _needed_after(self, where: Computation, name: str, instruction: Instruction) -> bool:
        if where.by_name[name].opcode == "parameter" or where.by_name[name].has_tuple_result:
            return False
        return any(where.order[user.name] > where.order[instruction.name] for user in where.users.get(name, ()))

    def writes(self, where: Computation, instruction: Instruction) -> Iterator[int]:
        """Yields the bytes that an instruction writes to high-bandwidth memory, result by result."""
        inside = self.inside(instruction)
        results = instruction.result_shapes
        if inside is not None:
            outputs = self.outputs(inside)
            for position, shape in enumerate(results):
                if not shape.in_hbm or not shape.dims:
                    continue
                update = self._update_bytes(inside, outputs[position]) if len(outputs) == len(results) else None
                yield shape.bytes if update is None or not self._result_in_place(where, instruction, inside) else update
            return
        for index, shape in enumerate(results):
            if not shape.in_hbm or not shape.dims or index in instruction.aliased:
                continue
            if instruction.base_opcode == "dynamic-update-slice" and self._in_place(where, instruction, 0):
                yield sum(part.bytes for part in where.by_name[instruction.operands[1]].shapes)
            else:
                yield shape.bytes

    def _result_in_place(self, where: Computation, instruction: Instruction, inside: Computation) -> bool:
        updated = [i for i in range(len(instruction.operands)) if (use := self._use(inside, i)) and use.updated]
        return bool(updated) and all(
            where.by_name[instruction.operands[i]].shapes[0].in_hbm and self._in_place(where, instruction, i)
            for i in updated
        )

    def outputs(self, inside: Computation) -> list[Instruction]:
        """Returns the instructions that make the results of a fusion, one for each array.

        One with several results, such as the values and indices of a maximum, comes once for each of them.
        """
        root = inside.root
        made = [inside.by_name[name] for name in root.operands] if root.opcode == "tuple" else [root]
        return [instruction for instruction in made for _ in instruction.shapes]

    def _update_bytes(self, inside: Computation, output: Instruction) -> int | None:
        """Returns the bytes of the replaced slice if `output` is nothing but an update in place, else None."""
        while output.opcode == "bitcast" and output.operands[0] in inside.by_name:
            output = inside.by_name[output.operands[0]]
        if output.opcode == "dynamic-update-slice":
            return sum(shape.bytes for shape in inside.by_name[output.operands[1]].shapes)
        nested = self.inside(output)
        return None if nested is None else self._update_bytes(nested, nested.root)
