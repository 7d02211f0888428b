"""A model assembled from parts: a language model, two vision towers and a projector, each in files of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from videollava_jax.hub import StrPath, local_path
from videollava_jax.weights.adapters import Adapter, is_adapter, open_adapter
from videollava_jax.weights.adapters.names import plain_name
from videollava_jax.weights.adapters.opening import settings_of
from videollava_jax.weights.checkpoint import (
    PARTS,
    Checkpoint,
    as_weights_error,
    completed,
    open_checkpoint,
    require_written_equal,
)
from videollava_jax.weights.errors import WeightsError
from videollava_jax.weights.files import StoredTensor, open_bin, open_safetensors
from videollava_jax.weights.layouts import EMBEDDING, LAYOUTS, TEMPORAL, learnt
from videollava_jax.weights.manifest import check_tensors, require
from videollava_jax.weights.pku import (
    FEATURE_LAYER,
    INPUT_KEYS,
    is_pku_config,
    read_pku_config,
)
from videollava_jax.weights.source import CONFIG, Source
from videollava_jax.weights.towers import KINDS, PUBLISHED, Kind, Tower, holds_tower, open_tower

Tensors = Mapping[str, StoredTensor]
PROJECTOR = "multi_modal_projector."
_NAMES = LAYOUTS["pku"]  # the authors' names of the decoder are Llama's
_DECODER = ("language_model.", "lm_head.")
_SAME = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "hidden_act", "rms_norm_eps", "rope_theta", "tie_word_embeddings"),
)
"""Keys of a Llama's config.json that training does not change."""


# ── the parts ──


def is_language_model(directory: StrPath | Source) -> bool:
    """Returns whether a directory holds a Llama: no towers, no projector, and no config.json of Video-LLaVA."""
    source = Source.open(directory)
    if source.is_orbax or not source.has_model or is_pku_config(source.config_if_any):
        return False
    names = [_NAMES.to_ours(name) for name in learnt(source.stored)]
    return bool(names) and all(name is not None and name.startswith(_DECODER) for name in names)


def open_language_model(directory: StrPath | Source) -> tuple[Source, dict[str, StoredTensor]]:
    """Opens a Llama in transformers' layout, such as lmsys/vicuna-7b-v1.5: (its directory, its tensors by our names).

    Raises:
      WeightsError: it holds something else.
    """
    source = Source.open(directory)
    if is_adapter(source):
        raise WeightsError(f"{source.directory}: an adapter; expected the language model that it was trained on")
    model_type = source.config_if_any.get("model_type", "llama")
    if model_type == "llama" and is_language_model(source):
        return source, {_NAMES.to_ours(name) or name: source.stored[name] for name in learnt(source.stored)}
    if model_type in ("llava", "video_llava") or is_pku_config(source.config_if_any):
        raise WeightsError(
            f"{source.directory}: a Video-LLaVA with towers or a projector of its own; expected a language model, such "
            "as lmsys/vicuna-7b-v1.5; `videollava convert` takes it as it is"
        )
    raise WeightsError(
        f"{source.directory}: expected a Llama (model_type 'llama', tensors like model.layers.0.mlp.up_proj.weight), "
        f"got model_type {model_type!r} and {', '.join(list(source.stored)[:2])}"
    )


def open_towers(image: StrPath | None, video: StrPath | None, tower_config: StrPath | None = None) -> dict[str, Tower]:
    """Opens the towers that are given, by "image" and "video".

    Each is the directory of a tower of LanguageBind's or CLIP's, or of a Video-LLaVA, whose tower is taken.

    Args:
      tower_config: a config.json that is read instead of the towers' own.

    Raises:
      WeightsError: a directory holds no tower for its media.
    """
    given: dict[Kind, StrPath | None] = {"image": image, "video": video}
    return {
        kind: _open_tower(Source.open(directory), kind, tower_config)
        for kind, directory in given.items()
        if directory is not None
    }


def _open_tower(source: Source, kind: Kind, tower_config: StrPath | None) -> Tower:
    tower = open_tower(source, kind, tower_config) if holds_tower(source) else _tower_of(source, kind, tower_config)
    if source.manifest is not None:  # damage is not handed on under new hashes
        by_reader = {tensor.read: name for name, tensor in source.stored.items()}
        names = [by_reader[tensor.read] for tensor in tower.tensors.values() if tensor.read in by_reader]
        require(source.directory, check_tensors(source.manifest, {name: source.stored[name] for name in names}))
    return tower


def _tower_of(source: Source, kind: Kind, tower_config: StrPath | None) -> Tower:
    """Opens a tower of a Video-LLaVA."""
    try:
        whole = open_checkpoint(source, tower_config)
    except WeightsError as error:
        raise WeightsError(
            f"--{kind}-tower {source.directory}: expected a vision tower ({PUBLISHED[kind]}) or a Video-LLaVA: {error}"
        ) from None
    tensors = {name: tensor for name, tensor in whole.tensors.items() if name.startswith(f"{kind}_tower.")}
    return Tower(source.directory, whole.config.vision_config, tensors)


def open_projector(path: StrPath) -> tuple[dict[str, StoredTensor], Mapping[str, Any]]:
    """Opens a projector: (its tensors by our names, the authors' config.json next to it or {}).

    Args:
      path: the authors' `mm_projector.bin` (or checkpoint-N.bin of their folder mm_projector), the same tensors as
        safetensors, or a directory that holds one.

    Raises:
      WeightsError: it holds no projector, or more than one.
    """
    path = local_path(path)
    if path.is_dir():
        tensors = dict(open_adapter(path).replaced)
    elif not path.is_file():
        raise WeightsError(f"{path}: no such file; expected a projector, such as mm_projector.bin")
    else:
        opened = open_safetensors(path) if path.suffix == ".safetensors" else open_bin(path)
        tensors = {_NAMES.to_ours(plain_name(name)) or name: tensor for name, tensor in opened.items()}
    others = [tensor.name for name, tensor in tensors.items() if not name.startswith(PROJECTOR)]
    if others or not tensors:
        raise WeightsError(
            f"{path}: expected the tensors of a projector (model.mm_projector.0.weight, …) and no others, found "
            f"{', '.join(others[:3]) or 'none'}"
        )
    return tensors, settings_of(path if path.is_dir() else path.parent)


def new_projector(widths: Iterable[tuple[int, int]], seed: int) -> dict[str, StoredTensor]:
    """Draws a projector that has learnt nothing, as `torch.nn.Linear` begins: uniform in ±1/√inputs, weight and bias.

    Args:
      widths: (inputs, outputs) of each layer.
      seed: of the draws.

    Returns:
      float32 tensors by our names; each is drawn when it is read, and is the same every time.
    """

    def drawn(index: int, name: str, shape: tuple[int, ...], bound: float) -> StoredTensor:
        def read() -> npt.NDArray[Any]:
            return np.random.default_rng((seed, index)).uniform(-bound, bound, shape).astype(np.float32)

        return StoredTensor(name, shape, np.dtype(np.float32), Path(f"<a new projector, seed {seed}>"), read)

    tensors: dict[str, StoredTensor] = {}
    for layer, (inputs, outputs) in enumerate(widths, 1):
        for leaf, shape in (("weight", (outputs, inputs)), ("bias", (outputs,))):
            name = f"{PROJECTOR}linear_{layer}.{leaf}"
            tensors[name] = drawn(len(tensors), name, shape, inputs**-0.5)
    return tensors


# ── the whole ──


def assemble(
    language_model: StrPath | Source,
    towers: Mapping[str, Tower],
    projector: Tensors | int,
    settings: Mapping[str, Any] | None = None,
    *,
    keep_dtypes: bool = False,
) -> Checkpoint:
    """Joins a language model, two towers and a projector, as the authors' `initialize_vision_modules` does.

    The variant is "original" if the video tower attends over time, else "hf". The vocabulary gets rows for media and
    padding, as that of the authors' checkpoints does.

    Args:
      language_model: a Llama's directory.
      towers: by "image" and "video" (`open_towers`).
      projector: its tensors by our names, or the seed of a new one.
      settings: the authors' config.json that says how the projector was trained; it goes before the Llama's. None or
        empty for what their scripts say: hidden state -2, without the class token.
      keep_dtypes: each part keeps its dtype (but a bfloat16 part of a float16 model becomes float32); otherwise towers
        and projector are cast to the language model's, as the authors' loader does.

    Raises:
      WeightsError: a part is missing or holds something else, or the parts do not fit each other.
    """
    source, decoder = open_language_model(language_model)
    path = source.directory
    missing = [kind for kind in KINDS if kind not in towers]
    if missing:
        raise WeightsError(
            f"{path}: a language model without vision towers: "
            + " ".join(f"--{kind}-tower DIR ({PUBLISHED[kind]})" for kind in missing)
        )
    settings = settings or {}
    differ = [
        f"{key} {settings[key]!r} and {source.config[key]!r}"
        for key in _SAME
        if key in settings and key in source.config and settings[key] != source.config[key]
    ]
    if differ:
        raise WeightsError(
            f"{path}: another language model than the one that was trained on, whose config.json and this one's say "
            + "; ".join(differ)
        )
    raw = {
        **source.config,
        **{f"mm_{kind}_tower": PUBLISHED[kind] for kind in KINDS},
        "mm_vision_select_layer": FEATURE_LAYER,
        **settings,
    }
    parts = {name: tensor for tower in towers.values() for name, tensor in tower.tensors.items()}
    if settings.get("mm_video_tower") and not any(TEMPORAL in name for name in parts):
        raise WeightsError(
            f"--video-tower {towers['video'].directory}: a tower without attention over time, and the training ran one "
            f"with it: expected {settings['mm_video_tower']}"
        )
    parts |= {} if isinstance(projector, int) else projector
    with as_weights_error(path / CONFIG):
        config = read_pku_config(
            path, raw, {**decoder, **parts}, None, {kind: tower.config for kind, tower in towers.items()}
        )
    if isinstance(projector, int):
        parts |= new_projector(config.projector_widths, projector)
    kept = decoder[EMBEDDING].dtype if EMBEDDING in decoder else None
    if kept is not None:
        halves = {"float16", "bfloat16"}
        for name, tensor in parts.items():
            if not keep_dtypes:
                parts[name] = tensor.cast(kept)
            elif {tensor.dtype.name, kept.name} == halves:
                parts[name] = tensor.cast(np.dtype(np.float32))
    require_written_equal(path / CONFIG, config)
    whole = completed(path, _NAMES, config, {**decoder, **parts}, source)
    inputs = {key: raw[key] for key in INPUT_KEYS if raw.get(key) is not None}
    return dataclasses.replace(whole, layout=PARTS, inputs=inputs)


def assemble_for(
    adapter: Adapter,
    language_model: StrPath | Source,
    towers: Mapping[str, Tower],
    projector_path: StrPath | None = None,
    *,
    keep_dtypes: bool = False,
) -> Checkpoint:
    """Joins a language model and towers with the projector of an adapter that was trained on them.

    Args:
      projector_path: the projector of an adapter that was trained with a frozen one (`open_projector`).

    Raises:
      WeightsError: the adapter has no projector and none is given, or both, or what `assemble` raises.
    """
    projector = {name: tensor for name, tensor in adapter.replaced.items() if name.startswith(PROJECTOR)}
    settings = settings_of(adapter)
    if projector_path is not None:
        if projector:
            raise WeightsError(f"{adapter.directory}: has a trained projector of its own: expected no --projector")
        projector, its_settings = open_projector(projector_path)
        settings = settings or its_settings
    if not projector and settings.get("mm_projector_type") != "identity":
        raise WeightsError(
            f"{adapter.directory}: an adapter without a projector (mm_projector), onto the language model "
            f"{Source.open(language_model).directory}: --projector FILE gives the one that it was trained "
            "with, such as mm_projector.bin of the first stage"
        )
    return assemble(language_model, towers, projector, settings, keep_dtypes=keep_dtypes)
