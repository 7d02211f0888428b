"""Chips and what limits them: memory, bandwidth, arithmetic; and the least time that work takes on them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Bound = Literal["compute", "memory", "interconnect"]

_GB, _TB, _TFLOP = 1e9, 1e12, 1e12
_GIB, _MIB = 2**30, 2**20


@dataclass(frozen=True, kw_only=True)
class Chip:
    """One accelerator; all rates are peaks of dense arithmetic, as its maker states them.

    Attributes:
      name: as in a topology: `"v5e"`, `"h100"`.
      kind: "tpu" or "gpu".
      hbm_bytes: high-bandwidth memory; what a program may use of it is a little less.
      hbm_bytes_per_second: its bandwidth.
      bf16_flops: multiplications and additions a second, bfloat16 in and float32 accumulated.
      int8_ops: the same in int8; None where the maker states none.
      interconnect_bytes_per_second: what the chip can send to its neighbours, all links together, in one direction.
      vmem_bytes: on-chip memory that the compiler places buffers in; 0 for GPUs, whose caches place themselves.
      devices: devices that JAX shows for a chip.
    """

    name: str
    kind: Literal["tpu", "gpu"]
    hbm_bytes: int
    hbm_bytes_per_second: float
    bf16_flops: float
    int8_ops: float | None
    interconnect_bytes_per_second: float
    vmem_bytes: int = 0
    devices: int = 1


# TPUs: the tables of docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}; there the interconnect counts both
# directions. Interconnect of v4: six links of 50 GB/s, arxiv.org/abs/2304.01433, table 4. VMEM, and the capacity of
# v5e and v6e in bytes: jax/_src/pallas/mosaic/tpu_info.py.
# GPUs: NVIDIA's data sheets, without sparsity; where they state only the rate with sparsity, half of it. NVLink counts
# both directions there too; L4, L40S and A10G have PCI Express 4.0 × 16.
_ALL = (
    Chip(
        name="v4",
        kind="tpu",
        hbm_bytes=32 * _GIB,
        hbm_bytes_per_second=1200 * _GB,
        bf16_flops=275 * _TFLOP,
        int8_ops=275 * _TFLOP,
        interconnect_bytes_per_second=300 * _GB,
        vmem_bytes=32 * _MIB,
    ),
    Chip(
        name="v5e",
        kind="tpu",
        hbm_bytes=16 * _GIB,
        hbm_bytes_per_second=819 * _GB,
        bf16_flops=197 * _TFLOP,
        int8_ops=393 * _TFLOP,
        interconnect_bytes_per_second=200 * _GB,
        vmem_bytes=128 * _MIB,
    ),
    Chip(
        name="v5p",
        kind="tpu",
        hbm_bytes=95 * _GIB,
        hbm_bytes_per_second=2765 * _GB,
        bf16_flops=459 * _TFLOP,
        int8_ops=918 * _TFLOP,
        interconnect_bytes_per_second=600 * _GB,
        vmem_bytes=128 * _MIB,
    ),
    Chip(
        name="v6e",
        kind="tpu",
        hbm_bytes=32 * _GIB,
        hbm_bytes_per_second=1638 * _GB,
        bf16_flops=918 * _TFLOP,
        int8_ops=1836 * _TFLOP,
        interconnect_bytes_per_second=400 * _GB,
        vmem_bytes=128 * _MIB,
    ),
    Chip(
        name="v7x",
        kind="tpu",
        hbm_bytes=192 * _GIB,
        hbm_bytes_per_second=7380 * _GB,
        bf16_flops=2307 * _TFLOP,
        int8_ops=None,
        interconnect_bytes_per_second=600 * _GB,
        vmem_bytes=128 * _MIB,
        devices=2,
    ),
    Chip(
        name="a100-40",
        kind="gpu",
        hbm_bytes=int(40 * _GB),
        hbm_bytes_per_second=1555 * _GB,
        bf16_flops=312 * _TFLOP,
        int8_ops=624 * _TFLOP,
        interconnect_bytes_per_second=300 * _GB,
    ),
    Chip(
        name="a100-80",
        kind="gpu",
        hbm_bytes=int(80 * _GB),
        hbm_bytes_per_second=2039 * _GB,
        bf16_flops=312 * _TFLOP,
        int8_ops=624 * _TFLOP,
        interconnect_bytes_per_second=300 * _GB,
    ),
    Chip(
        name="h100",
        kind="gpu",
        hbm_bytes=int(80 * _GB),
        hbm_bytes_per_second=3.35 * _TB,
        bf16_flops=989 * _TFLOP,
        int8_ops=1979 * _TFLOP,
        interconnect_bytes_per_second=450 * _GB,
    ),
    Chip(
        name="h200",
        kind="gpu",
        hbm_bytes=int(141 * _GB),
        hbm_bytes_per_second=4.8 * _TB,
        bf16_flops=989 * _TFLOP,
        int8_ops=1979 * _TFLOP,
        interconnect_bytes_per_second=450 * _GB,
    ),
    # What programs reached on one: copies of large arrays, and large matrix products.
    Chip(
        name="h200-measured",
        kind="gpu",
        hbm_bytes=int(141 * _GB),
        hbm_bytes_per_second=4.3 * _TB,
        bf16_flops=790 * _TFLOP,
        int8_ops=None,
        interconnect_bytes_per_second=450 * _GB,
    ),
    Chip(
        name="l4",
        kind="gpu",
        hbm_bytes=int(24 * _GB),
        hbm_bytes_per_second=300 * _GB,
        bf16_flops=121 * _TFLOP,
        int8_ops=242 * _TFLOP,
        interconnect_bytes_per_second=32 * _GB,
    ),
    Chip(
        name="l40s",
        kind="gpu",
        hbm_bytes=int(48 * _GB),
        hbm_bytes_per_second=864 * _GB,
        bf16_flops=362 * _TFLOP,
        int8_ops=733 * _TFLOP,
        interconnect_bytes_per_second=32 * _GB,
    ),
    Chip(
        name="a10g",
        kind="gpu",
        hbm_bytes=int(24 * _GB),
        hbm_bytes_per_second=600 * _GB,
        bf16_flops=70 * _TFLOP,
        int8_ops=140 * _TFLOP,
        interconnect_bytes_per_second=32 * _GB,
    ),
)

CHIPS: Mapping[str, Chip] = {chip.name: chip for chip in _ALL}
"""Every chip by its name."""


def topology(name: str) -> tuple[Chip, int]:
    """Reads `"v5e:2x4"` or `"v5p:4x4x4"` as JAX names TPU topologies, `"h100:8"` for GPUs, `"h200"` for one of them.

    Returns:
      The chip, and how many.

    Raises:
      ValueError: no such chip, or sizes that are no numbers above 0.
    """
    chip_name, _, sizes = name.lower().strip().partition(":")
    if chip_name not in CHIPS:
        raise ValueError(f"{name!r}: no figures for a chip {chip_name!r}: expected one of {', '.join(CHIPS)}")
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", sizes or "1") or name.strip().endswith(":"):
        example = "v5e:2x4" if CHIPS[chip_name].kind == "tpu" else "h100:8"
        raise ValueError(f"{name!r}: expected sizes such as {example}, got {sizes!r}")
    return CHIPS[chip_name], math.prod(int(size) for size in (sizes or "1").split("x"))


_KINDS = (
    (r"TPU v4$", "v4"),
    (r"TPU v5 ?(lite|e)", "v5e"),
    (r"TPU v5p?$", "v5p"),
    (r"TPU v6 ?(lite|e)", "v6e"),
    (r"TPU ?(v?7x|v7)", "v7x"),
    (r"A100.*40GB", "a100-40"),
    (r"A100.*80GB", "a100-80"),
    (r"H100", "h100"),
    (r"H200", "h200"),
    (r"L40S", "l40s"),
    (r"L4$", "l4"),
    (r"A10G", "a10g"),
)
"""What JAX calls a device (`device_kind`), as a pattern, and which chip that is."""


def chip_of(device_kind: str) -> Chip | None:
    """The chip that a device of JAX belongs to; None for those without figures here, and for CPUs."""
    return next((CHIPS[name] for pattern, name in _KINDS if re.search(pattern, device_kind)), None)


@dataclass(frozen=True)
class Roofline:
    """The least time that work takes.

    Attributes:
      compute_seconds, memory_seconds, interconnect_seconds: each resource alone.
    """

    compute_seconds: float
    memory_seconds: float
    interconnect_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        """The slowest resource's time: all of them may work at once."""
        return max(self.compute_seconds, self.memory_seconds, self.interconnect_seconds)

    @property
    def bound(self) -> Bound:
        """The slowest resource."""
        if self.seconds == self.compute_seconds:
            return "compute"
        return "memory" if self.seconds == self.memory_seconds else "interconnect"


def roofline(flops: float, hbm_bytes: float, chip: Chip, chips: int = 1, *, sent_bytes: float = 0.0) -> Roofline:
    """The least time that bfloat16 work takes when it is split evenly over chips.

    Args:
      flops: floating-point operations of all chips together; a multiplication and an addition are two.
      hbm_bytes: bytes read and written in high-bandwidth memory, of all chips together.
      chip, chips: which, and how many.
      sent_bytes: bytes that each single chip sends to others.

    Raises:
      ValueError: less than one chip.
    """
    if chips < 1:
        raise ValueError(f"roofline: expected at least one chip, got {chips}")
    return Roofline(
        compute_seconds=flops / (chip.bf16_flops * chips),
        memory_seconds=hbm_bytes / (chip.hbm_bytes_per_second * chips),
        interconnect_seconds=sent_bytes / chip.interconnect_bytes_per_second,
    )
