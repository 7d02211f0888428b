"""What torch's modules and transformers' models have apart from their call: casting, weights by name, counts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from videollava_jax.config import ModelConfig
from videollava_jax.face.model_loading import dtype_of
from videollava_jax.generation.loaded import LoadedModel
from videollava_jax.model.video_llava import parameter_shapes, structure, with_parameters

_EMBEDDING, _HEAD = "language_model.embed_tokens.weight", "lm_head.weight"
_FINE_TUNE = "this model answers; fine-tune with `videollava finetune` (docs/training.md)"


@dataclass(frozen=True)
class Weight:
    """An embedding or a head.

    Attributes:
      weight: [V, D].
    """

    weight: jax.Array

    def __call__(self, ids: ArrayLike) -> jax.Array:
        """Returns the rows [..., D] of token ids."""
        return jnp.take(self.weight, jnp.asarray(ids), axis=0)


class Module(LoadedModel):
    """A loaded model with the methods of torch's modules, for code that was written for these."""

    training = False
    _config: Any = None  # transformers' object, from the first time that it is asked for
    _model_config: ModelConfig
    _graph: Any

    # ── its configuration ──

    @property
    def config(self) -> Any:
        """Transformers' configuration of the model, a `VideoLlavaConfig`.

        A field that is set holds from the next call on, as far as the weights fit it.
        """
        if self._config is None:
            from videollava_jax.face.config import from_model_config, of_checkpoint  # transformers loads slowly

            if self.directory is None:
                self._config = from_model_config(self._model_config)
            else:
                self._config = of_checkpoint(self.directory, self._model_config)
            self._config._name_or_path = self.name_or_path
        return self._config

    @config.setter
    def config(self, value: Any) -> None:
        before, self._config = self._config, value
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

    def _follow_config(self) -> None:
        """Takes over what was changed in `config` since the last call."""
        if self._config is None:
            return
        wanted = ModelConfig.from_hf(self._config)
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

    # ── where it is, in which dtype ──

    def to(self, *where: Any, dtype: Any = None, device: Any = None, **hints: Any) -> Self:
        """Casts the model where a dtype is among the arguments, and returns it.

        Devices are accepted in silence: JAX has placed the model on its default device, or on the mesh of its loading.

        Args:
          where: devices, and a dtype of JAX, NumPy or torch.
          dtype: likewise.
          device: likewise.
          hints: `non_blocking` and the like, which ask for nothing.
        """
        dtypes = [value for value in (*where, dtype) if _is_float_dtype(value)]
        return self._cast(dtype_of(dtypes[-1])) if dtypes else self

    def half(self) -> Self:
        """Casts the model to float16, in place."""
        return self._cast("float16")

    def bfloat16(self) -> Self:
        """Casts the model to bfloat16, in place."""
        return self._cast("bfloat16")

    def float(self) -> Self:
        """Casts the model to float32, in place."""
        return self._cast("float32")

    def cuda(self, device: Any = None) -> Self:
        """Returns the model: JAX has placed it."""
        return self

    def cpu(self) -> Self:
        """Returns the model: JAX has placed it; JAX_PLATFORMS=cpu chooses the CPU."""
        return self

    def eval(self) -> Self:
        """Returns the model, which never trains."""
        return self

    def train(self, mode: bool = True) -> Self:
        """Returns the model.

        Raises:
          ValueError: `mode` is true.
        """
        if mode:
            raise ValueError(f"train: {_FINE_TUNE}")
        return self

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Returns the model.

        Raises:
          ValueError: gradients are asked for.
        """
        if requires_grad:
            raise ValueError(f"requires_grad_: {_FINE_TUNE}")
        return self

    def tie_weights(self) -> None:
        """Does nothing: a tied head is the embedding."""

    def _cast(self, dtype: Any) -> Self:
        """Casts all floating-point parameters but the scales of int8 weights, in place."""
        parameters = {
            name: value if value.dtype == jnp.int8 or name.endswith("_scale") else value.astype(dtype)
            for name, value in self.parameters.items()
        }
        self.state = with_parameters(self.state, parameters)
        return self

    # ── weights ──

    def state_dict(self) -> dict[str, jax.Array]:
        """Returns all parameters by the names that transformers 5 gives them."""
        return {name if name == _HEAD else f"model.{name}": value for name, value in self.parameters.items()}

    def named_parameters(self) -> Iterator[tuple[str, jax.Array]]:
        """Yields the items of `state_dict`."""
        yield from self.state_dict().items()

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Returns the number of parameters; with `exclude_embeddings`, without the embedding of tokens."""
        return sum(
            value.size
            for name, value in self.parameters.items()
            if not name.endswith("_scale") and not (exclude_embeddings and name == _EMBEDDING)
        )

    def get_memory_footprint(self, return_buffers: bool = True) -> int:
        """Returns the bytes of all parameters."""
        return sum(value.nbytes for value in self.parameters.values())

    def get_input_embeddings(self) -> Weight:
        """Returns the embedding of tokens, `.weight` [V, D]."""
        return Weight(self.parameters[_EMBEDDING])

    def get_output_embeddings(self) -> Weight:
        """Returns the head, `.weight` [V, D]: the embedding where the two are tied."""
        parameters = self.parameters
        return Weight(parameters.get(_HEAD, parameters[_EMBEDDING]))


def _shape(shapes: Mapping[str, tuple[int, ...]], name: str) -> str:
    return str(list(shapes[name])) if name in shapes else "no parameter"


def _is_float_dtype(value: Any) -> bool:
    """Returns whether a value is a floating-point dtype, and no device."""
    if value is None or isinstance(value, (int, jax.Device)):
        return False
    try:
        return bool(jnp.issubdtype(jnp.dtype(dtype_of(value)), jnp.floating))
    except TypeError:
        return False
