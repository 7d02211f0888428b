"""Writing an adapter for PEFT, with the names of any layout."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy.typing as npt

from videollava_jax.hub import StrPath
from videollava_jax.weights.adapters.config import NO_MODULES, Value, listed
from videollava_jax.weights.adapters.names import ADAPTER_LAYOUTS, WEIGHT, WRAPPED, module_name
from videollava_jax.weights.adapters.opening import ADAPTER, TRAINED_APART, Adapter
from videollava_jax.weights.directory import whole_directory
from videollava_jax.weights.errors import WeightsError
from videollava_jax.weights.files import StoredTensor
from videollava_jax.weights.layouts import TEMPORAL, VOCABULARY, Layout
from videollava_jax.weights.manifest import Manifest, TensorHash, file_hashes, tensor_hash
from videollava_jax.weights.source import ADAPTER_CONFIG
from videollava_jax.weights.writing import write_safetensors_directory

Array = npt.NDArray[Any]


_KEPT = ("lora_dropout", "task_type", "inference_mode")
_KEPT_IN_ITS_LAYOUT = ("base_model_name_or_path", "revision", "auto_mapping")


def write_peft(adapter: Adapter, target: StrPath, layout: str) -> dict[str, TensorHash]:
    """Writes an adapter for PEFT with a layout's names and a manifest; the directory appears whole or not at all.

    `PeftModel.from_pretrained` loads the result into a model with these names: "memory" for transformers 5,
    "memory4" for 4.52 to 4.57, "hub" for earlier ones, "pku" for the authors' code. Whole tensors are written to
    adapter_model.safetensors as PEFT's `modules_to_save`, since PEFT reads no other file; for "pku" to
    non_lora_trainables.safetensors, with the names and contents of the authors' .bin. Dtypes are kept.

    Returns:
      hashes of the tensors that were written, by their names in the files.

    Raises:
      WeightsError: `target` exists, the layout has no name for a part of the adapter, or the disk does not take it.
    """
    if layout not in ADAPTER_LAYOUTS:
        raise WeightsError(f"layout: expected one of {', '.join(ADAPTER_LAYOUTS)}, got {layout!r}")
    if layout not in ADAPTER_LAYOUTS:
        raise WeightsError(f"layout: expected one of {', '.join(ADAPTER_LAYOUTS)}, got {layout!r}")
    names = ADAPTER_LAYOUTS[layout]
    problems = list(_unnamed(adapter, names))
    if problems:
        raise WeightsError(
            f"{adapter.directory}: {len(problems)} parts cannot be written in layout {layout}:\n  " + listed(problems)
        )
    inside: list[StoredTensor] = []
    apart: list[StoredTensor] = []
    for name, pair in adapter.lora.items():
        lora = f"{WRAPPED}{module_name(names, name)}.lora_"
        inside += [_renamed(pair.a, f"{lora}A{WEIGHT}"), _renamed(pair.b, f"{lora}B{WEIGHT}")]
    for name, tensor in adapter.replaced.items():
        module, _, leaf = names.from_ours(name).rpartition(".")
        if _has_lora(adapter, name):
            inside.append(_renamed(tensor, f"{WRAPPED}{module}.base_layer.{leaf}"))
        else:
            (apart if layout == "pku" else inside).append(_renamed(tensor, f"{WRAPPED}{module}.{leaf}"))
    hashes: dict[str, TensorHash] = {}
    with whole_directory(target) as directory:
        for stem, tensors in ((ADAPTER, inside), (TRAINED_APART, apart)):
            if tensors:
                _write_file(directory, stem, tensors, hashes)
        if inside:
            config = _peft_config(adapter, names)
            (directory / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        Manifest(hashes, file_hashes(directory)).write(directory)
    return hashes


def _write_file(directory: Path, stem: str, tensors: list[StoredTensor], hashes: dict[str, TensorHash]) -> None:
    """Writes one file of tensors, one tensor in memory at a time."""

    def arrays() -> Iterator[Array]:
        for tensor in tensors:
            array = tensor.read()
            hashes[tensor.name] = tensor_hash(array)
            yield array

    whole = sum(tensor.nbytes for tensor in tensors)
    write_safetensors_directory(directory, tensors, arrays(), max_shard_bytes=whole)
    (directory / "model.safetensors").rename(directory / f"{stem}.safetensors")


def _renamed(tensor: StoredTensor, name: str) -> StoredTensor:
    return dataclasses.replace(tensor, name=name)


def _unnamed(adapter: Adapter, layout: Layout) -> Iterator[str]:
    """Yields a sentence for each tensor that a layout has no name for or cannot hold."""
    moves_rows = layout.media_rows != ADAPTER_LAYOUTS[adapter.layout].media_rows
    for name in dict.fromkeys((*adapter.lora, *adapter.replaced)):
        try:
            layout.from_ours(name)
        except KeyError:
            yield f"{name}: the layout has no such tensor"
            continue
        if TEMPORAL in name and not layout.temporal:
            yield f"{name}: the layout cannot hold attention over time"
        elif name in VOCABULARY and moves_rows:
            yield f"{name}: its vocabulary has other rows than {adapter.layout}'s; merge the adapter, and export that"
        elif layout.name != "pku" and _weight(name) not in (adapter.replaced.keys() | adapter.lora.keys()):
            yield f"{name}: PEFT saves modules whole, and the adapter lacks its weight; merge it, and export that"


def _has_lora(adapter: Adapter, name: str) -> bool:
    """Returns whether a whole tensor belongs to a module with LoRA, which PEFT wraps."""
    return _weight(name) in adapter.lora


def _weight(name: str) -> str:
    """Returns the name of the weight of the module that a tensor belongs to."""
    return name.rpartition(".")[0] + WEIGHT


def _peft_config(adapter: Adapter, layout: Layout) -> dict[str, Any]:
    """Returns the configuration: the old keys that do not concern the weights, and ranks and alphas by module."""
    kept = _KEPT + (_KEPT_IN_ITS_LAYOUT if layout.name == adapter.layout else ())
    ranks = {module_name(layout, name): pair.rank for name, pair in adapter.lora.items()}
    alphas = {module_name(layout, name): pair.alpha for name, pair in adapter.lora.items()}
    rank = _commonest(ranks.values(), adapter.config.get("r", 8))
    alpha = _commonest(alphas.values(), adapter.config.get("lora_alpha", 8))
    alone = [name for name in adapter.replaced if not _has_lora(adapter, name)]
    saved = {layout.from_ours(name).rpartition(".")[0] for name in alone}
    return {
        **{key: adapter.config[key] for key in kept if key in adapter.config},
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {module: value for module, value in ranks.items() if value != rank},
        "alpha_pattern": {module: value for module, value in alphas.items() if value != alpha},
        "use_rslora": any(pair.rslora for pair in adapter.lora.values()),
        "target_modules": sorted(ranks) or NO_MODULES,
        "modules_to_save": sorted(saved) if saved and layout.name != "pku" else None,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
    }


def _commonest(values: Iterable[Value], usual: Value) -> Value:
    counted = Counter(values)
    return max(counted, key=lambda value: (counted[value], value == usual), default=usual)
