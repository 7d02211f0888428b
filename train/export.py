"""Makes a model, or an adapter for PEFT, of what a run of `train/finetune.py` has learnt.

    python train/export.py runs/mine mine-hf                  the model with it, as transformers loads it
    python train/export.py runs/mine mine-hf --layout orbax   the same, as an Orbax directory
    python train/export.py runs/mine mine-lora --adapter      only what was trained, for PEFT

`videollava train-export` is the same command. `learnt` opens a checkpoint of the run as an adapter; `export_run` merges
it into the model that the run began with, or writes it alone (`videollava_jax/training/run/export.py`).
"""

import sys

from videollava_jax.cli import main

if __name__ == "__main__":
    sys.exit(main(["train-export", *sys.argv[1:]]))
