"""The values that a configuration may have: checked in its classes, and in its JSON before transformers reads that."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, cast, get_args

RopeKind = Literal["linear", "dynamic"]

ACTIVATION_NAMES = ("quick_gelu", "gelu", "gelu_pytorch_tanh", "gelu_new", "relu", "silu")
LARGEST_ROPE_FACTOR = 4096

# The smallest and the largest value of each number. The largest are far beyond any model, and keep a damaged or hostile
# configuration from asking for memory that no machine has.
_WIDTH, _LAYERS, _HEADS, _SIDE = (1, 2**16), (1, 1024), (1, 1024), (1, 4096)
VISION_RANGES = {
    "hidden_size": _WIDTH,
    "intermediate_size": (1, 2**18),
    "num_hidden_layers": _LAYERS,
    "num_attention_heads": _HEADS,
    "num_channels": (1, 16),
    "image_size": _SIDE,
    "patch_size": _SIDE,
}
TEXT_RANGES = {
    "vocab_size": (1, 2**24),
    "hidden_size": _WIDTH,
    "intermediate_size": (1, 2**18),
    "num_hidden_layers": _LAYERS,
    "num_attention_heads": _HEADS,
    "num_key_value_heads": _HEADS,
    "head_dim": (2, 4096),
    "max_position_embeddings": (1, 2**24),
}


def require_divisible(where: str, name: str, value: int, divisor: int) -> None:
    """Refuses a number that does not divide into `divisor` equal parts."""
    if divisor <= 0 or value % divisor:
        raise ValueError(f"{where}: {name} {value} does not divide into {divisor} equal parts")


def require_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuses a value that is not one of the choices."""
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {value!r:.100}")


def require_ranges(where: str, config: Any, ranges: Mapping[str, tuple[int, int]]) -> None:
    """Checks the numbers of a configuration, or of its JSON, where a key may be absent or null."""
    for name, (least, most) in ranges.items():
        value = config.get(name) if isinstance(config, Mapping) else getattr(config, name)
        if value is None and isinstance(config, Mapping):
            continue
        if type(value) is not int or not least <= value <= most:
            raise ValueError(f"{where}.{name}: expected a whole number from {least} to {most}, got {value!r:.100}")


def require_positive(where: str, config: Any, *names: str) -> None:
    """Refuses numbers of a configuration that are not finite or not above 0."""
    for name in names:
        value = getattr(config, name)
        if type(value) not in (int, float) or not 0 < value < math.inf:
            raise ValueError(f"{where}.{name}: expected a number above 0, got {value!r:.100}")


def require_rope_factor(factor: Any) -> None:
    """Refuses a factor of `rope_scaling` that is not a number from 1 to `LARGEST_ROPE_FACTOR`."""
    if type(factor) not in (int, float) or not 1 <= factor <= LARGEST_ROPE_FACTOR:
        raise ValueError(f"rope_scaling: expected a factor from 1 to {LARGEST_ROPE_FACTOR}, got {factor!r:.100}")


def checked_rope(rope: Mapping[str, Any] | None) -> tuple[RopeKind, float] | None:
    """Returns the kind and factor of `rope_parameters`, or of older files' `rope_scaling`; None for no scaling.

    Raises:
        ValueError: a kind of scaling that this model does not have, or no factor.
    """
    if rope is not None and not isinstance(rope, Mapping):
        raise ValueError(f"rope_scaling: expected an object or null, got {rope!r:.100}")
    kind = "default" if not rope else rope.get("rope_type", rope.get("type", "default"))
    if not rope or kind == "default":
        return None
    if kind not in get_args(RopeKind):
        raise ValueError(f"rope_type {kind!r:.100} is not supported: expected 'default', 'linear' or 'dynamic'")
    if rope.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise ValueError(f"partial_rotary_factor: expected 1, got {rope['partial_rotary_factor']!r:.100}")
    factor = rope.get("factor")
    require_rope_factor(factor)
    return cast(RopeKind, kind), float(factor)  # type: ignore[arg-type]  # a number
