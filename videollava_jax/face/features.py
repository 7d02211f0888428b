"""Model inputs as transformers' `BatchFeature`, as arrays of any library; `.to` works without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
from transformers import BatchFeature
from transformers.utils import is_torch_available

from videollava_jax.extras import installs

KINDS = ("np", "pt", "jax", None)


class Features(BatchFeature):  # type: ignore[misc]
    """transformers' `BatchFeature`; `.to(device, dtype)` works on arrays of NumPy and JAX too."""

    def to(self, *args: Any, **kwargs: Any) -> Features:
        """Casts arrays of floating point; a device is accepted in silence, as the model places its inputs itself.

        Tensors of torch are moved and cast by torch, as transformers does.

        Args:
            args, kwargs: a device (a name, a number, an object), a dtype of NumPy, JAX or torch, or both;
                `non_blocking`.

        Raises:
            ValueError: a dtype that is not one of floating point.
        """
        if any(_is_of_torch(value) for value in self.values()):
            super().to(*args, **kwargs)
            return self
        for dtype in filter(None, map(_dtype, (*args, kwargs.get("dtype")))):
            self.data = {name: _cast(value, dtype) for name, value in self.items()}
        return self


def features(data: Mapping[str, Any], return_tensors: Any, keep: tuple[str, ...] = ()) -> Features:
    """Returns inputs as arrays of the library that `return_tensors` names.

    Args:
        data: arrays of NumPy, or lists.
        return_tensors: see `tensor_kind`.
        keep: names of what stays as it came.
    """
    kind = tensor_kind(return_tensors)
    made = Features(dict(data), None if kind == "jax" else kind, keep)
    if kind == "jax":
        import jax.numpy as jnp

        made.data = {
            name: value if name in keep or isinstance(value, int) else jnp.asarray(np.asarray(value))
            for name, value in made.items()
        }
    return made


def tensor_kind(return_tensors: Any) -> str | None:
    """Returns "np", "pt", "jax" or None (lists) of a `return_tensors` argument, which may be transformers' enum.

    Raises:
        ValueError: another library, or torch where it is not installed.
    """
    kind = getattr(return_tensors, "value", return_tensors)
    if kind not in KINDS:
        raise ValueError(f"return_tensors: expected 'np', 'jax', 'pt' or None for lists, got {kind!r}")
    if kind == "pt" and not is_torch_available():
        raise ValueError(
            "return_tensors='pt' needs torch, which is not installed. The model takes 'np' or 'jax'; for 'pt': "
            f"{installs('torch')}"
        )
    return kind  # type: ignore[no-any-return]


def _is_of_torch(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(map(_is_of_torch, value))
    return type(value).__module__.partition(".")[0] == "torch"


def _dtype(value: Any) -> np.dtype[Any] | None:
    """The dtype that an argument of `.to` names; None where it is a device."""
    if _is_of_torch(value):
        if type(value).__name__ != "dtype":
            return None
        value = str(value).removeprefix("torch.")
        value = getattr(ml_dtypes, value, value)
    elif not isinstance(value, (type, np.dtype)):
        return None
    dtype: np.dtype[Any] = np.dtype(value)
    if not (np.issubdtype(dtype, np.floating) or dtype == ml_dtypes.bfloat16):
        raise ValueError(f".to: expected a dtype of floating point, got {dtype}; token ids stay whole numbers")
    return dtype


def _cast(value: Any, dtype: np.dtype[Any]) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_cast(item, dtype) for item in value)
    known = getattr(value, "dtype", None)
    floating = known is not None and (np.issubdtype(known, np.floating) or known == ml_dtypes.bfloat16)
    return value.astype(dtype) if floating else value
