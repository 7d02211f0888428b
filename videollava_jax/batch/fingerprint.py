"""What makes two runs the same job: input, model, prompt, decoding, our version; by content, and not by dates."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from videollava_jax.batch.formats import Defaults
from videollava_jax.batch.lines import Form
from videollava_jax.version import __version__
from videollava_jax.weights.manifest import MANIFEST, file_hashes

_WEIGHTS = (".safetensors", ".bin", ".msgpack")
_SETTINGS = (".json", ".jinja", ".model")


def job_fingerprint(source: Path, form: Form, defaults: Defaults) -> dict[str, str]:
    """The part of a fingerprint that needs no model."""
    with open(source, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "version": __version__,
        "input's SHA-256": digest,
        "format": form,
        "max_new_tokens": str(defaults.max_new_tokens),
        "temperature": f"{defaults.temperature:g}",
        "top_p": f"{defaults.top_p:g}",
        "seed": str(defaults.seed),
        "frames": repr(defaults.sampling),
        "pooling": str(defaults.video_pooling),
    }


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
    return {"model's settings": _digest(settings), "model's weights": _digest(weights)}


def fingerprint_digest(fingerprint: Mapping[str, str]) -> str:
    """All of it as one hash."""
    return _digest(dict(fingerprint))


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]
