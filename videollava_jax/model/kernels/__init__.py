"""Kernels behind `attention(implementation=...)`: what each accepts, which one is chosen, and how it is called.

    cudnn        NVIDIA GPUs   many queries: prefill and towers, in bfloat16 or float16
    splash       TPUs          many queries: prefill, and questions on a prefix
    decode_tpu   TPUs          few queries on a shared prefix, int8 or float
    decode_gpu   NVIDIA GPUs   the same
    by_head      CPUs          many queries, anything; no kernel, but it runs per device as they do

Each gives the result of the reference, which every platform can run. Pallas is imported when a kernel is first used.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from videollava_jax.model.kernels.operands import Operands, per_device, platform_of

__all__ = ["Kernel", "Operands", "best", "platform_of", "refusal", "run"]

Kernel = Literal["cudnn", "splash", "decode_tpu", "decode_gpu", "by_head"]

CUDNN_QUERIES = 128
"""cuDNN is chosen from this many queries on: its tiles have 128 queries, and the scores of fewer are small."""
SPLASH_QUERIES = 512
"""Splash is chosen from this many queries on: fewer have scores that fit VMEM, and would be padded to whole blocks."""
BY_HEAD_QUERIES = 512
"""A CPU computes head by head from this many queries on: the scores of fewer fit its caches together."""
FEW_QUERIES = {"decode_tpu": 256, "decode_gpu": 64}
"""The most queries on one key head, rows × T × N / K, that a decode kernel keeps in fast memory."""
# The only precisions that the TPU compiler accepts for products of bfloat16 in a kernel; one pass is exact.
_ONE_PASS = (None, "default", "fastest", "bfloat16")
_PLATFORMS = {
    "cudnn": ("gpu",),
    "splash": ("tpu", "cpu"),
    "decode_tpu": ("tpu", "cpu"),
    "decode_gpu": ("gpu", "cpu"),
    "by_head": ("cpu",),
}


def best(operands: Operands, *, lse: bool) -> Kernel | None:
    """Chooses the kernel that is known to be faster for these operands on their platform; None where there is none.

    Decode kernels are never chosen: XLA's own fusion also reads a prefix once and holds nothing of its size.

    Args:
      lse: whether the log-sum-exp is needed too.
    """
    platform, queries = platform_of(operands.q_BTNH), operands.queries
    if platform == "gpu" and queries >= CUDNN_QUERIES and refusal("cudnn", operands, lse=lse) is None:
        return "cudnn" if _has_flash_attention() else None
    if platform == "tpu" and queries >= SPLASH_QUERIES and refusal("splash", operands, lse=lse) is None:
        return "splash"
    if platform == "cpu" and queries > BY_HEAD_QUERIES and refusal("by_head", operands, lse=lse) is None:
        return "by_head"
    return None


def refusal(kernel: Kernel, operands: Operands, *, lse: bool) -> str | None:
    """Says why a kernel cannot run these operands; None where it can."""
    platform = platform_of(operands.q_BTNH)
    if platform not in _PLATFORMS[kernel]:
        return f"runs on {' or '.join(_PLATFORMS[kernel])}, and this program is for {platform}"
    if not operands.split_alike:
        return "needs rows and heads of all arrays split over the same explicit axes of a mesh, and nothing else split"
    if kernel == "by_head":
        return None
    if kernel in ("cudnn", "splash") and not operands.q_BTNH.dtype == operands.keys.dtype == operands.values.dtype:
        return f"takes keys in the dtype of the queries, {operands.q_BTNH.dtype}, not {operands.keys.dtype}"
    if kernel == "cudnn":
        return _cudnn_refusal(operands, lse)
    if kernel in ("splash", "decode_tpu") and operands.q_BTNH.dtype not in (jnp.bfloat16, jnp.float32):
        return f"takes bfloat16 or float32, not {operands.q_BTNH.dtype}"
    if kernel == "splash":
        return _splash_refusal(operands)
    return _decode_refusal(kernel, operands)


def run(kernel: Kernel, operands: Operands, *, lse: bool) -> tuple[jax.Array, jax.Array | None]:
    """Runs a kernel, on each device over its own rows and heads; on a CPU in Pallas' interpreter, slowly.

    Returns:
      [B, T, N, H], and the log-sum-exp, float32 [B, T, N], where `lse` is set.

    Raises:
      ValueError: the kernel cannot run these operands (`refusal`).
    """
    reason = refusal(kernel, operands, lse=lse)
    if reason is not None:
        raise ValueError(f"attention implementation {kernel!r} {reason}; name another one, or None for one that fits")
    interpret = platform_of(operands.q_BTNH) == "cpu"

    def kernel_of(operands: Operands) -> tuple[jax.Array, jax.Array | None]:
        if kernel == "cudnn":
            from videollava_jax.model.kernels import cudnn

            return cudnn.attend(operands), None
        if kernel == "splash":
            from videollava_jax.model.kernels import splash

            return splash.attend(operands, lse=lse, interpret=interpret)
        if kernel == "decode_tpu":
            from videollava_jax.model.kernels import decode_tpu

            return decode_tpu.decode(operands, interpret=interpret)
        if kernel == "by_head":
            from videollava_jax.model.kernels import by_head

            return by_head.attend(operands)
        from videollava_jax.model.kernels import decode_gpu

        return decode_gpu.decode(operands, interpret=interpret)

    return per_device(kernel_of, operands)


def _cudnn_refusal(operands: Operands, lse: bool) -> str | None:
    H = operands.size("H")
    if lse:
        return "gives no log-sum-exp that can be merged with another part"
    if operands.q_BTNH.dtype not in (jnp.bfloat16, jnp.float16):
        return f"takes bfloat16 or float16, not {operands.q_BTNH.dtype}"
    if operands.order != "GSKH":
        return f'takes keys in order "GSKH", not "{operands.order}"'
    if H % 8 or H > 128:
        return f"takes heads of up to 128, a multiple of 8, not {H}"
    return None


def _splash_refusal(operands: Operands) -> str | None:
    offset, precision = operands.causal_offset, jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    if offset is not None and (not isinstance(offset, int) or offset < 0):
        return "takes a causal offset that is known when the program is compiled, from 0 on"
    if offset is not None and operands.queries != operands.q_BTNH.shape[1]:
        return "with a causal rule needs keys of its own for every row of queries"
    if operands.q_BTNH.dtype == jnp.bfloat16 and precision not in _ONE_PASS and platform_of(operands.q_BTNH) == "tpu":
        return f"in bfloat16 needs products in one pass, not jax_default_matmul_precision={precision!r}"
    return None


def _decode_refusal(kernel: Kernel, operands: Operands) -> str | None:
    queries = operands.queries * operands.q_BTNH.shape[2] // operands.size("K")
    H = operands.size("H")
    if operands.order != "GKSH":
        return f'takes keys in order "GKSH", not "{operands.order}"'
    if operands.causal_offset is not None or operands.segments_GS is not None:
        return "has no causal rule and no segments"
    if queries > FEW_QUERIES[kernel]:
        return f"takes up to {FEW_QUERIES[kernel]} queries on each key head, not {queries}"
    if kernel == "decode_gpu" and (H < 16 or H & (H - 1)):
        return f"takes heads of 16, 32, 64 or 128, not {H}"
    return None


def _has_flash_attention() -> bool:
    """Whether the GPUs here are NVIDIA's, Ampere or later."""
    capabilities = [str(getattr(device, "compute_capability", "")) for device in jax.local_devices()]
    return all(text[:1].isdigit() and float(text) >= 8 for text in capabilities)  # AMD's begin with "gfx"
