"""A directory of tensors, opened once for whatever is done with it: its names, config.json, manifest and tensors."""

from __future__ import annotations

import fnmatch
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from videollava_jax.hub import StrPath, local_path
from videollava_jax.weights.errors import WeightsError, cause
from videollava_jax.weights.files import BIN_INDEX, INDEX, PARAMETERS, StoredTensor, open_bin, open_safetensors
from videollava_jax.weights.manifest import Manifest, Verify, check_files, check_tensors, read_manifest, require
from videollava_jax.weights.pku import read_json

CONFIG = "config.json"
ADAPTER_CONFIG = "adapter_config.json"  # PEFT's

_READERS: tuple[tuple[str, str, Callable[[Path], dict[str, StoredTensor]]], ...] = (
    (INDEX, "*.safetensors", open_safetensors),
    (BIN_INDEX, "pytorch_model*.bin", open_bin),
)
"""Indexes, files and what opens them. Safetensors come first: on the hub both kinds often lie in one directory."""


@dataclass(frozen=True)
class Source:
    """A checkpoint's or an adapter's directory. What is asked of it is read once, when it is first asked for.

    Attributes:
      directory: its absolute path.
      names: of what lies in it, sorted, hidden files left out.
    """

    directory: Path
    names: tuple[str, ...]

    @classmethod
    def open(cls, directory: StrPath | Source) -> Source:
        """Lists a directory; one that is open already is returned unchanged.

        Raises:
          WeightsError: there is no such directory, or it cannot be read.
        """
        if isinstance(directory, Source):
            return directory
        try:
            path = local_path(directory)
            # Not is_dir() and glob(): they take a directory that may not be read for a missing or an empty one.
            names = tuple(sorted(name for name in os.listdir(path) if not name.startswith(".")))
        except (FileNotFoundError, NotADirectoryError):
            raise WeightsError(f"{directory}: no such directory; expected one with a checkpoint in it") from None
        except (OSError, ValueError) as error:  # ValueError: no path at all, such as one with a null byte
            raise WeightsError(f"{directory}: cannot be read ({cause(error)})") from None
        return cls(path, names)

    @property
    def is_orbax(self) -> bool:
        """Whether it is a directory that `convert_to_orbax` wrote."""
        # Not is_dir(), which raises where the directory may not be entered.
        return PARAMETERS in self.names and os.path.isdir(self.directory / PARAMETERS)

    @property
    def has_model(self) -> bool:
        """Whether the names are those of a whole model's tensors."""
        return self.is_orbax or any(
            fnmatch.filter(self.names, pattern) for pattern in ("model*.safetensors", "pytorch_model*.bin")
        )

    @property
    def has_adapter(self) -> bool:
        """Whether the names are those of an adapter, PEFT's or the authors'."""
        stems = ("adapter_model", "non_lora_trainables", "mm_projector")
        files = {f"{stem}{end}" for stem in stems for end in (".safetensors", ".bin")}
        return not files.isdisjoint(self.names) or ADAPTER_CONFIG in self.names

    @cached_property
    def stored(self) -> Mapping[str, StoredTensor]:
        """Every tensor under the name that its file gives it; none is read.

        Raises:
          WeightsError: no tensor files, a file that is damaged or not what it claims, or an index that does not agree
            with the files it names.
        """
        if self.is_orbax:
            from videollava_jax.weights.orbax import open_orbax

            return open_orbax(self.directory)
        for index, pattern, opener in _READERS:
            if index in self.names:
                _require_one_model(self.directory, index, self.names)
                return _open_indexed(self.directory, _inside(self.directory, index, self.directory), opener)
            if files := fnmatch.filter(self.names, pattern):
                return _merged(opener(_inside(self.directory, file, self.directory)) for file in files)
        found = ", ".join(self.names[:8]) or "an empty directory"
        raise WeightsError(f"{self.directory}: expected *.safetensors or pytorch_model*.bin, found {found}")

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """The object in config.json.

        Raises:
          WeightsError: no such file, or something else in it.
        """
        return read_json(self.directory / CONFIG)

    @property
    def config_if_any(self) -> Mapping[str, Any]:
        """The object in config.json; an empty one where there is no such file."""
        return self.config if CONFIG in self.names else {}

    @cached_property
    def manifest(self) -> Manifest | None:
        """The manifest; None where there is none.

        Raises:
          WeightsError: it is damaged.
        """
        return read_manifest(self.directory)

    def problems(self, level: Verify) -> list[str]:
        """Returns the differences from the manifest, as `verify_checkpoint` describes them; none without a manifest."""
        if level == "off" or self.manifest is None:
            return []
        found = check_files(self.directory, self.manifest, self.stored)
        return found + check_tensors(self.manifest, self.stored) if level == "full" else found

    def require_intact(self, level: Verify) -> None:
        """Raises a WeightsError with all differences from the manifest; passes where there is none."""
        require(self.directory, self.problems(level))


def _open_indexed(
    directory: Path, index: Path, opener: Callable[[Path], dict[str, StoredTensor]]
) -> dict[str, StoredTensor]:
    by_file = _names_by_file(index)
    paths, problems = {}, []
    for file in by_file:
        try:
            paths[file] = _inside(directory, file, index)
        except WeightsError as error:
            problems.append(str(error))
    if problems:
        raise WeightsError("\n".join(problems))
    opened = {file: opener(path) for file, path in paths.items()}
    for file, names in by_file.items():
        problems += [f"{file} lacks {name}" for name in sorted(names - opened[file].keys())]
        problems += [f"the index lacks {name} of {file}" for name in sorted(opened[file].keys() - names)]
    if problems:
        raise WeightsError(f"{index}: does not agree with its files:\n  " + "\n  ".join(problems))
    return _merged(opened.values())


def _names_by_file(index: Path) -> dict[str, set[str]]:
    try:
        by_file: dict[str, set[str]] = {}
        for name, file in json.loads(index.read_bytes())["weight_map"].items():
            by_file.setdefault(file, set()).add(name)
        if not all(isinstance(file, str) for file in by_file):
            raise TypeError("file names that are not text")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{index}: expected an index with a weight_map of names to files ({cause(error)})") from None
    return by_file


def _require_one_model(directory: Path, index: str, names: Iterable[str]) -> None:
    """Raises a WeightsError where a whole model lies next to an index that does not list it."""
    whole = index.removesuffix(".index.json")
    if whole not in names:
        return
    files = _names_by_file(_inside(directory, index, directory))
    if whole not in files:
        raise WeightsError(
            f"{directory}: {whole} and {index} are two models: the index lists {', '.join(sorted(files)[:3])} and not "
            f"{whole}, which transformers would take; expected one of the two: move the other away"
        )


def _inside(directory: Path, file: str, named_by: Path) -> Path:
    """Returns the path of a file in the checkpoint's directory, or among the blobs of the hub's cache it links to.

    Raises:
      WeightsError: it lies elsewhere, is not there, or is no file: a pipe or a device could be read without an end.
    """
    path = directory / file
    try:
        real, home = path.resolve(), directory.resolve()
        homes = [home, home.parents[1] / "blobs"] if home.parent.name == "snapshots" else [home]
        inside, there = path.parent == directory and real.parent in homes, path.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # a name too long, a null byte, links in a circle
        raise WeightsError(f"{named_by}: {path} cannot be opened ({cause(error)})") from None
    if not inside:
        raise WeightsError(f"{named_by}: {path} lies outside the checkpoint's directory")
    if not there:
        raise WeightsError(f"{named_by}: {path} is not there, or is not a file")
    return path


def _merged(opened: Iterable[Mapping[str, StoredTensor]]) -> dict[str, StoredTensor]:
    merged: dict[str, StoredTensor] = {}
    for tensors in opened:
        for name, tensor in tensors.items():
            if name in merged:
                raise WeightsError(f"tensor {name} is in two files: {merged[name].file} and {tensor.file}")
            merged[name] = tensor
    return merged
