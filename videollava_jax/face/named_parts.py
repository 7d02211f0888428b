"""The parts of the model that are called as transformers calls them: the decoder, the two towers, the head."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from videollava_jax.config import require_whole_windows
from videollava_jax.face.arrays import from_torch
from videollava_jax.face.output import TowerOutput, VideoLlavaModelOutput
from videollava_jax.face.parts import Part, on_its_devices
from videollava_jax.model.video_llava import VideoLlava

EMBEDDING, HEAD = "language_model.embed_tokens", "lm_head"


class Decoder(Part):
    """The decoder, transformers' `LlamaModel`: text and embeddings in, hidden states out."""

    def __init__(self, model: Any):
        super().__init__(model, "language_model")

    @property
    def config(self) -> Any:
        """The text part of the model's configuration."""
        return self._model.config.text_config

    @property
    def model(self) -> Decoder:
        """The decoder, as transformers 4.4 nests it."""
        return self

    @property
    def lm_head(self) -> Part:
        """The head, as transformers 4.4 nests it."""
        return head_of(self._model)

    def generate(self, *arguments: Any, **named: Any) -> Any:
        """Generates text, as the model with its head does."""
        return self._model.generate(*arguments, **named)

    def get_input_embeddings(self) -> Part:
        """Returns the embedding of tokens."""
        return Part(self._model, EMBEDDING)

    def __call__(self, input_ids: Any = None, attention_mask: Any = None, **others: Any) -> Any:
        """Computes hidden states, as `VideoLlavaModel` does without media.

        Args:
          input_ids: int [B, T], text alone.
          attention_mask: int or bool [B, S + T].
          others: `inputs_embeds`, with the features of media in their places, and others of `VideoLlavaModel`.

        Returns:
          A `VideoLlavaModelOutput`.

        Raises:
          ValueError: placeholders of media among the ids or embeddings, or arguments that do not fit together.
        """
        found = self._model._pass(input_ids, attention_mask, None, None, None, others)
        output = VideoLlavaModelOutput(found.out, found.past, found.hidden_states, found.attentions)
        return output.to_tuple() if others.get("return_dict") is False else output


class Tower(Part):
    """A vision tower, transformers' `CLIPVisionModel`."""

    @property
    def config(self) -> Any:
        """The vision part of the model's configuration."""
        return self._model.config.vision_config

    @property
    def vision_model(self) -> Tower:
        """The tower, as transformers 4 nests it."""
        return self

    def __call__(
        self, pixel_values: Any, *, output_hidden_states: bool | None = None, return_dict: bool | None = None
    ) -> Any:
        """Computes the hidden states of images or frames.

        Args:
          pixel_values: float32 [N, 3, S, S]; frames of a video together.
          output_hidden_states: whether those of every layer are wanted.
          return_dict: False for a tuple of what is not None.

        Returns:
          A `TowerOutput`.

        Raises:
          ValueError: pixels of another shape.
        """
        config, given = self._model.model_config, on_its_devices(self._model, pixel_values)
        side, channels, depth = (
            getattr(config.vision_config, name) for name in ("image_size", "num_channels", "num_hidden_layers")
        )
        if (
            given.ndim != 4
            or given.shape[1:] != (channels, side, side)
            or not jnp.issubdtype(given.dtype, jnp.floating)
        ):
            raise ValueError(f"pixel_values: expected [N, {channels}, {side}, {side}], got {list(given.shape)}")
        if self._path == "video_tower":
            require_whole_windows("pixel_values", len(given), config.frame_window)
        layers = tuple(range(depth + 1)) if output_hidden_states else (depth,)
        hidden, pooled = _tower(self._model.graph, self._model.state, self._path, layers, given)
        output = TowerOutput(hidden[-1], pooled, hidden if output_hidden_states else None)
        return output.to_tuple() if return_dict is False else output


class TiedHead(Part):
    """A head that is the embedding of tokens."""

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Returns logits [..., V] of hidden states [..., D].

        Raises:
          ValueError: an array that does not fit.
        """
        weight = self._model.parameter(EMBEDDING + ".weight")
        x, D = np.asarray(from_torch(arguments[0]) if arguments else None), weight.shape[1]
        if not x.ndim or x.shape[-1] != D or len(arguments) != 1 or named:
            raise ValueError(f"lm_head: expected floats [..., {D}], got {x.dtype} {list(x.shape)}")
        return _tied(jnp.asarray(x), weight)


def head_of(model: Any) -> Part:
    """Returns the head of a model."""
    return TiedHead(model, EMBEDDING) if model.model_config.tie_word_embeddings else Part(model, HEAD)


@jax.jit
def _tied(x: jax.Array, weight_VD: jax.Array) -> jax.Array:
    return jnp.einsum("...D,VD->...V", x, weight_VD)


@partial(jax.jit, static_argnums=(0, 2, 3))
def _tower(
    graph: Any, state: Any, name: str, layers: tuple[int, ...], pixels: jax.Array
) -> tuple[tuple[jax.Array, ...], jax.Array]:
    model: VideoLlava = nnx.merge(graph, state)
    tower = model.image_tower if name == "image_tower" else model.video_tower
    found = tower(jnp.moveaxis(pixels, 1, -1), layers)
    hidden = tuple(jnp.split(found, len(layers), axis=-1))
    return hidden, tower.post_layernorm(hidden[-1][:, 0])
