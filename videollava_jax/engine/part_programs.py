"""Compiled functions for a part of a grid: questions begun in a few rows or slots, and the busy slots and rows decoded.

slot index  0  1  2  3      The part of slots 1 and 3 and of their first two rows is copied, decoded and put back.
     rows   .  a  .  b      Where a part has all slots, no prefix is copied.
            .  .  .  c
            .  .  .  .
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from videollava_jax.compiler_options import RECORDED_LOOP, UPDATE_IN_PLACE, JitByPlatform
from videollava_jax.engine.grid import by_slot, in_rows, of_slot, with_questions
from videollava_jax.generation import steps as compiled
from videollava_jax.generation.answers import Answers, Vocabulary, with_next_token
from videollava_jax.generation.steps import Graph
from videollava_jax.model.attention import Implementation, KeysValues
from videollava_jax.model.cache import Packing, PrefixCache, TailCache
from videollava_jax.model.sharding import like, resharded, spec_of
from videollava_jax.model.video_llava import VideoLlava


@partial(jax.jit, static_argnums=0, donate_argnames=("tail", "answers"))
def begin_rows(
    graph: Graph,
    state: Any,
    ids_ET: jax.Array,
    mask_ET: jax.Array,
    fresh: Answers,
    prefix: PrefixCache,
    tail: TailCache,
    answers: Answers,
    vocabulary: Vocabulary,
    slot: jax.Array,
    row_E: jax.Array,
) -> tuple[TailCache, Answers]:
    """Puts a few questions into rows of one slot, as `grid.begin` does with all of its rows. For one shard.

    Args:
      fresh: answers without a token, of these questions.
      row_E: int32, their rows in the grid. Where two are equal, so are their questions.
    """
    model: VideoLlava = nnx.merge(graph, state)
    E, T = ids_ET.shape
    own = of_slot(prefix, 1, slot)
    x_ETD, layers = model.begin(ids_ET, mask_ET, own)
    first = with_next_token(model.next_logits(x_ETD), fresh, vocabulary)
    padded = ((0, 0), (tail.question - T, tail.capacity - tail.question))

    def rows(old: jax.Array, new: jax.Array, axis: int = 0) -> jax.Array:
        for i in range(E):
            one = jax.lax.slice_in_dim(new, i, i + 1, axis=axis).astype(old.dtype)
            old = jax.lax.dynamic_update_slice_in_dim(old, one, row_E[i], axis=axis)
        return old

    def into_rows(old: jax.Array, new: jax.Array) -> jax.Array:
        return rows(old, jnp.pad(new, [padded[1], (0, 0)] + [(0, 0)] * (new.ndim - 2)), 1)

    kept = [kv.reordered("SGKH") for kv in layers]
    tail = dataclasses.replace(
        tail,
        layers=tuple(jax.tree.map(into_rows, old, new) for old, new in zip(tail.layers, kept, strict=True)),
        valid_BS=rows(tail.valid_BS, jnp.pad(mask_ET, padded)),
        next_position_B=rows(tail.next_position_B, jnp.repeat(own.length_G, E) + mask_ET.sum(axis=1, dtype=jnp.int32)),
    )
    return tail, jax.tree.map(rows, answers, first)


@partial(jax.jit, static_argnums=(0, 10), donate_argnames=("tail", "answers"))
def begin_slots(
    graph: Graph,
    state: Any,
    ids_UN: jax.Array,
    packing: Packing,
    fresh: Answers,
    prefix: PrefixCache,
    tail: TailCache,
    answers: Answers,
    vocabulary: Vocabulary,
    slots: jax.Array,
    shards: int,
) -> tuple[TailCache, Answers]:
    """Does what `grid.begin_packed` does, in the slots of several indices: the weights are read once for all of them.

    Args:
      ids_UN: the tokens of the questions of each slot, one question after the other. U = shards × indices.
      packing: where they stand in the rows, as if each slot were a shard.
      fresh: answers without a token, of these rows.
      slots: int32, different indices of slots within their shards. Their prefixes are copied.
      shards: W, of the grid.
    """
    count, R = slots.shape[0], packing.rows
    each = [of_slot(prefix, shards, slots[i]) for i in range(count)]

    def together(*parts: jax.Array) -> jax.Array:
        """Joins [W, …] of each index to [W × indices, …]."""
        first = parts[0]
        spec = spec_of(first)
        joined = jnp.stack(parts, axis=1)
        return joined.reshape(-1, *first.shape[1:], out_sharding=like(first, *spec))

    def of_index(i: int) -> Callable[[jax.Array], jax.Array]:
        def taken(x: jax.Array, axis: int = 0, within: int = R) -> jax.Array:
            """Takes [W × indices × within] of an axis to the [W × within] of one index."""
            split = by_slot(x, shards, axis, within)
            one = jax.lax.index_in_dim(split, i, axis=axis + 1, keepdims=False)
            shape = (*x.shape[:axis], shards * within, *x.shape[axis + 1 :])
            return one.reshape(shape, out_sharding=like(x, *spec_of(x)))

        return taken

    filled_E, indices = ~fresh.done_B, [of_index(i) for i in range(count)]

    def into_rows(old: KeysValues, new: KeysValues) -> KeysValues:
        for i, taken in enumerate(indices):
            part: KeysValues = jax.tree.map(taken, new)
            old = in_rows(old, part, tail=tail, filled_E=taken(filled_E), shards=shards, slot=slots[i])
        return old

    own: PrefixCache = jax.tree.map(together, *each)
    model: VideoLlava = nnx.merge(graph, state)
    written = [partial(into_rows, old) for old in tail.layers]
    logits_EV, layers = model.begin_packed(ids_UN, packing, own, written)
    first = with_next_token(logits_EV, fresh, vocabulary)
    updated = tail, answers
    for i, taken in enumerate(indices):
        mask_ET, begun, filled = jax.tree.map(taken, (packing.mask_ET, first, filled_E))
        updated = with_questions(layers, mask_ET, begun, filled, each[i], *updated, slots[i])
    return updated


@partial(
    JitByPlatform,
    options={**UPDATE_IN_PLACE, **RECORDED_LOOP},
    placed="tail",
    static_argnums=0,
    static_argnames=("shards", "rows", "prefix_attention"),
    donate_argnames=("tail", "answers"),
)
def decode_part(
    graph: Graph,
    state: Any,
    prefix: PrefixCache,
    tail: TailCache,
    answers: Answers,
    vocabulary: Vocabulary,
    steps: jax.Array,
    enough: jax.Array,
    slots: jax.Array,
    *,
    shards: int,
    rows: int,
    prefix_attention: Implementation | None = None,
) -> tuple[TailCache, Answers]:
    """Decodes the first rows of some slots, as `generation.steps.decode` does with the whole grid.

    All rows that are being answered are among them: the others keep what they have.

    Args:
      slots: int32 [P'], different indices of slots within their shards; all of them, in any order, for no copy of
        prefixes.
      shards: W, of the grid.
      rows: of each slot.
    """
    slots_of_shard = prefix.prefixes // shards
    R = answers.done_B.shape[0] // prefix.prefixes
    count = slots.shape[0]
    chosen = [slots[i] for i in range(count)] if count < slots_of_shard else None
    # Of one shard, without a reshape: XLA's CPU backend would copy the whole array to put a slice into its reshape.
    alone = chosen if shards == 1 else None

    def taken(x: jax.Array, axis: int, *within: int) -> jax.Array:
        """Takes [W × P × within] of an axis to [W × P' × rows]; without `within`, to [W × P']."""
        if alone:
            unit, size = (R, rows) if within else (1, 1)
            found = [jax.lax.dynamic_slice_in_dim(x, slot * unit, size, axis=axis) for slot in alone]
            return jnp.concatenate(found, axis=axis)
        split = by_slot(x, shards, axis, *within)
        if chosen is not None:
            each = [jax.lax.dynamic_slice_in_dim(split, slot, 1, axis=axis + 1) for slot in chosen]
            split = jnp.concatenate(each, axis=axis + 1)
        if within:
            split = jax.lax.slice_in_dim(split, 0, rows, axis=axis + 2)
        shape = (*x.shape[:axis], shards * count * (rows if within else 1), *x.shape[axis + 1 :])
        return split.reshape(shape, out_sharding=like(x, *spec_of(x)))

    def put_back(x: jax.Array, part: jax.Array, axis: int, first: int = 0) -> jax.Array:
        """Puts a part back; of an axis before the rows' one only what begins at `first`, which is its end."""
        if alone:
            for i, slot in enumerate(alone):
                one = jax.lax.slice_in_dim(part[first:], i * rows, (i + 1) * rows, axis=axis)
                into: list[int | jax.Array] = [first, *[0] * (x.ndim - 1)]
                into[axis] = slot * R
                x = jax.lax.dynamic_update_slice(x, one, into)
            return x
        split = by_slot(x, shards, axis, R)
        part = by_slot(part[first:] if first else part, shards, axis, rows)
        part = resharded(part, like(split, *spec_of(split)))

        def at(slot: int | jax.Array) -> list[int | jax.Array]:
            start: list[int | jax.Array] = [0] * split.ndim
            start[axis + 1] = slot
            start[0] = first or start[0]
            return start

        if chosen is None:
            split = jax.lax.dynamic_update_slice(split, part, at(0))
        for i, slot in enumerate(chosen or ()):
            one = jax.lax.slice_in_dim(part, i, i + 1, axis=axis + 1)
            split = jax.lax.dynamic_update_slice(split, one, at(slot))
        return split.reshape(x.shape, out_sharding=like(x, *spec_of(x)))

    def ring_put_back(x: jax.Array, part: jax.Array) -> jax.Array:
        """The questions before the ring have not changed."""
        return put_back(x, part, 1, tail.question)

    own = prefix
    if chosen is not None:
        own = PrefixCache(
            layers=tuple(jax.tree.map(lambda x: taken(x, 0), kv) for kv in prefix.layers),
            valid_GS=taken(prefix.valid_GS, 0),
            length_G=taken(prefix.length_G, 0),
        )
    part = dataclasses.replace(
        tail,
        layers=tuple(jax.tree.map(lambda x: taken(x, 1, R), kv) for kv in tail.layers),
        valid_BS=taken(tail.valid_BS, 0, R),
        next_position_B=taken(tail.next_position_B, 0, R),
    )
    part, now = compiled.decode(
        graph,
        state,
        own,
        part,
        jax.tree.map(lambda x: taken(x, 0, R), answers),
        vocabulary,
        steps,
        enough,
        prefix_attention=prefix_attention,
    )
    tail = dataclasses.replace(
        tail,
        layers=tuple(jax.tree.map(ring_put_back, old, new) for old, new in zip(tail.layers, part.layers, strict=True)),
        valid_BS=put_back(tail.valid_BS, part.valid_BS, 0),
        next_position_B=put_back(tail.next_position_B, part.next_position_B, 0),
        write_at=part.write_at,
    )
    return tail, jax.tree.map(lambda old, new: put_back(old, new, 0), answers, now)
