"""KV caches: a prefix that many rows may share, and a tail for each row.

Attention over the two is computed in two parts and merged (`attention.merged`), so a prefix is never copied for its
rows. With one row for each prefix this is the cache of an ordinary batch: the prompt is the prefix, the answer the
tail.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from videollava_jax.model.attention import KeysValues
from videollava_jax.model.layers import quantize_rows
from videollava_jax.model.sharding import like, resharded, spec_of


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PrefixCache:
    """Keys and values of G prefixes. Read only: never written token by token.

    Attributes:
      layers: L × order "GKSH".
      valid_GS: bool, positions that hold a token. Padding and free positions do not, and are never read.
      length_G: int32, tokens of each prefix: the position of the first token after it.
    """

    layers: tuple[KeysValues, ...]
    valid_GS: jax.Array
    length_G: jax.Array

    @property
    def prefixes(self) -> int:
        """G: how many prefixes there are."""
        return self.valid_GS.shape[0]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TailCache:
    """Keys and values of the tokens after the prefix, of B rows; one donated array for each layer, updated in place.

    Tails keep the dtype of compute: they are short, and the scales of int8 would be copied around the loop.

    Questions stand in the first positions, right-aligned there. Answers stand in a ring that all rows write at one
    index: a row may begin at any step, and no answer is longer than the ring. After 5 steps of a ring of 4 (`.` is
    padding, `_` free or left by an answer that has ended):

        position    0 1 2 3 │ 4 5 6 7        write_at 5, for every row
        row 0       . a b c │ h e f g        began with the second step: question abc, answer efgh
        row 1       a b c d │ f _ _ e        began with the fourth step, into a row that had ended

    Attributes:
      layers: L × order "SGKH".
      valid_BS: bool, positions that hold a token of the row's present question and answer.
      next_position_B: int32, the rotary position of the next token of each row.
      write_at: int32 scalar, where the next step writes.
      question: Q, positions for questions; the others are the ring.
    """

    layers: tuple[KeysValues, ...]
    valid_BS: jax.Array
    next_position_B: jax.Array
    write_at: jax.Array
    question: int = field(metadata={"static": True})

    @property
    def capacity(self) -> int:
        """S: positions for each row."""
        return self.valid_BS.shape[1]

    def next_write_at(self) -> jax.Array:
        """Returns the index after `write_at`: behind the last one, the ring begins again after the questions."""
        following = self.write_at + 1
        return jnp.where(following == self.capacity, self.question, following)

    def of_rows(self, row_B: jax.Array) -> TailCache:
        """Returns the tails of the rows int32 [B], some of them perhaps twice: those that beams continue."""

        def taken(x: jax.Array, axis: int) -> jax.Array:
            return x.at[(slice(None),) * axis + (row_B,)].get(out_sharding=like(x, *spec_of(x)))

        return dataclasses.replace(
            self,
            layers=tuple(jax.tree.map(lambda x: taken(x, 1), kv) for kv in self.layers),
            valid_BS=taken(self.valid_BS, 0),
            next_position_B=taken(self.next_position_B, 0),
        )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Packing:
    """Where the tokens of R rows stand that are packed into one sequence for each of W prefixes, without padding.

    Three rows "ab", "c" and "def" of at most 4 positions, and their sequence of 8:

        rows   . . a b      packed   a b c d e f . .
               . . . c      place    2 3 7 9 . . . .      of each packed token among the positions of all rows
               . d e f      index    0 0 0 1 0 0 0 2 ...  of each position's token in the sequence, 0 for padding

    Attributes:
      index_WP: int32, P = R × T.
      place_WN: int32; that of padding is any.
      mask_ET: bool, E = W × R: which positions of the rows hold a token.
    """

    index_WP: jax.Array
    place_WN: jax.Array
    mask_ET: jax.Array

    @property
    def rows(self) -> int:
        """R."""
        return self.mask_ET.shape[0] // self.index_WP.shape[0]

    def by_row(self, x_WN: jax.Array) -> jax.Array:
        """Takes packed tokens [W, N, ...] to rows padded on the left, [E, T, ...], with zeros for padding.

        Masking alone would not do: a row whose values are not finite would reach others, as 0 × NaN is NaN.
        """
        W, (E, T) = x_WN.shape[0], self.mask_ET.shape
        after = (1,) * (x_WN.ndim - 2)
        taken = jnp.take_along_axis(x_WN, self.index_WP.reshape(W, -1, *after), axis=1, mode="clip")
        batch, _, *spec = spec_of(x_WN)
        rows = taken.reshape(E, T, *x_WN.shape[2:], out_sharding=like(x_WN, batch, None, *spec))
        return jnp.where(self.mask_ET.reshape(E, T, *after), rows, 0)

    def packed(self, x_ET: jax.Array) -> jax.Array:
        """Takes rows [E, T, ...] to packed tokens [W, N, ...]."""
        W = self.index_WP.shape[0]
        batch, _, *spec = spec_of(x_ET)
        flat = x_ET.reshape(W, -1, *x_ET.shape[2:], out_sharding=like(x_ET, batch, None, *spec))
        place = self.place_WN.reshape(*self.place_WN.shape, *(1,) * (x_ET.ndim - 2))
        return jnp.take_along_axis(flat, place, axis=1, mode="clip")

    def last(self, x_WND: jax.Array) -> jax.Array:
        """Returns the last token of each row: [E, 1, D] of [W, N, D]. Of rows without a token, any."""
        W, E = x_WND.shape[0], self.mask_ET.shape[0]
        index_WR = self.index_WP.reshape(W, E // W, -1, out_sharding=like(x_WND, *spec_of(x_WND)[:1], None, None))[
            :, :, -1
        ]
        taken = jnp.take_along_axis(x_WND, index_WR[:, :, None], axis=1, mode="clip")
        return taken.reshape(E, 1, x_WND.shape[-1], out_sharding=like(x_WND, *spec_of(x_WND)[:1], None, None))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cache:
    """The cache of a batch: each row has a prefix of its own, or neighbouring rows share one.

        prefix   . . U S E R : ▒ ▒ ▒ ▒ Why?      S positions, G rows     read only
        tail                                A n s w e r _ _ _ _      B rows, B a multiple of G

    Attributes:
      prefix: G rows.
      tail: B rows; each run of B / G neighbours follows one prefix.
    """

    prefix: PrefixCache
    tail: TailCache

    @property
    def free(self) -> int:
        """Positions of the tail that are still free: callers check, since a write past the end overwrites the last."""
        return self.tail.capacity - int(self.tail.write_at)

    def repeat(self, times: int) -> Cache:
        """Repeats each row `times` times; the copies are neighbours and share its prefix. Only for empty tails."""

        def rows(x: jax.Array, axis: int) -> jax.Array:
            return jnp.repeat(x, times, axis=axis, out_sharding=like(x, *spec_of(x)))

        tail = self.tail
        layers = tuple(jax.tree.map(lambda x: rows(x, 1), kv) for kv in tail.layers)
        tail = dataclasses.replace(
            tail, layers=layers, valid_BS=rows(tail.valid_BS, 0), next_position_B=rows(tail.next_position_B, 0)
        )
        return Cache(self.prefix, tail)

    def grow(self, capacity: int) -> Cache:
        """Returns the cache with a tail of `capacity` positions."""
        if capacity < self.tail.capacity:
            raise ValueError(f"a tail of {self.tail.capacity} positions cannot grow to {capacity}")
        extra = capacity - self.tail.capacity

        def pad(x: jax.Array) -> jax.Array:
            return jnp.pad(x, [(0, extra)] + [(0, 0)] * (x.ndim - 1))

        tail = dataclasses.replace(
            self.tail,
            layers=jax.tree.map(pad, self.tail.layers),
            valid_BS=jnp.pad(self.tail.valid_BS, ((0, 0), (0, extra))),
        )
        return Cache(self.prefix, tail)

    def keep(self, tokens: int) -> Cache:
        """Cuts the cache of one row back to its first `tokens` tokens; later positions of the tail become free."""
        prefix, tail = self.prefix, self.tail
        before = np.flatnonzero(np.asarray(prefix.valid_GS)[0])
        after = np.flatnonzero(np.asarray(tail.valid_BS)[0])
        if tail.valid_BS.shape[0] != 1 or not 1 <= tokens <= len(before) + len(after):
            expected = f"one row and 1 to {len(before) + len(after)} tokens"
            raise ValueError(f"expected {expected}, got {tail.valid_BS.shape[0]} and {tokens}")
        if tokens < len(before):
            seen = jnp.arange(prefix.valid_GS.shape[1]) <= int(before[tokens - 1])
            prefix = dataclasses.replace(
                prefix, valid_GS=prefix.valid_GS & seen, length_G=jnp.full_like(prefix.length_G, tokens)
            )
        kept = max(0, tokens - len(before))
        write_at = int(after[kept - 1]) + 1 if kept else 0
        tail = dataclasses.replace(
            tail,
            valid_BS=tail.valid_BS & (jnp.arange(tail.capacity) < write_at),
            next_position_B=jnp.full_like(tail.next_position_B, tokens),
            write_at=jnp.full_like(tail.write_at, write_at),
        )
        return Cache(prefix, tail)


def as_prefix(kv: KeysValues, *, int8: bool) -> KeysValues:
    """Converts keys and values to a prefix's layout, "GKSH"; with `int8` also to int8 with a scale for each vector."""
    kv = kv.reordered("GKSH")
    if not int8:
        return kv
    keys, key_scale = quantize_rows(kv.keys)
    values, value_scale = quantize_rows(kv.values)
    return KeysValues(keys, values, key_scale, value_scale, kv.order)


def written(past: KeysValues, new: KeysValues, write_at: int | jax.Array) -> KeysValues:
    """Writes new keys and values into a layer's tail from position `write_at` on; in place where it is donated."""
    new = new.reordered(past.order)
    axis = past.order.index("S")

    def update(old: jax.Array, values: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(old, values.astype(old.dtype), write_at, axis=axis)

    updated: KeysValues = jax.tree.map(update, past, new)
    return updated


def empty_tail(prefix: PrefixCache, rows: int, capacity: int, dtype: DTypeLike, *, question: int = 0) -> TailCache:
    """Returns empty tails after these prefixes, `rows` in all, sharded like them."""

    def zeros(x: jax.Array) -> jax.Array:
        _, K, _, H = x.shape
        G, heads, *_ = spec_of(x)
        return resharded(jnp.zeros((capacity, rows, K, H), dtype), like(x, None, G, heads, None))

    layers = tuple(KeysValues(zeros(kv.keys), zeros(kv.values), order="SGKH") for kv in prefix.layers)
    batch = spec_of(prefix.length_G)
    per_row = like(prefix.length_G, *batch)
    return TailCache(
        layers=layers,
        valid_BS=resharded(jnp.zeros((rows, capacity), bool), like(prefix.length_G, *batch, None)),
        next_position_B=jnp.repeat(prefix.length_G, rows // prefix.prefixes, out_sharding=per_row),
        write_at=jnp.asarray(question, jnp.int32),
        question=question,
    )
