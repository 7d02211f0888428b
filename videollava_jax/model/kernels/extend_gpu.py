"""A GPU kernel for many queries on a shared prefix, with the log-sum-exp: questions after their prefixes.

Each program takes a block of queries of one head and walks over all keys, as `decode_gpu` does. cuDNN rounds its
log-sum-exp to the dtype of the queries, and XLA alone writes the scores of all heads to memory. Like those it is
written for Pallas' Triton backend, which JAX 0.11 still has but calls deprecated.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from videollava_jax.model.kernels import cudnn
from videollava_jax.model.kernels.decode_gpu import BLOCK, attended
from videollava_jax.model.kernels.kernel import AttentionKernel
from videollava_jax.model.kernels.operands import Operands

QUERY_BLOCK = 64
FEWEST_QUERIES = 65
"""It is chosen from this many on: fewer are those of decoding."""


def attend(operands: Operands, *, interpret: bool) -> tuple[jax.Array, jax.Array]:
    """Computes attention in both directions over keys in order "GKSH", float or int8; H a power of two.

    Args:
      interpret: run in Pallas' interpreter, on any device and slowly, to check the numbers.

    Returns:
      [B, T, N, H] in the dtype of the queries, and the log-sum-exp, float32 [B, T, N].
    """
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton as plgpu

    q_BTNH = operands.q_BTNH
    (B, T, N, H), G, K, S = q_BTNH.shape, operands.size("G"), operands.size("K"), operands.size("S")
    Q, heads = operands.queries, N // K
    q_GQNH = q_BTNH.reshape(G, Q, N, H)
    q_GQNH = jnp.pad(q_GQNH, ((0, 0), (0, -Q % QUERY_BLOCK), (0, 0), (0, 0)))
    queries = pl.BlockSpec((None, QUERY_BLOCK, None, H), lambda g, h, i: (g, i, h, 0))
    keys = pl.BlockSpec((None, None, S, H), lambda g, h, i: (g, h // heads, 0, 0))
    scale = pl.BlockSpec((None, None, S), lambda g, h, i: (g, h // heads, 0))
    mask_GS = operands.mask_GS
    inputs: list[tuple[jax.Array | None, pl.BlockSpec | None]] = [
        (q_GQNH, queries),
        (operands.keys, keys),
        (operands.values, keys),
        *((None, None) if x is None else (x, scale) for x in (operands.key_scale, operands.value_scale)),
        (None, None)
        if mask_GS is None
        else (mask_GS.astype(jnp.int8), pl.BlockSpec((None, S), lambda g, h, i: (g, 0))),
    ]
    shaped: Any = jax.ShapeDtypeStruct
    out_GQNH, lse_GQN = pl.pallas_call(
        functools.partial(_kernel, blocks=pl.cdiv(S, BLOCK)),
        grid=(G, N, q_GQNH.shape[1] // QUERY_BLOCK),
        in_specs=[spec for _, spec in inputs],
        out_specs=[queries, pl.BlockSpec((None, QUERY_BLOCK, None), lambda g, h, i: (g, i, h))],
        out_shape=[shaped(q_GQNH.shape, q_BTNH.dtype), shaped(q_GQNH.shape[:3], jnp.float32)],
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=2),
        interpret=interpret,
        name="extend_attention",
    )(*(x for x, _ in inputs))
    return out_GQNH[:, :Q].reshape(B, T, N, H), lse_GQN[:, :Q].reshape(B, T, N)


def _kernel(*refs: Any, blocks: int) -> None:
    q_ref, k_ref, v_ref, k_scale_ref, v_scale_ref, mask_ref, out_ref, lse_ref = refs
    prefix = k_ref, v_ref, k_scale_ref, v_scale_ref, mask_ref
    out, lse = attended(q_ref[...], *prefix, first=0, blocks=blocks, block=BLOCK)
    out_ref[...], lse_ref[...] = out.astype(out_ref.dtype), lse


def _refusal(operands: Operands) -> str | None:
    H = operands.size("H")
    if H < 16 or H > 128 or H & (H - 1):
        return f"takes heads of 16, 32, 64 or 128, not {H}"
    return None


KERNEL = AttentionKernel(
    run=lambda operands, *, lse, interpret: attend(operands, interpret=interpret),
    platforms=("gpu", "cpu"),
    chosen_from={"gpu": FEWEST_QUERIES},
    runs_on=cudnn.KERNEL.runs_on,
    dtypes=("bfloat16", "float16", "float32"),
    orders=("GKSH",),
    causal_and_segments=False,
    own_refusal=_refusal,
)
