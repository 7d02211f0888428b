"""Fine-tunes Video-LLaVA by a recipe: on a mesh of TPUs or GPUs, or on a laptop; and goes on where it was stopped.

    python train/finetune.py --config lora --model 7b-orbax --output runs/mine --data.train mine.json
    videollava finetune      --config lora --model 7b-orbax --output runs/mine --data.train mine.json     # the same

On a pod, or on several machines, the same command runs on each of them. `jax.distributed` finds its peers by itself on
Cloud TPU, Slurm and Open MPI; elsewhere JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID say who they are.

A run's directory holds `recipe.yaml`, `checkpoints/`, `metrics.jsonl` and `tensorboard/`. `train/export.py`, or
`videollava train-export`, makes a model or an adapter of it, for transformers and for `videollava`.

What a run does, and the file of `videollava_jax/training/` to read or to copy when yours has to do it otherwise:

    recipe      YAML and flags; every field documented                           run/recipe.py
    data        LLaVA's JSON to samples, to tokens, to a plan of all steps       data/samples.py, corpus.py, packing.py
    model       a checkpoint onto the mesh, layers stacked, adapters added       run/base_model.py, update/lora.py
    features    the frozen towers' outputs, computed once, on disk               run/encoding.py, data/features.py
    rows        tokens and pixels, read ahead by worker processes                data/loader.py
    step        micro-batches' gradients summed, then one update                 update/step.py, loss.py, optimizer.py
    loop        all of it in order; checkpoints, metrics, evaluation, signals    run/loop.py
"""

from __future__ import annotations

import sys

from videollava_jax.training.run.recipe import read_recipe


def main(arguments: list[str] | None = None) -> int:
    """Does one run, or the rest of one; returns the exit status."""
    recipe, text = read_recipe(arguments, description=__doc__ or "")
    from videollava_jax.training.run.loop import fine_tune  # imports JAX, which --help and worker processes do without

    return fine_tune(recipe, text)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ValueError, OSError, FloatingPointError) as error:  # their messages say enough without a traceback
        sys.exit(f"finetune: {error}")
