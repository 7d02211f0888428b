"""A GPU kernel for few queries and many keys: the keys are split over programs, and their results are merged.

One program for each row of keys and head would leave most processors idle. So each program takes a part of the keys,

    keys   [ split 0 ][ split 1 ][ split 2 ]        int8 or float, as stored; scaled in the kernel
    result out, lse   out, lse   out, lse         merged afterwards, weighted by the sums of exponentials

and walks over its part in blocks, with the online softmax.

It is written for Pallas' Triton backend, which JAX 0.11 still has but calls deprecated: it runs only where it is named.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from videollava_jax.model.kernels.kernel import AttentionKernel
from videollava_jax.model.kernels.operands import MASKED, Operands, queries_by_key_head, rows_again

BLOCK = 64
"""Keys that a program reads at a time."""
PROGRAMS = 512
"""Programs that fill a GPU: several for each of its 100 to 150 processors."""
QUERY_TILE = 16
"""The fewest queries in a product of the matrix units: fewer are padded."""
MOST_QUERIES = 64
"""On one key head: each program keeps all of them in fast memory."""


def decode(
    operands: Operands, *, interpret: bool = False, block: int = BLOCK, splits: int | None = None
) -> tuple[jax.Array, jax.Array]:
    """Computes attention of few queries in both directions over keys in order "GKSH".

    Args:
      operands: without a causal rule; float or int8 keys and values; H a power of two.
      interpret: run in Pallas' interpreter, on any device and slowly, to check the numbers.
      block: keys at a time, a power of two and at least 16.
      splits: programs for each head of each row; None for as many as fill a GPU.

    Returns:
      float32 [B, T, N, H], and the log-sum-exp, float32 [B, T, N].

    Source: Dao et al. 2023, FlashDecoding.
    """
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton as plgpu

    q_GKQH = queries_by_key_head(operands)
    G, K, queries, H = q_GKQH.shape
    S = operands.size("S")
    Q = max(QUERY_TILE, pl.next_power_of_2(queries))
    q_GKQH = jnp.pad(q_GKQH, ((0, 0), (0, 0), (0, Q - queries), (0, 0)))
    blocks = pl.cdiv(S, block)
    wanted = pl.cdiv(PROGRAMS, G * K) if splits is None else splits
    blocks_each = pl.cdiv(blocks, min(wanted, blocks))
    splits = pl.cdiv(blocks, blocks_each)
    float32: Any = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    row, head, whole = (lambda g, k, p: (g, 0)), (lambda g, k, p: (g, k, 0)), (lambda g, k, p: (g, k, 0, 0))
    inputs: list[tuple[jax.Array | None, pl.BlockSpec | None]] = [(q_GKQH, pl.BlockSpec((None, None, Q, H), whole))]
    inputs += [(x, pl.BlockSpec((None, None, S, H), whole)) for x in (operands.keys, operands.values)]
    inputs += [
        (None, None) if scale is None else (scale, pl.BlockSpec((None, None, S), head))
        for scale in (operands.key_scale, operands.value_scale)
    ]
    mask_GS = operands.mask_GS
    inputs += [(None, None) if mask_GS is None else (mask_GS.astype(jnp.int8), pl.BlockSpec((None, S), row))]
    out_PGKQH, lse_PGKQ = pl.pallas_call(
        functools.partial(_kernel, block=block, blocks_each=blocks_each),
        grid=(G, K, splits),
        in_specs=[spec for _, spec in inputs],
        out_specs=[
            pl.BlockSpec((None, None, None, Q, H), lambda g, k, p: (p, g, k, 0, 0)),
            pl.BlockSpec((None, None, None, Q), lambda g, k, p: (p, g, k, 0)),
        ],
        out_shape=[float32((splits, G, K, Q, H)), float32((splits, G, K, Q))],
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=3),
        interpret=interpret,
        name="decode_attention",
    )(*(x for x, _ in inputs))
    out_GKQH, lse_GKQ = _merged(out_PGKQH[..., :queries, :], lse_PGKQ[..., :queries])
    return rows_again(out_GKQH, operands.q_BTNH), rows_again(lse_GKQ, operands.q_BTNH)


def _merged(out_PGKQH: jax.Array, lse_PGKQ: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Merges the parts of all splits: the rule of `attention.merged`, for any number of parts."""
    top_GKQ = lse_PGKQ.max(axis=0)
    share_PGKQ = jnp.exp(lse_PGKQ - top_GKQ)
    total_GKQ = share_PGKQ.sum(axis=0)
    out_GKQH = (share_PGKQ[..., None] * out_PGKQH).sum(axis=0) / total_GKQ[..., None]
    return out_GKQH, top_GKQ + jnp.log(total_GKQ)


def _kernel(*refs: Any, block: int, blocks_each: int) -> None:
    from jax.experimental import pallas as pl

    q_ref, k_ref, v_ref, k_scale_ref, v_scale_ref, mask_ref, out_ref, lse_ref = refs
    out_ref[...], lse_ref[...] = attended(
        q_ref[...],
        *(k_ref, v_ref, k_scale_ref, v_scale_ref, mask_ref),
        first=pl.program_id(2) * blocks_each,
        blocks=blocks_each,
        block=block,
    )


def attended(
    q: Any,
    k_ref: Any,
    v_ref: Any,
    k_scale_ref: Any,
    v_scale_ref: Any,
    mask_ref: Any,
    *,
    first: Any,
    blocks: int,
    block: int,
) -> tuple[Any, Any]:
    """Computes, inside a kernel, attention of queries [Q, H] over some blocks of keys [S, H].

    Args:
      k_scale_ref, v_scale_ref, mask_ref: [S] or None.
      first, blocks: the first block, and how many at most; at least one holds a key.
      block: keys of a block.

    Returns:
      float32 [Q, H] and its log-sum-exp, float32 [Q].
    """
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton as plgpu

    length, H = k_ref.shape
    Q = q.shape[0]
    # GPUs have an instruction for exp2, not for exp: log2(e) is multiplied into the scores once.
    scale, masked = H**-0.5 * math.log2(math.e), MASKED * math.log2(math.e)

    def body(i: Any, state: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
        top, total, acc = state
        at = pl.ds((first + i) * block, block)
        is_key = (first + i) * block + jnp.arange(block) < length
        keys = plgpu.load(k_ref.at[at, :], mask=is_key[:, None], other=0)
        scores = plgpu.dot(q, keys.astype(q.dtype).T) * scale
        if k_scale_ref is not None:
            scores *= plgpu.load(k_scale_ref.at[at], mask=is_key, other=0)[None, :]
        if mask_ref is not None:
            scores = jnp.where(plgpu.load(mask_ref.at[at], mask=is_key, other=0)[None, :] != 0, scores, masked)
        scores = jnp.where(is_key[None, :], scores, -jnp.inf)
        higher = jnp.maximum(top, scores.max(axis=-1))
        weights, shrunk = jnp.exp2(scores - higher[:, None]), jnp.exp2(top - higher)
        total = shrunk * total + weights.sum(axis=-1)
        if v_scale_ref is not None:
            weights *= plgpu.load(v_scale_ref.at[at], mask=is_key, other=0)[None, :]
        values = plgpu.load(v_ref.at[at, :], mask=is_key[:, None], other=0)
        acc = shrunk[:, None] * acc + plgpu.dot(weights.astype(q.dtype), values.astype(q.dtype))
        return higher, total, acc

    # Every block holds at least one key, so that the greatest score is finite from the first block on.
    start = jnp.full((Q,), -jnp.inf), jnp.zeros((Q,)), jnp.zeros((Q, H))
    last = jnp.minimum(blocks, pl.cdiv(length, block) - first)
    top, total, acc = jax.lax.fori_loop(0, last, body, start)
    return acc / total[:, None], top * math.log(2) + jnp.log(total)


def _refusal(operands: Operands) -> str | None:
    H = operands.size("H")
    if H < 16 or H & (H - 1):
        return f"takes heads of 16, 32, 64 or 128, not {H}"
    return None


KERNEL = AttentionKernel(
    run=lambda operands, *, lse, interpret: decode(operands, interpret=interpret),
    platforms=("gpu", "cpu"),
    chosen_from={},  # XLA's own fusion also reads a prefix once and holds nothing of its size
    orders=("GKSH",),
    causal_and_segments=False,
    most_queries=MOST_QUERIES,
    own_refusal=_refusal,
)
