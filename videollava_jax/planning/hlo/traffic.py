"""Counts in the text of a compiled XLA program: memory traffic, collectives, moves of whole buffers, kernels.

`compiled.cost_analysis()["bytes accessed"]` is too high: it includes on-chip memory, and counts an update in place as
a write of the whole buffer. The text of the scheduled program says in which memory each buffer is, so the traffic of
one execution can be summed. `hlo/text.py` parses the text, `hlo/buffers.py` finds what each instruction reads and
writes, `hlo/products.py` counts operations.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from videollava_jax.planning.hlo.buffers import READS_A_PART, Buffers
from videollava_jax.planning.hlo.products import product_flops
from videollava_jax.planning.hlo.text import Computation, Instruction, Module, Shape, parse

MoveKind = Literal["copy", "transpose", "convert", "reshape", "write-back"]

# These only name an existing buffer, or wait for a transfer that is counted where it starts.
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
_MOVES: Mapping[str, MoveKind] = {
    "copy": "copy",
    "transpose": "transpose",
    "convert": "convert",
    "reshape": "reshape",
}


@dataclass(frozen=True)
class Collective:
    """The sum of all collectives of one kind in a part of the program.

    Attributes:
      kind: `"all-reduce"`, `"all-gather"`, `"reduce-scatter"`, `"all-to-all"`, `"collective-permute"`, ...
      count: how many run in one execution.
      bytes: on one device, all together: of each, the larger of its operands and its results.
    """

    kind: str
    count: int
    bytes: int


@dataclass(frozen=True)
class Move:
    """An instruction that only moves a buffer, or changes its layout or dtype.

    Attributes:
      name: of the instruction.
      kind: its opcode; `"write-back"` is an unchanged copy from on-chip to high-bandwidth memory.
      bytes: read or written in high-bandwidth memory, whichever is more.
      source: the JAX operation that it comes from, if the compiler says.
    """

    name: str
    kind: MoveKind
    bytes: int
    source: str


@dataclass(frozen=True)
class Traffic:
    """The traffic, collectives and moves of one execution of a computation on one device, without loops inside it.

    Attributes:
      hbm_read_bytes, hbm_written_bytes: traffic with high-bandwidth memory, including the padding of tiled layouts. It
        is a lower bound, as an operand counts once even if a kernel reads it repeatedly. A custom call counts as
        reading and writing all its operands and results once.
      collectives: by kind.
      moves: every copy, transpose, convert and reshape of a buffer in high-bandwidth memory, the largest first.
      launches: instructions that do something; on a GPU each of them launches a kernel, or several if it is cuDNN's.
      product_flops: operations of matrix products, also those in fusions, and of cuDNN's attention.
    """

    hbm_read_bytes: int = 0
    hbm_written_bytes: int = 0
    collectives: tuple[Collective, ...] = ()
    moves: tuple[Move, ...] = ()
    launches: int = 0
    product_flops: float = 0.0

    @property
    def hbm_bytes(self) -> int:
        """Read and written together."""
        return self.hbm_read_bytes + self.hbm_written_bytes

    def repeated(self, times: int) -> Traffic:
        """Returns the traffic of `times` executions; each move is still listed once."""
        return Traffic(
            self.hbm_read_bytes * times,
            self.hbm_written_bytes * times,
            tuple(Collective(c.kind, c.count * times, c.bytes * times) for c in self.collectives),
            self.moves,
            self.launches * times,
            self.product_flops * times,
        )

    def big_moves(self, at_least: int) -> tuple[Move, ...]:
        """Returns the moves of at least `at_least` bytes, except prefetches into on-chip memory and write-backs."""
        return tuple(move for move in self.moves if move.bytes >= at_least and move.kind != "write-back")


@dataclass(frozen=True)
class CompiledProgram:
    """The traffic of a compiled program.

    Attributes:
      entry: one execution of the program, without its loops.
      loops: one iteration of each `while` loop, body and condition, by the name of the body, outer before inner.
      iterations: how often each loop runs in one execution of the program, counting all iterations of the loops around
        it; None if the text does not say.
      calls: how many custom calls there are of each target, wherever they stand.
    """

    entry: Traffic
    loops: Mapping[str, Traffic] = field(default_factory=dict)
    iterations: Mapping[str, int | None] = field(default_factory=dict)
    calls: Mapping[str, int] = field(default_factory=dict)

    @property
    def total(self) -> Traffic:
        """One execution of the program with all iterations of its loops.

        Raises:
          ValueError: the text does not say how often a loop runs, as it depends on data.
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
        """One iteration of the program's only loop.

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
    """Counts the traffic in the text of a compiled program of any of XLA's compilers.

    A buffer is in high-bandwidth memory unless its layout names another memory space, as the TPU compiler does for
    on-chip memory: `bf16[64,512]{1,0:T(8,128)(2,1)S(1)}`. The CPU and GPU compilers name none, so there every operand
    and result counts.

    Each instruction counts with its whole operands and results, except:

    - a (dynamic) slice or a gather, also inside a fusion, counts with the part that it reads;
    - an update in place counts with the slice that it writes. It is in place if nothing needs the old buffer
      afterwards; an argument of the program that was not donated is copied instead;
    - a result of a custom call that aliases an operand does not count as written: what it changes there is not known;
    - an asynchronous transfer counts once, where it starts;
    - an all-reduce in a fusion that keeps only a slice of it is a reduce-scatter (the TPU compiler writes it so);
    - of the branches of a conditional, the one with the most traffic counts.

    Args:
      text: `compiled.as_text()`.

    Raises:
      ValueError: it is not the text of an XLA module.
    """
    return _Reader(parse(text)).program()


class _Reader:
    """Sums the traffic of one module."""

    def __init__(self, module: Module):
        self.module = module
        self.buffers = Buffers(module)
        self.loops: dict[str, Traffic] = {}
        self.iterations: dict[str, int | None] = {}
        self.times: int | None = 1

    def program(self) -> CompiledProgram:
        entry = self._traffic(self.module.entry)
        calls = Counter(i.custom_call for c in self.module.computations.values() for i in c.instructions)
        calls.pop("", None)
        return CompiledProgram(entry=entry, loops=dict(self.loops), iterations=dict(self.iterations), calls=dict(calls))

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
        reads = self.buffers.reads(where, instruction)
        read, written = sum(reads.values()), sum(self.buffers.writes(where, instruction))
        move = self._move(where, instruction, read, written)
        return Traffic(
            hbm_read_bytes=read,
            hbm_written_bytes=written,
            collectives=tuple(self._collectives(where, instruction)),
            moves=() if move is None else (move,),
            launches=1,
            product_flops=product_flops(self.buffers, where, instruction),
        )

    def _loop(self, where: Computation, instruction: Instruction) -> None:
        body, around, times = instruction.called["body"], self.times, self.module.iterations(where, instruction)
        self.times = None if around is None or times is None else around * times
        self.iterations[body] = self.times
        self.loops[body] = Traffic()  # so that it is listed before the loops inside it
        self.loops[body] = _sum([self._traffic(self._called(instruction, part)) for part in ("body", "condition")])
        self.times = around

    def _called(self, instruction: Instruction, attribute: str) -> Computation:
        return self.module.computations[instruction.called[attribute]]

    def _collectives(
        self, where: Computation, instruction: Instruction, *, fused: bool = False
    ) -> Iterator[Collective]:
        inside = self.buffers.inside(instruction)
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
        elif (inside := self.buffers.inside(instruction)) is not None:
            kinds = [self._move_of(inside, output) for output in self.buffers.outputs(inside)]
            kind = next((k for k in kinds if k is not None), None)
            if len(kinds) > 1:
                pairs = zip(kinds, instruction.result_shapes, strict=True)
                read, written = 0, sum(shape.bytes for k, shape in pairs if k is not None and shape.in_hbm)
        size = max(read, written)
        return None if kind is None or not size else Move(instruction.name, kind, size, instruction.source)

    def _move_of(self, inside: Computation, output: Instruction) -> MoveKind | None:
        """Returns the kind of move if `output` is just a parameter in another layout or dtype, else None."""
        kind: MoveKind | None = None
        while output.opcode != "parameter":
            nested = self.buffers.inside(output)
            if nested is not None and len(output.operands) == 1:
                kind = self._move_of(nested, nested.root) or kind
                if not self._only_moves(nested):
                    return None
            elif output.opcode in _MOVES:
                # A transpose or convert is more informative than a reshape around it.
                kind = kind if kind and output.opcode == "reshape" else _MOVES[output.opcode]
            elif output.opcode not in ("bitcast", "slice", "dynamic-slice"):
                return None
            output = inside.by_name[output.operands[0]]
        return kind

    def _only_moves(self, inside: Computation) -> bool:
        allowed = {*_MOVES, "parameter", "bitcast", "constant"}
        return all(instruction.opcode in allowed for instruction in inside.instructions)


def _only_sliced(inside: Computation, name: str) -> bool:
    """Returns whether only slices of a result, or of each array in it, are used."""
    users = inside.users.get(name, ())
    return bool(users) and all(
        user.opcode in READS_A_PART or (user.opcode == "get-tuple-element" and _only_sliced(inside, user.name))
        for user in users
    )


def _goes_on(fused: Computation) -> bool:
    """Returns whether a fusion continues a collective that another has started: it takes semaphores as parameters."""
    return any(shape.memory_space == 2 for name in fused.parameters.values() for shape in fused.by_name[name].shapes)


def _kind_of_copy(source: Shape, target: Shape) -> MoveKind | None:
    """Returns the kind of a copy; None for a prefetch into on-chip memory that does not change the layout."""
    same_layout = (source.minor_to_major, source.tile) == (target.minor_to_major, target.tile)
    if not same_layout or source.in_hbm == target.in_hbm:
        return "copy"
    return "write-back" if target.in_hbm else None


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
        launches=sum(part.launches for part in parts),
        product_flops=sum(part.product_flops for part in parts),
    )
