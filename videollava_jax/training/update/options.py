"""What is trained, and how: groups of parameters, their learning rates, LoRA, AdamW. No JAX in here.

A recipe is made of these, and `--help` reads them: it answers at once, without importing JAX.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

from videollava_jax.generation.kinds import Kind, number, parsed, whole

T = TypeVar("T")

Group = Literal["image_tower", "video_tower", "projector", "decoder", "lora"]
GROUPS: tuple[Group, ...] = get_args(Group)
"""What a recipe names and gives a learning rate of its own. The decoder has its embedding and its head."""

Remat = Literal["full", "dots", "none"]
"""What the backward pass keeps of each layer: `TrainingModel` says what each of them means."""


def is_lora(name: str) -> bool:
    """Returns whether a parameter belongs to a narrow projection of LoRA."""
    return ".lora_A." in name or ".lora_B." in name


def group_of(name: str) -> Group:
    """Returns the group that a parameter belongs to."""
    if is_lora(name):
        return "lora"
    top = name.split(".")[0]
    if top in ("image_tower", "video_tower"):
        return "image_tower" if top == "image_tower" else "video_tower"
    return "projector" if top == "multi_modal_projector" else "decoder"


def is_tower(name: str) -> bool:
    """Returns whether a parameter belongs to the image tower or the video tower."""
    return group_of(name) in ("image_tower", "video_tower")


PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


_BELOW_ONE = math.nextafter(1.0, 0.0)
_SHARE_BELOW_ONE = dataclasses.replace(number(0.0, _BELOW_ONE), expected="a number from 0 to below 1")
_RATE = number(0.0, 1.0, above=True)
RANGES: dict[str, Kind] = {
    **{f"rates.{group}": _RATE for group in GROUPS},
    "lora.rank": whole(1, 65_536),
    "lora.alpha": number(0.0, 1e6, above=True),
    "lora.dropout": _SHARE_BELOW_ONE,
    "optimizer.b1": _SHARE_BELOW_ONE,
    "optimizer.b2": _SHARE_BELOW_ONE,
    "optimizer.eps": number(0.0, 1.0, above=True),
    "optimizer.weight_decay": number(0.0, 10.0),
    "optimizer.clip": number(0.0, 1e6),
    "optimizer.warmup": number(0.0, 1.0),
}
"""The type and range of each number here, by its path in a recipe."""


def require_ranges(part: Any, before: str, ranges: Mapping[str, Kind]) -> None:
    """Checks the numbers of a part of a recipe; null passes where the field may be null.

    Args:
      part: a dataclass.
      before: its path in the recipe with a dot, such as "data."; empty for the recipe itself.
      ranges: by path in the recipe, for some of its fields.

    Raises:
      ValueError: a number out of its range; the message begins with its path and has the range.
    """
    for field in dataclasses.fields(part):
        name, value = f"{before}{field.name}", getattr(part, field.name)
        if (kind := ranges.get(name)) is None:
            continue
        if "None" in str(field.type):
            if value is None:
                continue
            kind = dataclasses.replace(kind, expected=f"{kind.expected}, or null")
        for one in value if isinstance(value, (list, tuple)) else [value]:
            parsed(name, kind, one)


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Which projections are adapted, and how.

    Attributes:
      rank: width of the two narrow projections; the authors take 128.
      alpha: their product is multiplied by alpha / rank; the authors take 256.
      dropout: the share of a projection's inputs that a training step hides from its narrow projections.
      targets: projections of the decoder's layers; the authors adapt all of them.
    """

    rank: int = 128
    alpha: float = 256.0
    dropout: float = 0.05
    targets: tuple[str, ...] = PROJECTIONS

    def __post_init__(self) -> None:
        require_ranges(self, "lora.", RANGES)
        if not self.targets or set(self.targets) - set(PROJECTIONS):
            raise ValueError(f"lora.targets: expected some of {', '.join(PROJECTIONS)}; got {self.targets}")

    @property
    def scale(self) -> float:
        """The factor of the product of the narrow projections."""
        return self.alpha / self.rank


@dataclass(frozen=True, kw_only=True)
class Rates:
    """The peak learning rate of each group of parameters; None freezes it.

    Attributes:
      projector: between towers and decoder.
      decoder: with its embedding and its head.
      lora: the decoder's low-rank adapters; the decoder itself is frozen then.
      image_tower, video_tower: as their names say.
    """

    projector: float | None = None
    decoder: float | None = None
    lora: float | None = None
    image_tower: float | None = None
    video_tower: float | None = None

    def __post_init__(self) -> None:
        require_ranges(self, "rates.", RANGES)
        if all(self.of(group) is None for group in GROUPS):
            raise ValueError(f"rates: expected a learning rate for one of {', '.join(GROUPS)} at least")
        if self.lora is not None and self.decoder is not None:
            raise ValueError("rates: expected lora or decoder, got both: adapters are trained on a frozen decoder")

    def of(self, group: Group) -> float | None:
        """Returns the rate of a group; None where it is frozen."""
        rate: float | None = getattr(self, group)
        return rate

    def trains(self, name: str) -> bool:
        """Returns whether a parameter is trained."""
        return self.of(group_of(name)) is not None

    def split(self, parameters: Mapping[str, T]) -> tuple[dict[str, T], dict[str, T]]:
        """Splits parameters by name into those that are trained and those that are frozen."""
        trained = {name: value for name, value in parameters.items() if self.trains(name)}
        return trained, {name: value for name, value in parameters.items() if name not in trained}


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """AdamW with the defaults of transformers' Trainer.

    The authors train with the same betas, eps, schedule and warm-up, and without clipping.

    Attributes:
      b1, b2, eps: of Adam.
      weight_decay: of matrices; the authors take 0.
      clip: the largest norm of all gradients together; null or 0 does not clip, as the authors do not.
      warmup: share of the steps in which the rate rises from 0, rounded up to whole steps.
      schedule: "cosine" falls to 0 at the last step, "constant" stays.
      moments: dtype of the first moments; the second have that of the parameters.
    """

    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip: float | None = 1.0
    warmup: float = 0.03
    schedule: Literal["cosine", "constant"] = "cosine"
    moments: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        require_ranges(self, "optimizer.", RANGES)
