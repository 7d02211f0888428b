"""What makes two checkpoints the same one: by content, and not by dates or places."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from videollava_jax.weights.manifest import MANIFEST, file_hashes

_WEIGHTS = (".safetensors", ".bin", ".msgpack")
_SETTINGS = (".json", ".jinja", ".model")


def model_fingerprint(directory: Path) -> dict[str, str]:
    """Hashes of a checkpoint's settings and of its weights.

    Of weights with a manifest, the manifest; of others names, sizes and both ends of each file, so that a copy on
    another machine is the same model and nothing large is read.
    """
    manifest = directory / MANIFEST
    hashes = {name: (found.nbytes, found.sha256) for name, found in file_hashes(directory).items()}
    settings = {name: found for name, found in hashes.items() if name.endswith(_SETTINGS) and "/" not in name}
    weights: Any = {name: found for name, found in hashes.items() if name.endswith(_WEIGHTS)}
    if manifest.is_file():
        weights = hashlib.sha256(manifest.read_bytes()).hexdigest()
    return {"model's settings": json_digest(settings), "model's weights": json_digest(weights)}


def json_digest(value: Any) -> str:
    """A value of JSON as a hash: 32 hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]
