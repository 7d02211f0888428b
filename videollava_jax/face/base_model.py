"""`VideoLlavaModel`: the model without its head, under transformers' names; alone, or as `model.model`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jax.typing import ArrayLike

from videollava_jax.config import ModelConfig
from videollava_jax.face.model_loading import core_config
from videollava_jax.face.output import VideoLlavaModelOutput
from videollava_jax.face.parameters import Parameters
from videollava_jax.face.pretrained import PreTrained
from videollava_jax.model.layers import Quantization
from videollava_jax.model.video_llava import VideoLlava, named_parameters

_HEAD = "lm_head.weight"


class VideoLlavaModel(PreTrained):
    """Video-LLaVA without its head, under the names that transformers' users know."""

    def __init__(
        self,
        config: ModelConfig | Any,
        parameters: dict[str, jax.Array] | None = None,
        generation_config: dict[str, Any] | None = None,
        *,
        mesh: Mesh | None = None,
        quantization: Quantization | None = None,
        seed: int = 0,
    ):
        """Makes a model of parameters, or one with random weights; arguments are those of the class with the head.

        Raises:
          ValueError: the configuration asks for something that this model does not do.
        """
        stated = core_config(config)
        self._tied = stated.tie_word_embeddings
        if parameters is None:
            drawn = VideoLlava(self._core(stated), dtype=jnp.float32, rngs=nnx.Rngs(params=seed))
            parameters = named_parameters(nnx.state(drawn))
        without = {name: value for name, value in parameters.items() if name != _HEAD}
        super().__init__(self._core(stated), without, generation_config, mesh=mesh, quantization=quantization)
        self._keep(config)

    def __call__(
        self,
        input_ids: ArrayLike | None = None,
        attention_mask: ArrayLike | None = None,
        pixel_values_images: ArrayLike | None = None,
        pixel_values_videos: ArrayLike | None = None,
        *,
        return_dict: bool | None = None,
        **others: Any,
    ) -> Any:
        """Computes the last hidden states of sequences.

        Args:
          input_ids, attention_mask, pixel_values_images, pixel_values_videos, return_dict: as in
            `VideoLlavaForConditionalGeneration`.
          others: its others, apart from `labels` and `logits_to_keep`.

        Returns:
          A `VideoLlavaModelOutput`.

        Raises:
          TypeError: an unknown argument.
          ValueError: text, media or a cache that do not fit together, or an argument that asks for what is not done.
        """
        found = self._pass(input_ids, attention_mask, pixel_values_images, pixel_values_videos, None, others)
        output = VideoLlavaModelOutput(
            found.out, found.past, found.hidden_states, found.attentions, found.image, found.video
        )
        return self._as_asked(output, return_dict)

    forward = __call__

    def save_pretrained(self, *arguments: Any, **named: Any) -> None:
        """Refuses to write a checkpoint without a head.

        Raises:
          ValueError: always.
        """
        raise ValueError("save_pretrained: checkpoints have a head; save VideoLlavaForConditionalGeneration instead")

    def get_output_embeddings(self) -> None:  # type: ignore[override]
        """Returns None: there is no head."""

    def _outside(self, name: str) -> str:
        return name

    def _core(self, config: ModelConfig) -> ModelConfig:
        # The core has a head or ties it to the embedding: tied, it has no parameters.
        return dataclasses.replace(config, tie_word_embeddings=True)

    def _stated(self) -> ModelConfig:
        return dataclasses.replace(self._model_config, tie_word_embeddings=self._tied)


class OfAWhole(VideoLlavaModel):
    """The model without its head that a model with a head has: parameters and configuration are those of the whole."""

    def __init__(self, whole: PreTrained):
        """Shares the arrays of the model with a head."""
        self._whole = whole
        self.placement, self.quantization = whole.placement, whole.quantization
        self.name_or_path, self.directory = whole.name_or_path, whole.directory

    @property
    def state(self) -> Any:
        """The parameters of the whole."""
        return self._whole.state

    @state.setter
    def state(self, value: Any) -> None:
        self._whole.state = value

    @property
    def graph(self) -> Any:
        """The structure of the whole."""
        return self._whole.graph

    @graph.setter
    def graph(self, value: Any) -> None:
        self._whole.graph = value

    @property
    def config(self) -> Any:
        """Transformers' configuration of the whole."""
        return self._whole.config

    @config.setter
    def config(self, value: Any) -> None:
        self._whole.config = value

    @property
    def model_config(self) -> ModelConfig:
        """The core's configuration of the whole."""
        return self._whole.model_config

    @model_config.setter
    def model_config(self, value: ModelConfig) -> None:
        self._whole.model_config = value

    @property
    def parameters(self) -> Parameters:
        """The parameters of the whole without its head."""
        return Parameters(self, ((name, value) for name, value in self._whole.parameters.items() if name != _HEAD))

    def set_parameters(self, values: dict[str, jax.Array]) -> None:
        """Sets parameters of the whole."""
        self._whole.set_parameters(values)

    def _resize(self, rows: int, mean: bool, seed: int) -> None:
        self._whole._resize(rows, mean, seed)

    def _said(self, given: Mapping[str, Any], name: str, default: bool) -> bool:
        return self._whole._said(given, name, default)

    def _selecting(self, layer: Any, strategy: str | None) -> Self:
        return self._whole._selecting(layer, strategy)  # type: ignore[return-value]
