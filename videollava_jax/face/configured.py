"""A loaded model whose `config` is transformers' object: what is set there holds from the next call on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from videollava_jax.config import ModelConfig
from videollava_jax.face.model_loading import configuration, core_config
from videollava_jax.generation.loaded import LoadedModel
from videollava_jax.model.video_llava import parameter_shapes, structure


class Configured(LoadedModel):
    """A loaded model with transformers' configuration, which it follows."""

    _config: Any = None  # transformers' object, from the first time that it is asked for
    _model_config: ModelConfig
    _graph: Any

    @property
    def config(self) -> Any:
        """Transformers' configuration of the model, a `VideoLlavaConfig`.

        A field that is set holds from the next call on, as far as the weights fit it.
        """
        if self._config is None:
            from videollava_jax.face.config import from_model_config, of_checkpoint  # transformers loads slowly

            if self.directory is None:
                self._config = from_model_config(self._stated())
            else:
                self._config = of_checkpoint(self.directory, self._stated())
            self._config._name_or_path = self.name_or_path
        return self._config

    @config.setter
    def config(self, value: Any) -> None:
        before, self._config = self._config, configuration(value)
        try:
            self._follow_config()
        except ValueError:
            self._config = before
            raise

    @property
    def model_config(self) -> ModelConfig:
        """The core's frozen configuration of the same.

        Raises:
          ValueError: a field of `config` was set to what this model does not do, or to what the weights do not fit.
        """
        self._follow_config()
        return self._model_config

    @model_config.setter
    def model_config(self, value: ModelConfig) -> None:
        self._model_config, self._config = value, None

    @property
    def graph(self) -> Any:
        """The module's structure, which the compiled functions take."""
        self._follow_config()
        return self._graph

    @graph.setter
    def graph(self, value: Any) -> None:
        self._graph = value

    def _core(self, config: ModelConfig) -> ModelConfig:
        """The core's configuration of what `config` says."""
        return config

    def _stated(self) -> ModelConfig:
        """What `config` says, of the core's configuration."""
        return self._model_config

    def _follow_config(self) -> None:
        """Takes over what was changed in `config` since the last call."""
        if self._config is None:
            return
        wanted = self._core(core_config(self._config))
        if wanted == self._model_config:
            return
        now, then = parameter_shapes(self._model_config), parameter_shapes(wanted)
        if wrong := [name for name in {**now, **then} if now.get(name) != then.get(name)]:
            raise ValueError(
                f"config was changed to what the weights do not fit: {wrong[0]} is {_shape(now, wrong[0])}, and "
                f"{_shape(then, wrong[0])} by config; resize_token_embeddings changes the vocabulary, "
                "VideoLlavaForConditionalGeneration(config) makes a new model"
            )
        self._model_config = wanted
        self._graph = structure(wanted, self.quantization)[0]


def _shape(shapes: Mapping[str, tuple[int, ...]], name: str) -> str:
    return str(list(shapes[name])) if name in shapes else "no parameter"
