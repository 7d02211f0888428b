"""The devices of chips that need not be here, as their own compilers describe them.

    TPUs   libtpu                    a topology by its name, v5e:2x4
    GPUs   the plugin of jax[cuda]   a description of the chip, and how many there are

Neither needs a device, or the driver of one. `environment` is set before JAX is imported.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from videollava_jax.costs.chips import Chip
from videollava_jax.extras import installs

_TPU_ENVIRONMENT: Mapping[str, str] = {
    "JAX_PLATFORMS": "cpu",  # libtpu only describes chips and compiles
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
"""Lets libtpu compile without a TPU, or with one that another process uses."""
_GPU_ENVIRONMENT: Mapping[str, str] = {
    "JAX_PLATFORMS": "cpu,cuda",
    "CUDA_VISIBLE_DEVICES": "-1",  # also on a machine with GPUs: the plan is for the chip that was named
    "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",  # which would ask for a driver
}
_NO_TIMING = "--xla_gpu_autotune_level=0"
"""There is no device to time kernels on: products take XLA's first choice of tiles instead of the fastest."""

_NAMES = {"v7x": "tpu7x"}
"""libtpu's names of chips, if they differ from ours."""
_OPTIONS: Mapping[str, Mapping[str, str]] = {"v4": {"chip_config_name": "megacore"}}
_AVAILABLE_GIB = {"v4": 30.75, "v5e": 15.75, "v5p": 95.74, "v6e": 31.25, "v7x": 94.75}
"""Memory of a device that programs can use, from the compiler's message for a too large one (libtpu 0.0.42)."""
MEMORY_FRACTION = "XLA_PYTHON_CLIENT_MEM_FRACTION"
"""The variable with the share of a GPU's memory that JAX takes: three quarters where it is not set."""
GPUS_OF_A_HOST = 8


@dataclass(frozen=True, kw_only=True)
class _Gpu:
    """What XLA's GPU compiler asks about a chip, apart from its memory.

    Attributes:
      kind: the name that the driver gives it, which is JAX's `device_kind`.
      capability: NVIDIA's compute capability.
      processors, lanes: streaming multiprocessors, and float32 units of each.
      threads: of a processor.
      shared: bytes of shared memory of a processor; a block of threads may have all but 1 KiB.
      l2: bytes.
      clock_ghz: the highest.
    """

    kind: str
    capability: tuple[int, int]
    processors: int
    lanes: int = 128
    threads: int = 2048
    shared: int
    l2: int
    clock_ghz: float


# A100 and H100: XLA's own xla/backends/gpu/target_config/specs. The others: NVIDIA's papers on Ada and on GA102, and
# the table "Technical Specifications per Compute Capability" of the CUDA programming guide.
_KIB, _MIB = 2**10, 2**20
_A100: Any = dict(capability=(8, 0), processors=108, lanes=64, shared=164 * _KIB, l2=40 * _MIB, clock_ghz=1.41)
_HOPPER: Any = dict(capability=(9, 0), processors=132, shared=228 * _KIB, l2=50 * _MIB, clock_ghz=1.98)
_ADA: Any = dict(capability=(8, 9), threads=1536, shared=100 * _KIB)
_GPUS: Mapping[str, _Gpu] = {
    "a100-40": _Gpu(kind="NVIDIA A100-SXM4-40GB", **_A100),
    "a100-80": _Gpu(kind="NVIDIA A100-SXM4-80GB", **_A100),
    "h100": _Gpu(kind="NVIDIA H100 80GB HBM3", **_HOPPER),
    "h200": _Gpu(kind="NVIDIA H200", **_HOPPER),
    "h200-measured": _Gpu(kind="NVIDIA H200", **_HOPPER),
    "l4": _Gpu(kind="NVIDIA L4", **_ADA, processors=58, l2=48 * _MIB, clock_ghz=2.04),
    "l40s": _Gpu(kind="NVIDIA L40S", **_ADA, processors=142, l2=96 * _MIB, clock_ghz=2.52),
    "a10g": _Gpu(
        kind="NVIDIA A10G",
        capability=(8, 6),
        processors=80,
        threads=1536,
        shared=100 * _KIB,
        l2=6 * _MIB,
        clock_ghz=1.71,
    ),
}


def has_compiler(chip: Chip) -> bool:
    """Returns whether the compiler for a chip is installed."""
    if chip.kind == "tpu":
        return importlib.util.find_spec("libtpu") is not None
    return any(importlib.util.find_spec(name) is not None for name in ("jax_cuda12_plugin", "jax_cuda13_plugin"))


def set_environment(chip: Chip) -> None:
    """Sets the variables with which a chip's compiler runs where there is none; before JAX is imported."""
    os.environ.update(_TPU_ENVIRONMENT if chip.kind == "tpu" else _GPU_ENVIRONMENT)
    flags = os.environ.get("XLA_FLAGS", "")
    if chip.kind == "gpu" and _NO_TIMING not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {_NO_TIMING}".strip()


def devices_of(name: str, chip: Chip, chips: int) -> list[Any]:
    """Returns the devices of a topology such as "v5e:2x4" or "h100:8", as the chips' compiler describes them.

    Args:
      name: of the topology.
      chip, chips: `costs.chips.topology` of the name.

    Raises:
      ValueError: the compiler is not installed, or does not know this topology.
    """
    return _gpus(name, chip, chips) if chip.kind == "gpu" else _tpus(name)


def _tpus(name: str) -> list[Any]:
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            f"compiling for a TPU needs its compiler, but no TPU: {installs('tpu')}. Without it, --arithmetic plans by "
            "the chip's peak rates alone"
        )
    import jax
    from jax.experimental import topologies

    chip, _, sizes = name.lower().strip().partition(":")
    try:
        described = topologies.get_topology_desc(
            f"{_NAMES.get(chip, chip)}:{sizes}", platform="tpu", **_OPTIONS.get(chip, {})
        )
    except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
        raise ValueError(f"topology {name!r}: the TPU compiler refuses it: {first_line(error)}") from error
    return list(described.devices)


def _gpus(name: str, chip: Chip, chips: int) -> list[Any]:
    if chips > GPUS_OF_A_HOST and chips % GPUS_OF_A_HOST:
        raise ValueError(f"topology {name!r}: expected up to {GPUS_OF_A_HOST} GPUs, or whole hosts of as many")
    import jax
    from jax.experimental import topologies

    hosts = max(1, chips // GPUS_OF_A_HOST)
    try:
        described = topologies.get_topology_desc(
            platform="cuda",
            topology_name="",
            target_config=gpu_target(chip),
            topology=f"1x{hosts}x{chips // hosts}",
        )
    except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
        raise ValueError(f"topology {name!r}: the GPU compiler refuses it: {first_line(error)}") from error
    return list(described.devices)


def gpu_target(chip: Chip) -> str:
    """Returns the description of a GPU that XLA compiles for: a `GpuTargetConfigProto` as text."""
    gpu = _GPUS[chip.name]
    major, minor = gpu.capability
    # 8.0 and 9.0 may give a block all of the shared memory but 1 KiB, and so may the others.
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: {gpu.shared} shared_memory_per_block_optin: {gpu.shared - _KIB}
  threads_per_core_limit: {gpu.threads} core_count: {gpu.processors} fpus_per_core: {gpu.lanes}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {int(chip.hbm_bytes_per_second)} l2_cache_size: {gpu.l2} clock_rate_ghz: {gpu.clock_ghz}
  device_memory_size: {chip.hbm_bytes} driver_version: "12.8.0"
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  cuda_compute_capability {{ major: {major} minor: {minor} }}
}}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 8 }} runtime_version {{ major: 12 minor: 8 patch: 0 }}
device_description_str: "{gpu.kind}"
"""


def device_of(chip: Chip) -> Chip:
    """Returns one of the devices that JAX shows for a chip, with the memory that programs can use.

    Raises:
      ValueError: the environment gives a share of a GPU's memory that is none.
    """
    n = chip.devices
    available = _AVAILABLE_GIB.get(chip.name)
    memory = chip.hbm_bytes // n if available is None else int(available * 2**30)
    if chip.kind == "gpu":
        memory = int(memory * _memory_fraction())
    return dataclasses.replace(
        chip,
        hbm_bytes=memory,
        hbm_bytes_per_second=chip.hbm_bytes_per_second / n,
        bf16_flops=chip.bf16_flops / n,
        interconnect_bytes_per_second=chip.interconnect_bytes_per_second / n,
    )


def _memory_fraction() -> float:
    text = os.environ.get(MEMORY_FRACTION, "0.75")
    try:
        fraction = float(text)
    except ValueError:
        fraction = math.nan
    if not 0 < fraction <= 1:
        raise ValueError(f"{MEMORY_FRACTION}: expected a number above 0, up to 1, got {text!r}")
    return fraction


def first_line(error: Exception) -> str:
    """Returns the first line of a compiler's message, cut to 300 characters."""
    return str(error).strip().splitlines()[0][:300]
