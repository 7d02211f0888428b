"""The result of a forward pass, under transformers' names; its fields are items too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax

from videollava_jax.face.cache import DynamicCache
from videollava_jax.generation.output import Items


@dataclass(frozen=True)
class MediaFeatures(Items):
    """The result of `get_image_features` and `get_video_features`.

    Attributes:
      pooler_output: what the decoder takes in the places of media tokens: [N, tokens_per_image, D] of images,
        [V × F, tokens_per_frame, D] of videos.
    """

    pooler_output: jax.Array

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"the features of media have pooler_output alone, not {name!r}: model.image_tower(pixels) and "
            "model.video_tower(pixels) give the hidden states of towers"
        )


@dataclass(frozen=True)
class TowerOutput(Items):
    """The result of a tower.

    Attributes:
      last_hidden_state: [N, 1 + patches, D] behind the last layer.
      pooler_output: [N, D], its class token normalised by `post_layernorm`.
      hidden_states: layers + 1 × [N, 1 + patches, D]; None unless asked for.
    """

    last_hidden_state: jax.Array
    pooler_output: jax.Array
    hidden_states: tuple[jax.Array, ...] | None = None


class _Result(Items):
    """What the results of both classes have, under the names of transformers 5.24 too."""

    past_key_values: DynamicCache | None
    image_hidden_states: jax.Array | None
    video_hidden_states: jax.Array | None

    @property
    def cache(self) -> DynamicCache | None:
        """`past_key_values`."""
        return self.past_key_values

    @property
    def image_outputs(self) -> MediaFeatures | None:
        """`image_hidden_states`, as `pooler_output`."""
        return None if self.image_hidden_states is None else MediaFeatures(self.image_hidden_states)

    @property
    def video_outputs(self) -> MediaFeatures | None:
        """`video_hidden_states`, as `pooler_output`."""
        return None if self.video_hidden_states is None else MediaFeatures(self.video_hidden_states)


@dataclass(frozen=True)
class VideoLlavaModelOutput(_Result):
    """The result of `VideoLlavaModel`, under transformers' names.

    Attributes:
      last_hidden_state: [B, T, D], behind the final norm.
      past_key_values, hidden_states, attentions, image_hidden_states, video_hidden_states: as in `VideoLlavaOutput`.
    """

    last_hidden_state: jax.Array
    past_key_values: DynamicCache | None = None
    hidden_states: tuple[jax.Array, ...] | None = None
    attentions: tuple[jax.Array, ...] | None = None
    image_hidden_states: jax.Array | None = None
    video_hidden_states: jax.Array | None = None


@dataclass(frozen=True)
class VideoLlavaOutput(_Result):
    """The result of `VideoLlavaForConditionalGeneration`, under transformers' names.

    Attributes:
      loss: float32 scalar, the mean cross-entropy of the next token over labels that are not -100; None without labels.
      logits: [B, T, V], or those that `logits_to_keep` names.
      past_key_values: the cache, with the tokens of this call in it; None with `use_cache=False`.
      hidden_states: L + 1 × [B, T, D]: the embeddings with the features of media in them, the output of each layer, the
        last one behind the final norm; None unless asked for.
      attentions: L × [B, N, T, S], weights of the decoder's attention to past and new tokens; None unless asked for.
      image_hidden_states: [N, tokens_per_image, D], None without images.
      video_hidden_states: [V × F, tokens_per_frame, D], fewer tokens with pooling; None without videos.
    """

    loss: jax.Array | None
    logits: jax.Array
    past_key_values: DynamicCache | None = None
    hidden_states: tuple[jax.Array, ...] | None = None
    attentions: tuple[jax.Array, ...] | None = None
    image_hidden_states: jax.Array | None = None
    video_hidden_states: jax.Array | None = None
