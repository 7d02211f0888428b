"""Checkpoints: the names of every layout, streams of tensors from safetensors, Orbax directories."""

from videollava_jax.weights.layouts import Layout, recognise
from videollava_jax.weights.loading import Checkpoint, convert_to_orbax, is_orbax, load_checkpoint, save_orbax

__all__ = ["Checkpoint", "Layout", "convert_to_orbax", "is_orbax", "load_checkpoint", "recognise", "save_orbax"]
