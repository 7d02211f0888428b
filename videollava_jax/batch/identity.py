"""Decides whether two runs are the same job: by input, model, decoding and version; by content, not by dates."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from videollava_jax.batch.requests import Defaults
from videollava_jax.compressed import opened
from videollava_jax.version import __version__
from videollava_jax.weights.fingerprint import json_digest


def job_identity(files: Sequence[Path], form: str, defaults: Defaults) -> dict[str, str]:
    """Returns the part of a job's identity that does not depend on the model: version, input and defaults."""
    digests = [_content_digest(path) for path in files]
    return {
        "version": __version__,
        "input's SHA-256": digests[0] if len(digests) == 1 else hashlib.sha256(" ".join(digests).encode()).hexdigest(),
        "format": form,
        **{name: str(defaults.options[name]) for name in sorted(defaults.options)},
        "frames": repr(defaults.frame_sampling),
        "pooling": str(defaults.video_pooling),
    }


def _content_digest(path: Path) -> str:
    """The SHA-256 of what a file holds, decompressed: the file itself has the date of its compression."""
    with opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]  # typeshed wants readinto


def identity_digest(identity: Mapping[str, str]) -> str:
    """Hashes a whole identity."""
    return json_digest(dict(identity))
