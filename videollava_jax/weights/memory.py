"""Memory for large arrays that is used again: fresh pages, which the kernel zeroes, cost more than filling them."""

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

GROUP_BYTES = 256 * 2**20
"""Bytes of a group of tensors, which are written, and read for conversion, together: few calls, little memory."""
LEAST = 2**21
"""Bytes from which an array's memory is kept; below, the allocator itself uses memory again."""
FREE_BYTES = 256 * 2**20
"""Bytes that are kept for later, at most."""
_HUGE_PAGE = 2**21


@dataclass
class _Blocks:
    """Blocks of memory that are no longer used, the oldest first; kept while a `reused_memory` block is open."""

    users: int = 0
    free: list[mmap.mmap] = field(default_factory=list)
    # Reentrant: a thread that holds it may free an array, which calls `put`.
    lock: threading.RLock = field(default_factory=threading.RLock)

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
    """Lets `empty`, inside the block, return memory that freed arrays have used; keeps none after it."""
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
    """Returns an array as `numpy.empty` does; its memory is used again once the last view of it is gone."""
    nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if not _blocks.users or nbytes < LEAST:
        return np.empty(shape, dtype)
    block = _blocks.take(nbytes)
    raw = np.frombuffer(block, np.uint8, nbytes)  # all views share this object as their base
    weakref.finalize(raw, _blocks.put, block).atexit = False
    return raw.view(dtype).reshape(shape)


def _new_block(nbytes: int) -> mmap.mmap:
    # Private, unlike mmap's default: shared memory has no huge pages.
    block = mmap.mmap(-1, -(-nbytes // _HUGE_PAGE) * _HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            block.madvise(mmap.MADV_HUGEPAGE)
    return block
