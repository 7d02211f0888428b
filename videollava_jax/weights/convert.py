"""Conversion: from any layout to Orbax and back, tensor by tensor, with a hash of everything that was written."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from videollava_jax.config import VideoLlavaConfig
from videollava_jax.weights.adapters import Adapter, is_adapter, merge_adapter, open_adapter
from videollava_jax.weights.checkpoint import ORBAX, Checkpoint, for_layout, open_checkpoint, stored_tensors
from videollava_jax.weights.directory import whole_directory
from videollava_jax.weights.errors import WeightsError, cause
from videollava_jax.weights.files import StoredTensor, drop_from_cache, write_safetensors_directory
from videollava_jax.weights.layouts import LAYOUTS
from videollava_jax.weights.manifest import Manifest, TensorHash, file_hashes, read_manifest, require, tensor_hash
from videollava_jax.weights.memory import reused_memory
from videollava_jax.weights.orbax import GROUP_BYTES, write_orbax
from videollava_jax.weights.pku import write_pku_config
from videollava_jax.weights.quantize import quantized
from videollava_jax.weights.verify import check_tensors, require_intact, verify_checkpoint

Array = npt.NDArray[Any]

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
SHARD_BYTES = 5 * 10**9


@dataclass(frozen=True)
class Conversion:
    """What was done.

    Attributes:
      source: the checkpoint that was read.
      layout: the layout that was written.
      tensors: what was written, with its hashes.
      already_there: the target held exactly this before: nothing was written.
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
    """What is done to tensors on the way.

    Attributes:
      dtype: of the tensors written; None keeps each one's own.
      int8: store the decoder's projections in int8 with a scale for each output channel (`quantize`); Orbax only.
      allow_nonfinite: let NaN and infinity pass; otherwise they are an error that counts them.
      files: of tokenizer and processor, in the place of the source's.
    """

    dtype: np.dtype[Any] | None = None
    int8: bool = False
    allow_nonfinite: bool = False
    files: Mapping[str, bytes] = field(default_factory=dict)


def convert_to_orbax(
    source: Path | Checkpoint | Adapter,
    target: Path,
    options: Options = Options(),
    *,
    tower_config: Path | None = None,
    base: Path | None = None,
) -> Conversion:
    """Converts a checkpoint in any known layout to an Orbax directory with its manifest.

    Args:
      source: the checkpoint, or with `base` an adapter; opened or where it lies.
      tower_config: LanguageBind's config.json, for a checkpoint of the authors'.
      base: the checkpoint that the adapter in `source` is merged into.

    Raises:
      WeightsError: what `open_checkpoint` raises, values that are not finite, a target that holds something else,
        or a disk that does not take it. What was there before is there still, and nothing else.
    """
    if isinstance(source, Adapter) and base is None:
        raise WeightsError(f"{source.directory}: expected the checkpoint that this adapter is merged into as `base`")
    opened = _open(base or source, tower_config, adapter=None if base is None else source)  # type: ignore[arg-type]
    config = opened.checkpoint.config.to_hf()
    return _write(opened, list(opened.checkpoint.tensors.values()), target, ORBAX, config, options)


def export(
    source: Path | Checkpoint,
    target: Path,
    layout: str,
    options: Options = Options(),
    *,
    drop_temporal: bool = False,
    adapter: Path | Adapter | None = None,
    max_shard_bytes: int = SHARD_BYTES,
) -> Conversion:
    """Writes a checkpoint (an Orbax directory of ours, or any other that is known) in another layout, as safetensors.

    Args:
      layout: "hub", "hf5", "memory" (transformers') or "pku" (the authors').
      drop_temporal: leave the video tower's attention over time out where the layout cannot hold it.
      adapter: an adapter to merge on the way: where it lies, or opened.

    Raises:
      WeightsError: as in `convert_to_orbax`, and where the layout cannot hold the model.
    """
    if options.int8:
        raise WeightsError(f"layout {layout} has no int8 weights: they are stored in Orbax directories alone")
    if layout not in LAYOUTS:
        raise WeightsError(f"layout: expected one of {', '.join(LAYOUTS)}, got {layout!r}")
    opened = _open(source, adapter=adapter)
    checkpoint = opened.checkpoint
    tensors = for_layout(checkpoint, LAYOUTS[layout], drop_temporal=drop_temporal)
    config = _without_temporal(checkpoint.config) if drop_temporal else checkpoint.config
    raw = write_pku_config(config) if layout == "pku" else config.to_hf()
    return _write(opened, tensors, target, layout, raw, options, max_shard_bytes)


@dataclass(frozen=True)
class _Opened:
    """A checkpoint to be handed on, and what its manifest says of it.

    Attributes:
      checkpoint: with an adapter merged into it where one is given.
      manifested: the tensors of the manifest, by what reads them: a tensor that is passed on as it is keeps that.
      manifest: empty where there is none.
    """

    checkpoint: Checkpoint
    manifested: Mapping[Callable[[], Array], StoredTensor]
    manifest: Manifest

    def require_intact(self, tensors: Iterable[StoredTensor]) -> dict[str, TensorHash]:
        """What the manifest says of the tensors that are passed on as they are, to be compared when they pass.

        What is damaged is not handed on with hashes of its own: the tensors that are changed on the way, or stay
        behind, are read and compared here.

        Raises:
          WeightsError: a tensor of these is not what the manifest says.
        """
        as_they_are = {tensor.name: tensor.read for tensor in tensors if tensor.read in self.manifested}
        passed = set(as_they_are.values())
        others = {t.name: t for read, t in self.manifested.items() if read not in passed}
        require(self.checkpoint.directory, check_tensors(self.manifest, others))
        return {name: self.manifest.tensors[self.manifested[read].name] for name, read in as_they_are.items()}


def _open(
    source: Path | Checkpoint, tower_config: Path | None = None, *, adapter: Path | Adapter | None = None
) -> _Opened:
    if isinstance(source, Checkpoint):
        checkpoint, stored, manifest = source, {}, None
    else:
        if is_adapter(source):
            raise WeightsError(f"{source}: an adapter, not a model: --base says which checkpoint it is merged into")
        require_intact(source, "fast")
        manifest = read_manifest(source)
        stored = {} if manifest is None else stored_tensors(source)
        checkpoint = open_checkpoint(source, tower_config)
    if adapter is not None:
        checkpoint = merge_adapter(checkpoint, open_adapter(adapter) if isinstance(adapter, Path) else adapter)
    return _Opened(checkpoint, {tensor.read: tensor for tensor in stored.values()}, manifest or Manifest({}, {}))


def _write(
    opened: _Opened,
    tensors: list[StoredTensor],
    target: Path,
    layout: str,
    config: dict[str, Any],
    options: Options,
    max_shard_bytes: int = SHARD_BYTES,
) -> Conversion:
    """Writes tensors, as they are named and shaped here, into a directory of a layout."""
    checkpoint = opened.checkpoint
    if options.dtype is not None:
        tensors = [_cast(tensor, options.dtype) for tensor in tensors]
    if options.int8:
        tensors = quantized(tensors)
    files = {"config.json": (json.dumps(config, indent=2) + "\n").encode()}
    files |= {**_side_files(checkpoint.directory), **options.files}
    manifested = opened.require_intact(tensors)
    if os.path.lexists(target):
        stream = _Stream(checkpoint.directory, tensors, options, manifested, "compare")
        _require_same(target, stream, files)
        return Conversion(checkpoint, layout, stream.hashes, already_there=True)
    stream = _Stream(checkpoint.directory, tensors, options, manifested, f"to {layout}")
    with whole_directory(target) as directory:
        if layout == ORBAX:
            write_orbax(directory, tensors, ({t.name: a for t, a in group} for group in stream.groups()))
        else:
            arrays = (array for group in stream.groups() for _, array in group)
            write_safetensors_directory(directory, tensors, arrays, max_shard_bytes=max_shard_bytes)
        stream.require_intact()
        stream.require_finite()
        for name, content in files.items():
            (directory / name).write_bytes(content)
        Manifest(stream.hashes, file_hashes(directory)).write(directory)
    return Conversion(checkpoint, layout, stream.hashes, already_there=False)


def _side_files(directory: Path) -> dict[str, bytes]:
    """The files of tokenizer and processor, which a conversion hands on as they are."""
    files = {}
    for path in (directory / name for name in SIDE_FILES):
        try:
            if path.is_file():
                files[path.name] = path.read_bytes()
        except OSError as error:
            raise WeightsError(f"{path}: cannot be read ({cause(error)})") from None
    return files


def _cast(tensor: StoredTensor, dtype: np.dtype[Any]) -> StoredTensor:
    if tensor.dtype == dtype:
        return tensor
    return dataclasses.replace(tensor, dtype=dtype, read=lambda: tensor.read().astype(dtype))


class _Stream:
    """Reads tensors a group ahead of the writer, and looks over and hashes each group while it is being written.

    reader     read 1 │ read 2        │ read 3        │ …
    checker           │ check, hash 1 │ check, hash 2 │ …
    writer            │ write 1       │ write 2       │ …

    Attributes:
      tensors: what is read, in this order.
      hashes: of what has been read.
    """

    def __init__(
        self,
        directory: Path,
        tensors: list[StoredTensor],
        options: Options,
        manifested: Mapping[str, TensorHash],
        title: str,
    ):
        """What is read of a directory, and what its manifest says of the tensors that it holds just so."""
        self._directory, self.tensors, self._options = directory, tensors, options
        self._manifested, self._title = manifested, title
        self.hashes: dict[str, TensorHash] = {}
        self._nonfinite: dict[str, tuple[int, int]] = {}

    def groups(self) -> Iterator[list[tuple[StoredTensor, Array]]]:
        """The groups in order; when the last one has been taken, all hashes and counts are there."""
        total = sum(tensor.nbytes for tensor in self.tensors)
        with (
            reused_memory(),
            ThreadPoolExecutor(1) as reader,
            ThreadPoolExecutor(1) as checker,
            tqdm(total=total, desc=self._title, unit="B", unit_scale=True, disable=None, leave=False) as bar,
        ):
            groups = _grouped(self.tensors, GROUP_BYTES)
            ahead = reader.submit(_read, next(groups, []))
            while group := ahead.result():
                ahead = reader.submit(_read, next(groups, []))
                checked = checker.submit(self._check, group)
                yield group
                checked.result()
                bar.update(sum(tensor.nbytes for tensor, _ in group))

    def _check(self, group: list[tuple[StoredTensor, Array]]) -> None:
        for tensor, array in group:
            if not self._options.allow_nonfinite and (counts := nonfinite(array)) != (0, 0):
                self._nonfinite[tensor.name] = counts
            self.hashes[tensor.name] = tensor_hash(array)

    def require_intact(self) -> None:
        """Raises a WeightsError with the tensors that are not what the source's manifest says."""
        wrong = [name for name, expected in self._manifested.items() if self.hashes[name] != expected]
        require(self._directory, [f"tensor {name}: its SHA-256 is not the manifest's" for name in wrong])

    def require_finite(self) -> None:
        """Raises a WeightsError that counts what is not finite, tensor by tensor."""
        if self._nonfinite:
            lines = [f"{name}: {nans} NaN, {infs} infinite" for name, (nans, infs) in self._nonfinite.items()]
            raise WeightsError(
                f"{self._directory}: {len(lines)} tensors hold values that are not finite (--allow-nonfinite lets them "
                "pass):\n  " + "\n  ".join(lines[:50])
            )


def _read(group: list[StoredTensor]) -> list[tuple[StoredTensor, Array]]:
    arrays = [(tensor, tensor.read()) for tensor in group]
    for file in {tensor.file for tensor in group if tensor.file.is_file()}:
        drop_from_cache(file)
    return arrays


_EXPONENT: dict[str, tuple[type[np.unsignedinteger[Any]], int]] = {
    "float16": (np.uint16, 0x7C00),
    "bfloat16": (np.uint16, 0x7F80),
    "float32": (np.uint32, 0x7F800000),
}
_BLOCK = 2**17  # values that stay in the cache of a core while they are looked over


def nonfinite(array: Array) -> tuple[int, int]:
    """(NaN, infinite): how many values are so."""
    if np.issubdtype(array.dtype, np.integer):
        return 0, 0
    if array.dtype.name not in _EXPONENT:
        return int(np.isnan(array).sum()), int(np.isinf(array).sum())
    kind, exponent = _EXPONENT[array.dtype.name]
    bits = np.ascontiguousarray(array).reshape(-1).view(kind)
    masked = np.empty(min(len(bits), _BLOCK), kind)
    most = 0
    for start in range(0, len(bits), _BLOCK):
        block = bits[start : start + _BLOCK]
        most = max(most, int(np.bitwise_and(block, kind(exponent), out=masked[: len(block)]).max()))
    if most < exponent:
        return 0, 0
    values = array.astype(np.float32)
    return int(np.isnan(values).sum()), int(np.isinf(values).sum())


def _grouped(tensors: Iterable[StoredTensor], nbytes: int) -> Iterator[list[StoredTensor]]:
    """Neighbours together, up to so many bytes a group."""
    group: list[StoredTensor] = []
    size = 0
    for tensor in tensors:
        if group and size + tensor.nbytes > nbytes:
            yield group
            group, size = [], 0
        group.append(tensor)
        size += tensor.nbytes
    if group:
        yield group


def _require_same(target: Path, stream: _Stream, files: dict[str, bytes]) -> None:
    """Makes sure that a target holds exactly what would be written, to the last bit.

    Raises:
      WeightsError: it holds something else, or is damaged, or the source is.
    """
    manifest = read_manifest(target) if target.is_dir() else None
    expected = {tensor.name: (tensor.dtype.name, tensor.shape) for tensor in stream.tensors}
    if (
        manifest is not None
        and expected == {n: (t.dtype, t.shape) for n, t in manifest.tensors.items()}
        and all((target / n).is_file() and (target / n).read_bytes() == content for n, content in files.items())
    ):
        for _ in stream.groups():
            pass
        stream.require_intact()
        if stream.hashes == manifest.tensors and not verify_checkpoint(target):
            return
    raise WeightsError(f"{target} exists and holds something else: choose another place, or remove it first")


def _without_temporal(config: VideoLlavaConfig) -> VideoLlavaConfig:
    return dataclasses.replace(config, variant="hf")
