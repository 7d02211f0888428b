"""Memory that is used again: to get fresh pages from the kernel, zeroed one by one, costs more than to fill them."""

from __future__ import annotations

import contextlib
import mmap
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

LEAST = 2**21
"""Smaller arrays come from the allocator, which uses its memory again by itself."""
FREE_BYTES = 256 * 2**20
"""So much is kept for later at the most."""
_HUGE_PAGE = 2**21


@dataclass
class _Blocks:
    """Blocks that nobody uses any more, the oldest first, as long as somebody may ask for them."""

    users: int = 0
    free: list[mmap.mmap] = field(default_factory=list)
    lock: threading.RLock = field(default_factory=threading.RLock)  # an array may end while its own thread is in here

    def take(self, nbytes: int) -> mmap.mmap:
        with self.lock:
            fitting = [block for block in self.free if nbytes <= len(block) <= 2 * nbytes]
            if fitting:
                block = min(fitting, key=len)
                self.free = [other for other in self.free if other is not block]
                return block
        return _new_block(nbytes)

    def put(self, block: mmap.mmap) -> None:
        with self.lock:
            self.free.append(block)
            while self.free and (not self.users or sum(map(len, self.free)) > FREE_BYTES):
                del self.free[0]


_blocks = _Blocks()


@contextmanager
def reused_memory() -> Iterator[None]:
    """Within it, `empty` gives memory that arrays which are gone have used; after it, none is kept."""
    with _blocks.lock:
        _blocks.users += 1
    try:
        yield
    finally:
        with _blocks.lock:
            _blocks.users -= 1
            if not _blocks.users:
                _blocks.free.clear()


def empty(shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> npt.NDArray[np.generic]:
    """As `numpy.empty`. The memory is the array's own until the last view of it is gone."""
    nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if not _blocks.users or nbytes < LEAST:
        return np.empty(shape, dtype)
    block = _blocks.take(nbytes)
    raw = np.frombuffer(block, np.uint8, nbytes)  # every view has this very object as its base
    weakref.finalize(raw, _blocks.put, block).atexit = False
    return raw.view(dtype).reshape(shape)


def _new_block(nbytes: int) -> mmap.mmap:
    # Private: shared memory, as Python asks for of itself, has no huge pages.
    block = mmap.mmap(-1, -(-nbytes // _HUGE_PAGE) * _HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            block.madvise(mmap.MADV_HUGEPAGE)
    return block
