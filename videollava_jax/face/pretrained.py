"""What both classes of the model have: loading, features of media, and a forward pass by transformers' arguments."""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from jax.typing import ArrayLike

from videollava_jax.config import ModelConfig
from videollava_jax.face import forward_arguments, model_loading
from videollava_jax.face.arrays import from_torch
from videollava_jax.face.forward import Call, Computed, by_frame, run
from videollava_jax.face.module import Module
from videollava_jax.face.output import MediaFeatures, VideoLlavaModelOutput, VideoLlavaOutput
from videollava_jax.generation import steps as compiled
from videollava_jax.generation.inputs import features_of
from videollava_jax.model.video_llava import parameter_shapes, structure


class PreTrained(Module):
    """A loaded model that is called as transformers' models are."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Self:
        """Loads a checkpoint, as `LoadedModel.load` does.

        Args:
          pretrained_model_name_or_path: a directory or a model's name on the hub.
          kwargs: `dtype` (or `torch_dtype`) of parameters and compute, such as "bfloat16" or `torch.bfloat16`; None or
            "auto" keeps the checkpoint's. `mesh` of devices to spread the model over (`make_mesh`). `quantization`,
            "int8" or "w8a8". `verify`, "full", "fast" or "off": how a directory with a manifest is checked against it.
            `revision`, `token`, `cache_dir`, `local_files_only` and `force_download` for the hub. Further arguments of
            transformers that say where and how torch loads (`device_map`, `low_cpu_mem_usage`, …) are accepted.
            `config`, transformers' object, in place of the checkpoint's, as far as the weights fit it.

        Returns:
          The model; with `output_loading_info=True`, it and a dictionary of tensors that miss or are left over: none.

        Raises:
          TypeError: an unknown argument.
          ValueError: no such checkpoint, tensors that do not fit its configuration (all are listed), or an argument
            that asks for what is not done.
        """
        if not isinstance(pretrained_model_name_or_path, (str, os.PathLike)):
            raise ValueError(
                "pretrained_model_name_or_path: expected a directory or a name on the hub, got a "
                f"{type(pretrained_model_name_or_path).__name__}"
            )
        model = cls.load(pretrained_model_name_or_path, **model_loading.sort(kwargs))
        if kwargs.get("config") is not None:
            model.config = model_loading.configuration(kwargs["config"])
        # Whatever does not fit was an error.
        info: dict[str, list[str]] = {
            "missing_keys": [],
            "unexpected_keys": [],
            "mismatched_keys": [],
            "error_msgs": [],
        }
        return (model, info) if kwargs.get("output_loading_info") else model  # type: ignore[return-value]

    def get_image_features(
        self,
        pixel_values: ArrayLike | None = None,
        *,
        pixel_values_images: ArrayLike | None = None,
        vision_feature_layer: int | Sequence[int] | None = None,
        vision_feature_select_strategy: str | None = None,
        return_dict: bool | None = None,
    ) -> MediaFeatures | tuple[Any, ...]:
        """Computes the features of images without any text.

        Args:
          pixel_values: float32 [N, 3, S, S].
          pixel_values_images: its older name.
          vision_feature_layer, vision_feature_select_strategy: in place of those of `config`.
          return_dict: False for a tuple.

        Raises:
          ValueError: no images, images of another shape, or hidden states that the projector does not take.
        """
        pixels = from_torch(one_of(pixel_values=pixel_values, pixel_values_images=pixel_values_images))
        model = self._selecting(vision_feature_layer, vision_feature_select_strategy)
        features_of(model.model_config, "images", np.shape(pixels) if pixels is not None else (), 4, 1)
        found = MediaFeatures(compiled.encode_images(model.graph, self.state, np.asarray(pixels)))
        return found.to_tuple() if return_dict is False else found

    def get_video_features(
        self,
        pixel_values_videos: ArrayLike,
        *,
        video_pooling: int = 1,
        vision_feature_layer: int | Sequence[int] | None = None,
        return_dict: bool | None = None,
    ) -> MediaFeatures | tuple[Any, ...]:
        """Computes the features of videos without any text.

        Args:
          pixel_values_videos: float32 [V, F, 3, S, S].
          video_pooling: side of the windows of patches whose features are averaged; 1 for none.
          vision_feature_layer: in place of that of `config`.
          return_dict: False for a tuple.

        Raises:
          ValueError: videos of another shape, or hidden states that the projector does not take.
        """
        model = self._selecting(vision_feature_layer, None)
        pixels = np.asarray(from_torch(pixel_values_videos))
        features_of(model.model_config, "videos", pixels.shape, 5, video_pooling)
        found = MediaFeatures(
            by_frame(compiled.encode_videos(model.graph, self.state, pixels, video_pooling), len(pixels[0]))
        )
        return found.to_tuple() if return_dict is False else found

    def _pass(
        self,
        input_ids: ArrayLike | None,
        attention_mask: ArrayLike | None,
        images: ArrayLike | None,
        videos: ArrayLike | None,
        keep: Any,
        others: Mapping[str, Any],
    ) -> Computed:
        """Computes a forward pass; arguments are those of `VideoLlavaForConditionalGeneration.__call__`.

        Args:
          keep: its `logits_to_keep`; None for hidden states instead of logits.
          others: its further arguments.
        """
        known = {name: from_torch(value) for name, value in forward_arguments.sort(others).items()}
        call = Call(
            from_torch(input_ids),
            from_torch(attention_mask),
            one_of(pixel_values_images=from_torch(images), pixel_values=known.get("pixel_values")),
            from_torch(videos),
            known.get("video_pooling", 1),
            known.get("inputs_embeds"),
            known.get("position_ids"),
            one_of(past_key_values=known.get("past_key_values"), cache=known.get("cache")),
            use_cache=self._said(known, "use_cache", True),
            output_hidden_states=self._said(known, "output_hidden_states", False),
            output_attentions=self._said(known, "output_attentions", False),
        )
        model = self._selecting(known.get("vision_feature_layer"), known.get("vision_feature_select_strategy"))
        return run(model, call, from_torch(keep))

    def _keep(self, config: Any) -> None:
        """Keeps transformers' configuration that the model was made of: `config` is that object from then on."""
        if not isinstance(config, (ModelConfig, Mapping)):
            self._config = config

    def _as_asked(self, output: VideoLlavaOutput | VideoLlavaModelOutput, return_dict: bool | None) -> Any:
        return output if self._said({"return_dict": return_dict}, "return_dict", True) else output.to_tuple()

    def _said(self, given: Mapping[str, Any], name: str, default: bool) -> bool:
        """An argument that is true or false: as given, else as `config` has it, where that was asked for."""
        for value in (given.get(name), getattr(self._config, name, None)):
            if value is not None:
                return bool(value)
        return bool(getattr(getattr(self._config, "text_config", None), name, default))

    def _selecting(self, layer: Any, strategy: str | None) -> Self:
        """Returns this model, or one with its weights that selects other hidden states of the towers.

        Raises:
          ValueError: no such hidden states, or some that the projector does not take.
        """
        config = self.model_config
        if layer is not None:
            several = isinstance(layer, (list, tuple))
            chosen = tuple(layer) if several else layer
            if not all(type(each) is int for each in (chosen if several else [chosen])):
                raise ValueError(f"vision_feature_layer: expected a whole number or a list of such, got {layer!r:.80}")
            config = dataclasses.replace(config, vision_feature_layer=chosen)
        if strategy is not None:
            config = dataclasses.replace(config, vision_feature_select_strategy=strategy)  # type: ignore[arg-type]
        if config == self.model_config:
            return self
        if parameter_shapes(config) != parameter_shapes(self.model_config):
            raise ValueError(
                f"vision_feature_layer: expected {len(self.model_config.feature_layers)} of them, as many as the "
                f"projector was made for, got {layer}"
            )
        other = copy.copy(self)
        other.model_config, other.graph = config, structure(config, self.quantization)[0]
        return other


def one_of(**names: Any) -> Any:
    """Returns the one argument that was given, of several names of one thing; None for none.

    Raises:
      ValueError: more than one was given.
    """
    given = {name: value for name, value in names.items() if value is not None}
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} are names of one thing: give one of them")
    return next(iter(given.values()), None)
