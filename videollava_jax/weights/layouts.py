"""The names of tensors in every layout of checkpoints: one table, read in both directions.

Our names are transformers' in memory, without the leading `model.`:

    ours     language_model.layers.0.…         lm_head.weight                  image_tower.…
    hub      language_model.model.layers.0.…   language_model.lm_head.weight   image_tower.vision_model.…
    hf5      language_model.model.layers.0.…   language_model.lm_head.weight   image_tower.…
    memory   model.language_model.layers.0.…   lm_head.weight                  model.image_tower.…
    pku      model.layers.0.…                  lm_head.weight                  model.image_tower.image_tower.…

A layout also says what it cannot hold: transformers' have no attention over time, the authors' (pku) no rows for
the tokens of media and padding.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from videollava_jax.config import DEEPEST_PROJECTOR
from videollava_jax.weights.errors import WeightsError

Array = npt.NDArray[Any]

# Buffers that old checkpoints hold although they are computed, not learnt.
COMPUTED = (".position_ids", ".inv_freq")
TEMPORAL = ".temporal_"
"""What the names of the video tower's attention over time have in common."""
VOCABULARY = ("language_model.embed_tokens.weight", "lm_head.weight")
"""The matrices with a row for each token."""
HEAD, EMBEDDING = "lm_head.weight", "language_model.embed_tokens.weight"


@dataclass(frozen=True)
class Layout:
    """A way of naming tensors.

    Attributes:
      name: as `--layout` and messages say it.
      prefixes: pairs (prefix in this layout, prefix in ours); the first that fits a name is used, in either direction.
      temporal: whether it can hold the video tower's attention over time.
      media_rows: whether its vocabulary has rows for the tokens of media and padding.
    """

    name: str
    prefixes: tuple[tuple[str, str], ...]
    temporal: bool = False
    media_rows: bool = True

    def to_ours(self, name: str) -> str | None:
        """Returns our name for a tensor of this layout; None where the layout has no such name."""
        for theirs, ours in self.prefixes:
            if name.startswith(theirs):
                return ours + name.removeprefix(theirs)
        return None

    def from_ours(self, name: str) -> str:
        """Returns this layout's name for one of our tensors.

        Raises:
          KeyError: it has none.
        """
        for theirs, ours in self.prefixes:
            if name.startswith(ours):
                return theirs + name.removeprefix(ours)
        raise KeyError(name)


_PROJECTOR = ("multi_modal_projector.", "multi_modal_projector.")
_DECODER = (("language_model.model.", "language_model."), ("language_model.lm_head.", "lm_head."))

LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        Layout(
            "hub",
            (
                ("image_tower.vision_model.", "image_tower."),
                ("video_tower.vision_model.", "video_tower."),
                _PROJECTOR,
                *_DECODER,
            ),
        ),
        Layout("hf5", (("image_tower.", "image_tower."), ("video_tower.", "video_tower."), _PROJECTOR, *_DECODER)),
        Layout(
            "memory",
            (
                ("model.image_tower.", "image_tower."),
                ("model.video_tower.", "video_tower."),
                ("model.multi_modal_projector.", "multi_modal_projector."),
                ("model.language_model.", "language_model."),
                ("lm_head.", "lm_head."),
            ),
        ),
        Layout(
            "pku",
            (
                ("model.image_tower.image_tower.", "image_tower."),
                ("model.video_tower.video_tower.", "video_tower."),
                # Activations have the odd numbers. A projector of one layer ("linear") has no number at all.
                *(
                    (f"model.mm_projector.{2 * i}.", f"multi_modal_projector.linear_{i + 1}.")
                    for i in range(DEEPEST_PROJECTOR)
                ),
                ("model.mm_projector.", "multi_modal_projector.linear_1."),
                ("model.layers.", "language_model.layers."),
                ("model.embed_tokens.", "language_model.embed_tokens."),
                ("model.norm.", "language_model.norm."),
                ("lm_head.", "lm_head."),
            ),
            temporal=True,
            media_rows=False,
        ),
    )
}


def learnt(names: Iterable[str]) -> list[str]:
    """Returns the names without those of computed buffers."""
    return [name for name in names if not name.endswith(COMPUTED)]


def recognise(names: Iterable[str]) -> Layout:
    """Returns the layout that knows every name.

    Raises:
      WeightsError: none does; the message shows names that the nearest layout does not know.
    """
    known = learnt(names)
    unknown = {layout.name: [name for name in known if layout.to_ours(name) is None] for layout in LAYOUTS.values()}
    for name, left in unknown.items():
        if known and not left:
            return LAYOUTS[name]
    nearest = min(unknown, key=lambda name: len(unknown[name]))
    shown = ", ".join(name or "''" for name in unknown[nearest][:5])
    if not known:
        raise WeightsError(f"no tensors; expected those of one of the layouts {', '.join(LAYOUTS)}")
    raise WeightsError(
        f"the names of these {len(known)} tensors fit none of the layouts {', '.join(LAYOUTS)}; nearest is {nearest}, "
        f"which does not know {shown}"
    )


@dataclass(frozen=True)
class Rows:
    """Adds to a vocabulary matrix the rows for media and padding that a layout leaves out, and drops them again.

    Each added row is the mean of all others: its logit is the mean of their logits and never the largest.

    Attributes:
      extra: how many rows.
    """

    extra: int

    def forward(self, array: Array) -> Array:
        """Returns [V, D] with the mean row appended `extra` times: [V + extra, D]."""
        if not self.extra:
            return array
        mean = array.astype(np.float32).mean(axis=0, keepdims=True).astype(array.dtype)
        return np.concatenate([array, np.repeat(mean, self.extra, axis=0)])

    def inverse(self, array: Array) -> Array:
        """Returns [V + extra, D] without the last `extra` rows, unchanged to the bit."""
        return array[: len(array) - self.extra] if self.extra else array

    def forward_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape that `forward` gives."""
        return (shape[0] + self.extra, *shape[1:]) if self.extra else shape

    def inverse_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape that `inverse` gives."""
        return (shape[0] - self.extra, *shape[1:]) if self.extra else shape
