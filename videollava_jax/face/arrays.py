"""Tensors of torch on their way into the model, and the device that code for torch moves them to."""

from __future__ import annotations

from typing import Any

import jax
import ml_dtypes


class Device(str):
    """Where a model takes inputs: on the CPU, from where JAX moves them to its own device.

    It is a string, so that torch and `BatchFeature.to` take it.

    Attributes:
      jax: JAX's device of the parameters.
    """

    jax: jax.Device
    type = "cpu"

    def __new__(cls, device: jax.Device) -> Device:
        """Names the device of a model."""
        made = super().__new__(cls, "cpu")
        made.jax = device
        return made

    @property
    def platform(self) -> str:
        """That of the parameters: "cpu", "gpu" or "tpu"."""
        platform: str = self.jax.platform
        return platform


def from_torch(value: Any) -> Any:
    """Returns a tensor of torch as an array of NumPy, on whatever device it is; anything else as it came."""
    if type(value).__module__.partition(".")[0] != "torch" or not hasattr(value, "detach"):
        return value
    tensor = value.detach().cpu()
    if str(tensor.dtype) == "torch.bfloat16":  # NumPy has no such dtype of its own
        return tensor.float().numpy().astype(ml_dtypes.bfloat16)
    return tensor.numpy()
