"""The key-value cache of a batch of sequences that are right-aligned, so that all rows write at one index."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KVCache:
    """Keys and values of every layer, one array a layer so that each is donated and updated in place.

    Slots of two rows after a prompt of 3 and of 5 tokens and one decode step, capacity 8 (`.` padding, `_` free):

        slot       0 1 2 3 4 5 6 7
        row 0      . . a b c d _ _      valid 0 0 1 1 1 1 0 0     next_position 4
        row 1      a b c d e f _ _      valid 1 1 1 1 1 1 0 0     next_position 6
                               ^ length 6: the next write, the same slot for both rows

    Attributes:
      keys, values: L arrays [B, K, S, H], keys already rotated. What free slots hold is never read.
      valid_BS: bool, slots that hold a token; padding and free slots do not.
      next_position_B: int32, the rotary position of the next token of each row.
      length: int32 scalar, slots written so far.
    """

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    valid_BS: jax.Array
    next_position_B: jax.Array
    length: jax.Array

    @property
    def capacity(self) -> int:
        """S: slots a row. A write past the end would overwrite the last slot, so callers check first."""
        return self.valid_BS.shape[1]

    def repeat(self, times: int) -> KVCache:
        """Each row `times` times, neighbours together: rows a, b become a, a, b, b."""

        def rows(x: jax.Array) -> jax.Array:
            return jnp.repeat(x, times, axis=0)

        return KVCache(
            keys=tuple(rows(k) for k in self.keys),
            values=tuple(rows(v) for v in self.values),
            valid_BS=rows(self.valid_BS),
            next_position_B=rows(self.next_position_B),
            length=self.length,
        )

    def grow(self, capacity: int) -> KVCache:
        """The same cache with more free slots."""
        if capacity < self.capacity:
            raise ValueError(f"a cache of {self.capacity} slots cannot grow to {capacity}")
        extra = capacity - self.capacity

        def pad(x: jax.Array) -> jax.Array:
            return jnp.pad(x, ((0, 0), (0, 0), (0, extra), (0, 0)))

        return KVCache(
            keys=tuple(pad(k) for k in self.keys),
            values=tuple(pad(v) for v in self.values),
            valid_BS=jnp.pad(self.valid_BS, ((0, 0), (0, extra))),
            next_position_B=self.next_position_B,
            length=self.length,
        )

    def keep(self, tokens: int) -> KVCache:
        """The cache of one row cut back to its first `tokens` tokens; the slots behind them are free again."""
        slots = np.flatnonzero(np.asarray(self.valid_BS)[0])
        if self.valid_BS.shape[0] != 1 or not 1 <= tokens <= len(slots):
            raise ValueError(
                f"expected one row and 1 to {len(slots)} tokens, got {self.valid_BS.shape[0]} and {tokens}"
            )
        length = int(slots[tokens - 1]) + 1
        return KVCache(
            keys=self.keys,
            values=self.values,
            valid_BS=self.valid_BS & (jnp.arange(self.capacity) < length),
            next_position_B=jnp.full_like(self.next_position_B, tokens),
            length=jnp.full_like(self.length, length),
        )
