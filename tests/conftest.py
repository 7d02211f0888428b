"""What every test shares: float32 products in full precision, a compilation cache, tolerances."""

import gc
import os
import sys
from pathlib import Path
from typing import Any

from tests import workers
from tests.compiling import CACHE, CACHED_FROM, MOST_MEMORY, MOST_MEMORY_MAPS, XLA_FLAGS, memory, memory_maps

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("XLA_FLAGS", XLA_FLAGS)

import jax
import pytest

# The TPU compiler, which the Makefile puts beside the environment: for the processes that compile with it.
LIBTPU = Path(sys.prefix) / "libtpu"
if LIBTPU.is_dir():
    sys.path.append(str(LIBTPU))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(LIBTPU)]))

jax.config.update("jax_num_cpu_devices", 8)  # for meshes
jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update("jax_compilation_cache_dir", CACHE)
jax.config.update("jax_persistent_cache_min_compile_time_secs", CACHED_FROM)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Returns the number of worker processes of `make test`."""
    return workers.number(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Hands tests to the worker processes of `make test`, see there."""
    return workers.scheduler(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Puts the longest work first, in a worker process; elsewhere tests run in the order of their files."""
    if hasattr(config, "workerinput"):
        items.sort(key=workers.turn)


@pytest.fixture(scope="module", autouse=True)
def _memory_maps():
    """Drops JAX's compiled programs before they use up the memory maps that Linux allows a process, without which LLVM
    fails or crashes, or the memory that the machine has. Until then modules share what they have compiled."""
    yield
    if memory_maps() > MOST_MEMORY_MAPS / 3 or memory() > MOST_MEMORY:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="session")
def torch():
    """PyTorch, the live reference; where no CPU build of it is to be had the comparisons are skipped."""
    module = pytest.importorskip("torch", reason="the live comparison needs torch==2.13.0 (extra `test`, Python 3.11)")
    module.manual_seed(0)
    # Handing products of such small models to several threads takes longer than computing them.
    module.set_num_threads(1)
    return module


@pytest.fixture(scope="session")
def tiny_processor():
    """The shipped tiny model's processor."""
    from videollava_jax.assets import TINY
    from videollava_jax.processing.processor import VideoLlavaProcessor

    return VideoLlavaProcessor.from_pretrained(TINY)


@pytest.fixture(scope="session")
def tiny_model():
    """The shipped tiny model."""
    from videollava_jax import VideoLlavaForConditionalGeneration
    from videollava_jax.assets import TINY

    return VideoLlavaForConditionalGeneration.from_pretrained(TINY)


@pytest.fixture(scope="session")
def tiny_original(tiny_model):
    """The tiny model as an "original" one: its own weights, and attention over 8 frames drawn at random."""
    from tests import small_models

    return small_models.tiny_original(tiny_model)
