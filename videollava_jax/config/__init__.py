"""The shape of a model: frozen dataclasses, from and to transformers' JSON; the variant is data."""

from videollava_jax.config.ranges import ACTIVATION_NAMES, RopeKind
from videollava_jax.config.shapes import (
    DEEPEST_PROJECTOR,
    PROJECTOR_LAYERS,
    ModelConfig,
    RopeScaling,
    SelectStrategy,
    TextConfig,
    Variant,
    VisionConfig,
    checked_pooling,
    poolings,
    read_rope_scaling,
    require_whole_windows,
)

__all__ = [
    "ACTIVATION_NAMES",
    "DEEPEST_PROJECTOR",
    "PROJECTOR_LAYERS",
    "ModelConfig",
    "RopeKind",
    "RopeScaling",
    "SelectStrategy",
    "TextConfig",
    "Variant",
    "VisionConfig",
    "checked_pooling",
    "poolings",
    "read_rope_scaling",
    "require_whole_windows",
]
