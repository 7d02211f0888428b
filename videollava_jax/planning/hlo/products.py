"""Counts the operations of matrix products and of cuDNN's attention, which the GPU compiler does not say.

`compiled.cost_analysis()` of a program for GPUs that are not here is None, and on any GPU it counts nothing in calls of
libraries.
"""

from __future__ import annotations

import math

from videollava_jax.planning.hlo.buffers import Buffers
from videollava_jax.planning.hlo.text import Computation, Instruction

_GEMM, _ATTENTION = "__cublas$", "__cudnn$fmha"


def product_flops(buffers: Buffers, where: Computation, instruction: Instruction) -> float:
    """Counts an instruction's operations: a multiplication and an addition are two.

    Counted are products, also inside fusions and calls of cuBLAS, and attention by cuDNN, half of it with the causal
    rule. Convolutions, elementwise operations and other kernels are not.

    Args:
      buffers: of the module.
      where: the computation that contains the instruction.
    """
    inside = buffers.inside(instruction)
    if inside is not None:
        return sum(product_flops(buffers, inside, nested) for nested in inside.instructions)
    target = instruction.custom_call
    if instruction.opcode == "dot" or (target.startswith(_GEMM) and instruction.contracted):
        (left, *_), result = where.by_name[instruction.operands[0]].shapes, instruction.result_shapes[0]
        return 2.0 * math.prod(result.dims) * math.prod(left.dims[axis] for axis in instruction.contracted)
    if target.startswith(_ATTENTION) and not target.endswith("Backward"):
        q_BTNH, k_BSNH = (where.by_name[name].shapes[0].dims for name in instruction.operands[:2])
        return 4.0 * math.prod(q_BTNH) * k_BSNH[1] / (2 if instruction.causal else 1)
    return 0.0
