"""The result of a forward pass, under transformers' names; its fields are items too."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax


class _Items:
    """A dataclass whose fields are also items: by name, or by their index among those that are not None."""

    def to_tuple(self) -> tuple[Any, ...]:
        """Returns the fields that are not None."""
        return tuple(self._present().values())

    def keys(self) -> Iterator[str]:
        """Returns the names of the fields that are not None."""
        return iter(self._present())

    def __getitem__(self, item: str | int | slice) -> Any:
        """Returns a field by its name, or by its index among those that are not None."""
        return self._present()[item] if isinstance(item, str) else self.to_tuple()[item]

    def __contains__(self, name: str) -> bool:
        return name in self._present()

    def _present(self) -> dict[str, Any]:
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class MediaFeatures(_Items):
    """The result of `get_image_features` and `get_video_features`.

    Attributes:
      pooler_output: what the decoder takes in the places of media tokens: [N, tokens_per_image, D] of images,
        [V × F, tokens_per_frame, D] of videos.
    """

    pooler_output: jax.Array


@dataclass(frozen=True)
class VideoLlavaOutput(_Items):
    """The result of a forward pass, under transformers' names.

    Attributes:
      loss: float32 scalar, the mean cross-entropy of the next token over labels that are not -100; None without labels.
      logits: [B, T, V].
      image_hidden_states: [N, tokens_per_image, D], None without images.
      video_hidden_states: [V × F, tokens_per_frame, D], fewer tokens with pooling; None without videos.
    """

    loss: jax.Array | None
    logits: jax.Array
    image_hidden_states: jax.Array | None = None
    video_hidden_states: jax.Array | None = None
