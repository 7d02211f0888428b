"""Kernels behind `attention(implementation=...)`: the table of them, which one is chosen, and how it is called.

    cudnn        NVIDIA GPUs   many queries: prefill and towers, in bfloat16 or float16
    splash       TPUs          many queries: prefill, and questions on a prefix
    decode_tpu   TPUs          few queries on a shared prefix, int8 or float; chosen on v5p
    tail_tpu     TPUs          one query on the tail of its row; chosen on v5p
    decode_gpu   NVIDIA GPUs   the same
    extend_gpu   NVIDIA GPUs   many queries on a shared prefix, int8 or float: questions
    step_gpu     NVIDIA GPUs   one step of decoding: attention to prefix and tail, and the tail's update (`run_step`)
    by_head      CPUs          many queries, anything; no kernel, but it runs per device as they do

Each gives the result of the reference, which every platform can run. To add a kernel, write its file and enter it here:

    my_kernel.py   KERNEL = AttentionKernel(run=..., platforms=..., chosen_from=..., what it refuses)
         │
    KERNELS        {"my_kernel": my_kernel.KERNEL, ...}
         ├──▶ best       the first in the table that is known to be faster for the operands
         ├──▶ refusal    why one cannot run them
         └──▶ run        one by its name, on each device
"""

from __future__ import annotations

import math

import jax

from videollava_jax.model.kernels import (
    by_head,
    cudnn,
    decode_gpu,
    decode_tpu,
    extend_gpu,
    splash,
    step_gpu,
    tail_tpu,
)
from videollava_jax.model.kernels.kernel import AttentionKernel
from videollava_jax.model.kernels.operands import Operands, device_kind_of, per_device, platform_of
from videollava_jax.model.kernels.step_gpu import Step

__all__ = [
    "KERNELS",
    "AttentionKernel",
    "Operands",
    "Step",
    "best",
    "decoding",
    "platform_of",
    "refusal",
    "run",
    "run_step",
]

KERNELS: dict[str, AttentionKernel] = {
    "cudnn": cudnn.KERNEL,
    "splash": splash.KERNEL,
    "decode_tpu": decode_tpu.KERNEL,
    "tail_tpu": tail_tpu.KERNEL,
    "decode_gpu": decode_gpu.KERNEL,
    "extend_gpu": extend_gpu.KERNEL,
    "by_head": by_head.KERNEL,
}
"""Every kernel by the name that `implementation` takes, in the order in which `best` tries them."""


def best(operands: Operands, *, lse: bool) -> str | None:
    """Chooses the kernel that is known to be faster for these operands on their platform; None where there is none.

    Args:
      lse: whether the log-sum-exp is needed too.
    """
    platform, kind = platform_of(operands.q_BTNH), device_kind_of(operands.q_BTNH)
    for name, kernel in KERNELS.items():
        enough = operands.queries >= kernel.chosen_from.get(platform, math.inf)
        if enough and kernel.refusal(operands, lse=lse) is None and kernel.runs_on(kind):
            return name
    return None


def decoding() -> list[str]:
    """Returns the kernels that the engine's `decode_attention` may name."""
    return [*(name for name, kernel in KERNELS.items() if kernel.decodes), step_gpu.NAME]


def run_step(step: Step, implementation: str | None) -> tuple[jax.Array, jax.Array, jax.Array] | None:
    """Runs `step_gpu` where it is named, or where none is and the program is for GPUs that have it; else None.

    Raises:
      ValueError: it is named, and cannot run these operands.
    """
    q_BTNH = step.prefix.q_BTNH
    platform, reason = platform_of(q_BTNH), step_gpu.refusal(step)
    if implementation == step_gpu.NAME and reason is not None:
        raise ValueError(f"attention implementation {step_gpu.NAME!r} {reason}; name another one, or None for one")
    chosen = implementation is None and platform == "gpu" and cudnn.KERNEL.runs_on(device_kind_of(q_BTNH))
    if reason is not None or not (chosen or implementation == step_gpu.NAME):
        return None
    return step_gpu.run(step, interpret=platform == "cpu")


def refusal(name: str, operands: Operands, *, lse: bool) -> str | None:
    """Says why a kernel of the table cannot run these operands; None where it can."""
    return KERNELS[name].refusal(operands, lse=lse)


def run(name: str, operands: Operands, *, lse: bool) -> tuple[jax.Array, jax.Array | None]:
    """Runs a kernel of the table, on each device over its own rows and heads; Pallas on a CPU in its interpreter.

    Returns:
      [B, T, N, H], and the log-sum-exp, float32 [B, T, N], where `lse` is set.

    Raises:
      ValueError: the kernel cannot run these operands (`refusal`).
    """
    kernel = KERNELS[name]
    reason = kernel.refusal(operands, lse=lse)
    if reason is not None:
        raise ValueError(f"attention implementation {name!r} {reason}; name another one, or None for one that fits")
    interpret = platform_of(operands.q_BTNH) == "cpu"
    return per_device(lambda share: kernel.run(share, lse=lse, interpret=interpret), operands)
