"""The peak rates of accelerators (memory, bandwidth, arithmetic), and the least time of work on them (rooflines)."""

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
    """An accelerator. All rates are peaks of dense arithmetic, as stated by the manufacturer.

    Attributes:
      name: as in a topology: `"v5e"`, `"h100"`.
      kind: "tpu" or "gpu".
      hbm_bytes: size of the high-bandwidth memory; programs can use a little less.
      hbm_bytes_per_second: bandwidth of that memory.
      bf16_flops: multiplications and additions per second of bfloat16 inputs, accumulated in float32.
      int8_ops: the same for int8; None if the manufacturer states none.
      interconnect_bytes_per_second: bytes that the chip can send to its neighbours, over all links, in one direction.
      vmem_bytes: on-chip memory in which the compiler places buffers; 0 for GPUs, whose caches are automatic.
      devices: how many devices JAX shows for a chip.
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


# TPUs: from the tables of docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}, whose interconnect rates count both
# directions. Interconnect of v4: six links of 50 GB/s, arxiv.org/abs/2304.01433, table 4. VMEM, and the capacity of
# v5e and v6e in bytes: jax/_src/pallas/mosaic/tpu_info.py.
# GPUs: from NVIDIA's data sheets, without sparsity, or half the rate with sparsity if only that is stated. Rates of
# NVLink count both directions there too. L4, L40S and A10G have PCI Express 4.0 × 16.
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
    # The rates that copies of large arrays and large matrix products reached on an H200.
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
    """Parses JAX's names of TPU topologies, `"v5e:2x4"` or `"v5p:4x4x4"`, and `"h100:8"` or `"h200"` for GPUs.

    Returns:
      The chip, and how many there are.

    Raises:
      ValueError: the chip is unknown, or a size is not a positive integer.
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
"""Patterns for JAX's `device_kind`, and the chip's name."""


def chip_of(device_kind: str) -> Chip | None:
    """Returns the chip that a device of JAX belongs to; None for CPUs and for chips that are not in `CHIPS`."""
    return next((CHIPS[name] for pattern, name in _KINDS if re.search(pattern, device_kind)), None)


@dataclass(frozen=True)
class Roofline:
    """The least time that some work takes.

    Attributes:
      compute_seconds, memory_seconds, interconnect_seconds: the least time of each resource.
    """

    compute_seconds: float
    memory_seconds: float
    interconnect_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        """The time of the slowest resource, as all of them may work at once."""
        return max(self.compute_seconds, self.memory_seconds, self.interconnect_seconds)

    @property
    def bound(self) -> Bound:
        """The slowest resource."""
        if self.seconds == self.compute_seconds:
            return "compute"
        return "memory" if self.seconds == self.memory_seconds else "interconnect"


def roofline(flops: float, hbm_bytes: float, chip: Chip, chips: int = 1, *, sent_bytes: float = 0.0) -> Roofline:
    """Returns the least time of bfloat16 work that is split evenly over chips.

    Args:
      flops: floating-point operations of all chips together; a multiplication and an addition are two.
      hbm_bytes: bytes that all chips together read and write in high-bandwidth memory.
      chip: the kind of chip.
      chips: how many.
      sent_bytes: bytes that each chip sends to others.

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
