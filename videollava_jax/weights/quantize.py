"""Int8 weights: half the memory of bfloat16, one scale for each output channel.

    X.weight        int8 [out, in]      round(W / scale), -127..127
    X.weight_scale  float32 [out]       max |W| of the row / 127

`y = (x @ X.weight.T) * X.weight_scale`: the scale is applied after the dot product. Only the decoder's projections are
quantized; embeddings, head, norms, projector and towers keep their dtype.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from videollava_jax.weights.errors import WeightsError
from videollava_jax.weights.files import StoredTensor

Array = npt.NDArray[Any]

SCALE = "_scale"
"""The suffix that makes a weight's name its scale's."""
_INT8 = np.dtype(np.int8)
_LEVELS = 127


def is_quantizable(name: str) -> bool:
    """Returns whether a parameter of this name can be stored in int8."""
    return name.startswith("language_model.layers.") and name.endswith("_proj.weight")


def quantize(weight: Array) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Quantizes float [out, in] to int8 [out, in] and float32 scales [out]; the error is at most half a scale."""
    values = weight.astype(np.float32)
    scale = np.abs(values).max(axis=1) / _LEVELS
    safe = np.where(scale > 0, scale, 1)  # rows of zeros stay zeros
    return np.rint(values / safe[:, None]).astype(np.int8), scale


def dequantize(weight: Array, scale: Array, dtype: np.dtype[Any]) -> Array:
    """Multiplies int8 [out, in] by scales [out]; returns weights in `dtype`."""
    return (weight.astype(np.float32) * scale[:, None]).astype(dtype)


def quantize_tensors(tensors: Iterable[StoredTensor]) -> list[StoredTensor]:
    """Returns the tensors with the quantizable ones in int8, each followed by its scale; computed when it is read."""
    stored = []
    for tensor in tensors:
        if is_quantizable(tensor.name):
            both = _Quantized(tensor)
            stored.append(dataclasses.replace(tensor, dtype=_INT8, read=both.weight))
            name, dtype = tensor.name + SCALE, np.dtype(np.float32)
            stored.append(StoredTensor(name, tensor.shape[:1], dtype, tensor.file, both.scale))
        else:
            stored.append(tensor)
    return stored


@dataclass
class _Quantized:
    """A tensor in int8 and its scale; quantized once if the weight is read first."""

    tensor: StoredTensor
    held: list[Array] = field(default_factory=list)

    def weight(self) -> Array:
        weight, scale = quantize(self.tensor.read())
        self.held = [scale]
        return weight

    def scale(self) -> Array:
        return self.held.pop() if self.held else quantize(self.tensor.read())[1]


def pairs(tensors: Mapping[str, StoredTensor]) -> dict[str, str]:
    """Returns the names of int8 weights with the names of their scales.

    Raises:
      WeightsError: an int8 weight has no scale, or one of another length.
    """
    found = {name: name + SCALE for name, tensor in tensors.items() if tensor.dtype == _INT8}
    for name, scale in found.items():
        shape = tensors[scale].shape if scale in tensors else None
        if shape != tensors[name].shape[:1]:
            raise WeightsError(f"{name} is int8: expected its scale {scale} {tensors[name].shape[:1]}, got {shape}")
    return found


def dequantized(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Returns the tensors with those in int8 as floats, in the commonest dtype of the others; computed when read."""
    scales = pairs(tensors)
    if not scales:
        return dict(tensors)
    rest = [t.dtype for n, t in tensors.items() if n not in scales and n not in scales.values()]
    dtype = max(rest, key=rest.count, default=np.dtype(ml_dtypes.bfloat16))

    def tensor(name: str) -> StoredTensor:
        weight, scale = tensors[name], tensors[scales[name]]
        return dataclasses.replace(weight, dtype=dtype, read=lambda: dequantize(weight.read(), scale.read(), dtype))

    names = [name for name in tensors if name not in scales.values()]
    return {name: tensor(name) if name in scales else tensors[name] for name in names}
