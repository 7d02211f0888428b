"""Decides whether two runs are the same job: by input, model, decoding and version; by content, not by dates."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from videollava_jax.batch.requests import Defaults
from videollava_jax.version import __version__
from videollava_jax.weights.fingerprint import json_digest


def job_identity(source: Path, form: str, defaults: Defaults) -> dict[str, str]:
    """Returns the part of a job's identity that does not depend on the model: version, input and defaults."""
    with open(source, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "version": __version__,
        "input's SHA-256": digest,
        "format": form,
        **{name: str(defaults.options[name]) for name in sorted(defaults.options)},
        "frames": repr(defaults.frame_sampling),
        "pooling": str(defaults.video_pooling),
    }


def identity_digest(identity: Mapping[str, str]) -> str:
    """Hashes a whole identity."""
    return json_digest(dict(identity))
