"""How a checkpoint wants to be asked: its prompts, frames and pixels, as one object with a name. No JAX."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from videollava_jax.processing.prompt import MediaOrder, PromptTemplate, get_template
from videollava_jax.processing.segments import AfterEnd, AfterMedia, MediaKind

if TYPE_CHECKING:  # imported where they are used: help texts, which list the choices, do not wait for PyAV
    from videollava_jax.media import FramePreprocessor, FrameSampling, Preprocessor

Sampling = Literal["uniform", "linspace"]
Resize = Literal["pil", "torch"]
CHOICES: dict[str, tuple[Any, ...]] = {
    "media_order": get_args(MediaOrder),
    "after_media": get_args(AfterMedia),
    "after_end": get_args(AfterEnd),
    "repeat_end": (False, True),
    "sampling": get_args(Sampling),
    "resize": get_args(Resize),
    "pad_to_square": (False, True),
}
"""The values of each field but the template."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """What is done to a conversation and its media before the model sees them.

    Attributes:
        name: of the preset that this one is, or was changed from.
        template: the prompt template, or its name in `prompt.TEMPLATES`.
        media_order: "first": images, then videos, then the texts of a turn, a newline after each medium. "text": media
            where the text has them, a newline between them and text.
        after_media, after_end: how text is tokenised after a medium, and after `</s>`; see `SegmentEncoder`.
        repeat_end: whether earlier answers end in the `</s>` of the model and in that of the template, when another
            question follows; as the authors' command line writes them.
        sampling: the frames of a video: "uniform" is `arange(0, n, n / 8)`, "linspace" `linspace(0, n - 1, 8)`.
        resize: "pil" is antialiased and bicubic, on uint8 (`FramePreprocessor`); "torch" is not antialiased, in floats,
            bicubic for images and bilinear for videos (`FloatPreprocessor`).
        pad_to_square: whether images are padded to squares with the mean colour before they are resized.

    Raises:
        ValueError: a value that a field does not have.
    """

    name: str = "hf"
    template: str | PromptTemplate = "hf"
    media_order: MediaOrder = "first"
    after_media: AfterMedia = "continued"
    after_end: AfterEnd = "continued"
    repeat_end: bool = False
    sampling: Sampling = "uniform"
    resize: Resize = "pil"
    pad_to_square: bool = False

    def __post_init__(self) -> None:
        get_template(self.template)
        for field, values in CHOICES.items():
            given = getattr(self, field)
            if not any(type(given) is type(value) and given == value for value in values):
                raise ValueError(f"{field}: expected {' or '.join(map(repr, values))}, got {given!r}")

    def changed(self, changes: Mapping[str, Any]) -> Preset:
        """Returns this preset with other values of some fields.

        Raises:
            ValueError: a field that a preset does not have, or a value that the field does not have.
        """
        fields = ("template", *CHOICES)
        if unknown := [name for name in changes if name not in fields]:
            raise ValueError(f"preset: expected fields among {', '.join(fields)}; got {unknown[0]!r}")
        return dataclasses.replace(self, **changes)

    def frames(self, count: int) -> FrameSampling:
        """Returns the rule that takes `count` frames of a video."""
        from videollava_jax.media import Linspace, Uniform

        return Uniform(count) if self.sampling == "uniform" else Linspace(count)

    def preprocessor(self, kind: MediaKind, base: FramePreprocessor) -> Preprocessor:
        """Returns what makes media of a kind pixels.

        Args:
            kind: "image" or "video".
            base: has the sizes, the mean and the standard deviation; and the filter, for "pil".
        """
        from videollava_jax.media import FloatPreprocessor

        pads = self.pad_to_square and kind == "image"
        if self.resize == "pil":
            return dataclasses.replace(base, pad_to_square=pads)
        return FloatPreprocessor(
            size=base.size,
            crop_size=base.crop_size,
            interpolation="bicubic" if kind == "image" else "bilinear",
            pad_to_square=pads,
            mean=base.mean,
            std=base.std,
        )

    def to_json(self) -> dict[str, Any]:
        """Returns all fields but the template, which processor_config.json has under a key of its own."""
        return {field: getattr(self, field) for field in ("name", *CHOICES)}

    @classmethod
    def from_json(cls, raw: Any) -> Preset:
        """Reads what `to_json` returned; a field that is missing has the value of the preset of that name.

        Raises:
            ValueError: it is not an object, or has an unknown field or value.
        """
        if not isinstance(raw, Mapping):
            raise ValueError(f"preset: expected an object, got a {type(raw).__name__}")
        return get_preset(raw.get("name", "hf")).changed({field: raw[field] for field in raw if field != "name"})

    def __str__(self) -> str:
        """One line for each field, such as "resize         torch"."""
        values = {"preset": self.name, "template": get_template(self.template).name}
        values |= {field: str(getattr(self, field)).lower() for field in CHOICES}
        return "\n".join(f"{field:<14} {value}" for field, value in values.items())


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(name="hf"),
        Preset(
            name="original",
            template="vicuna_v1",
            media_order="text",
            after_media="anew",
            after_end="trimmed",
            repeat_end=True,
            sampling="linspace",
            resize="torch",
        ),
    )
}
"""`hf` is transformers' way, `original` the authors' own: the names of the two variants of the model."""


def get_preset(preset: str | Preset) -> Preset:
    """Returns the preset of a name; a preset is returned unchanged.

    Raises:
        ValueError: the name is unknown; the message lists all names.
    """
    if isinstance(preset, Preset):
        return preset
    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}; expected one of {', '.join(PRESETS)}")
    return PRESETS[preset]
