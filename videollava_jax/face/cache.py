"""`DynamicCache`: the keys and values of earlier calls of `forward`, which later calls go on from."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from videollava_jax.generation.buckets import bucket
from videollava_jax.generation.inputs import Ids, Mask
from videollava_jax.model.attention import KeysValues

GROWTH = 256  # positions that a cache grows by: each new capacity is a new program


@dataclass(frozen=True)
class Layer:
    """One layer of a cache.

    Attributes:
      keys, values: [B, K, S, H], as transformers' `DynamicLayer` has them.
    """

    keys: jax.Array
    values: jax.Array


class DynamicCache:
    """The keys and values of a batch, under the names of transformers' `DynamicCache`.

    A call of the model makes one (`out.past_key_values`) or continues the one that it is given, in place;
    `copy.deepcopy` keeps a state to go back to.

        positions   0 1 2 3 4 5 │ 6 7 …
        row 0       . . U S E R   _ _          S = 6 tokens, padding counted; free positions behind them
    """

    def __init__(self, ddp_cache_data: None = None, config: Any = None, **hints: Any):
        """Makes an empty cache.

        Args:
          ddp_cache_data: None; keys and values of other libraries are not taken.
          config: of the model, which is not needed: a cache takes the shape of the first model that fills it.
          hints: `offloading=False` and the like, which ask for nothing.

        Raises:
          ValueError: an argument that asks for something.
        """
        wrong = [
            name for name, value in {"ddp_cache_data": ddp_cache_data, **hints}.items() if value not in (None, False)
        ]
        if wrong:
            raise ValueError(f"DynamicCache: {wrong[0]} is not supported: a cache is filled by calls of the model")
        self._layers: tuple[KeysValues, ...] | None = None  # "SGKH", with free positions at the end
        self._mask: Mask | None = None  # [B, S]
        self._next_B: Ids | None = None  # the rotary position of the next token of each row

    # ── what users read ──

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Returns S, the tokens of a row, padding counted."""
        return 0 if self._mask is None else self._mask.shape[1]

    def get_max_cache_shape(self, layer_idx: int = 0) -> int:
        """Returns -1: a cache grows."""
        return -1

    @property
    def is_initialized(self) -> bool:
        """Whether a call has filled it."""
        return self._layers is not None

    @property
    def max_batch_size(self) -> int:
        """B; 0 for an empty cache."""
        return 0 if self._mask is None else len(self._mask)

    @property
    def layers(self) -> list[Layer]:
        """The keys and values of each layer, copies."""
        S = self.get_seq_length()

        def first(x: jax.Array) -> jax.Array:
            return jnp.einsum("SGKH->GKSH", x[:S])

        return [Layer(first(kv.keys), first(kv.values)) for kv in self._layers or ()]

    def __len__(self) -> int:
        return len(self._layers or ())

    def __iter__(self) -> Iterator[tuple[jax.Array, jax.Array]]:
        return iter([(layer.keys, layer.values) for layer in self.layers])

    def __getitem__(self, layer_idx: int) -> tuple[jax.Array, jax.Array]:
        """Returns the keys and the values of a layer, each [B, K, S, H]."""
        layer = self.layers[layer_idx]
        return layer.keys, layer.values

    def to_legacy_cache(self) -> tuple[tuple[jax.Array, jax.Array], ...]:
        """Returns the keys and values of all layers."""
        return tuple(self)

    # ── what users change ──

    def crop(self, max_length: int) -> None:
        """Keeps the first `max_length` tokens; a negative number drops as many at the end.

        Raises:
          ValueError: no whole number.
        """
        if not isinstance(max_length, (int, np.integer)):
            raise ValueError(f"max_length: expected a whole number, got a {type(max_length).__name__}")
        kept = max_length if max_length >= 0 else max(0, self.get_seq_length() + max_length)
        if kept == 0:
            self.reset()
        elif self._mask is not None and self._next_B is not None:
            self._next_B = self._next_B - self._mask[:, kept:].shape[1]
            self._mask = self._mask[:, :kept]

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats each row `repeats` times; the copies are neighbours.

        Raises:
          ValueError: no whole number from 1 on.
        """
        if not isinstance(repeats, (int, np.integer)) or repeats < 1:
            raise ValueError(f"repeats: expected a whole number from 1 on, got {repeats!r:.80}")
        self.batch_select_indices(np.repeat(np.arange(self.max_batch_size), repeats))

    def batch_select_indices(self, indices: ArrayLike) -> None:
        """Keeps the rows int [n], in this order; some of them perhaps several times.

        Raises:
          ValueError: no such row.
        """
        rows = np.asarray(indices)
        if rows.ndim != 1 or not np.issubdtype(rows.dtype, np.integer) or (abs(rows + 0.5) > self.max_batch_size).any():
            raise ValueError(f"indices: expected rows of a cache of {self.max_batch_size}, got {rows.tolist()}")
        if self._layers is not None and self._mask is not None and self._next_B is not None:
            self._layers = tuple(jax.tree.map(lambda x: x[:, rows], kv) for kv in self._layers)
            self._mask, self._next_B = self._mask[rows], self._next_B[rows]

    reorder_cache = batch_select_indices

    def reset(self) -> None:
        """Empties the cache."""
        self._layers = self._mask = self._next_B = None

    def __copy__(self) -> Self:
        return copy.deepcopy(self)  # a call of the model may write into the arrays of the copy that it is given

    # ── what the model does ──

    @property
    def mask(self) -> Mask | None:
        """Bool [B, S], False on padding; None for an empty cache."""
        return self._mask

    def taken(self, new: int) -> tuple[KeysValues, ...] | None:
        """Hands over the keys and values, in order "SGKH", with room for `new` more tokens; None for an empty cache.

        Their arrays are donated to the model, which gives longer ones back to `keep`. A call that fails leaves an
        empty cache.
        """
        layers, needed = self._layers, self.get_seq_length() + new
        self.reset()
        if layers is None or needed <= layers[0].capacity:
            return layers
        room = ((0, bucket(needed, GROWTH) - layers[0].capacity), (0, 0), (0, 0), (0, 0))
        return tuple(
            dataclasses.replace(kv, keys=jnp.pad(kv.keys, room), values=jnp.pad(kv.values, room)) for kv in layers
        )

    @property
    def next_B(self) -> Ids | None:
        """int32 [B], the rotary position of the next token of each row; None for an empty cache."""
        return self._next_B

    def keep(self, layers: tuple[KeysValues, ...], mask: Mask, next_B: Ids) -> None:
        """Takes the keys and values of a call, the mask of all its tokens, and the next position of each row."""
        self._layers, self._mask, self._next_B = layers, mask, next_B
