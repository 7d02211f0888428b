"""Reads the text of a compiled XLA program: traffic with high-bandwidth memory, collectives, moves of whole buffers.

`compiled.cost_analysis()["bytes accessed"]` counts scratch memory, and an update in place as if it wrote everything.
The text of the scheduled program tells where each buffer lives, so the traffic of one execution can be added up from
it. The parsing stands in `hlo/text.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from videollava_jax.planning.hlo.text import Computation, Instruction, Module, Shape, parse

MoveKind = Literal["copy", "transpose", "convert", "reshape", "write-back"]

# They name a buffer that is there already, or wait for a transfer that its start has counted.
_FREE = frozenset(
    (
        "parameter",
        "constant",
        "tuple",
        "get-tuple-element",
        "bitcast",
        "after-all",
        "partition-id",
        "replica-id",
        "opt-barrier",
        "domain",
        "add-dependency",
    )
)
_FREE_CUSTOM_CALLS = frozenset(("ConcatBitcast", "AssumeGatherIndicesInBound", "AllocateBuffer", "Sharding"))
_COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
    "ragged-all-to-all",
)
_READS_A_PART = frozenset(("slice", "dynamic-slice", "gather"))
_MOVES: Mapping[str, MoveKind] = {
    "copy": "copy",
    "transpose": "transpose",
    "convert": "convert",
    "reshape": "reshape",
}


@dataclass(frozen=True)
class Collective:
    """All the collectives of one kind in a part of the program.

    Attributes:
      kind: `"all-reduce"`, `"all-gather"`, `"reduce-scatter"`, `"all-to-all"`, `"collective-permute"`, ...
      count: how many run in one execution.
      bytes: of them together, on one device: the larger of what goes in and what comes out.
    """

    kind: str
    count: int
    bytes: int


@dataclass(frozen=True)
class Move:
    """An instruction that does nothing but move a buffer or change its layout or dtype.

    Attributes:
      name, kind: the instruction; `"write-back"` is an unchanged copy from on-chip to high-bandwidth memory.
      bytes: the larger of what it reads and writes in high-bandwidth memory.
      source: the JAX operation that it stems from, as far as the compiler says.
    """

    name: str
    kind: MoveKind
    bytes: int
    source: str


@dataclass(frozen=True)
class Traffic:
    """What one execution of a computation does on one device, without the loops in it.

    Attributes:
      hbm_read_bytes, hbm_written_bytes: traffic with high-bandwidth memory, with the padding of tiled layouts. A lower
        bound: an operand counts once however often a kernel reads it, and a custom call as reading and writing all
        that it is given.
      collectives: by kind.
      moves: every copy, transpose, convert and reshape of a buffer in high-bandwidth memory, the largest first.
    """

    hbm_read_bytes: int = 0
    hbm_written_bytes: int = 0
    collectives: tuple[Collective, ...] = ()
    moves: tuple[Move, ...] = ()

    @property
    def hbm_bytes(self) -> int:
        """Read and written together."""
        return self.hbm_read_bytes + self.hbm_written_bytes

    def repeated(self, times: int) -> Traffic:
        """So many executions; each move is still listed once."""
        return Traffic(
            self.hbm_read_bytes * times,
            self.hbm_written_bytes * times,
            tuple(Collective(c.kind, c.count * times, c.bytes * times) for c in self.collectives),
            self.moves,
        )

    def big_moves(self, at_least: int) -> tuple[Move, ...]:
        """Moves of `at_least` that many bytes that change something or stay in high-bandwidth memory.

        Prefetches into on-chip memory and write-backs from it are traffic, but no such moves.
        """
        return tuple(move for move in self.moves if move.bytes >= at_least and move.kind != "write-back")


@dataclass(frozen=True)
class CompiledProgram:
    """A compiled program, read.

    Attributes:
      entry: one execution of the program, without its loops.
      loops: one iteration of each `while` loop, body and condition, by the name of the body, outer before inner.
      iterations: how often each of them runs in one execution of the program, all iterations of the loops around it
        together; None where the text does not say.
    """

    entry: Traffic
    loops: Mapping[str, Traffic] = field(default_factory=dict)
    iterations: Mapping[str, int | None] = field(default_factory=dict)

    @property
    def total(self) -> Traffic:
        """One execution of the program with all iterations of its loops.

        Raises:
          ValueError: how often a loop runs is not in the text, such as one that ends when all answers have.
        """
        parts = [self.entry]
        for name, loop in self.loops.items():
            times = self.iterations.get(name)
            if times is None:
                raise ValueError(f"expected loops that run a known number of times; {name} does not")
            parts.append(loop.repeated(times))
        return _sum(parts)

    @property
    def loop(self) -> Traffic:
        """One iteration of the only loop.

        Raises:
          ValueError: the program has no loop, or several.
        """
        if len(self.loops) != 1:
            raise ValueError(f"expected a program with one loop, got {len(self.loops)}: {', '.join(self.loops)}")
        return next(iter(self.loops.values()))

    def big_moves(self, at_least: int) -> tuple[Move, ...]:
        """`Traffic.big_moves` of the entry and of every loop."""
        return tuple(move for part in (self.entry, *self.loops.values()) for move in part.big_moves(at_least))


def read_program(text: str) -> CompiledProgram:
    """Reads `compiled.as_text()`.

    A buffer lives in high-bandwidth memory unless its layout names another memory space, as the TPU compiler does for
    on-chip memory: `bf16[64,512]{1,0:T(8,128)(2,1)S(1)}`. The CPU and GPU compilers name none, so that there every
    operand and result counts.

    What is counted, instruction by instruction:

    - operands and results as a whole, save those of the following;
    - a (dynamic) slice or a gather: the part that it reads, also inside a fusion;
    - an update in place: the slice that it writes. In place means that nothing needs the old buffer afterwards; one
      that belongs to the caller, who did not donate it, is copied;
    - an asynchronous transfer: once, where it starts;
    - an all-reduce in a fusion that keeps a slice of it alone, as the TPU compiler writes a reduce-scatter: as that;
    - the branches of a conditional: the one with the most traffic.

    Raises:
      ValueError: not the text of an XLA module.
    """
    return _Reader(parse(text)).program()


class _Reader:
    """Adds up one module."""

    def __init__(self, module: Module):
        self.module = module
        self.loops: dict[str, Traffic] = {}
        self.iterations: dict[str, int | None] = {}
        self.times: int | None = 1

    def program(self) -> CompiledProgram:
        entry = self._traffic(self.module.entry)
        return CompiledProgram(entry=entry, loops=dict(self.loops), iterations=dict(self.iterations))

    def _traffic(self, computation: Computation) -> Traffic:
        parts = [self._instruction(computation, instruction) for instruction in computation.instructions]
        return _sum([part for part in parts if part is not None])

    def _instruction(self, where: Computation, instruction: Instruction) -> Traffic | None:
        opcode = instruction.opcode
        if opcode == "while":
            self._loop(where, instruction)
            return None
        if opcode == "call":
            return self._traffic(self._called(instruction, "to_apply"))
        if opcode == "conditional":
            branches = [self._traffic(self.module.computations[name]) for name in instruction.branches]
            return max(branches, key=lambda branch: branch.hbm_bytes, default=None)
        if opcode in _FREE or opcode.endswith(("-done", "-update")) or instruction.custom_call in _FREE_CUSTOM_CALLS:
            return None
        reads = self._reads(where, instruction)
        read, written = sum(reads.values()), sum(self._writes(where, instruction))
        move = self._move(where, instruction, read, written)
        return Traffic(
            hbm_read_bytes=read,
            hbm_written_bytes=written,
            collectives=tuple(self._collectives(where, instruction)),
            moves=() if move is None else (move,),
        )

    def _loop(self, where: Computation, instruction: Instruction) -> None:
        body, around, times = instruction.called["body"], self.times, self.module.iterations(where, instruction)
        self.times = None if around is None or times is None else around * times
        self.iterations[body] = self.times
        self.loops[body] = Traffic()  # holds its place before the loops inside it
        self.loops[body] = _sum([self._traffic(self._called(instruction, part)) for part in ("body", "condition")])
        self.times = around

    def _called(self, instruction: Instruction, attribute: str) -> Computation:
        return self.module.computations[instruction.called[attribute]]

    def _inside(self, instruction: Instruction) -> Computation | None:
        """The computation that a fusion or an asynchronous start runs."""
        if "calls" not in instruction.called or not instruction.opcode.startswith(("fusion", "async-start")):
            return None
        return self._called(instruction, "calls")

    def _reads(self, where: Computation, instruction: Instruction) -> dict[str, int]:
        """Bytes read from high-bandwidth memory, by operand."""
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
        inside = self._inside(instruction)
        if inside is not None:
            used = self._use(inside, index)
            if used is None or used.passed_on or (used.updated and not self._in_place(where, instruction, index)):
                return shape.bytes
            return used.part_bytes
        opcode = instruction.base_opcode
        if opcode in _READS_A_PART and index == 0:
            return sum(part.bytes for part in instruction.result_shapes)
        if opcode == "dynamic-update-slice" and index == 0:
            return 0 if self._in_place(where, instruction, 0) else shape.bytes
        return shape.bytes

    def _use(self, inside: Computation, index: int) -> _Use | None:
        """How a fusion uses its parameter `index`; None: all of it."""
        if index not in inside.parameters:
            return _Use()
        parts, updated, passed_on = 0, False, False
        front = [inside.parameters[index]]
        while front:
            name = front.pop()
            passed_on |= name == inside.root.name
            for user in inside.users.get(name, ()):
                position = user.operands.index(name)
                nested = self._inside(user)
                if user.opcode == "bitcast":
                    front.append(user.name)
                elif user.opcode in _READS_A_PART and position == 0:
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
        """Whether an update of operand `index` may use its buffer: nothing later needs the old contents."""
        operand = where.by_name[instruction.operands[index]]
        results = [shape for shape in instruction.result_shapes if shape.dims]
        if not any(shape.in_hbm for shape in results):
            return False  # the old contents are fetched into on-chip memory
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

    def _writes(self, where: Computation, instruction: Instruction) -> Iterator[int]:
        """Bytes written to high-bandwidth memory, result by result."""
        inside = self._inside(instruction)
        results = instruction.result_shapes
        if inside is not None:
            outputs = self._outputs(inside)
            for position, shape in enumerate(results):
                if not shape.in_hbm or not shape.dims:
                    continue
                update = self._update_bytes(inside, outputs[position]) if len(outputs) == len(results) else None
                yield shape.bytes if update is None or not self._result_in_place(where, instruction, inside) else update
            return
        for shape in results:
            if not shape.in_hbm or not shape.dims:
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

    def _outputs(self, inside: Computation) -> list[Instruction]:
        root = inside.root
        return [inside.by_name[name] for name in root.operands] if root.opcode == "tuple" else [root]

    def _update_bytes(self, inside: Computation, output: Instruction) -> int | None:
        """What an update in place writes, when that is all that makes `output`; else None."""
        while output.opcode == "bitcast" and output.operands[0] in inside.by_name:
            output = inside.by_name[output.operands[0]]
        if output.opcode == "dynamic-update-slice":
            return sum(shape.bytes for shape in inside.by_name[output.operands[1]].shapes)
        nested = self._inside(output)
        return None if nested is None else self._update_bytes(nested, nested.root)

    def _collectives(
        self, where: Computation, instruction: Instruction, *, fused: bool = False
    ) -> Iterator[Collective]:
        inside = self._inside(instruction)
        if inside is not None and not _goes_on(inside):
            for nested in inside.instructions:
                yield from self._collectives(inside, nested, fused=True)
        kind = instruction.base_opcode
        if fused and kind == "all-reduce" and _only_sliced(where, instruction.name):
            kind = "reduce-scatter"
        if kind in _COLLECTIVES and not instruction.opcode.endswith("-done"):
            sent = sum(
                s.bytes for name in instruction.operands if name in where.by_name for s in where.by_name[name].shapes
            )
            received = sum(shape.bytes for shape in instruction.result_shapes)
            yield Collective(kind, 1, max(sent, received))

    def _move(self, where: Computation, instruction: Instruction, read: int, written: int) -> Move | None:
        kind: MoveKind | None = None
        if instruction.base_opcode == "copy":
            kind = _kind_of_copy(where.by_name[instruction.operands[0]].shapes[0], instruction.result_shapes[0])
        elif instruction.opcode in _MOVES:
            kind = _MOVES[instruction.opcode]
        elif (inside := self._inside(instruction)) is not None:
            kinds = [self._move_of(inside, output) for output in self._outputs(inside)]
            kind = next((k for k in kinds if k is not None), None)
            if len(kinds) > 1:
                pairs = zip(kinds, instruction.result_shapes, strict=True)
                read, written = 0, sum(shape.bytes for k, shape in pairs if k is not None and shape.in_hbm)
        size = max(read, written)
        return None if kind is None or not size else Move(instruction.name, kind, size, instruction.source)

    def _move_of(self, inside: Computation, output: Instruction) -> MoveKind | None:
        """The kind of move when `output` is a parameter of the fusion in another layout or dtype, and nothing else."""
        kind: MoveKind | None = None
        while output.opcode != "parameter":
            nested = self._inside(output)
            if nested is not None and len(output.operands) == 1:
                kind = self._move_of(nested, nested.root) or kind
                if not self._only_moves(nested):
                    return None
            elif output.opcode in _MOVES:
                # A transpose or convert says more than the reshape around it.
                kind = kind if kind and output.opcode == "reshape" else _MOVES[output.opcode]
            elif output.opcode not in ("bitcast", "slice", "dynamic-slice"):
                return None
            output = inside.by_name[output.operands[0]]
        return kind

    def _only_moves(self, inside: Computation) -> bool:
        allowed = {*_MOVES, "parameter", "bitcast", "constant"}
        return all(instruction.opcode in allowed for instruction in inside.instructions)


def _only_sliced(inside: Computation, name: str) -> bool:
    """Whether slices are all that is used of a result, or of each array of it."""
    users = inside.users.get(name, ())
    return bool(users) and all(
        user.opcode in _READS_A_PART or (user.opcode == "get-tuple-element" and _only_sliced(inside, user.name))
        for user in users
    )


def _goes_on(fused: Computation) -> bool:
    """Whether a fusion goes on with a collective that another has started, whose semaphores it is given."""
    return any(shape.memory_space == 2 for name in fused.parameters.values() for shape in fused.by_name[name].shapes)


def _kind_of_copy(source: Shape, target: Shape) -> MoveKind | None:
    """None for a prefetch into on-chip memory that leaves the layout as it is."""
    same_layout = (source.minor_to_major, source.tile) == (target.minor_to_major, target.tile)
    if not same_layout or source.in_hbm == target.in_hbm:
        return "copy"
    return "write-back" if target.in_hbm else None


@dataclass(frozen=True)
class _Use:
    """How a fusion uses one of its parameters, when it does not read all of it.

    Attributes:
      part_bytes: the slices that it reads.
      updated: whether it returns the parameter with a slice replaced.
      passed_on: whether it returns the parameter as it is, perhaps under another shape.
    """

    part_bytes: int = 0
    updated: bool = False
    passed_on: bool = False


def _sum(parts: Sequence[Traffic]) -> Traffic:
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for part in parts:
        for collective in part.collectives:
            counts[collective.kind] += collective.count
            sizes[collective.kind] += collective.bytes
    return Traffic(
        hbm_read_bytes=sum(part.hbm_read_bytes for part in parts),
        hbm_written_bytes=sum(part.hbm_written_bytes for part in parts),
        collectives=tuple(Collective(kind, counts[kind], sizes[kind]) for kind in sorted(counts)),
        moves=tuple(sorted((move for part in parts for move in part.moves), key=lambda move: -move.bytes)),
    )
