"""Conversion from any layout to Orbax and back, tensor by tensor, with a hash of everything that is written."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from videollava_jax.config import ModelConfig
from videollava_jax.hub import StrPath, local_path
from videollava_jax.processing.files import with_preset
from videollava_jax.weights.adapters import Adapter, is_adapter, merge_adapter, open_adapter
from videollava_jax.weights.adapters.bases import trained_on
from videollava_jax.weights.assembling import assemble_for, is_language_model, open_towers
from videollava_jax.weights.checkpoint import ORBAX, Checkpoint, for_layout, open_checkpoint
from videollava_jax.weights.directory import is_there, whole_directory
from videollava_jax.weights.errors import WeightsError, cause
from videollava_jax.weights.files import StoredTensor
from videollava_jax.weights.layouts import LAYOUTS
from videollava_jax.weights.manifest import Manifest, TensorHash, check_tensors, file_hashes, require
from videollava_jax.weights.orbax_errors import was_interrupted
from videollava_jax.weights.pku import write_pku_config
from videollava_jax.weights.quantize import quantize_tensors
from videollava_jax.weights.source import Source
from videollava_jax.weights.stream import Stream
from videollava_jax.weights.towers import Tower
from videollava_jax.weights.writing import write_safetensors_directory

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
PROCESSOR_CONFIG = "processor_config.json"
SHARD_BYTES = 5 * 10**9
_ATTEMPTS = 3
"""How often an Orbax directory is written whose writer was interrupted by a signal: TensorStore does not go on then."""
_SETTLING = 1.0
"""Seconds between two of these attempts."""


@dataclass(frozen=True)
class Conversion:
    """The result of a conversion.

    Attributes:
      source: the checkpoint that was read.
      layout: the layout that was written.
      tensors: hashes of the tensors that were written, by name.
      already_there: the target held exactly this before, and nothing was written.
    """

    source: Checkpoint
    layout: str
    tensors: dict[str, TensorHash]
    already_there: bool

    @property
    def size(self) -> int:
        """Parameters written."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors.values())

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors written."""
        return sum(math.prod(tensor.shape) * jnp.dtype(tensor.dtype).itemsize for tensor in self.tensors.values())


@dataclass(frozen=True)
class Options:
    """The changes that a conversion makes.

    Attributes:
      dtype: of the tensors written; None keeps each tensor's own.
      int8: store the decoder's projections in int8 with a scale for each output channel (`quantize`); Orbax only.
      allow_nonfinite: let NaN and infinity pass; otherwise they are an error with their counts.
      files: contents by name, which replace the source's files of tokenizer and processor.
    """

    dtype: np.dtype[Any] | None = None
    int8: bool = False
    allow_nonfinite: bool = False
    files: Mapping[str, bytes] = field(default_factory=dict)


def convert_to_orbax(
    source: StrPath | Checkpoint | Adapter,
    target: StrPath,
    options: Options = Options(),
    *,
    tower_config: StrPath | None = None,
    base: StrPath | Checkpoint | None = None,
    image_tower: StrPath | None = None,
    video_tower: StrPath | None = None,
    projector: StrPath | None = None,
    trust_base: bool = False,
) -> Conversion:
    """Converts a checkpoint in any known layout to an Orbax directory with its manifest.

    Args:
      source: the checkpoint, or with `base` an adapter; its directory, or opened.
      target: must not exist, or hold exactly this already.
      tower_config: LanguageBind's config.json, for a checkpoint of the authors'.
      base: the checkpoint that the adapter in `source` is merged into: a Video-LLaVA, or a language model, which takes
        the projector of the adapter.
      image_tower, video_tower: the towers of a language model, or of a checkpoint that was saved without them.
      projector: the projector of an adapter onto a language model that was trained with a frozen one.
      trust_base: `base` is what the adapter was trained on, whatever the names of both say.

    Raises:
      WeightsError: what `open_checkpoint` raises, values that are not finite, a target that holds something else,
        or a disk that does not take it. Nothing is written then.
    """
    if base is None:
        if isinstance(source, Adapter):
            raise WeightsError(
                f"{source.directory}: expected the checkpoint that this adapter is merged into as `base`"
            )
        checkpoint = _open(source, tower_config, open_towers(image_tower, video_tower, tower_config))
    elif isinstance(source, Checkpoint):
        raise WeightsError(f"{source.directory}: a checkpoint; with `base` an adapter was expected")
    else:
        towers, adapter = open_towers(image_tower, video_tower, tower_config), _open_adapter(source)
        if isinstance(base, Checkpoint) or not is_language_model(base):
            if projector is not None:
                raise WeightsError("--projector: expected a language model as the base; a Video-LLaVA has a projector")
            checkpoint = _open(base, tower_config, towers)
        else:
            checkpoint = assemble_for(adapter, base, towers, projector, keep_dtypes=options.dtype is not None)
        checkpoint = merge_adapter(checkpoint, adapter, trust_base=trust_base)
    return _write(checkpoint, list(checkpoint.tensors.values()), target, ORBAX, checkpoint.config.to_hf(), options)


def export(
    source: StrPath | Checkpoint,
    target: StrPath,
    layout: str,
    options: Options = Options(),
    *,
    drop_temporal: bool = False,
    adapter: StrPath | Adapter | None = None,
    trust_base: bool = False,
    max_shard_bytes: int = SHARD_BYTES,
) -> Conversion:
    """Writes a checkpoint (what `convert_to_orbax` wrote, or in any other known layout) as safetensors.

    Args:
      source: the checkpoint's directory, or opened.
      target: must not exist, or hold exactly this already.
      layout: "hub", "hf5", "memory" (transformers') or "pku" (the authors').
      drop_temporal: leave the video tower's attention over time out where the layout cannot hold it.
      adapter: an adapter to merge on the way: its directory, or opened.
      trust_base: as in `convert_to_orbax`.
      max_shard_bytes: of one file; a tensor that is larger gets a file of its own.

    Raises:
      WeightsError: as in `convert_to_orbax`, and where the layout cannot hold the model.
    """
    if options.int8:
        raise WeightsError(f"layout {layout} has no int8 weights: they are stored in Orbax directories alone")
    if layout not in LAYOUTS:
        raise WeightsError(f"layout: expected one of {', '.join(LAYOUTS)}, got {layout!r}")
    checkpoint = _open(source)
    if adapter is not None:
        checkpoint = merge_adapter(checkpoint, _open_adapter(adapter), trust_base=trust_base)
    tensors = for_layout(checkpoint, LAYOUTS[layout], drop_temporal=drop_temporal)
    config = _without_temporal(checkpoint.config) if drop_temporal else checkpoint.config
    raw = write_pku_config(config) if layout == "pku" else config.to_hf()
    return _write(checkpoint, tensors, target, layout, raw, options, max_shard_bytes)


def _open(
    source: StrPath | Checkpoint, tower_config: StrPath | None = None, towers: Mapping[str, Tower] | None = None
) -> Checkpoint:
    """Opens a checkpoint, after comparing its files, names, shapes and dtypes with its manifest."""
    if isinstance(source, Checkpoint):
        if source.source is not None:
            source.source.require_intact("fast")
        return source
    opened = Source.open(source)
    if is_adapter(opened):
        name = trained_on(open_adapter(opened)).name
        raise WeightsError(
            f"{source}: an adapter, not a model: --base says which checkpoint it is merged into"
            + ("" if name is None else f"; it was trained on {name}")
        )
    opened.require_intact("fast")
    return open_checkpoint(opened, tower_config, towers)


def _open_adapter(adapter: StrPath | Adapter) -> Adapter:
    return adapter if isinstance(adapter, Adapter) else open_adapter(adapter)


def _manifested(checkpoint: Checkpoint, tensors: Iterable[StoredTensor]) -> dict[str, TensorHash]:
    """Returns what the source's manifest says of the tensors that are copied unchanged, to be compared as they stream.

    Damage is not handed on under new hashes: the source's tensors that are changed on the way, or left out, are read
    and compared here.

    Raises:
      WeightsError: one of the latter is not what the manifest says.
    """
    source = checkpoint.source
    if source is None or source.manifest is None:
        return {}
    # A tensor that is copied unchanged, under whatever name, keeps the callable that reads it.
    by_reader = {tensor.read: tensor for tensor in source.stored.values()}
    unchanged = {tensor.name: tensor.read for tensor in tensors if tensor.read in by_reader}
    readers = set(unchanged.values())
    others = {tensor.name: tensor for read, tensor in by_reader.items() if read not in readers}
    require(source.directory, check_tensors(source.manifest, others))
    return {name: source.manifest.tensors[by_reader[read].name] for name, read in unchanged.items()}


def _write(
    checkpoint: Checkpoint,
    tensors: list[StoredTensor],
    target: StrPath,
    layout: str,
    config: dict[str, Any],
    options: Options,
    max_shard_bytes: int = SHARD_BYTES,
) -> Conversion:
    """Writes tensors, named and shaped as the layout has them, into a directory of that layout."""
    if options.dtype is not None:
        tensors = [tensor.cast(options.dtype) for tensor in tensors]
    if options.int8:
        tensors = quantize_tensors(tensors)
    files = {"config.json": (json.dumps({**config, **checkpoint.inputs}, indent=2) + "\n").encode()}
    files |= {**_side_files(checkpoint), **options.files}
    files |= _preset_file(checkpoint, files.get(PROCESSOR_CONFIG))
    manifested = _manifested(checkpoint, tensors)

    def new_stream(title: str) -> Stream:
        return Stream(checkpoint.directory, tensors, manifested, allow_nonfinite=options.allow_nonfinite, title=title)

    if is_there(target):
        stream = new_stream("compare")
        _require_same(target, stream, files)
        return Conversion(checkpoint, layout, stream.hashes, already_there=True)
    for attempt in range(1, _ATTEMPTS + 1):
        stream = new_stream(f"to {layout}")
        try:
            _write_directory(target, stream, layout, files, max_shard_bytes)
            break
        except WeightsError as error:
            if layout != ORBAX or not was_interrupted(error) or attempt == _ATTEMPTS:
                raise
            # Its threads may still be at work, and make directories that the next attempt would find and warn of.
            time.sleep(_SETTLING)
    return Conversion(checkpoint, layout, stream.hashes, already_there=False)


def _write_directory(
    target: StrPath, stream: Stream, layout: str, files: Mapping[str, bytes], max_shard_bytes: int
) -> None:
    """Writes a stream of tensors, files and a manifest into a directory that appears when all of it is written."""
    with whole_directory(target) as directory:
        if layout == ORBAX:
            from videollava_jax.weights.orbax import write_orbax

            write_orbax(directory, stream.tensors, ({t.name: a for t, a in group} for group in stream.groups()))
        else:
            arrays = (array for group in stream.groups() for _, array in group)
            write_safetensors_directory(directory, stream.tensors, arrays, max_shard_bytes=max_shard_bytes)
        stream.require_intact()
        stream.require_finite()
        for name, content in files.items():
            (directory / name).write_bytes(content)
        Manifest(stream.hashes, file_hashes(directory)).write(directory)


def _side_files(checkpoint: Checkpoint) -> dict[str, bytes]:
    """Reads the files of tokenizer and processor, which a conversion copies unchanged."""
    files: dict[str, bytes] = {}
    if checkpoint.source is None:
        return files
    for path in (checkpoint.directory / name for name in SIDE_FILES if name in checkpoint.source.names):
        try:
            if path.is_file():
                files[path.name] = path.read_bytes()
        except OSError as error:
            raise WeightsError(f"{path}: cannot be read ({cause(error)})") from None
    return files


def _preset_file(checkpoint: Checkpoint, processor_config: bytes | None) -> dict[str, bytes]:
    """Returns the file in which the copy says how it wants to be asked, where its config.json will not say it."""
    if checkpoint.source is None or checkpoint.config.variant == "hf":
        return {}
    try:
        made = with_preset(checkpoint.directory, processor_config)
    except ValueError as error:
        raise WeightsError(str(error)) from None
    return {} if made is None else {PROCESSOR_CONFIG: made}


def _require_same(target: StrPath, stream: Stream, files: dict[str, bytes]) -> None:
    """Makes sure that a target holds exactly what would be written, to the bit.

    Raises:
      WeightsError: it holds something else, or is damaged, or the source is.
    """
    expected = {tensor.name: (tensor.dtype.name, tensor.shape) for tensor in stream.tensors}
    held = Source.open(target) if os.path.isdir(local_path(target)) else None
    if (
        held is not None
        and held.manifest is not None
        and expected == {n: (t.dtype, t.shape) for n, t in held.manifest.tensors.items()}
        and all(_holds(held.directory / name, content) for name, content in files.items())
    ):
        for _ in stream.groups():
            pass
        stream.require_intact()
        if stream.hashes == held.manifest.tensors and not held.problems("full"):
            return
    raise WeightsError(f"{target} exists and holds something else: choose another path, or remove it first")


def _holds(path: Path, content: bytes) -> bool:
    return path.is_file() and path.read_bytes() == content


def _without_temporal(config: ModelConfig) -> ModelConfig:
    return dataclasses.replace(config, variant="hf")
