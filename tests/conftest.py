"""What every test shares: float32 products in full precision, a compilation cache, tolerances."""

import dataclasses
import gc
import os
import sys
from pathlib import Path

from tests.compiling import CACHE, CACHED_FROM, XLA_FLAGS

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("XLA_FLAGS", XLA_FLAGS)

import jax
import jax.numpy as jnp
import numpy as np
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


@pytest.fixture(scope="module", autouse=True)
def _programs_of_one_module():
    """Compiled programs go with the module that needed them: thousands of them would use up a process's memory maps,
    and then LLVM fails or crashes. What another module needs again comes from the cache on the disk."""
    yield
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
    from videollava_jax import VideoLlavaProcessor
    from videollava_jax.assets import TINY

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
    from videollava_jax import VideoLlavaForConditionalGeneration
    from videollava_jax.model.video_llava import parameter_shapes

    config = dataclasses.replace(tiny_model.config, variant="original")
    rng, weights = np.random.default_rng(0), dict(tiny_model.parameters)
    for name, shape in parameter_shapes(config).items():
        if ".temporal_" in name:
            weights[name] = jnp.asarray(shape[-1] ** -0.5 * rng.standard_normal(shape), jnp.float32)
    return VideoLlavaForConditionalGeneration(config, weights)
