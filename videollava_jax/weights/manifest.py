"""manifest.json in a checkpoint's directory: a SHA-256 for each tensor and each file.

Neither safetensors nor Orbax notices a flipped bit.

manifest.json
  format     1
  tensors    name → dtype, shape, sha256 of the bytes (little endian, row after row)
  files      path → bytes, and sha256: of a small file, or of the two ends of a large one
  digest     SHA-256 of all of the above, as canonical JSON
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from videollava_jax.weights.errors import WeightsError, cause
from videollava_jax.weights.files import StoredTensor
from videollava_jax.weights.reading import read_ahead

Verify = Literal["full", "fast", "off"]

MANIFEST = "manifest.json"
FORMAT = 1
SMALL = 2**20
"""Bytes up to which a file is hashed whole. Larger files hold tensors, which have hashes of their own. What else they
hold is at their ends (the header of safetensors, the nodes of Orbax's trees): half as many bytes of each are hashed."""


@dataclass(frozen=True)
class TensorHash:
    """The dtype, the shape and the hash that a tensor must have."""

    dtype: str
    shape: tuple[int, ...]
    sha256: str


@dataclass(frozen=True)
class FileHash:
    """The size and the hash that a file must have; no hash is compared where `sha256` is None."""

    nbytes: int
    sha256: str | None


@dataclass(frozen=True)
class Manifest:
    """The contents of a checkpoint, tensor by tensor and file by file."""

    tensors: Mapping[str, TensorHash]
    files: Mapping[str, FileHash]

    def write(self, directory: Path) -> None:
        """Writes manifest.json into a directory, with a digest of itself."""
        body = self._body()
        text = json.dumps({**body, "digest": _digest(body)}, indent=1, sort_keys=True) + "\n"
        (directory / MANIFEST).write_text(text)

    def _body(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "tensors": {name: [t.dtype, list(t.shape), t.sha256] for name, t in self.tensors.items()},
            "files": {name: [f.nbytes, f.sha256] for name, f in self.files.items()},
        }


def read_manifest(directory: Path) -> Manifest | None:
    """Reads the manifest of a directory; returns None where there is none.

    Raises:
      WeightsError: it is damaged: its own digest does not fit.
    """
    path = directory / MANIFEST
    try:
        if not path.is_file():
            return None
        text = path.read_text()
        raw = json.loads(text)
        manifest = Manifest(
            {name: TensorHash(dtype, tuple(shape), sha) for name, (dtype, shape, sha) in raw["tensors"].items()},
            {name: FileHash(nbytes, sha) for name, (nbytes, sha) in raw["files"].items()},
        )
        sound = raw["format"] == FORMAT and raw["digest"] == _digest(manifest._body())
        # The text must be exactly what `write` writes: a flip in a character that the digest leaves out would pass.
        sound = sound and text == json.dumps(raw, indent=1, sort_keys=True) + "\n" and len(raw) == 4
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{path}: not a manifest, or damaged ({cause(error)})") from None
    if not sound:
        raise WeightsError(f"{path}: damaged: its digest does not fit its contents; convert or copy it again")
    return manifest


def tensor_hash(array: npt.NDArray[Any]) -> TensorHash:
    """Returns the dtype, shape and hash of an array."""
    raw = np.ascontiguousarray(array)
    return TensorHash(raw.dtype.name, tuple(raw.shape), hashlib.sha256(raw.reshape(-1).view(np.uint8).data).hexdigest())


def file_hashes(directory: Path) -> dict[str, FileHash]:
    """Hashes every file below a directory but the manifest itself.

    Raises:
      WeightsError: one cannot be read.
    """
    found = {}
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        try:
            if path.is_file() and name != MANIFEST:
                found[name] = _file_hash(path)
        except OSError as error:
            raise WeightsError(f"{path}: cannot be read ({cause(error)})") from None
    return found


def _file_hash(path: Path) -> FileHash:
    size = path.stat().st_size
    with open(path, "rb") as file:
        if size <= SMALL:
            ends = file.read()
        else:
            ends = file.read(SMALL // 2)
            file.seek(-SMALL // 2, os.SEEK_END)
            ends += file.read()
    return FileHash(size, hashlib.sha256(ends).hexdigest())


def check_files(directory: Path, manifest: Manifest, tensors: Mapping[str, StoredTensor]) -> list[str]:
    """Compares files, names, shapes and dtypes with the manifest, without reading a tensor.

    Files that were added later are not looked at.

    Returns:
      a sentence for each difference.
    """
    problems = []
    for name, expected in manifest.files.items():
        found = _hash_inside(directory, name)
        if found is None:
            problems.append(f"{name} is missing")
        elif found.nbytes != expected.nbytes:
            problems.append(f"{name}: expected {expected.nbytes} bytes, got {found.nbytes}")
        elif expected.sha256 is not None and found != expected:
            problems.append(f"{name}: its SHA-256 is not the manifest's")
    problems += [f"tensor {name} is missing" for name in manifest.tensors.keys() - tensors.keys()]
    problems += [f"tensor {name} is not in the manifest" for name in tensors.keys() - manifest.tensors.keys()]
    for name in manifest.tensors.keys() & tensors.keys():
        expected_tensor, tensor = manifest.tensors[name], tensors[name]
        if (expected_tensor.dtype, expected_tensor.shape) != (tensor.dtype.name, tensor.shape):
            problems.append(
                f"tensor {name}: expected {expected_tensor.dtype} {expected_tensor.shape}, "
                f"got {tensor.dtype.name} {tensor.shape}"
            )
    return problems


def _hash_inside(directory: Path, name: str) -> FileHash | None:
    """Returns the hash of a file below a directory; None where there is none, or the name leads out of it."""
    path = directory / name
    if Path(name).is_absolute() or ".." in path.parts[len(directory.parts) :]:
        return None
    try:
        return _file_hash(path) if path.is_file() else None
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({cause(error)})") from None


def check_tensors(manifest: Manifest, tensors: Mapping[str, StoredTensor]) -> list[str]:
    """Reads tensors; returns a sentence for each whose bytes are not those that were written."""
    return [
        f"tensor {name}: its SHA-256 is not the manifest's"
        for name, array in read_ahead(tensors, "verify")
        if tensor_hash(array) != manifest.tensors.get(name)
    ]


def require(directory: Path, problems: list[str]) -> None:
    """Raises a WeightsError with all the problems, if there are any."""
    if problems:
        raise WeightsError(
            f"{directory}: {len(problems)} things differ from its manifest; convert or copy it again:\n  "
            + "\n  ".join(problems[:50])
        )


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
