"""The options of the engine, checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from videollava_jax.engine.preparation import Reader


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Options of an engine; None for a value that fits the machine.

    Attributes:
      max_rows: the most questions that are answered at a time.
      memory: bytes for the keys and values of all prefixes and questions, on all devices together.
      decode_attention: the kernel of attention to prefixes while decoding; None for "step_gpu" on NVIDIA GPUs from
        Ampere on where it takes the model's shapes, else for XLA's own fusion, which also reads a prefix once.
        "step_gpu" does a whole step of a layer's attention. "decode_tpu" runs on TPUs, "decode_gpu" on NVIDIA GPUs,
        and all on CPUs in an interpreter, slowly. `Engine` checks it against `model.kernels.decoding()`.
      int8_cache: keep the keys and values of prefixes in int8: half the memory of bfloat16, at a small error.
      window: requests that are taken ahead, to group those about the same media.
      readers: threads that decode and resize media ahead of the device; the same number of others hashes them.
      reader: called by these threads with a medium and its frame sampling, to decode it elsewhere; None for the
        processor's `read`. `batch.media.isolation.IsolatedReader` reads in worker processes, within limits.
      longest_question: the most tokens after the media that a row takes; the start of a longer text is prefilled.
      pad_token_id, eos_token_id, suppress_tokens: as in `generate`, for all requests; None for the checkpoint's.
      on_sizes: called with a line that describes each new grid.
    """

    max_rows: int | None = None
    memory: int | None = None
    decode_attention: str | None = None
    int8_cache: bool = False
    window: int = 1024
    readers: int = 4
    reader: Reader | None = None
    longest_question: int = 512
    pad_token_id: int | None = None
    eos_token_id: int | Sequence[int] | None = None
    suppress_tokens: Sequence[int] | None = None
    on_sizes: Callable[[str], None] | None = None

    def __post_init__(self) -> None:
        for name in ("max_rows", "memory", "window", "readers", "longest_question"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
