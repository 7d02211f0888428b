"""A TPU kernel for few queries and many keys: each block of keys and values passes through VMEM once.

For each row of keys and each key head the grid walks over blocks of keys:

    keys   [ block 0 ][ block 1 ][ block 2 ]        int8 or float, as stored; scaled in the kernel
    state  max, sum of exponentials, weighted values: kept between the blocks (the online softmax)
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from videollava_jax.model.kernels.kernel import AttentionKernel
from videollava_jax.model.kernels.operands import MASKED, Operands, has_split_memory, queries_by_key_head, rows_again

BLOCK_BYTES = 1 << 20
"""Bytes of the keys of one block, in the dtype of the queries. VMEM holds four times as much: keys and values, and the
next block of each. A larger block gains nothing: copying this one already takes longer than starting the next."""
LANES = 128
MOST_QUERIES = 256
"""On one key head: all of them, and their scores on a block of keys, stay in VMEM."""


def decode(operands: Operands, *, interpret: bool = False, block: int | None = None) -> tuple[jax.Array, jax.Array]:
    """Computes attention of few queries in both directions over keys in order "GKSH".

    Args:
      operands: without a causal rule; float or int8 keys and values.
      interpret: run in Pallas' interpreter, on any device and slowly, to check the numbers.
      block: keys at a time, a multiple of 128 or all of them; None for as many as `BLOCK_BYTES` holds.

    Returns:
      float32 [B, T, N, H], and the log-sum-exp, float32 [B, T, N].

    Source: Milakov and Gimelshein 2018, the online softmax.
    """
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    q_GKQH = queries_by_key_head(operands)
    G, K, Q, H = q_GKQH.shape
    S = operands.size("S")
    block = min(S, keys_of_block(H, q_GKQH.dtype) if block is None else block)
    float32: Any = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    row, head = (lambda g, k, s: (g, 0, s)), (lambda g, k, s: (g, k, 0, s))
    inputs: list[tuple[jax.Array | None, pl.BlockSpec | None]] = [
        (q_GKQH, pl.BlockSpec((None, None, Q, H), lambda g, k, s: (g, k, 0, 0)))
    ]
    inputs += [
        (x, pl.BlockSpec((None, None, block, H), lambda g, k, s: (g, k, s, 0)))
        for x in (operands.keys, operands.values)
    ]
    inputs += [
        (None, None) if scale is None else (scale[:, :, None, :], pl.BlockSpec((None, None, 1, block), head))
        for scale in (operands.key_scale, operands.value_scale)
    ]
    mask_GS = operands.mask_GS
    # As int32: a bool array would be widened on its way anyway.
    inputs += [
        (None, None) if mask_GS is None else (mask_GS[:, None].astype(jnp.int32), pl.BlockSpec((None, 1, block), row))
    ]
    out_GKQH, lse_GKQ1 = pl.pallas_call(
        functools.partial(_kernel, length=S),
        grid=(G, K, pl.cdiv(S, block)),
        in_specs=[spec for _, spec in inputs],
        out_specs=[pl.BlockSpec((None, None, Q, width), lambda g, k, s: (g, k, 0, 0)) for width in (H, 1)],
        out_shape=[float32((G, K, Q, width)) for width in (H, 1)],
        scratch_shapes=[pltpu.VMEM((Q, width), jnp.float32) for width in (1, 1, H)],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        interpret=interpret,
        name="decode_attention",
    )(*(x for x, _ in inputs))
    return rows_again(out_GKQH, operands.q_BTNH), rows_again(lse_GKQ1[..., 0], operands.q_BTNH)


def keys_of_block(head_size: int, dtype: DTypeLike) -> int:
    """Returns how many keys a block holds: a multiple of the lanes, so that a block of scores is too."""
    width = -(-head_size // LANES) * LANES
    return max(LANES, BLOCK_BYTES // (width * jnp.dtype(dtype).itemsize) // LANES * LANES)


def _kernel(*refs: Any, length: int) -> None:
    from jax.experimental import pallas as pl

    q_ref, k_ref, v_ref, k_scale_ref, v_scale_ref, mask_ref, out_ref, lse_ref, top_ref, sum_ref, acc_ref = refs
    step, block = pl.program_id(2), k_ref.shape[0]

    @pl.when(step == 0)
    def _() -> None:
        top_ref[...] = jnp.full_like(top_ref, -jnp.inf)
        sum_ref[...] = jnp.zeros_like(sum_ref)
        acc_ref[...] = jnp.zeros_like(acc_ref)

    # Products of bfloat16 are exact: a compiler that is asked for higher precision refuses them.
    product = functools.partial(
        jax.lax.dot_general,
        precision=None if q_ref.dtype == jnp.float32 else jax.lax.Precision.DEFAULT,
        preferred_element_type=jnp.float32,
    )
    q, values = q_ref[...], v_ref[...].astype(q_ref.dtype)
    scores = product(q, k_ref[...].astype(q.dtype), (((1,), (1,)), ((), ())))
    scores *= q.shape[-1] ** -0.5
    if k_scale_ref is not None:
        scores *= k_scale_ref[...]
    if mask_ref is not None:
        scores = jnp.where(mask_ref[...] != 0, scores, MASKED)
    if length % block:
        # The last block reaches beyond the end, where anything may lie, NaN too.
        left = length - step * block
        scores = jnp.where(jax.lax.broadcasted_iota(jnp.int32, scores.shape, 1) < left, scores, -jnp.inf)
        values = jnp.where(jax.lax.broadcasted_iota(jnp.int32, values.shape, 0) < left, values, 0)
    top = jnp.maximum(top_ref[...], scores.max(axis=-1, keepdims=True))
    weights, shrunk = jnp.exp(scores - top), jnp.exp(top_ref[...] - top)
    top_ref[...] = top
    sum_ref[...] = shrunk * sum_ref[...] + weights.sum(axis=-1, keepdims=True)
    if v_scale_ref is not None:
        weights *= v_scale_ref[...]
        if length % block:
            weights = jnp.where(jax.lax.broadcasted_iota(jnp.int32, weights.shape, 1) < left, weights, 0)
    acc_ref[...] = shrunk * acc_ref[...] + product(weights.astype(q.dtype), values, (((1,), (0,)), ((), ())))

    @pl.when(step == pl.num_programs(2) - 1)
    def _() -> None:
        out_ref[...] = acc_ref[...] / sum_ref[...]
        lse_ref[...] = top_ref[...] + jnp.log(sum_ref[...])


KERNEL = AttentionKernel(
    run=lambda operands, *, lse, interpret: decode(operands, interpret=interpret),
    platforms=("tpu", "cpu"),
    # On other chips XLA's own fusion also reads a prefix once, and its scores stay in on-chip memory.
    chosen_from={"tpu": 1},
    runs_on=has_split_memory,
    dtypes=("bfloat16", "float32"),
    orders=("GKSH",),
    causal_and_segments=False,
    most_queries=MOST_QUERIES,
)
