"""A grid on the device: prefixes in its slots, questions in its rows, and the compiled functions that fill them.

    slot index   0          1                each of the W shards of a batch (the data axis of the mesh) has P slots:
    shard 0   [ slot 0 ] [ slot 1 ]          the slots of one index, one in each shard, are filled and freed together,
    shard 1   [ slot 2 ] [ slot 3 ]          so that no device sends another its share of a cache
                  │
                  └─ R rows, each with a question about the prefix in the slot

Filling the slots of one index leaves the others unchanged. The buffers of the grid are donated to every function that
changes them: no cache is copied.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from videollava_jax.config import TextConfig
from videollava_jax.engine.row_arrays import idle_answers
from videollava_jax.engine.sizes import Branches, GridShape
from videollava_jax.generation.answers import Answers, Vocabulary, with_next_token
from videollava_jax.generation.logprobs import Logprobs
from videollava_jax.generation.steps import Graph
from videollava_jax.model.attention import KeysValues
from videollava_jax.model.cache import Packing, PrefixCache, TailCache, as_prefix, empty_tail
from videollava_jax.model.pixels import normalised
from videollava_jax.model.sharding import Placement, like, put, resharded, spec_of, whole
from videollava_jax.model.video_llava import VideoLlava


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Grid:
    """The state of all slots and rows on the device.

    Attributes:
      prefix: the KV cache of each slot.
      tail, answers: the KV cache and the answer of each row; the rows of a slot are neighbours.
    """

    prefix: PrefixCache
    tail: TailCache
    answers: Answers


def new_grid(
    text: TextConfig,
    shape: GridShape,
    dtype: DTypeLike,
    placement: Placement | None,
    *,
    int8: bool,
    branches: Branches,
) -> Grid:
    """Makes an empty grid, sharded as the mesh needs it.

    Args:
      dtype: of compute, and of keys and values.
      int8: keep the keys and values of prefixes in int8, with a scale for each vector.
      branches: what its programs can do.
    """
    G, K, H = shape.prefixes, text.num_key_value_heads, text.head_dim
    key_shape = (G, K, shape.prefix, H)

    def zeros(of: tuple[int, ...], kind: DTypeLike, sharding: Any) -> jax.Array:
        return jnp.zeros(of, kind, device=sharding)

    cache = None if placement is None else placement.cache(G)
    scale = None if placement is None else placement.cache_scale(G)
    batch = None if placement is None else placement.batch(G)

    def layer() -> KeysValues:
        keys, values = (zeros(key_shape, jnp.int8 if int8 else dtype, cache) for _ in range(2))
        scales = [zeros(key_shape[:3], jnp.float32, scale) if int8 else None for _ in range(2)]
        return KeysValues(keys, values, scales[0], scales[1], "GKSH")

    prefix = PrefixCache(
        layers=tuple(layer() for _ in range(text.num_hidden_layers)),
        valid_GS=zeros((G, shape.prefix), bool, batch),
        length_G=zeros((G,), jnp.int32, batch),
    )
    rows = None if placement is None else placement.batch(shape.batch)
    tail = _new_tail(prefix, shape.batch, shape.question + shape.answer, jnp.dtype(dtype), shape.question)
    idle = idle_answers(shape.batch, shape.answer, text.vocab_size, branches)
    return Grid(prefix, tail, idle if rows is None else jax.tree.map(lambda x: put(x, rows), idle))


@partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _new_tail(prefix: PrefixCache, rows: int, capacity: int, dtype: np.dtype[Any], question: int) -> TailCache:
    return empty_tail(prefix, rows, capacity, dtype, question=question)


@partial(jax.jit, static_argnums=(0, 2, 3))
def encode(
    graph: Graph,
    state: Any,
    kinds: tuple[str, ...],
    pooling: int,
    pixels: tuple[jax.Array, ...],
    mean: tuple[jax.Array, ...],
    std: tuple[jax.Array, ...],
) -> jax.Array:
    """Encodes the media of W prefixes: features [W, M, D], the media of each prefix one after the other.

    Args:
      kinds: "image" or "video", for each medium of a prefix in order.
      pooling: `video_pooling` of the videos.
      pixels: for each medium [W, F, S, S, 3], uint8 or float32, RGB, 0-255; F is 1 for an image.
      mean, std: for each medium float32 [3], on the scale 0-1.
    """
    model: VideoLlava = nnx.merge(graph, state)
    features = []
    for kind, frames, m, s in zip(kinds, pixels, mean, std, strict=True):
        scaled = normalised(frames, m, s)
        features.append(model.encode_images(scaled[:, 0]) if kind == "image" else model.encode_videos(scaled, pooling))
    return jnp.concatenate(features, axis=1)


def no_features(shape: tuple[int, ...], dtype: DTypeLike, sharding: Any) -> jax.Array:
    """Returns zeros [W, M, D], which `put_features` fills."""
    return jnp.zeros(shape, dtype, device=sharding)


@partial(jax.jit, donate_argnames=("features_WMD",))
def put_features(features_WMD: jax.Array, new: jax.Array, first: jax.Array) -> jax.Array:
    """Puts features of a medium [W, N, D] where those of earlier media end."""
    new = resharded(new.astype(features_WMD.dtype), like(features_WMD, *spec_of(features_WMD)))
    return jax.lax.dynamic_update_slice_in_dim(features_WMD, new, first, axis=1)


@partial(jax.jit, static_argnums=0, donate_argnames=("prefix",))
def prefill_slots(
    graph: Graph,
    state: Any,
    ids_WS: jax.Array,
    mask_WS: jax.Array,
    features_WMD: jax.Array | None,
    prefix: PrefixCache,
    slot: jax.Array,
) -> PrefixCache:
    """Computes prefixes, padded on the right to the length of a slot, and puts them into the slots of one index."""
    model: VideoLlava = nnx.merge(graph, state)
    int8 = prefix.layers[0].key_scale is not None
    x_WSD = model.embed_prefix(ids_WS, features_WMD)
    W = ids_WS.shape[0]

    def put(old: jax.Array, new: jax.Array) -> jax.Array:
        return _put(old, new.astype(old.dtype)[:, None], W, slot)

    def into_slots(old: KeysValues, new: KeysValues) -> KeysValues:
        filled: KeysValues = jax.tree.map(put, old, as_prefix(new, int8=int8))
        return filled

    keep = [partial(into_slots, old) for old in prefix.layers]
    _, layers = model.language_model.prefill(x_WSD, mask_WS, padded_right=True, keep=keep)
    length_W = mask_WS.sum(axis=1, dtype=jnp.int32)
    return PrefixCache(layers, put(prefix.valid_GS, mask_WS), put(prefix.length_G, length_W))


@partial(jax.jit, static_argnums=(0, 5))
def new_prefix(
    graph: Graph, state: Any, ids_WS: jax.Array, mask_WS: jax.Array, features_WMD: jax.Array | None, int8: bool
) -> PrefixCache:
    """Computes prefixes, padded on the right, in a new cache."""
    model: VideoLlava = nnx.merge(graph, state)
    return model.prefill(model.embed_prefix(ids_WS, features_WMD), mask_WS, int8=int8, padded_right=True)[1]


@partial(jax.jit, static_argnums=0, donate_argnames=("tail", "answers"))
def begin(
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
) -> tuple[TailCache, Answers]:
    """Puts questions into rows of the slots of one index, and chooses the first token of each answer.

    Args:
      ids_ET, mask_ET: the questions of all W × R rows of these slots, padded on the left, T at most `tail.question`.
      fresh: answers without a token. Rows whose answer is done in it keep their present question and answer.
      slot: int32 scalar, the index of the slots within their shards.
    """
    model: VideoLlava = nnx.merge(graph, state)
    shards = prefix.prefixes // (answers.done_B.shape[0] // fresh.done_B.shape[0])
    own = of_slot(prefix, shards, slot)
    x_ETD, layers = model.begin(ids_ET, mask_ET, own, _into_rows(tail, ~fresh.done_B, shards, slot))
    first = with_next_token(model.next_logits(x_ETD), fresh, vocabulary)
    return with_questions(layers, mask_ET, first, ~fresh.done_B, own, tail, answers, slot)


@partial(jax.jit, static_argnums=0, donate_argnames=("tail", "answers"))
def begin_packed(
    graph: Graph,
    state: Any,
    ids_WN: jax.Array,
    packing: Packing,
    fresh: Answers,
    prefix: PrefixCache,
    tail: TailCache,
    answers: Answers,
    vocabulary: Vocabulary,
    slot: jax.Array,
) -> tuple[TailCache, Answers]:
    """Does what `begin` does with the questions of each slot packed into one sequence, without their padding.

    Args:
      ids_WN: the tokens of the questions of each slot, one question after the other.
      packing: where they stand in the rows, T at most `tail.question`.
    """
    model: VideoLlava = nnx.merge(graph, state)
    shards = ids_WN.shape[0]
    own = of_slot(prefix, shards, slot)
    into_rows = _into_rows(tail, ~fresh.done_B, shards, slot)
    logits_EV, layers = model.begin_packed(ids_WN, packing, own, into_rows)
    first = with_next_token(logits_EV, fresh, vocabulary)
    return with_questions(layers, packing.mask_ET, first, ~fresh.done_B, own, tail, answers, slot)


def _into_rows(
    tail: TailCache, filled_E: jax.Array, shards: int, slot: jax.Array
) -> list[Callable[[KeysValues], KeysValues]]:
    """Returns for each layer what puts its keys and values of questions into the rows of the slots of one index."""
    put = partial(in_rows, tail=tail, filled_E=filled_E, shards=shards, slot=slot)
    return [partial(put, old) for old in tail.layers]


def in_rows(
    old: KeysValues, new: KeysValues, *, tail: TailCache, filled_E: jax.Array, shards: int, slot: jax.Array
) -> KeysValues:
    """Returns a layer of the tail with keys and values of questions in the rows of the slots of one index.

    Args:
      old: the layer.
      new: of E rows, padded on the left.
      filled_E: rows that get a question; the others keep theirs.
      shards: W, of the grid.
    """
    room = (tail.question - new.capacity, tail.capacity - tail.question)

    def put(old: jax.Array, new: jax.Array) -> jax.Array:
        """Overwrites whole rows, with zeros at free positions: masking does not remove a NaN, as 0 × NaN is NaN."""
        new = jnp.pad(new, [room, (0, 0)] + [(0, 0)] * (new.ndim - 2)).astype(old.dtype)
        return _put_rows(old, new, filled_E, shards, filled_E.shape[0] // shards, slot, axis=1)

    updated: KeysValues = jax.tree.map(put, old, new.reordered("SGKH"))
    return updated


def with_questions(
    layers: tuple[KeysValues, ...],
    mask_ET: jax.Array,
    first: Answers,
    filled_E: jax.Array,
    own: PrefixCache,
    tail: TailCache,
    answers: Answers,
    slot: jax.Array,
) -> tuple[TailCache, Answers]:
    """Returns tails and answers with the questions of the slots of one index in their rows.

    Args:
      layers: of the tail, with the questions' keys and values in them.
      mask_ET: the questions' tokens, padded on the left.
      first: the first token of each answer.
      filled_E: rows that get a question; the others keep theirs.
      own: the prefixes in these slots.
    """
    E, T = mask_ET.shape
    W = own.prefixes
    R = E // W
    padded = ((0, 0), (tail.question - T, tail.capacity - tail.question))

    def rows(old: jax.Array, new: jax.Array) -> jax.Array:
        return _put_rows(old, new, filled_E, W, R, slot, axis=0)

    positions_E = jnp.repeat(own.length_G, R, out_sharding=like(own.length_G, *spec_of(own.length_G)))
    tail = dataclasses.replace(
        tail,
        layers=layers,
        valid_BS=rows(tail.valid_BS, jnp.pad(mask_ET, padded)),
        next_position_B=rows(tail.next_position_B, positions_E + mask_ET.sum(axis=1, dtype=jnp.int32)),
    )
    return tail, jax.tree.map(rows, answers, first)


@partial(jax.jit, donate_argnames=("answers",))
def end_rows(answers: Answers, rows_B: jax.Array) -> Answers:
    """Ends rows in which the host has found a stop string; returns the answers."""
    return dataclasses.replace(answers, done_B=answers.done_B | rows_B)


@jax.jit
def report(answers: Answers) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Returns (tokens_BN, count_B, done_B, finite_B), whole on every device, so that every host can read them."""
    return whole(answers.tokens_BN), whole(answers.count_B), whole(answers.done_B), whole(answers.finite_B)


@jax.jit
def last_logprobs(logprobs: Logprobs) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns (chosen_BW, ids_BWK, top_BWK), whole on every device, so that every host can read them."""
    return whole(logprobs.chosen_BW), whole(logprobs.ids_BWK), whole(logprobs.top_BWK)


@partial(jax.jit, static_argnums=(0, 6))
def score_in_slot(
    graph: Graph,
    state: Any,
    ids_ET: jax.Array,
    mask_ET: jax.Array,
    scored_ET: jax.Array,
    prefix: PrefixCache,
    shards: int,
    slot: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Computes what `score` does after the prefixes in the slots of one index, E / W rows for each."""
    own = of_slot(prefix, shards, slot)
    found: tuple[jax.Array, jax.Array] = score(graph, state, ids_ET, mask_ET, scored_ET, own)
    return found


@partial(jax.jit, static_argnums=0)
def score(
    graph: Graph, state: Any, ids_ET: jax.Array, mask_ET: jax.Array, scored_ET: jax.Array, prefix: PrefixCache
) -> tuple[jax.Array, jax.Array]:
    """Computes log-likelihoods of given tokens after prefixes.

    Args:
      ids_ET, mask_ET: text after the G prefixes, padded on the left, E / G rows for each prefix.
      scored_ET: bool, the tokens whose likelihood is computed; never the first of a row.

    Returns:
      float32 [E], the sum of their log-probabilities; bool [E], whether every one of them was the likeliest.
    """
    model: VideoLlava = nnx.merge(graph, state)
    x_ETD, _ = model.begin(ids_ET, mask_ET, prefix)
    logits_ETV = whole(model.logits(x_ETD[:, :-1]), axis=-1).astype(jnp.float32)
    targets_ET1 = ids_ET[:, 1:, None]
    picked_ET = jnp.take_along_axis(jax.nn.log_softmax(logits_ETV, axis=-1), targets_ET1, axis=-1)[..., 0]
    wanted_ET = scored_ET[:, 1:]
    likeliest_ET = logits_ETV.argmax(axis=-1) == targets_ET1[..., 0]
    total_E = jnp.where(wanted_ET, picked_ET, 0).sum(axis=-1)
    return whole(total_E), whole((likeliest_ET | ~wanted_ET).all(axis=-1))


def by_slot(x: jax.Array, shards: int, axis: int = 0, *within: int) -> jax.Array:
    """Reshapes an axis [shards * slots * within] to [shards, slots, *within]; its sharding moves to `shards`."""
    before, split, after = spec_of(x)[:axis], spec_of(x)[axis], spec_of(x)[axis + 1 :]
    slots = x.shape[axis] // (shards * math.prod(within))
    shape = (*x.shape[:axis], shards, slots, *within, *x.shape[axis + 1 :])
    return x.reshape(shape, out_sharding=like(x, *before, split, None, *(None for _ in within), *after))


def of_slot(prefix: PrefixCache, shards: int, slot: jax.Array) -> PrefixCache:
    """Returns the prefixes in the slots of one index."""
    return PrefixCache(
        layers=tuple(jax.tree.map(lambda x: _take(x, shards, slot), kv) for kv in prefix.layers),
        valid_GS=_take(prefix.valid_GS, shards, slot),
        length_G=_take(prefix.length_G, shards, slot),
    )


def _take(x: jax.Array, shards: int, slot: jax.Array) -> jax.Array:
    """Returns the slots of one index: [G, …] to [W, …]."""
    slots = by_slot(x, shards)
    taken: jax.Array = jax.lax.dynamic_index_in_dim(slots, slot, axis=1, keepdims=False)
    return taken


def _put(x: jax.Array, new: jax.Array, shards: int, slot: jax.Array) -> jax.Array:
    """Puts [W, 1, …] into the slots of one index of [G, …]."""
    slots = by_slot(x, shards)
    new = resharded(new, like(slots, *spec_of(slots)))
    return jax.lax.dynamic_update_slice_in_dim(slots, new, slot, axis=1).reshape(
        x.shape, out_sharding=like(x, *spec_of(x))
    )


def _put_rows(
    x: jax.Array, new: jax.Array, filled_E: jax.Array, shards: int, rows: int, slot: jax.Array, *, axis: int
) -> jax.Array:
    """Puts new rows into the rows of the slots of one index that `filled_E` selects; `axis` has all B rows."""
    split = by_slot(x, shards, axis, rows)
    old = jax.lax.dynamic_index_in_dim(split, slot, axis=axis + 1, keepdims=False)
    sharding = like(old, *spec_of(old))
    new = new.reshape(old.shape, out_sharding=sharding)
    filled = filled_E.reshape(shards, rows, out_sharding=like(old, *spec_of(old)[axis : axis + 2]))
    filled = filled.reshape(*(1,) * axis, shards, rows, *(1,) * (old.ndim - axis - 2))
    mixed = jnp.where(filled, new, old)
    mixed = resharded(jnp.expand_dims(mixed, axis + 1), like(split, *spec_of(split)))
    updated: jax.Array = jax.lax.dynamic_update_slice_in_dim(split, mixed, slot, axis=axis + 1)
    return updated.reshape(x.shape, out_sharding=like(x, *spec_of(x)))
