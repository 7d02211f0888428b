"""The names of an adapter's tensors: a layout's names of modules, inside what PEFT adds to them."""

from __future__ import annotations

import re

from videollava_jax.weights.layouts import LAYOUTS, Layout, recognise

_MEMORY4 = Layout(
    "memory4",
    (
        ("model.image_tower.vision_model.", "image_tower."),
        ("model.video_tower.vision_model.", "video_tower."),
        *LAYOUTS["memory"].prefixes[2:],
    ),
)
ADAPTER_LAYOUTS: dict[str, Layout] = LAYOUTS | {_MEMORY4.name: _MEMORY4}
"""The layouts of checkpoints, and one that only adapters have: that of transformers 4.52 to 4.57 in memory."""

WRAPPED = "base_model.model."
WEIGHT = ".weight"
# PEFT drops the adapter's name ("default") when it saves; a state dict that was saved by hand has it.
HALF = re.compile(r"(?P<module>.+)\.lora_(?P<half>[AB])(\.[^.]+)?\.weight")
_BASE_LAYER = re.compile(r"\.base_layer(?=\.(weight|bias)$)")


def plain_name(name: str) -> str:
    """Returns a name without PEFT's additions, and with the `model.` that some of the authors' files lack."""
    name = _BASE_LAYER.sub("", name.removeprefix(WRAPPED))
    return f"model.{name}" if name.startswith("mm_projector.") else name


def module_name(layout: Layout, name: str) -> str:
    """Returns a layout's name for the module of a weight; `name` is our name of the weight."""
    return layout.from_ours(name).removesuffix(WEIGHT)


def recognise_adapter(names: list[str]) -> Layout:
    """Returns the layout that knows every name; of several, the one with the longest prefixes of them.

    An adapter has few names, so that more than one layout may fit: `model.image_tower.` is the beginning of
    `model.image_tower.image_tower.` and of `model.image_tower.vision_model.`.
    """

    def known(layout: Layout) -> int:
        return sum(next(len(theirs) for theirs, _ in layout.prefixes if name.startswith(theirs)) for name in names)

    fitting = [layout for layout in ADAPTER_LAYOUTS.values() if all(layout.to_ours(name) is not None for name in names)]
    return max(fitting, key=known) if fitting else recognise(names)
