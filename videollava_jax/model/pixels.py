"""Normalisation of pixels on the device: one function for training and inference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

Statistic: TypeAlias = "jax.Array | Sequence[float]"


def normalised(pixels: jax.Array, mean: Statistic, std: Statistic, dtype: DTypeLike = jnp.float32) -> jax.Array:
    """Scales pixels to 0-1, subtracts the mean and divides by the standard deviation, in float32.

    Images and videos may have different statistics: a caller takes those of the medium's own preprocessor. The host
    does the same in the `normalize` of a `media.Preprocessor`, equal up to float32 rounding.

    Args:
      pixels: [..., 3], RGB, 0-255: uint8, or floats that are not rounded.
      mean, std: three numbers each, on the scale 0-1.
      dtype: of the result.
    """
    mean32, std32 = jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)
    scaled: jax.Array = (pixels.astype(jnp.float32) * jnp.float32(1 / 255) - mean32) / std32
    return scaled.astype(dtype)
