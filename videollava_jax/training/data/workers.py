"""Numbered work done ahead by worker processes, which end with the process that they work for. By Grain; no JAX."""

from __future__ import annotations

import functools
import gc
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any


def read_ahead(function: Callable[[int], Any], first: int, end: int, *, workers: int, ahead: int) -> Iterator[Any]:
    """Returns an iterator over `function(number)` for each number in [first, end), in order. `end_reading` ends it.

    Arrays of the results are in memory shared with the workers, which is scarce in containers and is freed with the
    array: copy them.

    Args:
        function: each worker process gets a copy.
        workers: processes that call the function; 0 calls it in this process, when a result is asked for.
        ahead: the number of results that each worker holds ready.
    """
    import grain
    from absl import flags

    if not flags.FLAGS.is_parsed():  # Grain reads a flag of its own, and absl refuses flags that no program has parsed
        flags.FLAGS.mark_as_parsed()
    # By default Grain reads 500 elements ahead with 16 threads: micro-batches of videos would fill the memory.
    threads = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    processes = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=ahead)
    numbers = grain.MapDataset.range(first, end)
    return _Results(iter(numbers.map(_InWorker(function)).to_iter_dataset(threads).mp_prefetch(processes)))


class _Results:
    """The results of `read_ahead`, in order.

    Raises:
        ChildProcessError: a worker process has ended: killed, crashed or without memory.
    """

    def __init__(self, results: Any):
        self._results = results

    def __iter__(self) -> _Results:
        return self

    def __next__(self) -> Any:
        try:
            return next(self._results)
        except RuntimeError as error:
            if "terminated unexpectedly" not in str(error):  # Grain's words
                raise
            raise ChildProcessError(
                f"a process that loads data has ended ({str(error).split('. ')[0]}): killed, crashed or out of memory; "
                "fewer of them (data.workers) take less"
            ) from None

    def close(self) -> None:
        self._results.close()


@dataclass(frozen=True)
class _InWorker:
    """A function for worker processes, which end when the process that started them has ended.

    Otherwise they would wait for ever for a place in their queues, with their shared memory.
    """

    function: Callable[[int], Any]

    def __call__(self, number: int) -> Any:
        _end_with_parent()
        return self.function(number)


@functools.cache
def _end_with_parent() -> None:
    """Starts a thread that ends this process when its parent has ended; nothing in a process that is no worker."""
    if (parent := multiprocessing.parent_process()) is not None:

        def end_after() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=end_after, name="parent", daemon=True).start()


def end_reading(iterator: Any) -> None:
    """Ends the workers of `read_ahead`."""
    iterator.close()
    gc.collect()  # a reference cycle in Grain keeps each worker's last element, with its shared memory
