"""`AttentionKernel`: what the file of a kernel says about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import jax

from videollava_jax.model.kernels.operands import Operands, platform_of


class Run(Protocol):
    """Computes attention on one device, of operands that the kernel does not refuse."""

    def __call__(self, operands: Operands, *, lse: bool, interpret: bool) -> tuple[jax.Array, jax.Array | None]:
        """Returns [B, T, N, H], and the log-sum-exp, float32 [B, T, N].

        Args:
          operands: the device's own rows and heads.
          lse: whether the log-sum-exp is needed; without it, it may be None.
          interpret: whether a Pallas kernel runs in the interpreter: on a CPU.
        """


@dataclass(frozen=True, kw_only=True)
class AttentionKernel:
    """A kernel: how it is run, where, when it is chosen, and which operands it refuses.

    Attributes:
      run: computes the attention. It imports Pallas when it is called: only programs with this kernel wait for that.
      platforms: "gpu", "tpu" and "cpu", those whose programs can run it; a Pallas kernel runs on a CPU in an
        interpreter, slowly.
      chosen_from: the fewest queries, rows × T, for which it is chosen, by platform; empty: it runs only where it is
        named.
      runs_on: whether the devices that a program is for can run it, by `device_kind_of`; asked last, and only before it
        is chosen.
      gives_lse: whether it gives a log-sum-exp that can be merged with another part.
      dtypes: of the queries; None for any.
      one_dtype: whether keys and values must have the dtype of the queries, which int8 ones do not.
      orders: of the axes of keys and values; None for any.
      causal_and_segments: whether it has the causal rule and segments.
      most_queries: the most on one key head, rows × T × N / K, for a kernel that keeps them all in fast memory, as
        those for decoding do; None for any number.
      own_refusal: says why it cannot run operands that all these fields accept; None where it can.
    """

    run: Run
    platforms: tuple[str, ...]
    chosen_from: Mapping[str, int]
    runs_on: Callable[[str | None], bool] = lambda kind: True
    gives_lse: bool = True
    dtypes: tuple[str, ...] | None = None
    one_dtype: bool = False
    orders: tuple[str, ...] | None = None
    causal_and_segments: bool = True
    most_queries: int | None = None
    own_refusal: Callable[[Operands], str | None] = lambda operands: None

    @property
    def decodes(self) -> bool:
        """Whether it is made for decoding, few queries on many keys: the engine's `decode_attention` may name it."""
        return self.most_queries is not None

    def refusal(self, operands: Operands, *, lse: bool) -> str | None:
        """Says why it cannot run these operands; None where it can."""
        platform, dtype, keys_dtype = platform_of(operands.q_BTNH), operands.q_BTNH.dtype, operands.keys.dtype
        queries = operands.queries * operands.q_BTNH.shape[2] // operands.size("K")
        if platform not in self.platforms:
            return f"runs on {' or '.join(self.platforms)}, and this program is for {platform}"
        if not operands.split_alike:
            return (
                "needs rows and heads of all arrays split over the same explicit axes of a mesh, and nothing else split"
            )
        if self.one_dtype and not dtype == keys_dtype == operands.values.dtype:
            return f"takes keys in the dtype of the queries, {dtype}, not {keys_dtype}"
        if lse and not self.gives_lse:
            return "gives no log-sum-exp that can be merged with another part"
        if self.dtypes is not None and dtype.name not in self.dtypes:
            return f"takes {' or '.join(self.dtypes)}, not {dtype}"
        if self.orders is not None and operands.order not in self.orders:
            quoted = " or ".join(f'"{order}"' for order in self.orders)
            return f'takes keys in order {quoted}, not "{operands.order}"'
        if not self.causal_and_segments and (operands.causal_offset is not None or operands.segments_GS is not None):
            return "has no causal rule and no segments"
        if self.most_queries is not None and queries > self.most_queries:
            return f"takes up to {self.most_queries} queries on each key head, not {queries}"
        return self.own_refusal(operands)
