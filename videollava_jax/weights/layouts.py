"""The names that checkpoints give to tensors, and ours: one table, read in both directions.

Our names are transformers' in memory, without the leading `model.`:

    hub      language_model.model.layers.0.…   language_model.lm_head.weight   image_tower.vision_model.…
    hf5      language_model.model.layers.0.…   language_model.lm_head.weight   image_tower.…
    memory   model.language_model.layers.0.…   lm_head.weight                  model.image_tower.…
    ours     language_model.layers.0.…         lm_head.weight                  image_tower.…
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """Prefixes of a layout beside ours; the first that fits a name is used."""

    name: str
    prefixes: tuple[tuple[str, str], ...]

    def to_ours(self, name: str) -> str | None:
        """Our name for a tensor of this layout, None where the layout has no such name."""
        for theirs, ours in self.prefixes:
            if name.startswith(theirs):
                return ours + name.removeprefix(theirs)
        return None

    def from_ours(self, name: str) -> str:
        """This layout's name for one of our tensors."""
        for theirs, ours in self.prefixes:
            if name.startswith(ours):
                return theirs + name.removeprefix(ours)
        raise KeyError(name)


_PROJECTOR = ("multi_modal_projector.", "multi_modal_projector.")
_DECODER = (("language_model.model.", "language_model."), ("language_model.lm_head.", "lm_head."))

LAYOUTS = (
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
)

# Buffers that old checkpoints carry and that are computed, not learnt.
COMPUTED = (".position_ids", ".inv_freq")


def recognise(names: Iterable[str]) -> Layout:
    """The layout that has a place for every name.

    Raises:
        ValueError: none has; the message shows names that the nearest layout does not know.
    """
    learnt = [name for name in names if not name.endswith(COMPUTED)]
    unknown = {layout.name: [name for name in learnt if layout.to_ours(name) is None] for layout in LAYOUTS}
    for layout in LAYOUTS:
        if learnt and not unknown[layout.name]:
            return layout
    nearest = min(unknown, key=lambda name: len(unknown[name]))
    raise ValueError(
        f"the names of these {len(learnt)} tensors fit none of the layouts {', '.join(unknown)}; "
        f"nearest is {nearest}, which does not know {unknown[nearest][:5]}"
    )
