"""What a run has learnt, out of its checkpoints: an adapter for PEFT, or the model that it is merged into."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videollava_jax.hub import Wanted, find_model, local_path
from videollava_jax.model.sharding import STACKED
from videollava_jax.processing.files import preset_settings, read_settings
from videollava_jax.processing.preset import Preset
from videollava_jax.processing.prompt import get_template
from videollava_jax.processing.tokenizer import read_json
from videollava_jax.training.run.recipe import Recipe
from videollava_jax.training.run.run_directory import CHECKPOINTS, recipe_of
from videollava_jax.training.update.options import is_lora
from videollava_jax.weights import Options, convert_to_orbax, export
from videollava_jax.weights.adapters import Adapter, LowRank, write_peft
from videollava_jax.weights.orbax import open_layers

PROCESSOR = "processor_config.json"


@dataclass(frozen=True)
class Exported:
    """What `export_run` has written.

    Attributes:
      run: the run's directory.
      target: the directory that was written.
      layout: of the tensors' names; "orbax" for an Orbax directory.
      tensors: their number.
      base: the directory of the model that the run's weights were merged into; None for an adapter.
    """

    run: Path
    target: Path
    layout: str
    tensors: int
    base: Path | None

    def __str__(self) -> str:
        what = "an adapter" if self.base is None else f"{self.base} with what {self.run} has learnt"
        return f"{what}, {self.tensors} tensors in layout {self.layout}: {self.target}"


def export_run(
    run: Path,
    target: Path,
    *,
    layout: str | None = None,
    adapter: bool = False,
    step: int | None = None,
    model: str | None = None,
) -> Exported:
    """Writes the model that a run has made, or only what the run has trained, as an adapter for PEFT.

    Args:
      run: the run's directory.
      target: of the result; it appears whole or not at all.
      layout: of the tensors' names, or "orbax"; by default "hub" for a model, "memory" for an adapter.
      adapter: write only what was trained.
      step: of the checkpoint; None for the last one.
      model: where the model is that the run began with; None for where the run's recipe says.

    Raises:
      ValueError: `run` is not a run's directory, has no such checkpoint, or the target is taken.
      WeightsError: a tensor is damaged or does not fit.
    """
    run, target = local_path(run), local_path(target)
    recipe = recipe_of(run)
    found = learnt(run, recipe, step)
    if adapter:
        names = layout or "memory"
        return Exported(run, target, names, len(write_peft(found, target, names)), None)
    base = find_model(model or recipe.model, Wanted.WEIGHTS, bundled=True)
    options = Options(files=prompt_files(base, recipe.data.preset_changes))
    if layout == "orbax":
        done = convert_to_orbax(found, target, options, base=base)
    else:
        done = export(base, target, layout or "hub", options, adapter=found)
    return Exported(run, target, done.layout, len(done.tensors), base)


def prompt_files(base: Path, changes: Mapping[str, Any]) -> dict[str, bytes]:
    """Returns the files that make a processor ask as the run did, here and in transformers.

    Args:
      base: the directory of the model that the run began with.
      changes: of its preset, by the run's recipe; with none, the model's own files hold.
    """
    if not changes:
        return {}
    settings = read_settings(base, changes)
    preset: Preset = settings["preset"]
    held = {name: value for name, value in (read_json(base / PROCESSOR) or {}).items() if name != "preset"}
    saved = {**held, **preset_settings(preset, settings["frame_window"])}
    files = {PROCESSOR: json.dumps(saved, indent=2).encode() + b"\n"}
    if changes.keys() & {"name", "template"}:
        jinja = get_template(preset.template).to_jinja(preset.media_order, preset.repeat_end)
        files["chat_template.jinja"] = jinja.encode()
    return files


def learnt(run: Path, recipe: Recipe, step: int | None = None) -> Adapter:
    """Opens what a run has learnt as an adapter to the model that it began with; no tensor is read yet.

    Low-rank projections become the adapter's pairs; every other trained tensor replaces the model's own.

    Args:
      run: the run's directory.
      recipe: its recipe.
      step: of the checkpoint; None for the last one.

    Raises:
      ValueError: there is no such checkpoint.
      WeightsError: Orbax cannot read it.
    """
    steps = sorted(int(path.name) for path in (run / CHECKPOINTS).glob("*") if path.name.isdecimal())
    if not steps or (step is not None and step not in steps):
        wanted = "a checkpoint" if step is None else f"a checkpoint of step {step}"
        raise ValueError(f"{run}: expected {wanted}, found {', '.join(map(str, steps)) or 'none'}")
    tensors = open_layers(run / CHECKPOINTS / str(steps[-1] if step is None else step), "trained", STACKED)
    lora = recipe.lora
    pairs = {
        name.replace(".lora_A.", "."): LowRank(tensor, tensors[name.replace(".lora_A.", ".lora_B.")], lora.alpha)
        for name, tensor in tensors.items()
        if lora is not None and ".lora_A." in name
    }
    return Adapter(
        directory=run,
        layout="memory",
        lora=pairs,
        replaced={name: tensor for name, tensor in tensors.items() if not is_lora(name)},
        config={} if lora is None else {"lora_dropout": lora.dropout},
    )
