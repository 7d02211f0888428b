"""Opening adapters: PEFT's LoRA and the authors' partial checkpoints.

    adapter_config.json         PEFT's: rank, alpha and which modules
    adapter_model.safetensors   or .bin. For each module A [r, in] and B [out, r]:
                                  base_model.model.<module>.lora_A.weight, base_model.model.<module>.lora_B.weight
                                and whole tensors, where PEFT saved them:
                                  base_model.model.<module>.weight; <module>.base_layer.weight for a module with A and B
    non_lora_trainables.bin     the authors': whole tensors that were trained together with the LoRA, the projector's
    mm_projector.bin            the authors': the projector alone, which their pre-training trains

    merged:  W + scale · B @ A      scale = alpha / r, with rsLoRA alpha / √r

The last two are also read as .safetensors, and only written so: nothing here writes a pickle. Modules have the names of
the model that was trained: those of any layout, or of transformers 4.52 to 4.57 in memory.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videollava_jax.hub import StrPath
from videollava_jax.weights.adapters.config import MERGE_FIRST, NO_MODULES, Strengths, listed, unsupported
from videollava_jax.weights.adapters.names import (
    HALF,
    WEIGHT,
    plain_name,
    recognise_adapter,
)
from videollava_jax.weights.checkpoint import FLOATS
from videollava_jax.weights.errors import WeightsError
from videollava_jax.weights.files import StoredTensor, open_bin, open_safetensors
from videollava_jax.weights.layouts import learnt
from videollava_jax.weights.pku import is_pku_config, read_json
from videollava_jax.weights.source import ADAPTER_CONFIG, CONFIG, Source

ADAPTER, TRAINED_APART, PROJECTOR = "adapter_model", "non_lora_trainables", "mm_projector"
_OPENERS = ((".safetensors", open_safetensors), (".bin", open_bin))


@dataclass(frozen=True)
class LowRank:
    """The low-rank matrices of one weight [out, in], to which scale · b @ a is added.

    Attributes:
      a, b: float [r, in] and float [out, r], not read yet.
      alpha: as configured for this weight.
      rslora: scale = alpha / √r instead of alpha / r ("rank-stabilized", arXiv:2312.03732).
    """

    a: StoredTensor
    b: StoredTensor
    alpha: float
    rslora: bool = False

    @property
    def rank(self) -> int:
        """The number of rows of `a`."""
        return self.a.shape[0]

    @property
    def scale(self) -> float:
        """The factor of b @ a."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


@dataclass(frozen=True)
class Adapter:
    """An adapter on disk; none of its tensors is read yet.

    Attributes:
      directory: its absolute path.
      layout: the layout of its names, one of `ADAPTER_LAYOUTS`.
      lora: low-rank matrices, by our names of the weights that they change.
      replaced: whole tensors, by our names of the tensors that they replace. A name can be in both: `lora` is then
        added to the whole tensor.
      config: the contents of adapter_config.json; empty where there is none.
    """

    directory: Path
    layout: str
    lora: Mapping[str, LowRank]
    replaced: Mapping[str, StoredTensor]
    config: Mapping[str, Any]

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        """All tensors: a and b of each pair, then the whole ones."""
        return (*(half for pair in self.lora.values() for half in (pair.a, pair.b)), *self.replaced.values())

    @property
    def size(self) -> int:
        """Parameters in all."""
        return sum(tensor.size for tensor in self.tensors)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)


def is_adapter(directory: StrPath | Source) -> bool:
    """Returns whether a directory holds an adapter and no model of its own.

    Raises:
      WeightsError: there is no such directory, or it cannot be read.
    """
    source = Source.open(directory)
    # os.path.isfile says no where a directory may not be entered; Path.is_file raises.
    return not source.has_model and (os.path.isfile(source.directory / ADAPTER_CONFIG) or bool(_files(source)))


def open_adapter(directory: StrPath | Source) -> Adapter:
    """Opens an adapter: PEFT's, the authors' LoRA directory, or their `mm_projector.bin`; no tensor is read.

    Raises:
      WeightsError: no adapter, a damaged file, a kind of adapter that is more than W + scale · B @ A, names of no
        layout, an A without its B, shapes that are not those of the configured rank; all listed at once.
    """
    source = Source.open(directory)
    directory, files = source.directory, _files(source)
    if not files:
        raise WeightsError(
            f"{directory}: expected an adapter ({ADAPTER_CONFIG} with {ADAPTER}.safetensors, {TRAINED_APART}.bin or "
            f"{PROJECTOR}.bin), found {', '.join(source.names[:8]) or 'an empty directory'}"
        )
    raw = read_json(directory / ADAPTER_CONFIG) if (directory / ADAPTER_CONFIG).exists() else None
    halves, whole, problems = _sorted_out(files)
    strengths = None
    if raw is not None:
        problems += unsupported(raw)
        strengths = Strengths.read(raw, problems)
    problems += _not_all_there(directory, raw, halves, whole)
    for module, found in halves.items():
        problems += _unpaired(module, found, strengths)
    layout = None
    if names := [*whole, *(f"{module}{WEIGHT}" for module in halves)]:
        try:
            layout = recognise_adapter(names)
        except WeightsError as error:
            problems.append(str(error))
    if problems or layout is None:
        raise WeightsError(f"{directory}: {len(problems)} things are wrong with this adapter:\n  " + listed(problems))
    lora = {}
    if strengths is not None:
        for module, found in halves.items():
            ours = layout.to_ours(f"{module}{WEIGHT}") or module
            lora[ours] = LowRank(found["A"], found["B"], strengths.of(module)[1], strengths.rslora)
    replaced = {layout.to_ours(name) or name: tensor for name, tensor in whole.items()}
    return Adapter(directory, layout.name, lora, replaced, raw or {})


def _files(source: Source) -> list[Path]:
    """Returns the files of tensors; safetensors are preferred where both kinds are there."""
    found = []
    for stem in (ADAPTER, TRAINED_APART, PROJECTOR):
        paths = [source.directory / name for suffix, _ in _OPENERS if (name := f"{stem}{suffix}") in source.names]
        found += [path for path in paths if os.path.isfile(path)][:1]
    return found


def _sorted_out(
    files: Iterable[Path],
) -> tuple[dict[str, dict[str, StoredTensor]], dict[str, StoredTensor], list[str]]:
    """Returns (A and B by module, whole tensors by their plain names, problems: what is neither, or there twice)."""
    halves: dict[str, dict[str, StoredTensor]] = {}
    whole: dict[str, StoredTensor] = {}
    problems: list[str] = []
    for path in files:
        opened = dict(_OPENERS)[path.suffix](path)
        for name in learnt(opened):
            tensor = opened[name]
            if tensor.dtype.name not in FLOATS:
                problems.append(f"dtype of {name}: expected one of {', '.join(FLOATS)}, got {tensor.dtype.name}")
            half = HALF.fullmatch(name)
            if half is None and ".lora_" in name:
                problems.append(
                    f"{name}: expected .lora_A.weight or .lora_B.weight; LoRA of embeddings and of biases, and DoRA's "
                    f"magnitudes are not supported: {MERGE_FIRST}"
                )
                continue
            place = whole if half is None else halves.setdefault(plain_name(half["module"]), {})
            key = plain_name(name) if half is None else half["half"]
            if key in place:
                problems.append(f"{name} of {path.name} is also {place[key].name} of {place[key].file.name}")
            place[key] = tensor
    return halves, whole, problems


def _not_all_there(
    directory: Path, raw: Mapping[str, Any] | None, halves: Mapping[str, Any], whole: Mapping[str, Any]
) -> Iterator[str]:
    """Yields a sentence for each file that must be missing, judging by the others."""
    if not halves and not whole:
        yield "no tensors in it"
    elif halves and raw is None:
        yield f"{ADAPTER_CONFIG} is missing: it holds alpha, which scales what is added"
    elif not halves and raw is not None and raw.get("target_modules") not in (None, [], NO_MODULES):
        yield f"{ADAPTER_CONFIG} names target_modules, and there is no lora_A or lora_B: is {ADAPTER} missing?"
    elif halves and not whole and (settings := settings_of(directory)) and not settings.get("freeze_mm_mlp_adapter"):
        yield f"{TRAINED_APART}.bin is missing: the authors' LoRA is trained together with the projector"


def settings_of(adapter: Adapter | Path) -> Mapping[str, Any]:
    """Returns the authors' config.json in an adapter's directory; an empty object where there is none."""
    path = (adapter.directory if isinstance(adapter, Adapter) else adapter) / CONFIG
    raw = read_json(path) if path.is_file() else {}
    return raw if is_pku_config(raw) else {}


def _unpaired(module: str, found: Mapping[str, StoredTensor], strengths: Strengths | None) -> list[str]:
    """Returns what is wrong with the A and B of a module, whatever the weight that they are added to."""
    if found.keys() != {"A", "B"}:
        (has,) = found
        return [f"{module}: lora_{has} without lora_{'B' if has == 'A' else 'A'}"]
    a, b = found["A"].shape, found["B"].shape
    if strengths is None:
        return []
    rank = strengths.of(module)[0]
    if len(a) == 2 and len(b) == 2 and a[0] == b[1] == rank and a[1] > 0 and b[0] > 0:
        return []
    # Shards that DeepSpeed's ZeRO-3 did not gather are saved with a dimension of 0.
    empty = "; shards were not gathered when it was saved" if 0 in (*a, *b) else ""
    return [f"{module}: expected A ({rank}, in) and B (out, {rank}) for its rank {rank}, got A {a} and B {b}{empty}"]
