"""Hashes of files and of JSON values, by which two runs know whether they had the same data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from videollava_jax.evaluation.question import Question
from videollava_jax.evaluation.tasks.task import Files


def json_digest(value: Any) -> str:
    """Returns the hash of a JSON value, 32 hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


def data_fingerprint(files: Files, questions: Sequence[Question]) -> dict[str, Any]:
    """Returns the hashes of a task's files, of its questions, and of the names and sizes of their media.

    The order of the questions does not count. Media are not read: there may be terabytes of them.
    """
    asked = sorted(
        [q.id, q.text, q.target, [list(medium) for medium in q.media], *([list(q.span)] if q.span else [])]
        for q in questions
    )
    media = sorted({source for q in questions for _, source in q.media if not source.startswith("data:")})
    sizes = [[source, size_of(files.root / source)] for source in media]
    return {
        "files": {
            name: {"name": path.name, "sha256": _file_digest(path)} for name, path in sorted(files.paths.items())
        },
        "questions": json_digest(asked),
        "media": json_digest(sizes),
    }


def size_of(path: Path) -> int | None:
    """Returns the size of a file; None if it is not there."""
    return path.stat().st_size if path.is_file() else None


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def same_data(one: Any, other: Any) -> bool:
    """Returns whether two fingerprints are those of the same questions. Files may have another order of lines."""
    return isinstance(one, Mapping) and isinstance(other, Mapping) and one.get("questions") == other.get("questions")
