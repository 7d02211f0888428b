"""Mutations of safetensors files: their headers, sizes and bytes."""

from __future__ import annotations

import json
import math
import random
import struct
from typing import Any

from tests.faults.bases import Base, Made
from tests.faults.odd_values import Pairs, dump, edit_bytes, odd, odd_name, pick_key


def split(raw: bytes) -> tuple[dict[str, Any], bytes]:
    """Returns (header, tensors' bytes)."""
    (length,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def join(header: Any, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else dump(header)
    return struct.pack("<Q", len(text)) + text + data


def header_bytes(rng: random.Random, base: Base) -> Made:
    name = rng.choice(base.weights)
    raw = base.files[name]
    (length,) = struct.unpack("<Q", raw[:8])
    edited = edit_bytes(rng, raw, 8, 8 + length)
    if rng.random() < 0.5:  # the length fits the changed text, so that the text is read
        edited = struct.pack("<Q", len(edited) - (len(raw) - length)) + edited[8:]
    return f"{name}: bytes of the header", {name: edited}


def header_length(rng: random.Random, base: Base) -> Made:
    name = rng.choice(base.weights)
    raw = base.files[name]
    (length,) = struct.unpack("<Q", raw[:8])
    changed = rng.choice(
        [
            lambda: max(0, length + rng.randrange(-9, 10)),
            lambda: rng.choice([0, 1, 2, 7, 8, len(raw), len(raw) - 8, 2**31, 2**32, 2**63, 2**64 - 1, 100_000_001]),
            lambda: rng.getrandbits(64),
            lambda: rng.randrange(len(raw)),
        ]
    )()
    return f"{name}: header length {changed} for {length}", {name: struct.pack("<Q", changed) + raw[8:]}


def header_entry(rng: random.Random, base: Base) -> Made:
    """Changes the entry of one tensor in a header, or adds one."""
    name = rng.choice(base.weights)
    header, data = split(base.files[name])
    tensor = rng.choice([key for key in header if key != "__metadata__"])
    other = rng.choice([key for key in header if key not in ("__metadata__", tensor)])
    entry = header[tensor]
    what = rng.choice(
        ["dtype", "shape", "offsets", "exchange", "rename", "remove", "add", "twice", "replace", "key", "overlap"]
    )
    match what:
        case "dtype":
            names = ["F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL", "U16", "U32", "F8_E4M3"]
            entry["dtype"] = rng.choice([rng.choice(names), rng.choice(["C64", "F4", "f32", "", "float32"]), odd(rng)])
        case "shape":
            entry["shape"] = _odd_shape(rng, entry["shape"])
        case "offsets":
            entry["data_offsets"] = _odd_offsets(rng, entry["data_offsets"], len(data))
        case "exchange":  # everything of two unlike tensors, or one field of them
            if _size(header[other]) == _size(entry):  # an exchange may be undetectable
                return "", {}
            for key in rng.choice([["dtype", "shape", "data_offsets"], ["shape"], ["data_offsets"], ["dtype"]]):
                entry[key], header[other][key] = header[other][key], entry[key]
        case "rename":
            header = {(odd_name(rng, key) if key == tensor else key): value for key, value in header.items()}
        case "remove":
            del header[tensor]
            if rng.random() < 0.5:  # and its bytes, so that there is no gap
                header, data = _without(header, data, entry)
        case "add":
            at = rng.choice([0, len(data), entry["data_offsets"][0]])
            added = {"dtype": "F32", "shape": rng.choice([[0], [0, 3], [3, 0], [1], []]), "data_offsets": [at, at]}
            if rng.random() < 0.3:
                data += bytes(4)
                added = {"dtype": "F32", "shape": rng.choice([[], [1], [1, 1]]), "data_offsets": [at, at + 4]}
            header[odd_name(rng, tensor)] = added
        case "twice":
            second = json.loads(json.dumps(rng.choice([entry, header[other]])))
            if rng.random() < 0.5:
                second[rng.choice(["dtype", "shape", "data_offsets"])] = odd(rng)
            items = list(header.items())
            items.insert(rng.randrange(len(items) + 1), (tensor, second))
            return f"{name}: {tensor} twice", {name: join(Pairs(items), data)}
        case "replace":
            header[tensor] = odd(rng)
        case "key":
            if rng.random() < 0.5:
                del entry[pick_key(rng, entry)]
            else:
                entry[rng.choice(["extra", "dtype ", "offsets", "", "\0"])] = odd(rng)
        case "overlap":
            entry["data_offsets"] = header[other]["data_offsets"]
    return f"{name}: {what} of {tensor}", {name: join(header, data)}


def _odd_shape(rng: random.Random, shape: list[int]) -> Any:
    changed: Any = list(shape)
    match rng.choice(["permute", "step", "longer", "shorter", "split", "odd", "dimension", "huge"]):
        case "permute":
            rng.shuffle(changed)
        case "step" if changed:
            changed[rng.randrange(len(changed))] += rng.choice([-1, 1])
        case "longer":
            changed.insert(rng.randrange(len(changed) + 1), rng.choice([0, 1, 1, 2]))
        case "shorter" if changed:
            changed.pop()
        case "split":
            changed = rng.choice([[math.prod(shape)], [1, math.prod(shape)], [math.prod(shape), 1]])
        case "odd":
            changed = odd(rng)
        case "dimension" if changed:
            changed[rng.randrange(len(changed))] = odd(rng)
        case "huge":
            changed = [rng.choice([2**31, 2**32, 2**62, 2**63])] * rng.choice([1, 2, 4])
    return changed


def _odd_offsets(rng: random.Random, offsets: list[int], size: int) -> Any:
    start, stop = offsets
    step = rng.choice([1, 2, 4, stop - start, 2**32, 2**64])
    return rng.choice(
        [
            [start + step, stop + step],
            [start - step, stop - step],
            [start, stop + step],
            [start + step, stop],
            [stop, start],
            [start],
            [start, stop, stop],
            [start, size],
            [0, size],
            [float(start), float(stop)],
            [-1, -1],
            [str(start), str(stop)],
            [start, odd(rng)],
            odd(rng),
        ]
    )


def _without(header: dict[str, Any], data: bytes, entry: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """Removes the bytes of an entry and moves up those after it."""
    start, stop = entry["data_offsets"]
    moved = {}
    for key, value in header.items():
        if key != "__metadata__" and value["data_offsets"][0] >= stop:
            value = value | {"data_offsets": [offset - (stop - start) for offset in value["data_offsets"]]}
        moved[key] = value
    return moved, data[:start] + data[stop:]


def header_whole(rng: random.Random, base: Base) -> Made:
    """Replaces a whole header, or writes the same one differently."""
    name = rng.choice(base.weights)
    header, data = split(base.files[name])
    text = dump(header)
    tensor = rng.choice([key for key in header if key != "__metadata__"])
    what, changed = rng.choice(
        [
            lambda: ("odd", dump(odd(rng))),
            lambda: ("list", dump(list(header.items()))),
            lambda: ("mark", b"\xef\xbb\xbf" + text),
            lambda: ("UTF-16", text.decode().encode(rng.choice(["utf-16", "utf-16-le", "utf-32"]))),
            lambda: ("invalid UTF-8", text.replace(tensor.encode(), tensor.encode() + b"\xff\xfe")),
            lambda: ("surrogate", text.replace(tensor.encode(), tensor.encode() + b"\\ud800")),
            lambda: ("tail", text + rng.choice([b"x", b"{}", b"\0" * 8, b",", text, b"//"])),
            lambda: ("comment", b"/* */" + text),
            lambda: ("spaces", rng.choice([b" ", b"\n", b"\t"]) * rng.randrange(1, 99) + text),
            lambda: ("spaces behind", text + b" " * rng.randrange(1, 99)),
            lambda: ("indented", json.dumps(header, indent=rng.choice([0, 1, 4])).encode()),
            lambda: ("escaped", text.replace(tensor[:1].encode(), b"\\u%04x" % ord(tensor[0]))),
            lambda: ("sorted", json.dumps(header, sort_keys=True).encode()),
            lambda: ("reversed", dump(dict(reversed(header.items())))),
            lambda: ("empty", b"{}"),
        ]
    )()
    return f"{name}: header: {what}", {name: join(changed, data)}


def header_metadata(rng: random.Random, base: Base) -> Made:
    name = rng.choice(base.weights)
    header, data = split(base.files[name])
    header["__metadata__"] = rng.choice(
        [
            lambda: odd(rng),
            lambda: {"format": odd(rng)},
            lambda: {"format": "pt", "x" * rng.randrange(10_000): "y"},
            lambda: {"format": rng.choice(["np", "tf", "", "\0", "é"])},
            lambda: {str(i): "v" for i in range(rng.randrange(500))},
            lambda: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
            lambda: header[rng.choice([key for key in header if key != "__metadata__"])],
        ]
    )()
    if rng.random() < 0.1:
        del header["__metadata__"]
    return f"{name}: __metadata__", {name: join(header, data)}


def file_size(rng: random.Random, base: Base) -> Made:
    name = rng.choice(base.weights)
    raw = base.files[name]
    what, changed = rng.choice(
        [
            lambda: ("cut short", raw[: rng.randrange(len(raw))]),
            lambda: ("its last bytes cut", raw[: -rng.randrange(1, 9)]),
            lambda: ("bytes behind", raw + rng.randbytes(rng.choice([1, 2, 7, 8, 4096]))),
            lambda: ("itself behind", raw + raw),
            lambda: ("empty", b""),
            lambda: ("zeros", bytes(len(raw))),
            lambda: ("noise", rng.randbytes(len(raw))),
            lambda: ("bytes in front", rng.randbytes(8) + raw),
        ]
    )()
    return f"{name}: {what}", {name: changed}


def equal_sizes(rng: random.Random, base: Base) -> Made:
    """Exchanges the bytes of two tensors, in a consistent header."""
    name = rng.choice(base.weights)
    header, data = split(base.files[name])
    by_size: dict[int, list[str]] = {}
    for key, entry in header.items():
        if key != "__metadata__":
            by_size.setdefault(_size(entry), []).append(key)
    first, second = (header[key] for key in rng.sample(rng.choice([n for n in by_size.values() if len(n) > 1]), 2))
    first["data_offsets"], second["data_offsets"] = second["data_offsets"], first["data_offsets"]
    return f"{name}: {first} and {second} exchanged", {name: join(header, data)}


def _size(entry: dict[str, Any]) -> int:
    start, stop = entry["data_offsets"]
    return int(stop - start)
