"""LoRA adapters and the authors' partial checkpoints: opening, merging into a checkpoint, writing for PEFT."""

from videollava_jax.weights.adapters.merging import merge_adapter
from videollava_jax.weights.adapters.names import ADAPTER_LAYOUTS
from videollava_jax.weights.adapters.opening import Adapter, LowRank, is_adapter, open_adapter
from videollava_jax.weights.adapters.writing import write_peft

__all__ = ["ADAPTER_LAYOUTS", "Adapter", "LowRank", "is_adapter", "merge_adapter", "open_adapter", "write_peft"]
