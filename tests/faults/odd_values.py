"""Values, names and bytes that hardly any reader expects, in JSON that `json.dumps` would not write."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Raw:
    """A value by its text, which may not be valid JSON."""

    text: str


@dataclass
class Pairs:
    """An object in which a key may come twice."""

    items: list[tuple[str, Any]] = field(default_factory=list)


def dump(value: Any) -> bytes:
    """Writes JSON with `Raw` and `Pairs` in it."""
    return _dump(value).encode("utf-8", "surrogatepass")


def _dump(value: Any) -> str:
    if isinstance(value, Raw):
        return value.text
    if isinstance(value, dict):
        value = Pairs(list(value.items()))
    if isinstance(value, Pairs):
        return "{" + ",".join(f"{json.dumps(key)}:{_dump(item)}" for key, item in value.items) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(_dump, value)) + "]"
    return json.dumps(value)


def _nested(depth: int, opening: str = "[", closing: str = "]") -> Raw:
    return Raw(opening * depth + closing * depth)


def odd(rng: random.Random) -> Any:
    """Draws a value that hardly any reader expects."""
    numbers = [0, 1, -1, 2, 7, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64, 10**30, -(2**63), 0.5, -0.0, 1.0, 2.0]
    return rng.choice(
        [
            lambda: rng.choice(numbers),
            lambda: Raw(rng.choice(["NaN", "Infinity", "-Infinity", "1e400", "1E2", "9" * 30, "9" * 5000, "-0"])),
            lambda: rng.choice([None, True, False]),
            lambda: rng.choice(["", "x", "0", "é", "\0", "\ud800", "a\nb", "\x1b[31m", "x" * 5000, "F32", "../x"]),
            lambda: rng.choice([[], {}, [[]], [None], {"a": 1}, [1, 2, 3], ["x"], {"": {}}]),
            lambda: _nested(rng.choice([5, 130, 900, 3000, 100_000])),
            lambda: _nested(1000, '{"a":', "1" + "}"),
        ]
    )()


def pick_key(rng: random.Random, value: dict[str, Any]) -> str:
    """Draws a key of an object."""
    return rng.choice(list(value))


def edit_bytes(rng: random.Random, raw: bytes, start: int = 0, stop: int | None = None) -> bytes:
    """Replaces, inserts or deletes a few random bytes of a region, or copies or cuts a stretch of it."""
    stop = len(raw) if stop is None else stop
    region = bytearray(raw[start:stop])
    for _ in range(rng.choice([1, 1, 1, 2, 4, 16])):
        at = rng.randrange(len(region)) if region else 0
        byte = rng.choice([rng.randrange(256), rng.choice(b'{}[]":,0123456789 \\"efalstnu-+.')])
        match rng.choice(["replace", "replace", "flip", "insert", "delete", "copy", "cut"]):
            case "replace":
                region[at : at + 1] = bytes([byte])
            case "flip" if region:
                region[at] ^= 1 << rng.randrange(8)
            case "insert":
                region[at:at] = bytes([byte])
            case "delete":
                del region[at : at + 1]
            case "copy":
                region[at:at] = region[at : at + rng.randrange(1, 200)]
            case "cut":
                del region[at : at + rng.randrange(1, 200)]
    return raw[:start] + bytes(region) + raw[stop:]


def near(rng: random.Random, value: Any) -> Any:
    """Draws a value close to a valid one."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice(
            [value + 1, value - 1, value * 2, -value, 0, value * 10**6, float(value), str(value), [value]]
        )
    if isinstance(value, float):
        return rng.choice([-value, value * 2, 0, Raw("NaN"), Raw("1e999"), str(value)])
    if isinstance(value, str):
        return rng.choice([value + " ", value.upper(), value[:-1], "gelu", "full", "llama", "mistral", [value]])
    return odd(rng)


def odd_name(rng: random.Random, name: str) -> str:
    """Draws a name close to a tensor's."""
    at = rng.randrange(len(name))
    return rng.choice(
        [
            name[:at]
            + chr(rng.choice([rng.randrange(32, 127), 0x430, 0x200B, 0x301, 10, 27, 0x1F600]))
            + name[at + 1 :],
            name[:at] + name[at + 1 :],
            name + rng.choice([" ", ".", ".weight", "\0", "\n", "\u202e"]),
            name.replace("0", "1"),
            name.replace("0", "00"),
            name.upper(),
            "model." + name,
            "",
            "__metadata__ ",
            "../../" + name,
            name * 2000,
            name + ".position_ids",
            "language_model.model.layers.0.self_attn.rotary_emb.inv_freq",
        ]
    )
