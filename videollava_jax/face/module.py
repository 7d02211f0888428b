"""What torch's modules and transformers' models have apart from their call: casting, weights by name, counts."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from videollava_jax.face.arrays import Device, from_torch
from videollava_jax.face.configured import Configured
from videollava_jax.face.embeddings import resized
from videollava_jax.face.model_loading import dtype_of, sort
from videollava_jax.face.named_parts import EMBEDDING, Decoder, Tower, head_of
from videollava_jax.face.parameters import FINE_TUNE, Parameter, Parameters
from videollava_jax.face.parts import NOT_HERE, Part
from videollava_jax.model.sharding import Placement, put
from videollava_jax.model.video_llava import (
    named_parameters,
    parameter,
    structure,
    with_parameters,
)

_EMBEDDING, _HEAD = "language_model.embed_tokens.weight", "lm_head.weight"

_OWN_OBJECTS = ("_config", "_generation_config")
"""Objects of a model that users change."""


class Unfit(NamedTuple):
    """Names that do not fit a model: parameters that it misses, and what is none of its parameters."""

    missing_keys: list[str]
    unexpected_keys: list[str]


class Module(Configured):
    """A loaded model with the methods of torch's modules, for code that was written for these."""

    training = False
    main_input_name = "input_ids"
    base_model_prefix = "model"
    supports_gradient_checkpointing = False
    is_gradient_checkpointing = False

    # ── where it is, in which dtype ──

    @property
    def device(self) -> Device:
        """Where tensors of torch are expected, the CPU; `.platform` and `.jax` say where the parameters are."""
        return Device(self.jax_device)

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
            raise ValueError(f"train: {FINE_TUNE}")
        return self

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Returns the model.

        Raises:
          ValueError: gradients are asked for.
        """
        if requires_grad:
            raise ValueError(f"requires_grad_: {FINE_TUNE}")
        return self

    def gradient_checkpointing_enable(self, *arguments: Any, **named: Any) -> None:
        """Refuses to train.

        Raises:
          ValueError: always.
        """
        raise ValueError(f"gradient_checkpointing_enable: {FINE_TUNE}")

    def gradient_checkpointing_disable(self) -> None:
        """Does nothing: the model never trains."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Does nothing: there are no gradients."""

    def set_attn_implementation(self, attn_implementation: str) -> None:
        """Does nothing: the kernel of attention is chosen by the device.

        Raises:
          ValueError: a kernel that transformers has of its own.
        """
        sort({"attn_implementation": attn_implementation})

    def compile(self, *arguments: Any, **named: Any) -> None:
        """Does nothing: programs are compiled by XLA."""

    def _cast(self, dtype: Any) -> Self:
        """Casts all floating-point parameters but the scales of int8 weights, in place."""
        parameters = {
            name: value if value.dtype == jnp.int8 or name.endswith("_scale") else value.astype(dtype)
            for name, value in self.parameters.items()
        }
        self.set_parameters(parameters)
        return self

    # ── weights ──

    @property
    def parameters(self) -> Parameters:
        """Every parameter by its name; called, as torch's `parameters()` is, each one in turn."""
        return Parameters(self, named_parameters(self.state).items())

    def parameter(self, name: str) -> jax.Array:
        """Returns a parameter by the core's name."""
        return parameter(self.state, name)

    def set_parameters(self, values: dict[str, jax.Array]) -> None:
        """Sets parameters by the core's names, to arrays of their shapes on their devices."""
        self.state = with_parameters(self.state, {**self.parameters, **values})

    def state_dict(self) -> dict[str, jax.Array]:
        """Returns all parameters by the names that transformers 5 gives them."""
        return {self._outside(name): value for name, value in self.parameters.items()}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> Unfit:
        """Sets parameters by the names of `state_dict()`, or by the core's.

        Args:
          state_dict: arrays of any library, cast to the dtypes of the parameters.
          strict: whether names that miss or are left over are an error.

        Returns:
          These names.

        Raises:
          ValueError: an array of another shape, or names that do not fit. Nothing is set then.
        """
        _require(Mapping, state_dict=state_dict)
        names = {self._outside(name): name for name in self.parameters}
        names |= {name: name for name in self.parameters}
        found = {names[name]: value for name, value in state_dict.items() if name in names}
        missing = [self._outside(name) for name in self.parameters if name not in found]
        return self._load(found, Unfit(missing, [name for name in state_dict if name not in names]), strict)

    def load_part(self, path: str, state_dict: Mapping[str, Any], strict: bool) -> Unfit:
        """Sets the parameters of a part by their names in it; see `load_state_dict`."""
        _require(Mapping, state_dict=state_dict)
        names = {name.removeprefix(path + "."): name for name in self.parameters if name.startswith(path + ".")}
        found = {names[name]: value for name, value in state_dict.items() if name in names}
        missing = [name for name in names if names[name] not in found]
        return self._load(found, Unfit(missing, [name for name in state_dict if name not in names]), strict)

    def _load(self, found: Mapping[str, Any], unfit: Unfit, strict: bool) -> Unfit:
        if strict and any(unfit):
            raise ValueError(
                f"load_state_dict: {len(unfit.missing_keys)} parameters are missing, such as {unfit.missing_keys[:1]}, "
                f"and {len(unfit.unexpected_keys)} names are unknown, such as {unfit.unexpected_keys[:1]}"
            )
        self.set_parameters({name: self._fitted(name, value) for name, value in found.items()})
        return unfit

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Parameter]]:
        """Yields every parameter with its name in `state_dict`."""
        for name in self.parameters:
            yield (f"{prefix}." if prefix else "") + self._outside(name), Parameter(self, name)

    def named_buffers(self) -> Iterator[tuple[str, Any]]:
        """Yields nothing: the model has parameters alone."""
        return iter(())

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

    def get_parameter(self, target: str) -> Parameter:
        """Returns a parameter by its name in `state_dict`.

        Raises:
          ValueError: no such parameter.
        """
        _require(str, target=target)
        found = dict(self.named_parameters()).get(target)
        if found is None:
            raise ValueError(f"no parameter {target!r}: named_parameters() yields their names")
        return found

    def _outside(self, name: str) -> str:
        """Transformers' name of a parameter."""
        return name if name == _HEAD else f"model.{name}"

    def _fitted(self, name: str, value: Any) -> jax.Array:
        """An array of any library as the value of a parameter.

        Raises:
          ValueError: another shape.
        """
        now, given = self.parameter(name), np.asarray(from_torch(getattr(value, "weight", value)))
        if given.shape != now.shape:
            more = ": resize_token_embeddings changes the vocabulary" if name in (_EMBEDDING, _HEAD) else ""
            raise ValueError(f"{self._outside(name)}: expected {list(now.shape)}, got {list(given.shape)}{more}")
        return put(given.astype(now.dtype), now.sharding)

    # ── its vocabulary ──

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding."""
        return self.model_config.text_config.vocab_size

    def set_input_embeddings(self, value: Any) -> None:
        """Sets the embedding of tokens, to an array [V, D] or what has one as `weight`.

        Raises:
          ValueError: another shape.
        """
        self.set_parameters({_EMBEDDING: self._fitted(_EMBEDDING, value)})

    def set_output_embeddings(self, value: Any) -> None:
        """Sets the head, or the embedding where the two are tied, to an array [V, D] or what has one as `weight`.

        Raises:
          ValueError: another shape.
        """
        name = _HEAD if _HEAD in self.parameters else _EMBEDDING
        self.set_parameters({name: self._fitted(name, value)})

    def tie_weights(self) -> None:
        """Does nothing: a tied head is the embedding."""

    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
        *,
        seed: int = 0,
    ) -> Any:
        """Changes the number of tokens, of the embedding, the head and `config`.

        Args:
          new_num_tokens: rows; None for as many as there are.
          pad_to_multiple_of: rounds them up.
          mean_resizing: draws new rows around the mean of the old ones, as transformers does; False draws them from
            N(0, initializer_range²).
          seed: of the draws, which are not torch's.

        Returns:
          The embedding.

        Raises:
          ValueError: not a whole number of at least 1.
        """
        for name, value in (("new_num_tokens", new_num_tokens), ("pad_to_multiple_of", pad_to_multiple_of)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1):
                raise ValueError(f"{name}: expected a whole number of at least 1, got {value!r}")
        rows = int(self.vocab_size if new_num_tokens is None else new_num_tokens)
        rows += -rows % int(pad_to_multiple_of or 1)
        if rows != self.vocab_size:
            self._resize(rows, mean_resizing, seed)
        return self.get_input_embeddings()

    def _resize(self, rows: int, mean: bool, seed: int) -> None:
        text, parameters = self.config.text_config, self.parameters
        std = float(getattr(self.config, "initializer_range", None) or text.initializer_range)
        config = dataclasses.replace(
            self._model_config, text_config=dataclasses.replace(self._model_config.text_config, vocab_size=rows)
        )
        placement = None if self.placement is None else Placement(config, self.placement.mesh)
        values = {}
        for i, name in enumerate(name for name in (_EMBEDDING, _HEAD) if name in parameters):
            weight_VD = resized(parameters[name], rows, mean=mean, std=std, seed=seed + i)
            old = parameters[name].sharding
            values[name] = put(weight_VD, old if placement is None else placement.parameter(name, weight_VD.shape))
        text.vocab_size = rows
        self._model_config, self.placement = config, placement
        self._graph, state = structure(config, self.quantization)
        self.state = with_parameters(state, {**parameters, **values})

    # ── its parts ──

    @property
    def language_model(self) -> Decoder:
        """The decoder."""
        return Decoder(self)

    @property
    def multi_modal_projector(self) -> Part:
        """The projector; called with features of a tower [..., width]."""
        return Part(self, "multi_modal_projector")

    @property
    def image_tower(self) -> Tower:
        """The tower of images; called with pixels [N, 3, S, S]."""
        return Tower(self, "image_tower")

    @property
    def video_tower(self) -> Tower:
        """The tower of videos; called with frames [N, 3, S, S]."""
        return Tower(self, "video_tower")

    def get_decoder(self) -> Decoder:
        """Returns the decoder."""
        return self.language_model

    def get_input_embeddings(self) -> Part:
        """Returns the embedding of tokens, `.weight` [V, D]; called with ids."""
        return Part(self, EMBEDDING)

    def get_output_embeddings(self) -> Part:
        """Returns the head, `.weight` [V, D]: the embedding where the two are tied."""
        return head_of(self)

    def named_children(self) -> Iterator[tuple[str, Any]]:
        """Yields the parts right below the model by name."""
        names = dict.fromkeys(name.split(".")[0] for name in self.parameters)
        return ((self._outside(f"{name}.weight").removesuffix(".weight"), getattr(self, name)) for name in names)

    def children(self) -> Iterator[Any]:
        """Yields the parts right below the model."""
        return (part for _, part in self.named_children())

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Any]]:
        """Yields the model, and all its parts, by the names of `state_dict`."""
        yield prefix, self
        for name, part in self.named_children():
            yield from part.named_modules(f"{prefix}.{name}" if prefix else name)

    def modules(self) -> Iterator[Any]:
        """Yields the model, and all its parts."""
        return (part for _, part in self.named_modules())

    def get_submodule(self, target: str) -> Any:
        """Returns a part by its name, such as "model.language_model.layers.0.mlp".

        Raises:
          AttributeError: no such part.
          ValueError: no name.
        """
        _require(str, target=target)
        part: Any = self
        for name in target.removeprefix("model.").split(".") if target else ():
            part = part[int(name)] if name.isdigit() else getattr(part, name)
        return part

    def __repr__(self) -> str:
        parts = "".join(f"\n  ({name}): {part!r}" for name, part in self.named_children())
        return f"{type(self).__name__}({parts}\n)"

    def __deepcopy__(self, memo: Any) -> Self:
        made = copy.copy(self)  # arrays are never changed in place
        made.__dict__ |= {name: copy.deepcopy(getattr(self, name)) for name in _OWN_OBJECTS if name in self.__dict__}
        return made

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        instead = NOT_HERE.get(name, "docs/transformers.md lists what there is")
        raise AttributeError(f"{type(self).__name__} has no {name!r} here: {instead}")


def _require(kind: type, **named: Any) -> None:
    for name, value in named.items():
        if not isinstance(value, kind):
            raise ValueError(f"{name}: expected a {kind.__name__}, got a {type(value).__name__}")


def _is_float_dtype(value: Any) -> bool:
    """Returns whether a value is a floating-point dtype, and no device."""
    if value is None or isinstance(value, (int, jax.Device)):
        return False
    try:
        return dtype_of(value) is not None
    except ValueError:
        return False
