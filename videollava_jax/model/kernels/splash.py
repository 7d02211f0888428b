"""Splash attention, JAX's TPU kernel for many queries: scores are computed and used in VMEM, block by block.

It needs whole blocks: queries and keys are padded at the end, and no query sees the padding.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from videollava_jax.model.kernels.kernel import AttentionKernel
from videollava_jax.model.kernels.operands import Operands, platform_of

LANES = 128
FEWEST_QUERIES = 512
"""It is chosen from this many on: fewer have scores that fit VMEM, and would be padded to whole blocks."""
LARGEST_BLOCK = {2: 1024, 4: 512}
"""By the bytes of an element: scores of 1024 × 1024 are 4 MiB in float32, and a kernel may use 16 MiB in all. In
float32 at full precision the gradient needs more memory than scores, and the compiler refuses blocks of 896."""
# The only precisions that the TPU compiler accepts for products of bfloat16 in a kernel; one pass is exact.
ONE_PASS = (None, "default", "fastest", "bfloat16")


def attend(operands: Operands, *, lse: bool, interpret: bool = False) -> tuple[jax.Array, jax.Array | None]:
    """Computes attention of many queries; with a static causal offset each row of keys has one row of queries.

    The scale is multiplied into the queries before the kernel: in bfloat16 with H = 128 that rounds them once more.

    Args:
      operands: of one float dtype.
      lse: whether the log-sum-exp is needed. Only without it does the kernel have a gradient.
      interpret: run in Pallas' interpreter, on any device and slowly, to check the numbers.

    Returns:
      [B, T, N, H] in the dtype of the queries, and float32 [B, T, N] or None.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    q_BTNH, order = operands.q_BTNH, operands.order
    B, T, N, H = q_BTNH.shape
    G, S, Q = operands.size("G"), operands.size("S"), operands.queries
    block_q, block_s = block_of(Q, q_BTNH.dtype), block_of(S, q_BTNH.dtype)
    # All queries that share keys go into one product, as in the reference.
    q_GNQH = _filled(jnp.einsum("GQNH->GNQH", (q_BTNH * H**-0.5).reshape(G, Q, N, H)), 2, block_q)
    keys, values = (_filled(jnp.einsum(f"{order}->GKSH", x), 2, block_s) for x in (operands.keys, operands.values))
    segments = _segments(operands, q_GNQH.shape[2], keys.shape[2])
    shape = q_GNQH.shape[2], keys.shape[2]
    seen = masks.FullMask(shape) if operands.causal_offset is None else masks.CausalMask(shape, operands.causal_offset)
    kernel = splash.make_splash_mha(
        mask=masks.MultiHeadMask([seen] * N),
        block_sizes=splash.BlockSizes(**_blocks(block_q, block_s)),
        head_shards=1,
        q_seq_shards=1,
        save_residuals=lse,
        interpret=interpret,
    )
    found = jax.vmap(kernel)(q_GNQH, keys, values, None if segments is None else splash.SegmentIds(*segments))
    out_GNQH, lse_GNQ = (found[0], found[1][0]) if lse else (found, None)
    out_BTNH = jnp.einsum("GNQH->GQNH", out_GNQH[:, :, :Q]).reshape(B, T, N, H)
    if lse_GNQ is None:
        return out_BTNH, None
    return out_BTNH, jnp.einsum("GNQ->GQN", lse_GNQ[:, :, :Q]).reshape(B, T, N)


def _segments(operands: Operands, Q: int, S: int) -> tuple[jax.Array, jax.Array] | None:
    """Returns the segments of queries [G, Q] and of keys [G, S], padded; None if a query sees all keys.

    A mask becomes segments: 1 is seen.
    """
    G, held = operands.size("G"), operands.size("S")
    if operands.segments_GS is not None:
        keys_GS = operands.segments_GS
        queries_GQ = jnp.pad(keys_GS, ((0, 0), (0, Q - held)), constant_values=-1)
    elif operands.mask_GS is None and held == S:
        return None
    else:
        keys_GS = jnp.ones((G, held), jnp.int32) if operands.mask_GS is None else operands.mask_GS.astype(jnp.int32)
        queries_GQ = jnp.ones((G, Q), jnp.int32)
    # Padding is a segment of its own, without a token.
    return queries_GQ, jnp.pad(keys_GS, ((0, 0), (0, S - held)), constant_values=-1)


def block_of(length: int, dtype: DTypeLike) -> int:
    """Returns the block with the least padding, the largest of several: a multiple of 128 up to `LARGEST_BLOCK`."""
    whole, largest = -(-length // LANES) * LANES, LARGEST_BLOCK[jnp.dtype(dtype).itemsize]
    # Small blocks keep the matrix units waiting: only short inputs get them.
    blocks = range(min(largest // 2, whole), largest + 1, LANES)
    return min(blocks, key=lambda block: (-(-length // block) * block, -block))


def _blocks(block_q: int, block_s: int) -> dict[str, Any]:
    return dict(
        block_q=block_q,
        block_kv=block_s,
        block_kv_compute=block_s,
        block_q_dkv=block_q,
        block_kv_dkv=block_s,
        block_kv_dkv_compute=block_s,
        block_q_dq=block_q,
        block_kv_dq=block_s,
    )


def _filled(x: jax.Array, axis: int, block: int) -> jax.Array:
    missing = -x.shape[axis] % block
    return jnp.pad(x, [(0, missing if i == axis else 0) for i in range(x.ndim)])


def _refusal(operands: Operands) -> str | None:
    offset, precision = operands.causal_offset, jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    if offset is not None and (not isinstance(offset, int) or offset < 0):
        return "takes a causal offset that is known when the program is compiled, from 0 on"
    if offset is not None and operands.queries != operands.q_BTNH.shape[1]:
        return "with a causal rule needs keys of its own for every row of queries"
    if operands.q_BTNH.dtype == jnp.bfloat16 and precision not in ONE_PASS and platform_of(operands.q_BTNH) == "tpu":
        return f"in bfloat16 needs products in one pass, not jax_default_matmul_precision={precision!r}"
    return None


KERNEL = AttentionKernel(
    run=lambda operands, *, lse, interpret: attend(operands, lse=lse, interpret=interpret),
    platforms=("tpu", "cpu"),
    chosen_from={"tpu": FEWEST_QUERIES},
    dtypes=("bfloat16", "float32"),
    one_dtype=True,
    own_refusal=_refusal,
)
