"""Checkpoints onto the device: transformers' safetensors, tensor by tensor without torch, and Orbax."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from orbax.checkpoint import v1 as ocp
from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from videollava_jax.config import VideoLlavaConfig
from videollava_jax.model import abstract_model, named_parameters
from videollava_jax.weights.layouts import COMPUTED, Layout, recognise

PARAMETERS = "params"  # the Orbax checkpoint inside a converted directory
SIDE_FILES = (
    "generation_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
    "chat_template.json",
    "chat_template.jinja",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)

Parameters = dict[str, jax.Array]


def is_orbax(directory: Path) -> bool:
    """Whether a directory is one that `save_orbax` wrote."""
    return (directory / PARAMETERS).is_dir()


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds.

    Attributes:
      layout: the layout that its names were recognised as; "orbax" for a directory of ours.
      config: its configuration.
      parameters: every tensor, by our names.
    """

    layout: str
    config: VideoLlavaConfig
    parameters: Parameters

    @property
    def size(self) -> int:
        """Parameters in all."""
        return sum(value.size for value in self.parameters.values())

    @property
    def nbytes(self) -> int:
        """Bytes of all parameters."""
        return sum(value.nbytes for value in self.parameters.values())


def load_checkpoint(directory: Path, dtype: DTypeLike | None = None) -> Checkpoint:
    """Loads a checkpoint in any known layout.

    Args:
      directory: a transformers directory (safetensors, sharded or not) or an Orbax directory of ours.
      dtype: of the parameters; None keeps each tensor's own.

    Raises:
      ValueError: the tensors are not those of the configuration; everything that is missing, unknown or of
        another shape is listed at once.
    """
    config = VideoLlavaConfig.from_hf(directory)
    expected = {name: value.shape for name, value in named_parameters(nnx.state(abstract_model(config))).items()}
    if is_orbax(directory):
        return Checkpoint("orbax", config, _load_orbax(directory, expected, dtype))
    files = _files_by_tensor(directory)
    layout = recognise(files)
    return Checkpoint(layout.name, config, _load_safetensors(directory, files, layout, config, expected, dtype))


def _load_safetensors(
    directory: Path,
    files: Mapping[str, Path],
    layout: Layout,
    config: VideoLlavaConfig,
    expected: Mapping[str, tuple[int, ...]],
    dtype: DTypeLike | None,
) -> Parameters:
    names = {name: layout.to_ours(name) or name for name in files if not name.endswith(COMPUTED)}
    if config.tie_word_embeddings:  # a tied head is the embedding, stored twice by some writers
        names = {theirs: ours for theirs, ours in names.items() if ours != "lm_head.weight"}
    problems = [f"missing: {name}" for name in sorted(set(expected) - set(names.values()))]
    problems += [f"unknown: {theirs}" for theirs, ours in sorted(names.items()) if ours not in expected]
    handles: dict[Path, Any] = {path: safe_open(path, "np") for path in sorted(set(files.values()))}
    for theirs, ours in names.items():
        shape = tuple(handles[files[theirs]].get_slice(theirs).get_shape())
        if ours in expected and shape != expected[ours]:
            problems.append(f"shape of {theirs}: expected {expected[ours]}, got {shape} in {files[theirs].name}")
    if problems:
        raise ValueError(
            f"{directory}: {len(problems)} tensors do not fit its config.json:\n  " + "\n  ".join(problems)
        )
    parameters: Parameters = {}
    for theirs, ours in tqdm(names.items(), desc="loading", unit="tensor", disable=None, leave=False):
        value = handles[files[theirs]].get_tensor(theirs)
        parameters[ours] = jnp.asarray(value, value.dtype if dtype is None else dtype)
    return parameters


def _files_by_tensor(directory: Path) -> dict[str, Path]:
    """Which safetensors file holds each tensor, from the index or from the files themselves."""
    index = directory / "model.safetensors.index.json"
    if index.exists():
        files = {name: directory / file for name, file in json.loads(index.read_text())["weight_map"].items()}
        outside = sorted({f.name for f in files.values() if f.parent != directory})
        if outside:
            raise ValueError(f"{index}: names files outside its own directory: {outside}")
        missing = sorted({path.name for path in files.values() if not path.exists()})
        if missing:
            raise ValueError(f"{directory}: the index names files that are not there: {missing}")
        return files
    paths = sorted(directory.glob("*.safetensors"))
    if not paths:
        raise ValueError(
            f"{directory}: expected *.safetensors or an Orbax directory of this project, found neither "
            f"({', '.join(sorted(p.name for p in directory.iterdir())[:8]) or 'an empty directory'})"
        )
    return {name: path for path in paths for name in _names_in(path)}


def _names_in(path: Path) -> Iterator[str]:
    try:
        with safe_open(path, "np") as file:
            yield from file.keys()
    except SafetensorError as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error})") from None


def _load_orbax(directory: Path, expected: Mapping[str, tuple[int, ...]], dtype: DTypeLike | None) -> Parameters:
    path = directory / PARAMETERS
    stored = ocp.metadata(path).metadata
    problems = [f"missing: {name}" for name in sorted(set(expected) - set(stored))]
    problems += [f"unknown: {name}" for name in sorted(set(stored) - set(expected))]
    problems += [
        f"shape of {name}: expected {expected[name]}, got {tuple(leaf.shape)}"
        for name, leaf in stored.items()
        if name in expected and tuple(leaf.shape) != expected[name]
    ]
    if problems:
        raise ValueError(
            f"{directory}: {len(problems)} tensors do not fit its config.json:\n  " + "\n  ".join(problems)
        )
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = {
        name: jax.ShapeDtypeStruct(  # type: ignore[no-untyped-call]
            leaf.shape, leaf.dtype if dtype is None else dtype, sharding=here
        )
        for name, leaf in stored.items()
    }
    loaded: Parameters = ocp.load(path, target)
    return loaded


def convert_to_orbax(source: Path, target: Path, dtype: DTypeLike | None = None) -> Checkpoint:
    """Converts a checkpoint in any known layout to an Orbax directory; what was converted.

    Args:
      source: what `load_checkpoint` reads.
      target: where the directory is to be; it must not exist yet.
      dtype: of the stored parameters; None keeps each tensor's own.

    Raises:
      ValueError: `target` exists, or what `load_checkpoint` raises.
    """
    _require_absent(target)  # before the work, not after it
    checkpoint = load_checkpoint(source, dtype)
    save_orbax(target, checkpoint.config, checkpoint.parameters, source)
    return checkpoint


def _require_absent(target: Path) -> None:
    if target.exists():
        raise ValueError(f"{target} exists: choose another place, or remove it first")


def save_orbax(target: Path, config: VideoLlavaConfig, parameters: Parameters, source: Path) -> None:
    """Writes an Orbax directory: parameters, config.json, and the tokenizer's and processor's files of `source`.

    The directory appears whole or not at all: it is written beside its place and renamed.

    Raises:
      ValueError: `target` exists.
    """
    _require_absent(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        ocp.save(temporary / PARAMETERS, parameters)
        (temporary / "config.json").write_text(json.dumps(config.to_hf(), indent=2) + "\n")
        for name in SIDE_FILES:
            if (source / name).exists():
                shutil.copyfile(source / name, temporary / name)
        os.chmod(temporary, 0o755)
        os.rename(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
