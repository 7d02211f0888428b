"""Parameters one by one, with the names of torch's: `for p in model.parameters()`, `weight.data[ids] = rows`."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from videollava_jax.face.arrays import from_torch
from videollava_jax.model.sharding import put

FINE_TUNE = "this model answers; fine-tune with `videollava finetune` (docs/training.md)"


class Owner(Protocol):
    """A model whose parameters are read and set by the core's names."""

    @property
    def device(self) -> Any:
        """Where it takes inputs."""

    def parameter(self, name: str) -> jax.Array:
        """Returns a parameter."""

    def set_parameters(self, values: dict[str, jax.Array]) -> None:
        """Sets parameters."""


class Parameter:
    """One parameter of a model: what it holds now, also after the model was cast or the parameter set.

    It is taken for an array by NumPy and JAX, and has the attributes of a JAX array apart from those below.
    """

    grad = None

    def __init__(self, owner: Owner, name: str):
        self._owner, self.name = owner, name

    @property
    def array(self) -> jax.Array:
        """The array."""
        return self._owner.parameter(self.name)

    @property
    def data(self) -> Parameter:
        """The parameter itself: to set items of it sets those of the model."""
        return self

    @property
    def requires_grad(self) -> bool:
        """False."""
        return False

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        self.requires_grad_(value)

    @property
    def device(self) -> Any:
        """That of the model."""
        return self._owner.device

    def requires_grad_(self, requires_grad: bool = True) -> Parameter:
        """Returns the parameter.

        Raises:
          ValueError: gradients are asked for.
        """
        if requires_grad:
            raise ValueError(f"requires_grad: {FINE_TUNE}")
        return self

    def numel(self) -> int:
        """Returns the number of elements."""
        return self.array.size

    nelement = numel

    def element_size(self) -> int:
        """Returns the bytes of an element."""
        return self.array.dtype.itemsize

    def dim(self) -> int:
        """Returns the number of axes."""
        return self.array.ndim

    def size(self, dim: int | None = None) -> Any:
        """Returns the shape, or the length of an axis."""
        return self.array.shape if dim is None else self.array.shape[dim]

    def detach(self) -> Parameter:
        """Returns the parameter."""
        return self

    def cpu(self) -> Parameter:
        """Returns the parameter."""
        return self

    def numpy(self) -> np.ndarray[Any, Any]:
        """Returns a copy as an array of NumPy."""
        return np.array(self.array)

    def clone(self) -> jax.Array:
        """Returns the array, which nobody changes."""
        return self.array

    def float(self) -> jax.Array:
        """Returns the array in float32."""
        return self.array.astype(jnp.float32)

    def copy_(self, values: Any) -> Parameter:
        """Sets all elements."""
        self[...] = values
        return self

    def __getitem__(self, item: Any) -> jax.Array:
        return self.array[_index(item)]

    def __setitem__(self, item: Any, values: Any) -> None:
        """Sets elements of the model's parameter.

        Raises:
          ValueError: values of a shape that does not fit.
        """
        now = self.array
        changed = np.array(now)
        try:
            changed[_index(item)] = np.asarray(from_torch(values)).astype(now.dtype)
        except (TypeError, IndexError, ValueError) as error:
            raise ValueError(f"{self.name} {list(now.shape)} cannot be set: {error}") from None
        self._owner.set_parameters({self.name: put(changed, now.sharding)})

    def __len__(self) -> int:
        return len(self.array)

    def __iter__(self) -> Iterator[jax.Array]:
        return iter(self.array)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        return np.asarray(self.array, dtype)

    def __jax_array__(self) -> jax.Array:
        return self.array

    def __getattr__(self, name: str) -> Any:
        try:
            return getattr(self.array, name)
        except AttributeError:
            raise AttributeError(
                f"a parameter is a JAX array with a few of torch's methods, and {name!r} is none of them: "
                "np.asarray(parameter) gives an array of NumPy"
            ) from None

    def __repr__(self) -> str:
        return f"Parameter {self.name} {self.dtype} {list(self.shape)}"


def _operator(name: str) -> Any:
    function = getattr(operator, name)

    def applied(self: Parameter, other: Any) -> Any:
        return function(self.array, other.array if isinstance(other, Parameter) else other)

    return applied


for _name in ("__add__", "__sub__", "__mul__", "__truediv__", "__matmul__", "__lt__", "__gt__"):
    setattr(Parameter, _name, _operator(_name))


def _index(item: Any) -> Any:
    """An index with arrays of any library as those of NumPy."""
    if isinstance(item, tuple):
        return tuple(_index(each) for each in item)
    return np.asarray(from_torch(item)) if hasattr(item, "__array__") or isinstance(item, list) else item


class Parameters(dict[str, jax.Array]):
    """The parameters by the core's names; called, an iterator over them, as torch's `parameters()` is."""

    def __init__(self, owner: Owner, values: Iterable[tuple[str, jax.Array]]):
        super().__init__(values)
        self._owner = owner

    def __call__(self, recurse: bool = True) -> Iterator[Parameter]:
        """Yields each parameter."""
        return (Parameter(self._owner, name) for name in self)
