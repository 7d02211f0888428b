"""Parses the text of an XLA module: computations, instructions, shapes with layout and memory space."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

_BITS = {"token": 0, "opaque": 0, "pred": 8, "c64": 64, "c128": 128}
_SHAPE = re.compile(r"([a-z]\w*)\[([^\]]*)\](?:\{([^}]*)\})?")
_HEADER = re.compile(r"(ENTRY\s+)?%?([\w.\-]+)\s*(?:\(.*\)\s*->\s*.*)?\{\s*$")
_INSTRUCTION = re.compile(r"\s*(ROOT\s+)?%?([\w.\-]+)\s+=\s+")
_CALLED = re.compile(r"\b(calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_CONTRACTED = re.compile(r'lhs_contracting_dim(?:ension)?s"?[=:]\s*[{\[]([^}\]]*)[}\]]')
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')


@dataclass(frozen=True)
class Shape:
    """One array.

    Attributes:
      dtype: XLA's name, such as `bf16`.
      dims: its logical shape.
      minor_to_major: the layout, the fastest axis first; empty if the text gives none.
      tile: the first tile of the layout, such as (8, 128); 0 for an axis that is not tiled.
      memory_space: 0 for high-bandwidth memory (or the only memory); on a TPU 1 is VMEM, 2 semaphores, 6 SMEM.
    """

    dtype: str
    dims: tuple[int, ...]
    minor_to_major: tuple[int, ...] = ()
    tile: tuple[int, ...] = ()
    memory_space: int = 0

    @property
    def in_hbm(self) -> bool:
        """Whether the array is in high-bandwidth memory."""
        return self.memory_space == 0

    @cached_property
    def bytes(self) -> int:
        """The size in memory, including the padding of tiles."""
        order = self.minor_to_major or tuple(reversed(range(len(self.dims))))
        sizes = [self.dims[axis] for axis in order]
        for axis, tile in enumerate(reversed(self.tile)):
            if tile and axis < len(sizes):
                sizes[axis] = -(-sizes[axis] // tile) * tile
        return -(-math.prod(sizes) * _bits(self.dtype) // 8)


# A tuple of results, which may hold tuples.
Result = Shape | tuple["Result", ...]


@dataclass(frozen=True)
class Instruction:
    """One line of a computation: `%name = result opcode(operands), attributes`.

    Attributes:
      name, opcode, result, operands: as in the line above; operands by their names.
      called: the computations that it calls, by attribute such as `body`.
      branches: the computations of a `conditional`.
      custom_call: the target of a `custom-call`.
      literal: the value of a constant as text; of a parameter, its number.
      index: the element of a tuple that a `get-tuple-element` takes, else -1.
      direction: how a `compare` compares, such as LT.
      iterations: how often the body of a `while` runs, if the compiler says.
      source: the JAX operation that it comes from, if the compiler says.
      contracted: the axes of the first operand that a product sums over.
      aliased: the results, by index, that a custom call writes over an operand.
      causal: whether an attention of cuDNN has the causal rule.
      is_root: whether it is the computation's result.
    """

    name: str
    opcode: str
    result: Result
    operands: tuple[str, ...]
    called: Mapping[str, str]
    branches: tuple[str, ...]
    custom_call: str
    literal: str
    index: int
    direction: str
    iterations: int | None
    source: str
    contracted: tuple[int, ...]
    aliased: frozenset[int]
    causal: bool
    is_root: bool

    @cached_property
    def shapes(self) -> tuple[Shape, ...]:
        """Every array in the result, from all levels of its tuples."""
        return tuple(_leaves(self.result))

    @property
    def parameter(self) -> int:
        """The number of a parameter, else -1."""
        return int(self.literal) if self.opcode == "parameter" else -1

    @property
    def has_tuple_result(self) -> bool:
        """Whether the result is a tuple."""
        return not isinstance(self.result, Shape)

    @property
    def is_integer(self) -> bool:
        """Whether it is a constant of one integer."""
        return self.opcode == "constant" and re.fullmatch(r"-?\d+", self.literal) is not None

    @property
    def base_opcode(self) -> str:
        """The opcode without the suffix `-start` of asynchronous instructions."""
        return self.opcode.removesuffix("-start")

    @cached_property
    def result_shapes(self) -> tuple[Shape, ...]:
        """The arrays that the instruction produces.

        The result of an asynchronous start also contains its operands and its state, which are left out:

            copy-start                          (target, source, state)
            all-reduce-start                    result
            other starts                        (operands, results, state ...)
        """
        if not self.opcode.endswith("-start") or isinstance(self.result, Shape) or self.base_opcode == "all-reduce":
            return self.shapes
        index = 0 if self.opcode == "copy-start" else 1
        return tuple(_leaves(self.result[index]))


@dataclass(frozen=True)
class Computation:
    """A computation. In the entry and in bodies of loops the instructions are in the order in which they run."""

    name: str
    instructions: tuple[Instruction, ...]

    @cached_property
    def by_name(self) -> Mapping[str, Instruction]:
        """The instructions by name."""
        return {instruction.name: instruction for instruction in self.instructions}

    @cached_property
    def order(self) -> Mapping[str, int]:
        """The index of each instruction, by name."""
        return {instruction.name: index for index, instruction in enumerate(self.instructions)}

    @cached_property
    def users(self) -> Mapping[str, tuple[Instruction, ...]]:
        """The instructions that have a value as an operand, by the value's name."""
        found: dict[str, list[Instruction]] = {}
        for instruction in self.instructions:
            for name in dict.fromkeys(instruction.operands):
                found.setdefault(name, []).append(instruction)
        return {name: tuple(users) for name, users in found.items()}

    @cached_property
    def parameters(self) -> Mapping[int, str]:
        """The names of the parameters, by number."""
        return {i.parameter: i.name for i in self.instructions if i.opcode == "parameter"}

    @cached_property
    def root(self) -> Instruction:
        """The instruction whose result is the computation's."""
        return next((i for i in self.instructions if i.is_root), self.instructions[-1])

    def origin(self, name: str) -> Instruction:
        """Returns the instruction that made a value, looking through copies and bitcasts."""
        found = self.by_name[name]
        while found.opcode in ("copy", "bitcast"):
            found = self.by_name[found.operands[0]]
        return found

    def element(self, name: str, index: int) -> Instruction | None:
        """Returns the instruction that made an element of a tuple; None if it is in another computation."""
        made = self.origin(name)
        return self.origin(made.operands[index]) if made.opcode == "tuple" else None


@dataclass(frozen=True)
class Module:
    """A module.

    Attributes:
      computations: by name.
      entry: the computation that runs first.
      donated: numbers of the entry's parameters whose buffers a result may overwrite.
    """

    computations: Mapping[str, Computation]
    entry: Computation
    donated: frozenset[int]

    def iterations(self, where: Computation, loop: Instruction) -> int | None:
        """Returns how often the body of a `while` runs, if it is `for (i = start; i < stop; i += step)`, else None.

        Args:
          where: the computation that contains `loop`.
          loop: the `while` instruction.
        """
        if loop.iterations is not None:
            return loop.iterations
        condition, body = (self.computations[loop.called[part]] for part in ("condition", "body"))
        compared = condition.root
        if compared.opcode != "compare" or compared.direction != "LT":
            return None
        counter, stop = (condition.origin(name) for name in compared.operands)
        if counter.opcode != "get-tuple-element":
            return None
        start, after = where.element(loop.operands[0], counter.index), body.element(body.root.name, counter.index)
        if start is None or after is None or after.opcode != "add":
            return None
        before, step = (body.origin(name) for name in after.operands)
        if before.index != counter.index or not (start.is_integer and stop.is_integer and step.is_integer):
            return None
        return max(0, -(-(int(stop.literal) - int(start.literal)) // int(step.literal)))


def parse(text: str) -> Module:
    """Parses the text of an HLO module, `compiled.as_text()`.

    Raises:
      ValueError: it is not such a text, or a line cannot be parsed.
    """
    if not text.lstrip().startswith("HloModule"):
        raise ValueError("expected the text of a compiled XLA module, which begins with HloModule")
    computations: dict[str, Computation] = {}
    entry = ""
    for is_entry, name, lines in _computations(text):
        computations[name] = Computation(name, tuple(_instruction(line) for line in lines))
        entry = name if is_entry else entry
    if not entry:
        raise ValueError("the module has no ENTRY computation: expected the complete text of compiled.as_text()")
    first = text.lstrip().partition("\n")[0]
    _, found, aliases = first.partition("input_output_alias=")
    donated = frozenset(int(n) for n in re.findall(r":\s*\((\d+)", _between(aliases, 0))) if found else frozenset()
    return Module(computations=computations, entry=computations[entry], donated=donated)


def _computations(text: str) -> Iterator[tuple[bool, str, list[str]]]:
    """Yields for each computation whether it is the entry, its name, and its instructions, a line each."""
    header: re.Match[str] | None = None
    lines: list[str] = []
    for line in text.splitlines():
        if header is None:
            header = None if line.startswith(("HloModule", " ", "}")) else _HEADER.match(line)
            lines = []
        elif line.startswith("}") and not line.startswith("}}"):  # "}}" ends a kernel's metadata
            yield bool(header[1]), header[2], lines
            header = None
        elif _INSTRUCTION.match(line):
            lines.append(line)
        elif lines:
            lines[-1] += line  # a constant or a kernel's metadata spans several lines


def _instruction(line: str) -> Instruction:
    match = _INSTRUCTION.match(line)
    assert match is not None
    # Comments such as /*index=5*/ and quoted strings are removed, as they may contain any bracket.
    source = re.search(r'op_name="([^"]*)"', line)
    target = re.search(r'custom_call_target="([^"]*)"', line)
    iterations = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
    contracted = _CONTRACTED.search(line)
    rest = _QUOTED.sub('""', re.sub(r"/\*.*?\*/", "", line[match.end() :]))
    result_text, rest = _split_result(rest)
    opcode, _, rest = rest.partition("(")
    arguments = _between("(" + rest, 0)
    attributes = rest[len(arguments) - 1 :]
    inner = arguments[1:-1]
    called = dict(_CALLED.findall(attributes))
    branches = re.search(r"branch_computations=\{([^}]*)\}", attributes)
    index = re.search(r"\bindex=(\d+)", attributes)
    direction = re.search(r"\bdirection=(\w+)", attributes)
    return Instruction(
        name=match[2],
        opcode=opcode.strip(),
        result=_result(result_text),
        operands=() if opcode in ("constant", "parameter", "iota") else tuple(_operands(inner)),
        called=called,
        branches=tuple(name.strip().lstrip("%") for name in branches[1].split(","))
        if branches
        else tuple(called[key] for key in ("true_computation", "false_computation") if key in called),
        custom_call=target[1] if target else "",
        literal=inner if opcode in ("constant", "parameter") else "",
        index=int(index[1]) if index else -1,
        direction=direction[1] if direction else "",
        iterations=int(iterations[1]) if iterations else None,
        source=source[1] if source else "",
        contracted=tuple(int(axis) for axis in re.findall(r"\d+", contracted[1])) if contracted else (),
        aliased=_aliased(attributes),
        causal=re.search(r'"mask_type":\s*"CAUSAL"', line) is not None,
        is_root=bool(match[1]),
    )


def _aliased(attributes: str) -> frozenset[int]:
    """Returns the indices of results in `output_to_operand_aliasing={{4}: (10, {}), {5}: (11, {})}`."""
    _, found, rest = attributes.partition("output_to_operand_aliasing=")
    return frozenset(int(index) for index in re.findall(r"\{(\d+)\}: ", _between(rest, 0))) if found else frozenset()


def _split_result(text: str) -> tuple[str, str]:
    """Splits a line into the type of the result and the rest."""
    if text.startswith("("):
        result = _between(text, 0)
        return result, text[len(result) :].lstrip()
    shape = _SHAPE.match(text)
    if shape is None:
        raise ValueError(f"expected a shape such as bf16[8,128]{{1,0}}, got {text[:80]!r}")
    return shape[0], text[shape.end() :].lstrip()


def _between(text: str, start: int) -> str:
    """Returns the text from the bracket at `start` to the one that closes it."""
    depth = 0
    for position in range(start, len(text)):
        if text[position] in "({":
            depth += 1
        elif text[position] in ")}":
            depth -= 1
            if depth == 0:
                return text[start : position + 1]
    raise ValueError(f"a bracket is never closed: {text[start : start + 80]!r}")


def _parts(text: str) -> Iterator[str]:
    """Splits at the commas outside all brackets."""
    depth, start = 0, 0
    for position, letter in enumerate(text):
        if letter in "({[":
            depth += 1
        elif letter in ")}]":
            depth -= 1
        elif letter == "," and depth == 0:
            yield text[start:position].strip()
            start = position + 1
    if text[start:].strip():
        yield text[start:].strip()


def _operands(text: str) -> Iterator[str]:
    """Yields the names of the operands, without their types, which older texts include."""
    for part in _parts(text):
        yield part.split()[-1].lstrip("%")


def _result(text: str) -> Result:
    if text.startswith("("):
        return tuple(_result(part) for part in _parts(text[1:-1]))
    shape = _SHAPE.match(text)
    if shape is None:
        raise ValueError(f"expected a shape such as bf16[8,128]{{1,0}}, got {text[:80]!r}")
    layout = shape[3] or ""
    order, _, annotations = layout.partition(":")
    tile = re.search(r"T\(([^)]*)\)", annotations)
    space = re.search(r"S\((\d+)\)", annotations)
    return Shape(
        dtype=shape[1],
        dims=tuple(int(d.removeprefix("<=")) for d in shape[2].split(",") if d),
        minor_to_major=tuple(int(axis) for axis in order.split(",") if axis.strip()),
        tile=tuple(0 if size.strip() == "*" else int(size) for size in tile[1].split(",")) if tile else (),
        memory_space=int(space[1]) if space else 0,
    )


def _leaves(result: Result) -> Iterator[Shape]:
    if isinstance(result, Shape):
        yield result
    else:
        for part in result:
            yield from _leaves(part)


def _bits(dtype: str) -> int:
    """Returns the bits of an element: `bf16` 16, `f8e4m3fn` 8, `s4` 4."""
    if dtype in _BITS:
        return _BITS[dtype]
    number = re.match(r"[a-z]+(\d+)", dtype)
    if number is None:
        raise ValueError(f"no size known for the dtype {dtype!r}")
    return int(number[1])
