"""Key-value caches: a prefix that many rows may share, and a tail of each row's own.

Attention over the two is computed in two parts and merged (`attention.merged`), so a prefix is never copied for its
rows. With one row a prefix this is the cache of an ordinary batch: the prompt is the prefix, the answer the tail.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from videollava_jax.model.attention import KeysValues
from videollava_jax.model.layers import quantized
from videollava_jax.model.sharding import like, resharded, spec_of


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PrefixCache:
    """Keys and values of G places, each of which holds one prefix. Read only: it is never written token by token.

    Attributes:
      layers: L × order "GKSH".
      valid_GS: bool, slots that hold a token; padding and free slots do not, and what those hold is never read.
      length_G: int32, tokens of each prefix: the position of the first token after it.
    """

    layers: tuple[KeysValues, ...]
    valid_GS: jax.Array
    length_G: jax.Array

    @property
    def places(self) -> int:
        """G."""
        return self.valid_GS.shape[0]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TailCache:
    """Keys and values of what each of B rows has after its prefix; one donated array a layer, updated in place.

    Tails keep the dtype of compute: they are short, and scales beside them would be copied around the loop.

    Questions stand in the first slots, right-aligned there. Answers stand in a ring that all rows write at one index:
    a row may begin at any step, and no answer is longer than the ring. After 5 steps of a ring of 4 (`.` padding,
    `_` free or left by an answer that has ended):

        slot        0 1 2 3 │ 4 5 6 7        next_slot 5, for every row
        row 0       . a b c │ h e f g        began with the second step: question abc, answer efgh
        row 1       a b c d │ f _ _ e        began with the fourth step, into a row that had ended

    Attributes:
      layers: L × order "SGKH".
      valid_BS: bool, slots that hold a token of the row's present question and answer.
      next_position_B: int32, the rotary position of the next token of each row.
      next_slot: int32 scalar, where the next step writes.
      question: Q, slots for questions; the others are the ring.
    """

    layers: tuple[KeysValues, ...]
    valid_BS: jax.Array
    next_position_B: jax.Array
    next_slot: jax.Array
    question: int = field(metadata={"static": True})

    @property
    def slots(self) -> int:
        """S: slots a row."""
        return self.valid_BS.shape[1]

    def slot_after(self) -> jax.Array:
        """The slot after the next: the ring begins again behind the questions."""
        following = self.next_slot + 1
        return jnp.where(following == self.slots, self.question, following)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cache:
    """The cache of a batch whose rows have a prefix each, or of one whose neighbouring rows share prefixes.

        prefix   . . U S E R : ▒ ▒ ▒ ▒ Why?      S slots, G rows     read only
        tail                                A n s w e r _ _ _ _      B rows, B a multiple of G

    Attributes:
      prefix, tail: as they say.
    """

    prefix: PrefixCache
    tail: TailCache

    @property
    def free(self) -> int:
        """Slots of the tail that are still free. A write past the end would overwrite the last: callers check first."""
        return self.tail.slots - int(self.tail.next_slot)

    def repeat(self, times: int) -> Cache:
        """So many rows for each one, neighbours together, which share its prefix. Only for tails that are empty."""

        def rows(x: jax.Array, axis: int) -> jax.Array:
            return jnp.repeat(x, times, axis=axis, out_sharding=like(x, *spec_of(x)))

        tail = self.tail
        layers = tuple(jax.tree.map(lambda x: rows(x, 1), kv) for kv in tail.layers)
        tail = dataclasses.replace(
            tail, layers=layers, valid_BS=rows(tail.valid_BS, 0), next_position_B=rows(tail.next_position_B, 0)
        )
        return Cache(self.prefix, tail)

    def grow(self, slots: int) -> Cache:
        """The same cache with so many slots in its tail."""
        if slots < self.tail.slots:
            raise ValueError(f"a tail of {self.tail.slots} slots cannot grow to {slots}")
        extra = slots - self.tail.slots

        def pad(x: jax.Array) -> jax.Array:
            return jnp.pad(x, [(0, extra)] + [(0, 0)] * (x.ndim - 1))

        tail = dataclasses.replace(
            self.tail,
            layers=jax.tree.map(pad, self.tail.layers),
            valid_BS=jnp.pad(self.tail.valid_BS, ((0, 0), (0, extra))),
        )
        return Cache(self.prefix, tail)

    def keep(self, tokens: int) -> Cache:
        """The cache of one row cut back to its first `tokens` tokens; the slots of the tail behind them are free."""
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
        slots = int(after[kept - 1]) + 1 if kept else 0
        tail = dataclasses.replace(
            tail,
            valid_BS=tail.valid_BS & (jnp.arange(tail.slots) < slots),
            next_position_B=jnp.full_like(tail.next_position_B, tokens),
            next_slot=jnp.full_like(tail.next_slot, slots),
        )
        return Cache(prefix, tail)


def as_prefix(kv: KeysValues, *, int8: bool) -> KeysValues:
    """Keys and values as a prefix keeps them: heads before slots, and perhaps in int8 with a scale for each vector."""
    kv = kv.reordered("GKSH")
    if not int8:
        return kv
    keys, key_scale = quantized(kv.keys)
    values, value_scale = quantized(kv.values)
    return KeysValues(keys, values, key_scale, value_scale, kv.order)


def written(past: KeysValues, new: KeysValues, slot: int | jax.Array) -> KeysValues:
    """A layer's tail with new keys and values from `slot` on; in place where it is donated."""
    new = new.reordered(past.order)
    axis = past.order.index("S")

    def update(old: jax.Array, values: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(old, values.astype(old.dtype), slot, axis=axis)

    updated: KeysValues = jax.tree.map(update, past, new)
    return updated


def empty_tail(prefix: PrefixCache, rows: int, slots: int, dtype: DTypeLike, *, question: int = 0) -> TailCache:
    """Tails without a token after these prefixes, split over the devices as they are."""

    def zeros(x: jax.Array) -> jax.Array:
        _, K, _, H = x.shape
        G, heads, *_ = spec_of(x)
        return resharded(jnp.zeros((slots, rows, K, H), dtype), like(x, None, G, heads, None))

    layers = tuple(KeysValues(zeros(kv.keys), zeros(kv.values), order="SGKH") for kv in prefix.layers)
    batch = spec_of(prefix.length_G)
    per_row = like(prefix.length_G, *batch)
    return TailCache(
        layers=layers,
        valid_BS=resharded(jnp.zeros((rows, slots), bool), like(prefix.length_G, *batch, None)),
        next_position_B=jnp.repeat(prefix.length_G, rows // prefix.places, out_sharding=per_row),
        next_slot=jnp.asarray(question, jnp.int32),
        question=question,
    )
