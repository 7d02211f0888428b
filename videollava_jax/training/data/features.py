"""Features of frozen towers on disk: one file for each medium. No JAX in here.

    DIR/<fingerprint>/facts.json      the settings and weights that the features depend on
                      3f/3f81….bin    the projector's input for one medium: numbers [tokens, width], row after row

A file's name is a hash of its medium's path, size and modification time. A hash of the content would be safer, but then
each start would read all media from end to end.
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
    """The feature files of one fingerprint.

    Attributes:
        directory: of the files.
        shapes: (tokens, width) of an image and of a video.
        dtype: of the numbers. A file holds their bytes and no header, since numpy's own format knows no bfloat16.
    """

    directory: Path
    shapes: Mapping[MediaKind, tuple[int, int]]
    dtype: Literal["bfloat16", "float32"]

    def file(self, medium: Media) -> Path | None:
        """Returns the path for the features of a medium in its present state, whether they exist or not.

        None where the medium itself does not exist.
        """
        try:
            found = os.stat(medium.source)
        except (OSError, ValueError):  # ValueError: a path with a null character
            return None
        version = [medium.kind, os.path.abspath(medium.source), found.st_size, found.st_mtime_ns]
        name = hashlib.blake2b(json.dumps(version).encode(), digest_size=16).hexdigest()
        return self.directory / name[:2] / f"{name}.bin"

    def holds(self, file: Path, kind: MediaKind) -> bool:
        """Returns whether a file exists with its full size: a power failure may leave less of it than was written."""
        tokens, width = self.shapes[kind]
        try:
            return file.stat().st_size == tokens * width * _DTYPES[self.dtype].itemsize
        except FileNotFoundError:
            return False

    def empty(self, kind: MediaKind, *axes: int) -> npt.NDArray[Any]:
        """Returns zeros [*axes, tokens, width]."""
        return np.zeros((*axes, *self.shapes[kind]), _DTYPES[self.dtype])

    def read(self, medium: Media) -> npt.NDArray[Any] | None:
        """Reads the features [tokens, width] of a medium in its present state; None where there are none."""
        file = self.file(medium)
        if file is None or not self.holds(file, medium.kind):
            return None
        return np.fromfile(file, _DTYPES[self.dtype]).reshape(self.shapes[medium.kind])

    def write(self, file: Path, features: npt.NDArray[Any]) -> None:
        """Writes the features of a medium to its file, which appears whole or not at all."""
        file.parent.mkdir(parents=True, exist_ok=True)
        # The temporary name is unique: another run may write the same file at the same time.
        partial = file.with_suffix(f".{uuid.uuid4().hex}")
        try:
            features.tofile(partial)
            partial.rename(file)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
