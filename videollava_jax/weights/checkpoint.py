"""Checkpoints of any layout as tensors under our names, none of them read yet; and back to any layout's names."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from videollava_jax.config import ModelConfig
from videollava_jax.hub import StrPath, local_path
from videollava_jax.model.video_llava import parameter_shapes
from videollava_jax.weights.errors import WeightsError, cause
from videollava_jax.weights.files import StoredTensor
from videollava_jax.weights.layouts import EMBEDDING, HEAD, TEMPORAL, VOCABULARY, Layout, Rows, learnt, recognise
from videollava_jax.weights.pku import is_pku_config, padded_rows, read_json, read_pku_config
from videollava_jax.weights.quantize import dequantized
from videollava_jax.weights.source import ADAPTER_CONFIG, Source

LEAST_OF_A_LAYER = 9
"""Tensors in a decoder layer without biases; a tower's layer has more."""
FLOATS = ("float64", "float32", "float16", "bfloat16")
ORBAX = "orbax"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk, or in memory.

    Attributes:
      directory: the absolute path of its directory.
      layout: the layout that it was recognised as; "orbax" for what `convert_to_orbax` wrote.
      config: its configuration.
      tensors: by our names, in our shapes.
      source: the directory that it was opened from; None for parameters in memory.
    """

    directory: Path
    layout: str
    config: ModelConfig
    tensors: Mapping[str, StoredTensor]
    source: Source | None = None

    @property
    def size(self) -> int:
        """Parameters in all."""
        return sum(tensor.size for tensor in self.tensors.values())

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


def open_checkpoint(directory: StrPath | Source, tower_config: StrPath | None = None) -> Checkpoint:
    """Opens a checkpoint in any known layout and checks its names, shapes and dtypes; no tensor is read.

    Args:
      directory: in one of transformers' layouts (hub, 5.x, in memory), the authors' (pku), or what `convert_to_orbax`
        wrote; or what `Source.open` returned for it.
      tower_config: LanguageBind's own config.json, for what the authors' does not say of the towers; by default it
        is read off the weights' shapes.

    Raises:
      WeightsError: everything that is missing, unknown, of another shape or dtype is listed at once.
    """
    source = Source.open(directory)
    path, stored = source.directory, source.stored
    tower = None if tower_config is None else local_path(tower_config)
    if source.is_orbax:
        found = dequantized(stored)
        config = _read_config(path, found, tower)
        _require_fit(path, config, found, {})
        return Checkpoint(path, ORBAX, config, found, source)
    if ADAPTER_CONFIG in source.names and not source.has_model:
        raise WeightsError(
            f"{path}: an adapter, not a model: merge it into one (`videollava convert ADAPTER TARGET --base MODEL`)"
        )
    try:
        layout = recognise(stored)
    except WeightsError as error:
        if "config.json" in source.names:
            _require_floats(path / "config.json", read_json(path / "config.json"))
        raise WeightsError(f"{path}: {error}") from None
    by_ours = {layout.to_ours(name) or name: stored[name] for name in learnt(stored)}
    config = _read_config(path, by_ours, tower)
    if config.tie_word_embeddings:
        by_ours = _untie(path, by_ours)
    if not layout.media_rows:
        # The rows in the file have to be as many as the configuration says: only those after them are made up.
        extra = config.text_config.vocab_size - min(config.image_token_id, config.video_token_id)
        by_ours |= {name: _with_rows(by_ours[name], extra) for name in VOCABULARY if name in by_ours}
    _require_fit(path, config, by_ours, {ours: tensor.name for ours, tensor in by_ours.items()})
    named = {ours: dataclasses.replace(tensor, name=ours) for ours, tensor in by_ours.items()}
    return Checkpoint(path, layout.name, config, named, source)


def checkpoint_of(config: ModelConfig, parameters: Mapping[str, Any]) -> Checkpoint:
    """Returns parameters in memory, by our names, as a checkpoint; int8 weights become floats when they are read."""
    nowhere = Path("<in memory>")
    return Checkpoint(
        nowhere,
        ORBAX,
        config,
        dequantized(
            {
                name: StoredTensor(name, value.shape, np.dtype(value.dtype), nowhere, partial(np.array, value))
                for name, value in parameters.items()
            }
        ),
    )


def _read_config(directory: Path, tensors: Mapping[str, StoredTensor], tower_config: Path | None) -> ModelConfig:
    """Reads the configuration of a checkpoint, and makes sure that it can be written and read again.

    Raises:
      WeightsError: it is not a configuration of this model.
    """
    path = directory / "config.json"
    with _as_weights_error(path):
        raw = read_json(path)
        _require_floats(path, raw)
        if is_pku_config(raw):
            config = read_pku_config(directory, raw, tensors, tower_config)
        else:
            config = ModelConfig.from_hf(raw)
        again = ModelConfig.from_hf(config.to_hf())
    if again != config:
        raise WeightsError(f"{path}: a conversion would change it: expected to read {config} again, got {again}")
    return config


def _require_floats(path: Path, raw: Mapping[str, Any]) -> None:
    """Raises a WeightsError for weights that another library has quantised: their names alone would say little."""
    settings = raw.get("quantization_config")
    if isinstance(settings, Mapping) and settings:
        raise WeightsError(
            f"{path}: quantization_config says that the weights are quantised ({settings.get('quant_method', '?')!s}); "
            "expected floats: take the checkpoint that they were made from, or write it back with transformers "
            "(model.dequantize(), then save_pretrained); for int8 here, `convert --int8`"
        )


@contextmanager
def _as_weights_error(path: Path) -> Iterator[None]:
    """Turns what transformers and Flax raise for unexpected values, which is of many kinds, into a WeightsError."""
    try:
        yield
    except (WeightsError, ImportError):
        raise
    except Exception as error:
        text = " ".join(str(error).split()) if type(error) is ValueError else cause(error)
        raise WeightsError(f"{path}: {text}") from error


def for_layout(checkpoint: Checkpoint, layout: Layout, *, drop_temporal: bool = False) -> list[StoredTensor]:
    """Returns the checkpoint's tensors with the names and shapes of a layout, in our order.

    Raises:
      WeightsError: the layout cannot hold them. With `drop_temporal`, the video tower's attention over time is left
        out instead.
    """
    tensors = dict(checkpoint.tensors)
    temporal = [name for name in tensors if TEMPORAL in name]
    if temporal and not layout.temporal:
        if not drop_temporal:
            size = sum(tensors[name].size for name in temporal)
            raise WeightsError(
                f"{checkpoint.directory}: layout {layout.name} cannot hold the video tower's attention over time "
                f"({len(temporal)} tensors, {size:,} parameters); --drop-temporal leaves it out, and the model that is "
                "written gives other answers"
            )
        tensors = {name: tensor for name, tensor in tensors.items() if name not in temporal}
    if layout.temporal and checkpoint.config.variant != "original":
        raise WeightsError(
            f"{checkpoint.directory}: layout {layout.name} needs the video tower's attention over time, and this is an "
            f"{checkpoint.config.variant!r} model, which has none: export it to one of transformers' layouts"
        )
    if not layout.media_rows:
        first = min(checkpoint.config.image_token_id, checkpoint.config.video_token_id)
        if checkpoint.config.text_config.vocab_size != padded_rows(first):
            raise WeightsError(
                f"{checkpoint.directory}: layout {layout.name} holds only the {first:,} rows of the vocabulary before "
                f"the tokens of media; the {padded_rows(first) - first} after them are made up when it is read: "
                f"expected {padded_rows(first):,} rows in all, got {checkpoint.config.text_config.vocab_size:,}: some "
                "would be lost"
            )
        tensors |= {name: _without_rows(tensors[name], first) for name in VOCABULARY if name in tensors}
    return [dataclasses.replace(tensor, name=layout.from_ours(name)) for name, tensor in tensors.items()]


def _with_rows(tensor: StoredTensor, extra: int) -> StoredTensor:
    change = Rows(max(0, extra) if tensor.shape else 0)
    return dataclasses.replace(
        tensor, shape=change.forward_shape(tensor.shape), read=lambda: change.forward(tensor.read())
    )


def _without_rows(tensor: StoredTensor, rows: int) -> StoredTensor:
    change = Rows(max(0, tensor.shape[0] - rows))
    return dataclasses.replace(
        tensor, shape=change.inverse_shape(tensor.shape), read=lambda: change.inverse(tensor.read())
    )


def _untie(directory: Path, tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Drops the head of a model that ties it to the embedding; some writers store it as well, and it must be equal."""
    head, embedding = tensors.get(HEAD), tensors.get(EMBEDDING)
    if head is None or embedding is None:
        return tensors
    alike = (head.shape, head.dtype) == (embedding.shape, embedding.dtype)
    if not alike or head.read().tobytes() != embedding.read().tobytes():
        raise WeightsError(
            f"{directory}: config.json ties the head to the embedding, and {head.name} differs from it: one of the two "
            "would be lost; set tie_word_embeddings to false if the head is its own"
        )
    return {name: tensor for name, tensor in tensors.items() if name != HEAD}


def _require_fit(
    directory: Path, config: ModelConfig, tensors: Mapping[str, StoredTensor], theirs: Mapping[str, str]
) -> None:
    path = directory / "config.json"
    layers = config.text_config.num_hidden_layers + config.vision_config.num_hidden_layers
    if layers * LEAST_OF_A_LAYER > len(tensors):  # to work out the shapes of a million layers would take days
        raise WeightsError(
            f"{path}: {layers} layers, and the checkpoint holds {len(tensors)} tensors in all: expected "
            f"{LEAST_OF_A_LAYER} for each layer at the least"
        )
    with _as_weights_error(path):
        expected = parameter_shapes(config)
    problems = [f"missing: {name}" for name in sorted(expected.keys() - tensors.keys())]
    problems += [f"unknown: {theirs.get(name, name)}" for name in sorted(tensors.keys() - expected.keys())]
    for name, tensor in tensors.items():
        called = theirs.get(name, name)
        if name in expected and tensor.shape != expected[name]:
            problems.append(f"shape of {called}: expected {expected[name]}, got {tensor.shape} in {tensor.file.name}")
        if tensor.dtype.name not in FLOATS:
            problems.append(f"dtype of {called}: expected one of {', '.join(FLOATS)}, got {tensor.dtype.name}")
    if {"float16", "bfloat16"} <= {tensor.dtype.name for tensor in tensors.values()}:
        halves = {kind: [n for n, t in tensors.items() if t.dtype.name == kind] for kind in ("float16", "bfloat16")}
        few = min(halves, key=lambda kind: len(halves[kind]))
        problems.append(f"float16 and bfloat16 in one checkpoint: {few} are {', '.join(halves[few][:5])}")
    if problems:
        raise WeightsError(
            f"{directory}: {len(problems)} tensors do not fit its config.json:\n  " + "\n  ".join(problems)
        )
