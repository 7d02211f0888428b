"""What a run has learnt, taken out of its checkpoints: what PEFT calls an adapter."""

from __future__ import annotations

from pathlib import Path

from videollava_jax.model.sharding import STACKED
from videollava_jax.training.run.recipe import Recipe
from videollava_jax.training.run.run_directory import CHECKPOINTS
from videollava_jax.training.update.options import is_lora
from videollava_jax.weights.adapters import Adapter, LowRank
from videollava_jax.weights.orbax import open_layers


def learnt(run: Path, recipe: Recipe, step: int | None = None) -> Adapter:
    """What a run has learnt, as an adapter to the model that it began with; nothing is read yet.

    Low-rank projections are the adapter's pairs, everything else that was trained takes the place of the model's own.

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
