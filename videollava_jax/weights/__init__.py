"""Checkpoints: the names of every layout, streams of tensors from safetensors, Orbax directories."""

from videollava_jax.weights.layouts import Layout, recognise
from videollava_jax.weights.loading import is_orbax, load_checkpoint, save_orbax

__all__ = ["Layout", "is_orbax", "load_checkpoint", "recognise", "save_orbax"]
