"""Mutations of the JSON of a checkpoint (index, config.json, Orbax's metadata) and of Orbax's files."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from tests.faults.bases import INDEX, Base, Link, Made, Moved
from tests.faults.odd_values import Pairs, dump, edit_bytes, near, odd, odd_name, pick_key

# ── index ───────────────────────────────────────────────────────────────────────────────────────────────────


def index_entries(rng: random.Random, base: Base) -> Made:
    index = json.loads(base.files[INDEX])
    names = index["weight_map"]
    tensor = pick_key(rng, names)
    what = rng.choice(
        ["missing", "extra", "rename", "wrong file", "path", "odd file", "odd map", "metadata", "twice", "all"]
    )
    match what:
        case "missing":
            for key in rng.sample(list(names), rng.choice([1, 1, 2, 9])):
                del names[key]
        case "extra":
            names[odd_name(rng, tensor)] = names[tensor]
        case "rename":
            names[odd_name(rng, tensor)] = names.pop(tensor)
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
"""Keys with a meaning in transformers', the authors' or our configuration."""


def config_values(rng: random.Random, base: Base) -> Made:
    config = json.loads(base.files["config.json"])
    holder, inside = config, ""
    if rng.random() < 0.6 and (parts := [key for key in ("vision_config", "text_config") if key in config]):
        inside = rng.choice(parts)
        holder = config[inside]
    key = pick_key(rng, holder)
    what = rng.choice(["odd", "odd", "near", "near", "delete", "rename", "add", "two"])
    match what:
        case "odd":
            holder[key] = odd(rng)
        case "near":
            holder[key] = near(rng, holder[key])
        case "delete":
            del holder[key]
        case "rename":
            holder[rng.choice([key + " ", key.upper(), key + "s", "_" + key])] = holder.pop(key)
        case "add":
            holder[rng.choice(KNOWN_KEYS)] = odd(rng)
        case "two":
            for _ in range(2):
                holder[pick_key(rng, holder)] = odd(rng)
    return f"{what}: {inside} {key}", {"config.json": dump(config)}


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
    """Changes a value in one of the JSON files, among them Orbax's metadata."""
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
            holder[key] = near(rng, holder[key])
        case "delete":
            del holder[key]
    return f"{name}: {key}", {name: dump(whole)}
