"""Changes to the headers, indexes and configurations of small checkpoints, each made from a seed and a number.

Where a change can be told, it has to end in a WeightsError; where it says nothing (a space, a note), in the same
tensors. A case is made again from `(seed, number)` alone.
"""

from __future__ import annotations

import json
import math
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.small_models import random_parameters, small_config
from tests.weights.checkpoints import write_checkpoint
from videollava_jax.weights import convert_to_orbax

SWAP = "equal sizes exchanged"
"""Two tensors of one size whose bytes change places, in a header that agrees with itself: only a hash from elsewhere
can tell."""

ORBAX = "Orbax"
"""The kinds of which are looked at with their manifest."""
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Link:
    """A symbolic link in the place of a file."""

    target: str


@dataclass(frozen=True)
class Moved:
    """A file that is moved here, and linked to in its old place."""

    place: str


Content = bytes | Link | Moved | None  # None: no such file


@dataclass(frozen=True)
class Case:
    """A mutation.

    Attributes:
      kind: what is changed, as the table calls it.
      base: the checkpoint that is changed.
      note: what exactly was done.
      files: path in the checkpoint → what is there now.
    """

    kind: str
    base: str
    note: str
    files: dict[str, Content]


@dataclass(frozen=True)
class Base:
    """A small sound checkpoint: its files by name."""

    name: str
    directory: Path
    files: dict[str, bytes]

    @property
    def weights(self) -> list[str]:
        return [name for name in self.files if name.endswith(".safetensors")]


def write_bases(place: Path) -> dict[str, Base]:
    """A checkpoint of each kind, of some ten kilobytes each."""
    small = {"hidden_size": 8, "intermediate_size": 12, "image_size": 4, "patch_size": 2, "num_hidden_layers": 1}
    bases = {}
    for name, layout, variant, dtype, shards in (
        ("one file", "hub", "hf", "float32", 1),
        ("three files", "hf5", "hf", "bfloat16", 3),
        ("in memory", "memory", "hf", "float16", 2),
        ("the authors'", "pku", "original", "float16", 1),
        ("tied", "hub", "hf", "bfloat16", 1),
    ):
        tied = name == "tied"
        config = small_config(variant, vision=small, text={"num_hidden_layers": 1}, tie_word_embeddings=tied)
        parameters = random_parameters(config, 7, dtype)
        if tied:  # some writers store the head as well
            parameters["lm_head.weight"] = parameters["language_model.embed_tokens.weight"]
        directory = place / name.replace(" ", "-").replace("'", "")
        write_checkpoint(directory, config, parameters, layout, shards)
        bases[name] = _base(name, directory)
    convert_to_orbax(bases["one file"].directory, place / "orbax")
    bases[ORBAX] = _base(ORBAX, place / "orbax")
    return bases


def _base(name: str, directory: Path) -> Base:
    paths = [path for path in sorted(directory.rglob("*")) if path.is_file()]
    return Base(name, directory, {path.relative_to(directory).as_posix(): path.read_bytes() for path in paths})


def make_case(bases: dict[str, Base], seed: int, number: int) -> Case:
    """The mutation of a seed and a number."""
    rng = random.Random(f"{seed}/{number}")
    kind = rng.choices(list(KINDS), [share for _, share in KINDS.values()])[0]
    maker, _ = KINDS[kind]
    if kind.startswith(ORBAX):
        base = bases[ORBAX]
    else:
        fit = [base for base in bases.values() if not kind.startswith("index") or INDEX in base.files]
        base = rng.choice([base for base in fit if base.name != ORBAX])
    while True:
        note, files = maker(rng, base)
        if any(files[name] != base.files.get(name) for name in files):
            return Case(kind, base.name, note, files)


# ── JSON that json.dumps would not write ────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Raw:
    """A value as it stands in the text."""

    text: str


@dataclass
class Pairs:
    """An object whose keys may come twice."""

    items: list[tuple[str, Any]] = field(default_factory=list)


def dump(value: Any) -> bytes:
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
    """A value that hardly anything expects."""
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


def _pick_key(rng: random.Random, value: dict[str, Any]) -> str:
    return rng.choice(list(value))


def edit_bytes(rng: random.Random, raw: bytes, start: int = 0, stop: int | None = None) -> bytes:
    """A few random bytes of a region replaced, put in or taken out, or a stretch of it moved."""
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


# ── safetensors ─────────────────────────────────────────────────────────────────────────────────────────────


def split(raw: bytes) -> tuple[dict[str, Any], bytes]:
    """(header, tensors' bytes)"""
    (length,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def join(header: Any, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else dump(header)
    return struct.pack("<Q", len(text)) + text + data


Made = tuple[str, dict[str, Content]]
Maker = Callable[[random.Random, Base], Made]


def header_bytes(rng: random.Random, base: Base) -> Made:
    name = rng.choice(base.weights)
    raw = base.files[name]
    (length,) = struct.unpack("<Q", raw[:8])
    edited = edit_bytes(rng, raw, 8, 8 + length)
    if rng.random() < 0.5:  # the length that is told fits what is there, so that the text itself is read
        edited = struct.pack("<Q", len(edited) - (len(raw) - length)) + edited[8:]
    return f"{name}: bytes of the header", {name: edited}


def header_length(rng: random.Random, base: Base) -> Made:
    name = rng.choice(base.weights)
    raw = base.files[name]
    (length,) = struct.unpack("<Q", raw[:8])
    told = rng.choice(
        [
            lambda: max(0, length + rng.randrange(-9, 10)),
            lambda: rng.choice([0, 1, 2, 7, 8, len(raw), len(raw) - 8, 2**31, 2**32, 2**63, 2**64 - 1, 100_000_001]),
            lambda: rng.getrandbits(64),
            lambda: rng.randrange(len(raw)),
        ]
    )()
    return f"{name}: header length {told} for {length}", {name: struct.pack("<Q", told) + raw[8:]}


def header_entry(rng: random.Random, base: Base) -> Made:
    """What a header says of one tensor, or of none."""
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
            if _size(header[other]) == _size(entry):  # may be one that cannot be told
                return "", {}
            for key in rng.choice([["dtype", "shape", "data_offsets"], ["shape"], ["data_offsets"], ["dtype"]]):
                entry[key], header[other][key] = header[other][key], entry[key]
        case "rename":
            header = {(_odd_name(rng, key) if key == tensor else key): value for key, value in header.items()}
        case "remove":
            del header[tensor]
            if rng.random() < 0.5:  # and its bytes, so that no gap tells of it
                header, data = _without(header, data, entry)
        case "add":
            at = rng.choice([0, len(data), entry["data_offsets"][0]])
            added = {"dtype": "F32", "shape": rng.choice([[0], [0, 3], [3, 0], [1], []]), "data_offsets": [at, at]}
            if rng.random() < 0.3:
                data += bytes(4)
                added = {"dtype": "F32", "shape": rng.choice([[], [1], [1, 1]]), "data_offsets": [at, at + 4]}
            header[_odd_name(rng, tensor)] = added
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
                del entry[_pick_key(rng, entry)]
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


def _odd_name(rng: random.Random, name: str) -> str:
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


def _without(header: dict[str, Any], data: bytes, entry: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """Without the bytes of an entry, those behind it moved up."""
    start, stop = entry["data_offsets"]
    moved = {}
    for key, value in header.items():
        if key != "__metadata__" and value["data_offsets"][0] >= stop:
            value = value | {"data_offsets": [offset - (stop - start) for offset in value["data_offsets"]]}
        moved[key] = value
    return moved, data[:start] + data[stop:]


def header_whole(rng: random.Random, base: Base) -> Made:
    """A header that is something else, or the same in other words."""
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
    """The bytes of two tensors exchanged, in a header that agrees with itself."""
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


# ── index ───────────────────────────────────────────────────────────────────────────────────────────────────


def index_entries(rng: random.Random, base: Base) -> Made:
    index = json.loads(base.files[INDEX])
    names = index["weight_map"]
    tensor = _pick_key(rng, names)
    what = rng.choice(
        ["missing", "extra", "rename", "wrong file", "path", "odd file", "odd map", "metadata", "twice", "all"]
    )
    match what:
        case "missing":
            for key in rng.sample(list(names), rng.choice([1, 1, 2, 9])):
                del names[key]
        case "extra":
            names[_odd_name(rng, tensor)] = names[tensor]
        case "rename":
            names[_odd_name(rng, tensor)] = names.pop(tensor)
        case "wrong file":
            names[tensor] = rng.choice([*base.weights, "config.json", INDEX, "no-such-file.safetensors"])
        case "path":
            names[tensor] = _odd_path(rng, base, names[tensor])
        case "all":
            odd_path = _odd_path(rng, base, names[tensor])
            for key in names:
                names[key] = odd_path if names[key] == names[tensor] else names[key]
        case "odd file":
            names[tensor] = odd(rng)
        case "odd map":
            index["weight_map"] = odd(rng)
        case "metadata":
            index["metadata"] = odd(rng)
        case "twice":
            items = list(names.items())
            items.insert(rng.randrange(len(items) + 1), (tensor, rng.choice([*base.weights, "x"])))
            index["weight_map"] = Pairs(items)
    if rng.random() < 0.1:
        index[rng.choice(["", "weight_map ", "format"])] = odd(rng)
    return f"{what}: {tensor}", {INDEX: dump(index)}


def _odd_path(rng: random.Random, base: Base, file: str) -> str:
    parent = base.directory.name
    return rng.choice(
        [
            f"../{parent}/{file}",
            f"../{file}",
            f"./{file}",
            f"{file}/",
            f"{file}/.",
            f"sub/../{file}",
            f"sub/{file}",
            str(base.directory / file),
            "/etc/passwd",
            "/dev/zero",
            "../../../../../../etc/passwd",
            "",
            ".",
            "..",
            "/",
            "~",
            file + "\0",
            file + "\n",
            file.upper(),
            "x" * 300,
            "y/" * 3000,
            "\ud800",
            f"..\\{file}",
            f"file://{file}",
        ]
    )


def index_bytes(rng: random.Random, base: Base) -> Made:
    return "bytes of the index", {INDEX: edit_bytes(rng, base.files[INDEX])}


def index_whole(rng: random.Random, base: Base) -> Made:
    raw = base.files[INDEX]
    index = json.loads(raw)
    file = rng.choice(base.weights)
    what, files = rng.choice(
        [
            lambda: ("odd", {INDEX: dump(odd(rng))}),
            lambda: ("invalid UTF-8", {INDEX: raw.replace(b"model", b"model\xff", 1)}),
            lambda: ("UTF-16", {INDEX: raw.decode().encode("utf-16")}),
            lambda: ("mark", {INDEX: b"\xef\xbb\xbf" + raw}),
            lambda: ("cut short", {INDEX: raw[: rng.randrange(len(raw))]}),
            lambda: ("empty", {INDEX: b""}),
            lambda: ("spaces", {INDEX: b"\n" + raw + b"  \n"}),
            lambda: ("gone", {INDEX: None}),
            lambda: ("link to nowhere", {INDEX: Link("nowhere.json")}),
            lambda: ("link to itself", {INDEX: Link(INDEX)}),
            lambda: ("the map alone", {INDEX: dump(index["weight_map"])}),
            lambda: ("pairs", {INDEX: dump({"weight_map": list(index["weight_map"].items())})}),
            lambda: ("file gone", {file: None}),
            lambda: ("file moved out", {file: Moved(f"../outside-{file}")}),
            lambda: ("file linked to itself", {file: Link(file)}),
            lambda: ("file linked to nothing", {file: Link("/nowhere")}),
            lambda: ("file linked to a device", {file: Link("/dev/zero")}),
            lambda: ("file linked to a folder", {file: Link("/tmp")}),
            lambda: ("file renamed", {file: None, "renamed.safetensors": base.files[file]}),
            lambda: ("file moved within", {file: Moved("moved-within.bin")}),
            lambda: ("one more file", {"model-00009-of-00009.safetensors": base.files[file]}),
            lambda: ("one more file, no index", {"stray.safetensors": base.files[file], INDEX: None}),
            lambda: ("a file for another", {file: base.files[rng.choice(base.weights)]}),
        ]
    )()
    return what, files


# ── config.json ─────────────────────────────────────────────────────────────────────────────────────────────


KNOWN_KEYS = (
    *("torch_dtype", "dtype", "auto_map", "quantization_config", "rope_scaling", "rope_theta", "variant", "model_type"),
    *("temporal_frames", "attn_implementation", "_name_or_path", "transformers_version", "sub_configs", "use_cache"),
    *("mm_vision_select_feature", "max_position_embeddings", "to_dict"),
)
"""What transformers, the authors' configuration or ours give a meaning to."""


def config_values(rng: random.Random, base: Base) -> Made:
    config = json.loads(base.files["config.json"])
    holder, inside = config, ""
    if rng.random() < 0.6 and (parts := [key for key in ("vision_config", "text_config") if key in config]):
        inside = rng.choice(parts)
        holder = config[inside]
    key = _pick_key(rng, holder)
    what = rng.choice(["odd", "odd", "near", "near", "delete", "rename", "add", "two"])
    match what:
        case "odd":
            holder[key] = odd(rng)
        case "near":
            holder[key] = _near(rng, holder[key])
        case "delete":
            del holder[key]
        case "rename":
            holder[rng.choice([key + " ", key.upper(), key + "s", "_" + key])] = holder.pop(key)
        case "add":
            holder[rng.choice(KNOWN_KEYS)] = odd(rng)
        case "two":
            for _ in range(2):
                holder[_pick_key(rng, holder)] = odd(rng)
    return f"{what}: {inside} {key}", {"config.json": dump(config)}


def _near(rng: random.Random, value: Any) -> Any:
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


def config_bytes(rng: random.Random, base: Base) -> Made:
    return "bytes of config.json", {"config.json": edit_bytes(rng, base.files["config.json"])}


def config_whole(rng: random.Random, base: Base) -> Made:
    raw = base.files["config.json"]
    what, content = rng.choice(
        [
            lambda: ("odd", dump(odd(rng))),
            lambda: ("cut short", raw[: rng.randrange(len(raw))]),
            lambda: ("gone", None),
            lambda: ("empty", b""),
            lambda: ("mark", b"\xef\xbb\xbf" + raw),
            lambda: ("UTF-16", raw.decode().encode("utf-16")),
            lambda: ("link to itself", Link("config.json")),
            lambda: ("link to a folder", Link("/tmp")),
            lambda: ("link to a device", Link("/dev/null")),
            lambda: ("spaces", b" \n" + raw),
        ]
    )()
    return what, {"config.json": content}


# ── Orbax ───────────────────────────────────────────────────────────────────────────────────────────────────


def orbax_bytes(rng: random.Random, base: Base) -> Made:
    name = rng.choice(list(base.files))
    return f"bytes of {name}", {name: edit_bytes(rng, base.files[name])}


def orbax_whole(rng: random.Random, base: Base) -> Made:
    name = rng.choice(list(base.files))
    raw = base.files[name]
    what, content = rng.choice(
        [
            lambda: ("odd", dump(odd(rng))),
            lambda: ("cut short", raw[: rng.randrange(len(raw))] if raw else b"x"),
            lambda: ("gone", None),
            lambda: ("empty", b""),
            lambda: ("noise", rng.randbytes(len(raw))),
            lambda: ("bytes behind", raw + rng.randbytes(9)),
            lambda: ("another", rng.choice(list(base.files.values()))),
            lambda: ("link to itself", Link(Path(name).name)),
            lambda: ("link to a folder", Link("/tmp")),
        ]
    )()
    return f"{name}: {what}", {name: content}


def orbax_json(rng: random.Random, base: Base) -> Made:
    """A value in one of the JSON files, Orbax's metadata among them."""
    name = rng.choice([name for name, raw in base.files.items() if raw[:1] == b"{"])
    whole = json.loads(base.files[name])
    holder: Any = whole
    while True:
        keys = list(holder) if isinstance(holder, dict) else range(len(holder))
        key = rng.choice(keys)
        if not isinstance(holder[key], (dict, list)) or not holder[key] or rng.random() < 0.2:
            break
        holder = holder[key]
    match rng.choice(["odd", "near", "delete"]):
        case "odd":
            holder[key] = odd(rng)
        case "near":
            holder[key] = _near(rng, holder[key])
        case "delete":
            del holder[key]
    return f"{name}: {key}", {name: dump(whole)}


# The share of each kind, in parts of all.
KINDS: dict[str, tuple[Maker, int]] = {
    "header, bytes": (header_bytes, 24),
    "header, length": (header_length, 6),
    "header, entries": (header_entry, 24),
    "header, whole": (header_whole, 6),
    "header, metadata": (header_metadata, 4),
    "file, size": (file_size, 6),
    "index, entries": (index_entries, 8),
    "index, bytes": (index_bytes, 6),
    "index, whole": (index_whole, 4),
    "config, values": (config_values, 6),
    "config, bytes": (config_bytes, 3),
    "config, whole": (config_whole, 1),
    f"{ORBAX}, bytes": (orbax_bytes, 1),
    f"{ORBAX}, whole": (orbax_whole, 1),
    f"{ORBAX}, JSON": (orbax_json, 1),
    SWAP: (equal_sizes, 2),
}
