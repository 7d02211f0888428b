"""What frozen towers make of media, on disk: a file for each medium. No JAX in here.

    DIR/<fingerprint>/facts.json      what decides what is in the files
                      3f/3f81….bin    what the projector takes of one medium: numbers [tokens, width], row after row

A file is named by its medium's path, size and time of change. By content it would be surer, but then each start would
read all media from end to end.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np
import numpy.typing as npt

from videollava_jax.processing.segments import Media, MediaKind

FACTS = "facts.json"
_DTYPES: dict[str, np.dtype[Any]] = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float32": np.dtype(np.float32)}


@dataclass(frozen=True)
class FeatureStore:
    """The files of one fingerprint.

    Attributes:
        directory: where they are.
        shapes: tokens and width, of an image and of a video.
        dtype: of the numbers. A file has their bits and nothing else, since numpy's own format knows no bfloat16.
    """

    directory: Path
    shapes: Mapping[MediaKind, tuple[int, int]]
    dtype: Literal["bfloat16", "float32"]

    def file(self, medium: Media) -> Path | None:
        """Where the features of a medium as it now is are, or are to be; None where there is no such medium."""
        try:
            found = os.stat(medium.source)
        except (OSError, ValueError):  # ValueError: a path with a null character
            return None
        version = [medium.kind, os.path.abspath(medium.source), found.st_size, found.st_mtime_ns]
        name = hashlib.blake2b(json.dumps(version).encode(), digest_size=16).hexdigest()
        return self.directory / name[:2] / f"{name}.bin"

    def holds(self, file: Path, kind: MediaKind) -> bool:
        """Whether a file is there, and whole: when the power fails, less of it may be left than was written."""
        tokens, width = self.shapes[kind]
        try:
            return file.stat().st_size == tokens * width * _DTYPES[self.dtype].itemsize
        except FileNotFoundError:
            return False

    def empty(self, kind: MediaKind, *axes: int) -> npt.NDArray[Any]:
        """Zeros [*axes, tokens, width]."""
        return np.zeros((*axes, *self.shapes[kind]), _DTYPES[self.dtype])

    def read(self, medium: Media) -> npt.NDArray[Any] | None:
        """The features [tokens, width] of a medium as it now is; None where there are none."""
        file = self.file(medium)
        if file is None or not self.holds(file, medium.kind):
            return None
        return np.fromfile(file, _DTYPES[self.dtype]).reshape(self.shapes[medium.kind])

    def write(self, file: Path, features: npt.NDArray[Any]) -> None:
        """Keeps the features of a medium in its file, which appears whole or not at all."""
        file.parent.mkdir(parents=True, exist_ok=True)
        # A name of its own: another run may be writing the same file.
        partial = file.with_suffix(f".{uuid.uuid4().hex}")
        try:
            features.tofile(partial)
            partial.rename(file)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
