"""Checkpoints in any layout: opened, converted to Orbax and back, merged with adapters, loaded, verified by hashes."""

from videollava_jax.weights.adapters import Adapter, merge_adapter, open_adapter, write_peft
from videollava_jax.weights.assembling import assemble, open_projector, open_towers
from videollava_jax.weights.checkpoint import Checkpoint, checkpoint_of, open_checkpoint
from videollava_jax.weights.convert import Conversion, Options, convert_to_orbax, export
from videollava_jax.weights.errors import WeightsError
from videollava_jax.weights.layouts import LAYOUTS, Layout, recognise
from videollava_jax.weights.loading import load_checkpoint
from videollava_jax.weights.verify import Comparison, Difference, compare_checkpoints, verify_checkpoint

__all__ = [
    "LAYOUTS",
    "Adapter",
    "Checkpoint",
    "Comparison",
    "Conversion",
    "Difference",
    "Layout",
    "Options",
    "WeightsError",
    "assemble",
    "checkpoint_of",
    "compare_checkpoints",
    "convert_to_orbax",
    "export",
    "load_checkpoint",
    "merge_adapter",
    "open_adapter",
    "open_checkpoint",
    "open_projector",
    "open_towers",
    "recognise",
    "verify_checkpoint",
    "write_peft",
]
