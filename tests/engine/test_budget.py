"""The memory that caches get: by hand, and never less than the share that is always theirs."""

import dataclasses

import pytest

from videollava_jax.config import TextConfig
from videollava_jax.engine.budget import CODE, FreeMemory, temporary_bytes
from videollava_jax.engine.sizes import Demand, GridShape, cache_bytes, choose_shape

TEXT = TextConfig()
SHAPE = GridShape(shards=1, slots=1, rows=20, prefix=2112, question=96, answer=32)
GIB = 2**30


def free(size: float, devices: int = 1, shards: int = 1) -> FreeMemory:
    return FreeMemory(size=int(size * GIB), devices=devices, shards=shards, config=TEXT, dtype="float16")


def test_by_hand():
    """The largest parts with the 7B model: new keys and values twice, 512 KiB a token, and the media of 32 prefixes."""
    found = temporary_bytes(SHAPE, TEXT, "float16", tensor=1)
    new_caches, media = 2 * 20 * 96 * 2**19, 32 * 2112 * 4096 * 2
    assert new_caches + media + CODE < found < new_caches + media + CODE + 1.5 * GIB
    assert free(100).of_grid(SHAPE) == int(0.9 * 100 * GIB - found)
    assert temporary_bytes(dataclasses.replace(SHAPE, slots=9), TEXT, "float16", tensor=1) == found


def test_more_devices_need_less_each():
    one, eight = (temporary_bytes(SHAPE, TEXT, "float16", tensor=tensor) for tensor in (1, 8))
    assert eight < one / 2


@pytest.mark.parametrize("size", [0.0, 1.0, 6.0])
def test_caches_of_little_memory_get_their_share(size: float):
    assert free(size).of_grid(SHAPE) == free(size).share == int(0.6 * size * GIB)


@pytest.mark.parametrize(("devices", "shards"), [(1, 1), (8, 1), (8, 2)])
def test_a_grid_and_its_programs_fit_what_is_free(devices: int, shards: int):
    left = free(40.0 * devices, devices, shards)
    demand = Demand(prefix=2061, questions=[25] * 1000, question=90, answer=32)
    shape = choose_shape(demand, TEXT, "float16", shards=shards, max_rows=4096, memory=left.of_grid, int8=False)
    caches = cache_bytes(shape, TEXT, "float16", int8=False)
    programs = devices * temporary_bytes(shape, TEXT, "float16", tensor=devices // shards)
    assert left.share < caches
    assert caches + programs <= left.size
