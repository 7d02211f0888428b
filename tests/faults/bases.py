"""Small valid checkpoints, and what a mutation of one is."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.small_models import random_parameters, small_config
from tests.weights.checkpoints import write_checkpoint
from videollava_jax.weights import convert_to_orbax

SWAP = "equal sizes exchanged"
"""Two tensors of one size whose bytes are exchanged, in a consistent header: only a hash from elsewhere finds it."""

ORBAX = "Orbax"
"""The base whose mutations are opened with their manifest."""
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Link:
    """A symbolic link instead of a file."""

    target: str


@dataclass(frozen=True)
class Moved:
    """A file that is moved to `place`, with a link to it from its old path."""

    place: str


Content = bytes | Link | Moved | None  # None: no such file


@dataclass(frozen=True)
class Case:
    """A mutation.

    Attributes:
      kind: what is changed, as the table calls it.
      base: the checkpoint that is changed.
      note: what exactly was done.
      files: the new contents by path in the checkpoint.
    """

    kind: str
    base: str
    note: str
    files: dict[str, Content]


@dataclass(frozen=True)
class Base:
    """A small valid checkpoint: its files by name."""

    name: str
    directory: Path
    files: dict[str, bytes]

    @property
    def weights(self) -> list[str]:
        return [name for name in self.files if name.endswith(".safetensors")]


def write_bases(place: Path) -> dict[str, Base]:
    """Writes a checkpoint of each kind, of some ten kilobytes each."""
    small = {"hidden_size": 8, "intermediate_size": 12, "image_size": 4, "patch_size": 2, "num_hidden_layers": 1}
    bases = {}
    for name, layout, variant, dtype, shards in (
        ("one file", "hub", "hf", "float32", 1),
        ("three files", "hf5", "hf", "bfloat16", 3),
        ("in memory", "memory", "hf", "float16", 2),
        ("the authors'", "pku", "original", "float16", 1),
        ("tied", "hub", "hf", "bfloat16", 1),
    ):
        tied = name == "tied"
        # The heads of the authors' towers are read off their width.
        vision = small | {"hidden_size": 64} if layout == "pku" else small
        config = small_config(variant, vision=vision, text={"num_hidden_layers": 1}, tie_word_embeddings=tied)
        parameters = random_parameters(config, 7, dtype)
        if tied:  # some writers store the head as well
            parameters["lm_head.weight"] = parameters["language_model.embed_tokens.weight"]
        directory = place / name.replace(" ", "-").replace("'", "")
        write_checkpoint(directory, config, parameters, layout, shards)
        bases[name] = _base(name, directory)
    convert_to_orbax(bases["one file"].directory, place / "orbax")
    bases[ORBAX] = _base(ORBAX, place / "orbax")
    return bases


def _base(name: str, directory: Path) -> Base:
    paths = [path for path in sorted(directory.rglob("*")) if path.is_file()]
    return Base(name, directory, {path.relative_to(directory).as_posix(): path.read_bytes() for path in paths})


Made = tuple[str, dict[str, Content]]
Maker = Callable[[random.Random, Base], Made]
"""Makes a mutation of a base: a note and the new files."""
