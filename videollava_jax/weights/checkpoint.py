"""Checkpoints of any layout as tensors under our names, none of them read yet; and back to any layout's names."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from videollava_jax.config import PROJECTOR_LAYERS, ModelConfig
from videollava_jax.hub import StrPath, local_path
from videollava_jax.model.video_llava import parameter_shapes
from videollava_jax.weights.errors import WeightsError, cause
from videollava_jax.weights.files import StoredTensor
from videollava_jax.weights.layouts import EMBEDDING, HEAD, TEMPORAL, VOCABULARY, Layout, Rows, learnt, recognise
from videollava_jax.weights.pku import INPUT_KEYS, is_pku_config, padded_rows, read_pku_config, refusals
from videollava_jax.weights.quantize import dequantized
from videollava_jax.weights.source import Source
from videollava_jax.weights.towers import KINDS, Tower

LEAST_OF_A_LAYER = 9
"""Tensors in a decoder layer without biases; a tower's layer has more."""
FLOATS = ("float64", "float32", "float16", "bfloat16")
ORBAX = "orbax"
PARTS = "parts"
"""The layout of a checkpoint that is assembled from parts (`assembling`)."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk, or in memory.

    Attributes:
      directory: the absolute path of its directory.
      layout: the layout that it was recognised as; "orbax" for what `convert_to_orbax` wrote, "parts" for a language
        model that was given towers and a projector.
      config: its configuration.
      tensors: by our names, in our shapes.
      source: the directory that it was opened from; None for parameters in memory.
      inputs: keys of its config.json beyond `config`, such as those that say how inputs are made (`pku.INPUT_KEYS`);
        conversions keep them.
    """

    directory: Path
    layout: str
    config: ModelConfig
    tensors: Mapping[str, StoredTensor]
    source: Source | None = None
    inputs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Parameters in all."""
        return sum(tensor.size for tensor in self.tensors.values())

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


def open_checkpoint(
    directory: StrPath | Source,
    tower_config: StrPath | None = None,
    towers: Mapping[str, Tower] | None = None,
) -> Checkpoint:
    """Opens a checkpoint in any known layout and checks its names, shapes and dtypes; no tensor is read.

    Args:
      directory: in one of transformers' layouts (hub, 5.x, in memory), the authors' (pku), or what `convert_to_orbax`
        wrote; or what `Source.open` returned for it.
      tower_config: LanguageBind's own config.json, for what the authors' does not say of the towers; by default it
        is read off the weights' shapes.
      towers: by "image" and "video", the towers that a checkpoint of the authors' was saved without.

    Raises:
      WeightsError: everything that is missing, unknown, of another shape or dtype is listed at once.
    """
    source = Source.open(directory)
    path = source.directory
    if source.has_adapter and not source.has_model:
        raise WeightsError(
            f"{path}: an adapter, not a model: merge it into one (`videollava convert {path.name} TARGET --base MODEL`)"
        )
    stored = source.stored
    tower = None if tower_config is None else local_path(tower_config)
    if source.is_orbax:
        _require_own_towers(path, towers)
        found = dequantized(stored)
        config = _read_config(source, found, tower)
        _require_fit(path, config, found, {})
        return Checkpoint(path, ORBAX, config, found, source, _inputs(source))
    raw = source.config_if_any
    try:
        layout = recognise(stored)
    except WeightsError as error:
        _require_floats(path / "config.json", raw)
        _require_known_towers(path, raw)
        raise WeightsError(f"{path}: {error}") from None
    by_ours = {layout.to_ours(name) or name: stored[name] for name in learnt(stored)}
    if layout.name != "pku":
        _require_own_towers(path, towers)
        return completed(path, layout, _read_config(source, by_ours, tower), by_ours, source)
    if not is_pku_config(raw) and raw.get("model_type") == "llama":
        raise WeightsError(
            f"{path}: a language model, not Video-LLaVA: `videollava assemble TARGET --llm {path.name} --image-tower "
            "DIR --video-tower DIR` makes one of it"
        )
    by_ours |= _missing_towers(path, raw, by_ours, towers or {})
    return completed(path, layout, _read_config(source, by_ours, tower, towers), by_ours, source)


def completed(
    path: Path, layout: Layout, config: ModelConfig, by_ours: Mapping[str, StoredTensor], source: Source
) -> Checkpoint:
    """Returns a checkpoint of tensors by our names, with the rows of the vocabulary that its layout leaves out.

    Raises:
      WeightsError: they do not fit the configuration.
    """
    by_ours = dict(by_ours)
    if config.tie_word_embeddings:
        by_ours = _untie(path, by_ours)
    if not layout.media_rows:
        # The rows in the file have to be as many as the configuration says: only those after them are made up.
        extra = config.text_config.vocab_size - min(config.image_token_id, config.video_token_id)
        by_ours |= {name: _with_rows(by_ours[name], extra) for name in VOCABULARY if name in by_ours}
    _require_fit(path, config, by_ours, {ours: tensor.name for ours, tensor in by_ours.items()})
    named = {ours: dataclasses.replace(tensor, name=ours) for ours, tensor in by_ours.items()}
    return Checkpoint(path, layout.name, config, named, source, _inputs(source))


def _inputs(source: Source) -> dict[str, Any]:
    """Returns the keys of a config.json that say how inputs are made."""
    raw = source.config_if_any
    return {key: raw[key] for key in INPUT_KEYS if raw.get(key) is not None}


def _missing_towers(
    path: Path, raw: Mapping[str, Any], by_ours: Mapping[str, StoredTensor], towers: Mapping[str, Tower]
) -> dict[str, StoredTensor]:
    """Returns the tensors of the towers that a checkpoint of the authors' was saved without.

    Raises:
      WeightsError: a tower is missing and not given, or given and not missing.
    """
    there = {kind for kind in KINDS if any(name.startswith(f"{kind}_tower.") for name in by_ours)}
    if twice := sorted(there & towers.keys()):
        _require_own_towers(path, {kind: towers[kind] for kind in twice})
    missing = [kind for kind in KINDS if kind not in there and kind not in towers]
    named = {kind: raw.get(f"mm_{kind}_tower") for kind in missing}
    if any(name is not None for name in named.values()):  # None: see `pku.refusals`
        flags = " ".join(f"--{kind}-tower DIR" for kind in missing)
        which = " and ".join(str(name) for name in named.values() if name is not None)
        raise WeightsError(
            f"{path}: saved without its vision towers: `videollava convert {path.name} TARGET {flags}` takes them from "
            f"{which}"
        )
    return {name: tensor for tower in towers.values() for name, tensor in tower.tensors.items()}


def _require_own_towers(path: Path, towers: Mapping[str, Tower] | None) -> None:
    """Raises a WeightsError where towers are given to a checkpoint that has its own."""
    for kind in towers or {}:
        raise WeightsError(f"{path}: has a tower for {kind}s of its own: expected no --{kind}-tower")


def _require_known_towers(path: Path, raw: Mapping[str, Any]) -> None:
    """Raises a WeightsError where the authors' config.json says why the names of tensors are unknown."""
    if is_pku_config(raw) and (problems := list(refusals(raw, {}))):
        raise WeightsError(f"{path}: its config.json asks for what is not here:\n  " + "\n  ".join(problems))


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


def _read_config(
    source: Source,
    tensors: Mapping[str, StoredTensor],
    tower_config: Path | None,
    towers: Mapping[str, Tower] | None = None,
) -> ModelConfig:
    """Reads the configuration of a checkpoint, and makes sure that it can be written and read again.

    Raises:
      WeightsError: it is not a configuration of this model.
    """
    path = source.directory / "config.json"
    with as_weights_error(path):
        raw = source.config
        _require_floats(path, raw)
        if is_pku_config(raw):
            configs = {kind: tower.config for kind, tower in (towers or {}).items()}
            config = read_pku_config(source.directory, raw, tensors, tower_config, configs)
        else:
            config = ModelConfig.from_hf(raw)
    require_written_equal(path, config)
    return config


def require_written_equal(path: Path, config: ModelConfig) -> None:
    """Raises a WeightsError for a configuration that would change where it is written and read again."""
    with as_weights_error(path):
        again = ModelConfig.from_hf(config.to_hf())
    if again != config:
        raise WeightsError(f"{path}: a conversion would change it: expected to read {config} again, got {again}")


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
def as_weights_error(path: Path) -> Iterator[None]:
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
    if layout.name != "pku" and checkpoint.config.projector_layers != PROJECTOR_LAYERS:
        raise WeightsError(
            f"{checkpoint.directory}: layout {layout.name} has a projector of {PROJECTOR_LAYERS} layers, and that of "
            f"this model has {checkpoint.config.projector_layers}: export it to pku"
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
    with as_weights_error(path):
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
