"""Fingerprints of checkpoints: equal for equal contents, whatever their dates and paths."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from videollava_jax.weights.manifest import MANIFEST, file_hashes

_WEIGHTS = (".safetensors", ".bin", ".msgpack")
_SETTINGS = (".json", ".jinja", ".model")


def model_fingerprint(directory: Path) -> dict[str, str]:
    """Returns hashes of a checkpoint's settings and of its weights.

    The weights' hash is that of the manifest where there is one, otherwise of the names, sizes and both ends of the
    files: a copy on another machine has the same, and nothing large is read.
    """
    manifest = directory / MANIFEST
    hashes = {name: (found.nbytes, found.sha256) for name, found in file_hashes(directory).items()}
    settings = {name: found for name, found in hashes.items() if name.endswith(_SETTINGS) and "/" not in name}
    weights: Any = {name: found for name, found in hashes.items() if name.endswith(_WEIGHTS)}
    if manifest.is_file():
        weights = hashlib.sha256(manifest.read_bytes()).hexdigest()
    return {"model's settings": json_digest(settings), "model's weights": json_digest(weights)}


def json_digest(value: Any) -> str:
    """Returns the hash of a JSON value, 32 hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]
