"""Types and ranges of values that users give: parsed from Python and JSON, read from a command line. No JAX."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

INT32 = 2**31 - 1


@dataclass(frozen=True)
class Kind:
    """A type and range.

    Attributes:
      expected: what an error message says was expected.
      parse: returns a value in this type; raises TypeError, ValueError or OverflowError for a value that has another
        type or is out of range.
      read: returns what a command line means by a text, its range unchecked; raises ValueError.
      hint: the range in few words, for help texts; may be empty.
    """

    expected: str
    parse: Callable[[Any], Any]
    read: Callable[[str], Any]
    hint: str = ""


def parsed(name: str, kind: Kind, value: Any) -> Any:
    """Returns a value in the type of its kind.

    Raises:
      ValueError: the value has another type or is out of range; the message begins with `name`.
    """
    try:
        return kind.parse(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{name}: expected {kind.expected}, got {_shortened(value)}") from None


def whole(low: int, high: int = INT32, *, off: int | None = None) -> Kind:
    """A whole number, Python's or numpy's; neither bools nor floats are whole numbers. `off` is taken for 0."""

    def parse(value: Any) -> int:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        number = operator.index(value)
        if number == off:
            return 0
        _require_within(number, low, high)
        return number

    expected = f"a whole number from {low} to {high}" + ("" if off is None else f", or {off}")
    return Kind(expected, parse, int, f"{low} or more" if high == INT32 else "64 bits")


def number(low: float, high: float, *, above: bool = False, or_zero: bool = False) -> Kind:
    """A finite number from `low` to `high`; with `above` it is not `low` itself, with `or_zero` it may be 0 too."""
    within = f"above {low:g}, at most {high:.7g}" if above else f"from {low:g} to {high:.7g}"
    zero = "0 or " if or_zero else ""

    def parse(value: Any) -> float:
        if isinstance(value, (bool, np.bool_, str, bytes)):
            raise TypeError
        found = float(value)
        if or_zero and found == 0:
            return 0.0
        _require_within(found, low, high)
        if above and found == low:
            raise ValueError
        return found

    return Kind(f"{zero}a number {within}", parse, float, f"{zero}{within}")


def several(each: Kind) -> Kind:
    """One value or a list of values, which becomes a tuple; on a command line they are separated by commas."""

    def parse(value: Any) -> tuple[Any, ...]:
        if isinstance(value, (bytes, Mapping)):
            raise TypeError
        alone = isinstance(value, str) or not hasattr(value, "__iter__")
        return tuple(each.parse(item) for item in ([value] if alone else value))

    def read(text: str) -> tuple[Any, ...]:
        return tuple(each.read(part) for part in text.split(","))

    return Kind(f"{each.expected}, or a list of such", parse, read, each.hint)


def biases(low: float, high: float) -> Kind:
    """Numbers by token id: a mapping, whose keys may be strings as in JSON, or pairs; a tuple of pairs, by id."""
    token, value = whole(0), number(low, high)

    def parse(given: Any) -> tuple[tuple[int, float], ...]:
        if isinstance(given, (str, bytes)):
            raise TypeError
        pairs = [tuple(pair) for pair in (given.items() if isinstance(given, Mapping) else given)]
        found = {token.parse(int(i) if isinstance(i, str) else i): value.parse(bias) for i, bias in pairs}
        return tuple(sorted(found.items()))

    def read(text: str) -> dict[int, float]:
        parts = [part.split(":") for part in text.split(",")]
        return {int(i): float(bias) for i, bias in parts}

    return Kind(f'numbers from {low:g} to {high:g} by token id, such as {{"5": {low:g}}}', parse, read, value.hint)


def _truth(value: Any) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError
    return bool(value)


def _read_truth(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError
    return text.lower() == "true"


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise TypeError
    return value


TRUTH = Kind("true or false", _truth, _read_truth)
"""True or False, and no number instead."""
TEXT = Kind("a string that is not empty", _text, str)
TEXTS = several(TEXT)


def _require_within(value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # NaN is outside too
        raise ValueError


def _shortened(value: Any) -> str:
    """A value in an error message."""
    try:
        text = repr(value)
    except ValueError:  # a number of thousands of digits
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:80]}…"
