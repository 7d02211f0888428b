"""`Part`: a part of a model by its name, `model.language_model.layers[0].mlp`, with its parameters and its call."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from videollava_jax.face.arrays import from_torch
from videollava_jax.face.parameters import FINE_TUNE, Parameter
from videollava_jax.model.decoder import LlamaMLP
from videollava_jax.model.layers import Embedding, LayerNorm, Linear, RMSNorm
from videollava_jax.model.video_llava import Projector
from videollava_jax.model.vision import VisionMLP

_CALLED: dict[type[nnx.Module], str] = {
    **dict.fromkeys((Embedding, LayerNorm, Linear, RMSNorm), "weight"),
    LlamaMLP: "gate_proj.weight",
    Projector: "linear_1.weight",
    VisionMLP: "fc1.weight",
}
"""Those that take one array and give one, each with the weight that the array meets first."""


_ADAPTERS = "merge the adapter into a checkpoint: videollava convert ADAPTER OUT --base MODEL"
_HOOKS = "model(…, output_hidden_states=True, output_attentions=True) gives what layers compute"
NOT_HERE: Mapping[str, str] = {
    **dict.fromkeys(("load_adapter", "add_adapter", "set_adapter", "enable_adapters", "disable_adapters"), _ADAPTERS),
    **dict.fromkeys(("register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"), _HOOKS),
    "enable_input_require_grads": FINE_TUNE,
    "quantize": 'expected quantization="int8" in from_pretrained',
}
"""Methods of torch's and transformers' models, and what to do instead."""


class Part:
    """A part of a model.

    Its parts and parameters are attributes under transformers' names, those of a list are items too.
    """

    training = False

    def __init__(self, model: Any, path: str):
        """Names a part.

        Args:
          model: whose part it is, a `Module`.
          path: the core's name, such as "language_model.layers.0".
        """
        self._model, self._path = model, path

    # ── its parts and parameters ──

    def _below(self) -> list[str]:
        """The names of its parameters, without that of the part."""
        start = self._path + "."
        return [name.removeprefix(start) for name in self._model.parameters if name.startswith(start)]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        below = self._below()
        if name in below:
            return Parameter(self._model, f"{self._path}.{name}")
        if any(each.startswith(name + ".") for each in below):
            return Part(self._model, f"{self._path}.{name}")
        if name in NOT_HERE:
            raise AttributeError(f"{self._path} has no {name!r} here: {NOT_HERE[name]}")
        there = ", ".join(dict.fromkeys(each.split(".")[0] for each in below))
        raise AttributeError(f"{self._path} has no {name!r} here: it has {there}, parameters() and named_parameters()")

    def _items(self) -> list[str]:
        found = list(dict.fromkeys(each.split(".")[0] for each in self._below()))
        if not all(name.isdigit() for name in found):
            raise TypeError(f"{self._path} is no list of layers: it has {', '.join(found)}")
        return found

    def __len__(self) -> int:
        return len(self._items())

    def __getitem__(self, index: int | slice) -> Any:
        names = self._items()[index]
        if isinstance(names, list):
            return [Part(self._model, f"{self._path}.{name}") for name in names]
        return Part(self._model, f"{self._path}.{names}")

    def __iter__(self) -> Iterator[Part]:
        return iter(self[:])

    def __bool__(self) -> bool:
        return True

    def named_parameters(self, prefix: str = "", recurse: bool = True) -> Iterator[tuple[str, Parameter]]:
        """Yields its parameters by name."""
        for name in self._below():
            yield (f"{prefix}.{name}" if prefix else name), Parameter(self._model, f"{self._path}.{name}")

    def parameters(self, recurse: bool = True) -> Iterator[Parameter]:
        """Yields its parameters."""
        return (value for _, value in self.named_parameters())

    def state_dict(self) -> dict[str, jax.Array]:
        """Returns its parameters by name, as arrays."""
        return {name: value.array for name, value in self.named_parameters()}

    def num_parameters(self) -> int:
        """Returns the number of its parameters."""
        return sum(value.numel() for value in self.parameters())

    @property
    def dtype(self) -> Any:
        """That of its first parameter."""
        return next(iter(self.parameters())).dtype

    @property
    def device(self) -> Any:
        """That of the model."""
        return self._model.device

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> Any:
        """Sets its parameters, as `load_state_dict` of the model does.

        Raises:
          ValueError: an array of another shape, or names that do not fit.
        """
        return self._model.load_part(self._path, state_dict, strict)

    def children(self) -> Iterator[Part]:
        """Yields the parts right below it."""
        return (part for _, part in self.named_children())

    def named_children(self) -> Iterator[tuple[str, Part]]:
        """Yields the parts right below it by name."""
        names = dict.fromkeys(each.split(".")[0] for each in self._below() if "." in each)
        return ((name, Part(self._model, f"{self._path}.{name}")) for name in names)

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Part]]:
        """Yields it, and all parts below it, by name."""
        yield prefix, self
        for name, part in self.named_children():
            yield from part.named_modules(f"{prefix}.{name}" if prefix else name)

    def modules(self) -> Iterator[Part]:
        """Yields it, and all parts below it."""
        return (part for _, part in self.named_modules())

    # ── what code for torch does to it ──

    def eval(self) -> Part:
        """Returns the part, which never trains."""
        return self

    def requires_grad_(self, requires_grad: bool = True) -> Part:
        """Returns the part.

        Raises:
          ValueError: gradients are asked for.
        """
        if requires_grad:
            raise ValueError(f"requires_grad_: {FINE_TUNE}")
        return self

    def train(self, mode: bool = True) -> Part:
        """Returns the part.

        Raises:
          ValueError: `mode` is true.
        """
        if mode:
            raise ValueError(f"train: {FINE_TUNE}")
        return self

    # ── its call ──

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Computes the part's output, where it takes one array and gives one.

        Args:
          arguments: float [..., features], or ids int [...] of an embedding.
          named: none.

        Raises:
          ValueError: a part with more arguments, such as a layer, or an array that does not fit.
        """
        module = _module(self._model.graph, self._model.state, self._path)
        if type(module) not in _CALLED or len(arguments) != 1 or named:
            raise ValueError(
                f"{self._path} is not called by itself: model(…, output_hidden_states=True, output_attentions=True) "
                "gives what layers compute, and parts that take one array alone are called with it"
            )
        first = Parameter(self._model, f"{self._path}.{_CALLED[type(module)]}")
        x = on_its_devices(self._model, arguments[0])
        if isinstance(module, Embedding):
            V = len(first)
            if not jnp.issubdtype(x.dtype, jnp.integer) or (x.size and not (x.min() >= 0 and x.max() < V)):
                raise ValueError(f"{self._path}: expected ids in 0..{V - 1}, got {_said(x)}")
        elif not x.ndim or x.shape[-1] != first.shape[-1] or not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"{self._path}: expected floats [..., {first.shape[-1]}], got {x.dtype} {list(x.shape)}")
        return _called(self._model.graph, self._model.state, self._path, x)

    def forward(self, *arguments: Any, **named: Any) -> Any:
        """Calls the part."""
        return self(*arguments, **named)

    def __repr__(self) -> str:
        return f"{self._path}: {self.num_parameters():,} parameters"


def _said(ids: Any) -> str:
    whole = jnp.issubdtype(ids.dtype, jnp.integer)
    return f"{ids.min()}..{ids.max()}" if whole else f"{ids.dtype} {list(ids.shape)}"


def on_its_devices(model: Any, x: Any) -> Any:
    """An array that a compiled function of the model takes: those of JAX may be on other devices than a mesh."""
    return x if isinstance(x, jax.Array) and model.placement is None else np.asarray(from_torch(x))


def _module(graph: Any, state: Any, path: str) -> Any:
    module = nnx.merge(graph, state)
    for key in path.split("."):
        module = module[int(key)] if key.isdigit() else getattr(module, key)
    return module


@partial(jax.jit, static_argnums=(0, 2))
def _called(graph: Any, state: Any, path: str, x: jax.Array) -> jax.Array:
    found: jax.Array = _module(graph, state, path)(x)
    return found
