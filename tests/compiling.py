"""How programs for the CPU are compiled in tests, which compile much and compute little: quickly, and once."""

import os
from importlib.metadata import version
from pathlib import Path

XLA_FLAGS = "--xla_backend_optimization_level=0"
"""Machine code that is not optimised is ready in a third of the time, and in half of that where XLA emits it in its
older way, in one piece. What XLA does to a program before is as ever."""
if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):  # later ones do not know these, and refuse them
    XLA_FLAGS += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"

CACHE = str(Path(__file__).parents[1] / ".cache" / "jax")
CACHED_FROM = 0.1
"""Seconds of compiling from which a program is kept."""
_WITHOUT_TORCH = str(Path(__file__).parent / "without_torch")
ENVIRONMENT = {
    "PYTHONPATH": os.pathsep.join(filter(None, [_WITHOUT_TORCH, os.environ.get("PYTHONPATH")])),
    "XLA_FLAGS": XLA_FLAGS,
    "JAX_COMPILATION_CACHE_DIR": CACHE,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": str(CACHED_FROM),
}
"""The environment of a process that starts JAX by itself; it runs without torch. Not of one that compiles for chips
which are not here: those programs can be written to a cache and not be read again."""

_LIMIT = Path("/proc/sys/vm/max_map_count")
MOST_MEMORY_MAPS = int(_LIMIT.read_text()) if _LIMIT.exists() else float("inf")
"""Memory maps that a process may have. A compiled program for the CPU takes several."""


MOST_MEMORY = 3 * 2**30
"""Bytes that a worker process may hold before it drops compiled programs."""


def memory() -> int:
    """Returns the bytes of memory of this process; 0 where the system does not tell, which macOS does not."""
    pages = Path("/proc/self/statm")
    return int(pages.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if pages.exists() else 0


def memory_maps() -> int:
    """Returns the number of memory maps of this process; 0 where the system does not tell, which macOS does not."""
    maps = Path("/proc/self/maps")
    return maps.read_bytes().count(b"\n") if maps.exists() else 0
