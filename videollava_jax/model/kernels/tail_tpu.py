"""A TPU kernel for one step of decoding over tails: each row's own keys, as the loop writes them, read once.

The positions of a row and its key heads are taken as one axis, in the order in which they lie in memory, and every
query head is multiplied by all of it; what belongs to another head has no weight. The matrix unit has time for that
while the next block is fetched, and nothing is transposed:

                    position 0     position 1     …       block [S, rows, K, H] of the tails
                    k0  k1  k2     k0  k1  k2
    query head 0    s   .   .      s   .   .              its scores: one row, softmax along it
    query head 1    .   s   .      .   s   .
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from videollava_jax.model.kernels.kernel import AttentionKernel
from videollava_jax.model.kernels.operands import MASKED, Operands, has_split_memory

BLOCK_BYTES = 2 << 20
"""The most bytes of the keys of a block. VMEM holds four times as much: keys and values, and the next block of each."""
LANES = 128
HEADS = 4
ROWS = 8
"""The most rows of a block. Their keys at one position lie next to each other: more rows make longer transfers."""


def attend(operands: Operands, *, interpret: bool = False, block: int | None = None) -> tuple[jax.Array, jax.Array]:
    """Computes attention of one query of each row over keys of its own in order "SGKH".

    Args:
      operands: of floats, T = 1 and B = G, without a causal rule.
      interpret: run in Pallas' interpreter, on any device and slowly, to check the numbers.
      block: positions at a time, a multiple of 128; None for as many as `BLOCK_BYTES` holds.

    Returns:
      float32 [B, 1, N, H], and the log-sum-exp, float32 [B, 1, N].

    Source: Milakov and Gimelshein 2018, the online softmax.
    """
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    q_BNH = operands.q_BTNH[:, 0]
    B, N, H = q_BNH.shape
    S, K = operands.size("S"), operands.size("K")
    each = _position_bytes(operands)
    rows = max(1, min(B, ROWS, BLOCK_BYTES // (min(S, LANES) * each)))
    most = BLOCK_BYTES // (rows * each) if block is None else block
    block = S if most >= S else most // LANES * LANES  # whole lanes of the mask
    mask_BS = jnp.ones((B, S), bool) if operands.mask_GS is None else operands.mask_GS
    float32: Any = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    own = pl.BlockSpec((block, rows, K, H), lambda b, s: (s, b, 0, 0))
    out_BNH, lse_BN1 = pl.pallas_call(
        functools.partial(_kernel, length=S),
        grid=(pl.cdiv(B, rows), pl.cdiv(S, block)),
        in_specs=[
            pl.BlockSpec((rows, N, H), lambda b, s: (b, 0, 0)),
            own,
            own,
            pl.BlockSpec((rows, 1, block), lambda b, s: (b, 0, s)),
        ],
        out_specs=[pl.BlockSpec((rows, N, width), lambda b, s: (b, 0, 0)) for width in (H, 1)],
        out_shape=[float32((B, N, width)) for width in (H, 1)],
        scratch_shapes=[pltpu.VMEM((rows, N, width), jnp.float32) for width in (1, 1, H)],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        interpret=interpret,
        name="tail_attention",
    )(q_BNH, operands.keys, operands.values, mask_BS.astype(jnp.bfloat16)[:, None])
    return out_BNH[:, None], lse_BN1[:, None, :, 0]


def _position_bytes(operands: Operands) -> int:
    """Returns the bytes of the keys of one row at one position on a device."""
    return operands.key_heads_of_a_device * max(operands.size("H"), LANES) * operands.keys.dtype.itemsize


def _kernel(*refs: Any, length: int) -> None:
    from jax.experimental import pallas as pl

    q_ref, k_ref, v_ref, mask_ref, out_ref, lse_ref, top_ref, sum_ref, acc_ref = refs
    step = pl.program_id(1)
    (block, rows, K, H), N = k_ref.shape, q_ref.shape[1]

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
    of_key = jax.lax.broadcasted_iota(jnp.int32, (N, block * K), 1)
    mine = of_key % K == jax.lax.broadcasted_iota(jnp.int32, (N, block * K), 0) // (N // K)
    mask = mask_ref[...].astype(jnp.float32).reshape(rows, block)
    left = (length - step * block) * K
    if length % block:
        # The last block reaches beyond the end, where anything may lie, NaN too.
        mine = mine & (of_key < left)
        mask = jnp.where(jax.lax.broadcasted_iota(jnp.int32, mask.shape, 1) < length - step * block, mask, 0)
    if K > 1:
        # Each position's mask for all its key heads: a product with zeros and ones, as lanes cannot be repeated.
        position = jax.lax.broadcasted_iota(jnp.int32, (block, block * K), 1) // K
        once = position == jax.lax.broadcasted_iota(jnp.int32, (block, block * K), 0)
        mask = product(mask, once.astype(jnp.float32), (((1,), (0,)), ((), ())))
    for row in range(rows):
        q, keys, values = q_ref[row], k_ref[:, row].reshape(block * K, H), v_ref[:, row].reshape(block * K, H)
        scores = product(q, keys.astype(q.dtype), (((1,), (1,)), ((), ()))) * H**-0.5
        scores = jnp.where(mine, jnp.where(mask[row : row + 1] > 0.5, scores, MASKED), -jnp.inf)
        values = values.astype(q.dtype)
        if length % block:
            values = jnp.where(jax.lax.broadcasted_iota(jnp.int32, values.shape, 0) < left, values, 0)
        top = jnp.maximum(top_ref[row], scores.max(axis=-1, keepdims=True))
        weights, shrunk = jnp.exp(scores - top), jnp.exp(top_ref[row] - top)
        top_ref[row] = top
        sum_ref[row] = shrunk * sum_ref[row] + weights.sum(axis=-1, keepdims=True)
        acc_ref[row] = shrunk * acc_ref[row] + product(weights.astype(q.dtype), values, (((1,), (0,)), ((), ())))

    @pl.when(step == pl.num_programs(1) - 1)
    def _() -> None:
        out_ref[...] = acc_ref[...] / sum_ref[...]
        lse_ref[...] = top_ref[...] + jnp.log(sum_ref[...])


def _refusal(operands: Operands) -> str | None:
    if operands.q_BTNH.shape[1] != 1 or operands.queries != 1:
        return "takes one query of each row, and keys of its own for every row"
    if operands.key_scale is not None or operands.value_scale is not None:
        return "takes keys and values without scales"
    if operands.key_heads_of_a_device % HEADS:
        return f"takes a multiple of {HEADS} key heads on a device: fewer are stored in another layout, and copied"
    if LANES * _position_bytes(operands) > BLOCK_BYTES:
        return f"takes keys of up to {BLOCK_BYTES >> 20} MiB at {LANES} positions of a row"
    return None


KERNEL = AttentionKernel(
    run=lambda operands, *, lse, interpret: attend(operands, interpret=interpret),
    platforms=("tpu", "cpu"),
    chosen_from={"tpu": 1},
    runs_on=has_split_memory,
    dtypes=("bfloat16", "float32"),
    orders=("SGKH",),
    causal_and_segments=False,
    own_refusal=_refusal,
)
