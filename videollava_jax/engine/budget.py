"""How much memory the caches of a grid get: what the weights leave, without what programs need meanwhile. No JAX."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from videollava_jax.config import TextConfig
from videollava_jax.engine.sizes import GridShape, token_bytes

LEAST_SHARE = 0.6
"""The share that caches get of the memory beyond the weights, whatever programs need."""
UNPLANNED = 0.1
"""The share that stays free: for fragments, and for what no estimate knows."""
CODE = 1 << 29
"""Bytes of all compiled programs on a device: up to 210 MiB each with the 7B model."""
DISPATCHED = 32
"""Calls of programs that JAX queues: the features of as many media may wait for their prefill."""

MOST_ROWS = 1024
"""Rows of all slots, by default."""


@dataclass(frozen=True, kw_only=True)
class FreeMemory:
    """The memory of devices that the weights leave.

    Attributes:
      size: bytes, on all devices together.
      devices: their number.
      shards: W, what the mesh splits a batch into; the devices of a shard split heads and MLPs.
      config: of the decoder.
      dtype: of compute.
    """

    size: int
    devices: int
    shards: int
    config: TextConfig
    dtype: npt.DTypeLike

    @property
    def share(self) -> int:
        """Bytes that caches get where it is not known what programs need."""
        return int(LEAST_SHARE * self.size)

    def of_grid(self, shape: GridShape) -> int:
        """Returns the bytes that the caches of a grid get, whatever its number of slots."""
        left = (1 - UNPLANNED) * self.size - self.devices * temporary_bytes(
            shape, self.config, self.dtype, tensor=self.devices // self.shards
        )
        return max(self.share, int(left))


def temporary_bytes(shape: GridShape, config: TextConfig, dtype: npt.DTypeLike, *, tensor: int) -> int:
    """Returns an upper estimate of the bytes that programs need on a device, apart from weights and caches.

    That are the new keys and values of the questions of a slot, packed and by rows, until all layers are done; what a
    layer computes of the longest sequence; a layer's weights, if they are converted; logits with the copies that
    drawing tokens takes; media that wait for their prefill; and code.

    Args:
      shape: of a grid, whose slots do not count.
      tensor: devices that share a copy of the weights.
    """
    item, D, M = np.dtype(dtype).itemsize, config.hidden_size, config.intermediate_size
    questions = shape.rows * shape.question
    new_caches = 2 * questions * token_bytes(config, dtype) // tensor
    layer = max(shape.prefix, questions) * item * (2 * M // tensor + 6 * D)
    weights = item * (4 * D * D + 3 * D * M) // tensor
    logits = 4 * 4 * MOST_ROWS * config.vocab_size // tensor
    features = DISPATCHED * shape.prefix * D * item
    return new_caches + layer + weights + logits + features + CODE
