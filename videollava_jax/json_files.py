"""Reads files that hold one JSON object, such as those of a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from videollava_jax.named_errors import named_errors


def read_object(path: Path) -> dict[str, Any]:
    """Reads the JSON object in a file.

    Raises:
      ValueError: it is not JSON, not an object, or nested too deep to be read; or the path is no ordinary file.
      OSError: it is not there, or cannot be opened or read.
    """
    if path.exists() and not path.is_file():  # a pipe or a device could be read without an end
        raise ValueError(f"{path}: expected a file")
    with named_errors(path):
        content = path.read_bytes()
    try:
        raw = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(raw, dict):
        raise ValueError(f"{path}: expected a JSON object, got a {type(raw).__name__}")
    return raw
