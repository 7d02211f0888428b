"""One attention to compute: its sizes, and drawn arrays of them."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from videollava_jax.model.attention import KeysValues


@dataclass(frozen=True)
class Case:
    """The sizes of one attention, and what is unusual about it."""

    G: int
    rows: int  # that share keys
    T: int
    K: int
    heads: int  # for each key head
    S: int
    H: int
    order: str
    dtype: str
    int8: bool
    mask: str  # "all", "some", "left", "nothing" for the first row
    causal: int | None
    traced: bool  # the offset
    seed: int

    def arrays(self) -> tuple[jax.Array, KeysValues, jax.Array | None]:
        """Draws queries, keys and values, and the mask."""
        rng = np.random.default_rng(self.seed)
        shape = (self.G, self.K, self.S, self.H)
        q = jnp.asarray(rng.normal(size=(self.G * self.rows, self.T, self.K * self.heads, self.H)), self.dtype)
        if self.int8:
            x, y = (jnp.asarray(rng.integers(-127, 128, size=shape), jnp.int8) for _ in "kv")
            kv = KeysValues(x, y, *(jnp.asarray(rng.uniform(0.002, 0.02, size=shape[:3]), jnp.float32) for _ in "kv"))
        else:
            kv = KeysValues(*(jnp.asarray(rng.normal(size=shape), self.dtype) for _ in "kv"))
        mask = np.ones((self.G, self.S), bool)
        if self.mask == "left":
            mask = np.arange(self.S) >= rng.integers(0, self.S, size=(self.G, 1))
        elif self.mask != "all":
            mask = rng.random((self.G, self.S)) < 0.6
            mask[0] &= self.mask != "nothing"
        stored = KeysValues(kv.keys, kv.values, kv.key_scale, kv.value_scale, "GKSH").reordered(self.order)
        return q, stored, None if self.mask == "all" else jnp.asarray(mask)

    def offset(self) -> int | jax.Array | None:
        """Returns the causal offset, an int or an array."""
        return jnp.int32(self.causal) if self.traced and self.causal is not None else self.causal
