"""Edits of a checkpoint that was just written: its tensors, a header, a JSON file."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from tests.weights.checkpoints import read_all

FILE = "model.safetensors"
NORM = "language_model.model.norm.weight"


def change(directory: Path, changed: Callable[[dict[str, np.ndarray]], None]) -> None:
    """Changes the tensors of a file and writes it again."""
    tensors = read_all(directory)
    changed(tensors)
    save_file(tensors, directory / FILE)


def change_header(directory: Path, changed: Callable[[dict], None]) -> None:
    """Changes the header of a safetensors file and leaves the tensors' bytes."""
    raw = (directory / FILE).read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    changed(header)
    text = json.dumps(header).encode()
    (directory / FILE).write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])


def change_json(path: Path, changed: Callable[[dict], object]) -> None:
    """Changes the object in a JSON file."""
    raw = json.loads(path.read_text())
    changed(raw)
    path.write_text(json.dumps(raw))
