"""Attention: a readable reference, and faster implementations of the same function behind one argument.

Softmax over many keys can be computed in parts: each part gives its output and the log of its sum of exponentials
(log-sum-exp), and `merged` weights the parts by them. So a row attends to a prefix that it shares with other rows and
to its own tail, without a copy of the prefix.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from videollava_jax.model import kernels
from videollava_jax.model.sharding import like, spec_of

Implementation = str
"""One of `implementations()`."""
Order = Literal["GSKH", "GKSH", "SGKH"]

QUERY_BLOCK = 512
# Finite: a query that may see nothing (padding) then averages, where -inf would give NaN.
MASKED = -1e30


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KeysValues:
    """Keys (rotated) and values of one layer, G rows of S positions.

    Attributes:
      keys, values: four axes in `order`; int8 where there are scales.
      key_scale, value_scale: float32, the first three of these axes: the factor of each int8 vector. None for floats.
      order: of the axes. "GSKH" is that of the projections; "GKSH" is for what is read again and again; "SGKH" for what
        is written position by position in a loop: there XLA wants positions outermost, and with any other order it
        copies the whole cache before the loop and after it.
    """

    keys: jax.Array
    values: jax.Array
    key_scale: jax.Array | None = None
    value_scale: jax.Array | None = None
    order: Order = field(default="GSKH", metadata={"static": True})

    @property
    def rows(self) -> int:
        """G."""
        return self.keys.shape[self.order.index("G")]

    @property
    def capacity(self) -> int:
        """S."""
        return self.keys.shape[self.order.index("S")]

    def reordered(self, order: Order) -> KeysValues:
        """Returns the same keys and values with their axes in another order."""

        def moved(x: jax.Array) -> jax.Array:
            return jnp.einsum(f"{self.order[: x.ndim]}->{order[: x.ndim]}", x)

        kv: KeysValues = jax.tree.map(moved, self)
        return dataclasses.replace(kv, order=order)

    def first(self, count: int) -> KeysValues:
        """Keeps the first `count` positions."""
        axis = self.order.index("S")
        kept: KeysValues = jax.tree.map(lambda x: jax.lax.slice_in_dim(x, 0, count, axis=axis), self)
        return kept


def implementations() -> tuple[str, ...]:
    """Returns the names that `attention` takes: the two in this file, and the kernels of `KERNELS`."""
    return "reference", "blocked", *kernels.KERNELS


class Part(NamedTuple):
    """The result of attention over a part of the keys.

    Attributes:
      out_BTNH: float32, the weighted average of this part's values.
      lse_BTN: float32, log of the sum of exp(score) over this part.
    """

    out_BTNH: jax.Array
    lse_BTN: jax.Array


def attention(
    q_BTNH: jax.Array,
    kv: KeysValues,
    *,
    key_mask_GS: jax.Array | None = None,
    causal_offset: int | jax.Array | None = None,
    segments_GS: jax.Array | None = None,
    implementation: Implementation | None = None,
) -> jax.Array:
    """Computes scaled dot-product attention, with grouped heads and with keys that rows share.

    Query `t` sees key `s` when `key_mask_GS[g, s]` and, if causal, `s <= causal_offset + t`. With left padding
    (`.`) and the causal rule, for T = S = 5 and offset 0:

        keys      . . a b c
        query .   . . . . .     sees nothing: its output is finite and unused
        query .   . . . . .
        query a   . . x . .
        query b   . . x x .
        query c   . . x x x

    Args:
      q_BTNH: queries, any float dtype; N is a multiple of K.
      kv: keys and values of G rows. B is a multiple of G: each run of B / G neighbouring rows of queries shares a row
        of keys.
      key_mask_GS: bool, which keys hold a token; None for all.
      causal_offset: the key index that the first query stands at; None to see in both directions.
      segments_GS: int32, the sequence of each token where several are packed into a row, T = S and B = G: a token sees
        only its own sequence. Replaces the mask; padding is a segment of its own.
      implementation: None chooses by shape, dtype and the platform of the operands' mesh. `"reference"` computes all
        scores at once, T × S for each head; `"blocked"` those of 512 queries at a time, and with a static offset only
        up to the diagonal. The others (`videollava_jax.model.kernels.KERNELS`) never hold the scores of all heads.

    Returns:
      [B, T, N, H] in the dtype of the queries. Scores and softmax are float32.

    Raises:
      ValueError: the named implementation does not accept these arguments, or no implementation has this name.
    """
    out_BTNH, _ = _by(implementation, q_BTNH, kv, key_mask_GS, causal_offset, segments_GS, lse=False)
    return out_BTNH.astype(q_BTNH.dtype)


def partial_attention(
    q_BTNH: jax.Array,
    kv: KeysValues,
    *,
    key_mask_GS: jax.Array | None = None,
    causal_offset: int | jax.Array | None = None,
    implementation: Implementation | None = None,
) -> Part:
    """Computes `attention` over a part of the keys, as `merged` takes it. The arguments are those of `attention`.

    Kernels have no gradient for this function.
    """
    out_BTNH, lse_BTN = _by(implementation, q_BTNH, kv, key_mask_GS, causal_offset, None, lse=True)
    assert lse_BTN is not None
    return Part(out_BTNH.astype(jnp.float32), lse_BTN)


def _by(
    implementation: Implementation | None,
    q_BTNH: jax.Array,
    kv: KeysValues,
    key_mask_GS: jax.Array | None,
    causal_offset: int | jax.Array | None,
    segments_GS: jax.Array | None,
    *,
    lse: bool,
) -> tuple[jax.Array, jax.Array | None]:
    """Runs the named implementation, or chooses one; without `lse` the second result may be None."""
    B, T = q_BTNH.shape[:2]
    if segments_GS is not None and (
        key_mask_GS is not None or segments_GS.shape != (B, T) or (kv.rows, kv.capacity) != (B, T)
    ):
        raise ValueError(
            f"segments: expected [{B}, {T}], the shape of the queries and of the keys, and no mask; got "
            f"{list(segments_GS.shape)} for {kv.rows} rows of {kv.capacity} keys"
            f"{'' if key_mask_GS is None else ' and a mask'}"
        )
    operands = kernels.Operands(
        q_BTNH, kv.keys, kv.values, kv.key_scale, kv.value_scale, key_mask_GS, segments_GS, kv.order, causal_offset
    )
    if implementation is None:
        plain = "blocked" if q_BTNH.shape[1] > QUERY_BLOCK else "reference"
        implementation = kernels.best(operands, lse=lse) or plain
    if implementation == "reference":
        return _reference(q_BTNH, kv, key_mask_GS, causal_offset, segments_GS, segments_GS)
    if implementation == "blocked":
        return _blocked(q_BTNH, kv, key_mask_GS, causal_offset, segments_GS)
    if implementation not in kernels.KERNELS:
        raise ValueError(
            f"attention implementation: expected one of {', '.join(implementations())}, got {implementation!r}"
        )
    return kernels.run(implementation, operands, lse=lse)


def step_attention(
    q_BTNH: jax.Array,
    prefix: KeysValues,
    tail: KeysValues,
    new: KeysValues,
    write_at: jax.Array,
    *,
    prefix_mask_GS: jax.Array,
    tail_mask_BS: jax.Array,
    implementation: Implementation | None,
) -> tuple[jax.Array, KeysValues] | None:
    """Computes one step of decoding by one kernel: attention to the prefixes and the tails, and the tails' update.

    Args:
      q_BTNH, new: queries of one token of each row, and its keys and values in order "GSKH".
      prefix, tail: keys and values in orders "GKSH" and "SGKH".
      write_at: int32 scalar, the position of the new token in the tails.
      prefix_mask_GS, tail_mask_BS: bool, which keys hold a token, the new one included.
      implementation: "step_gpu", or None for the kernel where it is known to be faster.

    Returns:
      [B, 1, N, H] in the dtype of the queries, and the updated tails; None where no kernel does this.
    """
    operands = kernels.Operands(
        *(q_BTNH, prefix.keys, prefix.values, prefix.key_scale, prefix.value_scale, prefix_mask_GS), order=prefix.order
    )
    step = kernels.Step(operands, tail.keys, tail.values, new.keys, new.values, tail_mask_BS, jnp.asarray(write_at))
    found = kernels.run_step(step, implementation)
    if found is None:
        return None
    out_BTNH, keys, values = found
    return out_BTNH.astype(q_BTNH.dtype), dataclasses.replace(tail, keys=keys, values=values)


def attention_weights(
    q_BTNH: jax.Array, kv: KeysValues, *, key_mask_BS: jax.Array | None, causal_offset: int | jax.Array | None
) -> jax.Array:
    """Computes the weights that `attention` gives to keys, for callers who look at them: [B, N, T, S].

    Args:
      q_BTNH, kv, causal_offset: as in `attention`, with keys of its own for every row.
      key_mask_BS: bool, which keys hold a token; None for all.

    Returns:
      The softmax in float32, in the dtype of the queries, as transformers' `eager_attention_forward` rounds it.
    """
    B, T, N, H = q_BTNH.shape
    S, K = kv.capacity, kv.keys.shape[kv.order.index("K")]
    batch, _, heads, _ = spec_of(q_BTNH)
    q_BTKnH = q_BTNH.reshape(B, T, K, N // K, H, out_sharding=like(q_BTNH, batch, None, heads, None, None))
    keys = jnp.einsum(f"{kv.order}->GSKH", kv.keys)
    scores = jnp.einsum("BTKnH,BSKH->BKnTS", q_BTKnH.astype(jnp.float32), keys.astype(jnp.float32)) * H**-0.5
    if key_mask_BS is not None:
        scores = jnp.where(key_mask_BS[:, None, None, None, :], scores, MASKED)
    if causal_offset is not None:
        scores = jnp.where(jnp.arange(S)[None, :] <= causal_offset + jnp.arange(T)[:, None], scores, MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(q_BTNH.dtype)
    return weights.reshape(B, N, T, S, out_sharding=like(q_BTNH, batch, heads, None, None))


def merged(first: Part, second: Part) -> jax.Array:
    """Merges attention over two parts of the keys: float32 [B, T, N, H].

    A part in which a query sees nothing has a log-sum-exp near -1e30, and so no weight.

    Source: Milakov and Gimelshein 2018, the online softmax; FlashDecoding's reduction.
    """
    top = jnp.maximum(first.lse_BTN, second.lse_BTN)
    a, b = jnp.exp(first.lse_BTN - top)[..., None], jnp.exp(second.lse_BTN - top)[..., None]
    return (a * first.out_BTNH + b * second.out_BTNH) / (a + b)


def _reference(
    q_BTNH: jax.Array,
    kv: KeysValues,
    key_mask_GS: jax.Array | None,
    causal_offset: int | jax.Array | None,
    query_segments_BT: jax.Array | None,
    key_segments_GS: jax.Array | None,
) -> Part:
    B, T, N, H = q_BTNH.shape
    G, S, K = kv.rows, kv.capacity, kv.keys.shape[kv.order.index("K")]
    batch, _, heads, _ = spec_of(q_BTNH)
    if kv.order == "GKSH":
        # The product with a shared prefix wants its queries heads first. Without this fence the TPU compiler gives that
        # layout to the rotation before it, so to the new keys, so to the tails, and copies those around a decode loop.
        q_BTNH = jax.lax.optimization_barrier(q_BTNH)  # type: ignore[no-untyped-call]
    # All queries that share keys go into one matrix product: Q = rows × T.
    q_GQKnH = q_BTNH.reshape(G, B // G * T, K, N // K, H, out_sharding=like(q_BTNH, batch, None, heads, None, None))
    # XLA's CPU backend has no product of bfloat16 into float32 for these shapes: there the operands are widened.
    dtype = jnp.float32 if kernels.platform_of(q_BTNH) == "cpu" else q_BTNH.dtype
    q_GQKnH, keys, values = (x.astype(dtype) for x in (q_GQKnH, kv.keys, kv.values))
    scores = jnp.einsum(f"GQKnH,{kv.order}->GKnQS", q_GQKnH, keys, preferred_element_type=jnp.float32) * H**-0.5
    if kv.key_scale is not None:
        scores = scores * _as_GKS(kv.key_scale, kv.order)[:, :, None, None, :]
    if key_mask_GS is not None:
        scores = jnp.where(key_mask_GS[:, None, None, None, :], scores, MASKED)
    if causal_offset is not None:
        query_Q = jnp.tile(jnp.arange(T), B // G)
        scores = jnp.where(jnp.arange(S)[None, :] <= causal_offset + query_Q[:, None], scores, MASKED)
    if query_segments_BT is not None and key_segments_GS is not None:
        same_GQS = query_segments_BT[:, :, None] == key_segments_GS[:, None, :]
        scores = jnp.where(same_GQS[:, None, None], scores, MASKED)
    top = scores.max(axis=-1, keepdims=True)
    weights = jnp.exp(scores - top)
    total_GKnQ = weights.sum(axis=-1)
    if kv.value_scale is not None:
        weights = weights * _as_GKS(kv.value_scale, kv.order)[:, :, None, None, :]
    out_GQKnH = jnp.einsum(
        f"GKnQS,{kv.order}->GQKnH",
        weights.astype(q_BTNH.dtype).astype(dtype),
        values,
        preferred_element_type=jnp.float32,
    )
    lse_GKnQ = top[..., 0] + jnp.log(total_GKnQ)
    out_GQKnH = out_GQKnH / jnp.einsum("GKnQ->GQKn", total_GKnQ)[..., None]
    return Part(
        out_GQKnH.reshape(B, T, N, H, out_sharding=like(q_BTNH, batch, None, heads, None)),
        jnp.einsum("GKnQ->GQKn", lse_GKnQ).reshape(B, T, N, out_sharding=like(q_BTNH, batch, None, heads)),
    )


def _as_GKS(scale: jax.Array, order: Order) -> jax.Array:
    return jnp.einsum(f"{order[:-1]}->GKS", scale)


def _blocked(
    q_BTNH: jax.Array,
    kv: KeysValues,
    key_mask_GS: jax.Array | None,
    causal_offset: int | jax.Array | None,
    segments_GS: jax.Array | None,
) -> Part:
    T, S = q_BTNH.shape[1], kv.capacity
    parts = []
    for start in range(0, T, QUERY_BLOCK):
        stop = min(start + QUERY_BLOCK, T)
        # With a static offset, keys beyond the diagonal are never read.
        seen = min(causal_offset + stop, S) if isinstance(causal_offset, int) else S
        parts.append(
            _reference(
                q_BTNH[:, start:stop],
                kv.first(seen),
                None if key_mask_GS is None else key_mask_GS[:, :seen],
                None if causal_offset is None else causal_offset + start,
                None if segments_GS is None else segments_GS[:, start:stop],
                None if segments_GS is None else segments_GS[:, :seen],
            )
        )
    return Part(*(jnp.concatenate(arrays, axis=1) for arrays in zip(*parts, strict=True)))
