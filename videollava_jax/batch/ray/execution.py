"""One execution of Ray Data: replicas take blocks of requests by number from a store, and their results come back.

Ray Data must know its dataset before it begins, but requests are made one by one as they are needed. So the dataset
consists of numbers: a replica receives a number and takes the block of that number from the store, waiting for it if
necessary. If a node is lost, Ray gives its number to another replica. Therefore a block stays in the store until its
results have arrived.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import pickle
import queue
import socket
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from videollava_jax.batch.ray.blocks import Block, unpacked
from videollava_jax.batch.ray.replica import Replica
from videollava_jax.batch.runner import Runner
from videollava_jax.engine import Result
from videollava_jax.version import __version__

MOST_BLOCKS = 1000
"""The most blocks in one execution of Ray Data. For more, another begins, and its replicas load their models again."""

MOST_SECONDS_TO_STOP = 20.0
"""How long Ray Data's threads may take to end."""


class ReplicaError(OSError):
    """The cluster has no room for a replica, or a replica has ended the run."""


class Execution:
    """One execution of Ray Data, and the store of its blocks."""

    def __init__(
        self,
        ray: Any,
        make_runner: Callable[[], Runner],
        resources: Mapping[str, float],
        replicas: int,
        numbers: int,
        attempts: int,
    ):
        self._ray = ray
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        self._store = ray.remote(BlockStore).options(num_cpus=0, scheduling_strategy=here).remote()
        special = {name: count for name, count in resources.items() if name not in ("CPU", "GPU")}
        numbered = ray.data.from_items([{"block": i} for i in range(numbers)], override_num_blocks=numbers)
        numbered.context.enable_progress_bars = False
        numbered.context.print_on_execution_start = False
        self._stop = _Stop()
        numbered.context.custom_execution_callback_classes = [self._stop]
        # At 1.0 a pool that has lost replicas grows again when all others are busy; by default it takes queued tasks.
        numbered.context.autoscaling_config.actor_pool_util_upscaling_threshold = 1.0
        answers = numbered.map_batches(
            AnswerBlock,
            fn_constructor_args=(make_runner, self._store, attempts, __version__),
            batch_size=1,
            batch_format="pyarrow",
            # min_size=1, so that an idle replica can make room for one whose node was lost.
            compute=ray.data.ActorPoolStrategy(
                min_size=1, max_size=replicas, initial_size=replicas, max_tasks_in_flight_per_actor=1
            ),
            num_cpus=resources.get("CPU", 0),
            num_gpus=resources.get("GPU", 0),
            resources=special,
        )
        self._received: queue.SimpleQueue[tuple[int, bytes] | BaseException | None] = queue.SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._collect, args=[answers], name="ray-answers", daemon=True)
        self._thread.start()

    def _collect(self, answers: Any) -> None:
        """Runs in a thread: passes on the results that Ray yields, as they come."""
        try:
            for table in answers.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                for number, raw in zip(table["block"].to_pylist(), table["results"].to_pylist(), strict=True):
                    if raw:
                        self._received.put((number, raw))
                if self._closed:
                    return
            self._received.put(None)
        except BaseException as error:
            if not self._closed:  # who keeps the error keeps Ray Data's threads, through its traceback
                self._received.put(error)

    def put(self, number: int, block: Block) -> None:
        """Puts a block into the store."""
        self._ray.get(self._store.put.remote(number, pickle.dumps(block)))

    def end(self) -> None:
        """Says that no more blocks will come."""
        self._ray.get(self._store.end.remote())

    def results(self) -> tuple[int, list[Result]] | None:
        """Returns the number and the results of the next finished block; None if there is none within 0.2 seconds.

        Raises:
          ReplicaError: a replica has reported that it cannot go on, or Ray has given up.
        """
        try:
            item = self._received.get(timeout=0.2)
        except queue.Empty:
            return None
        if isinstance(item, tuple):
            number, raw = item
            found = pickle.loads(raw)  # noqa: S301  # from a replica: Ray itself sends pickles within a cluster
            if isinstance(found, list):
                self._store.remove.remote(number)
                return number, found
            reason = found
        else:
            reason = (
                f"{type(item).__name__}: {str(item).strip().splitlines()[0]}" if item else "Ray Data has ended early"
            )
        raise ReplicaError(f"a replica has failed: {reason}. What is done is kept: the same command goes on from there")

    def close(self, seconds: float) -> None:
        """Ends the replicas, and waits at most `seconds` for the blocks that they are answering.

        No thread of Ray Data is at work afterwards: one that called Ray after `ray.shutdown` would end this process
        with status 1, or connect it again.
        """
        self._closed = True
        self._store.end.remote()
        self._thread.join(timeout=seconds)
        self._stop.wanted = True
        self._thread.join(timeout=MOST_SECONDS_TO_STOP)


class _Stop:
    """Ends the loop of Ray Data by an error when it is wanted.

    Ray Data calls the methods of an `ExecutionCallback` (`DataContext.custom_execution_callback_classes`). It expects
    a class, and here calls the object, which gives itself.
    """

    def __init__(self) -> None:
        self.wanted = False

    def __call__(self) -> _Stop:
        return self

    def on_execution_step(self, executor: Any) -> None:
        """Raises an error when the end is wanted, at the latest 0.1 s later."""
        if self.wanted:
            raise RuntimeError("the run was stopped")

    def before_execution_starts(self, executor: Any) -> None:
        """Does nothing."""

    def after_execution_succeeds(self, executor: Any) -> None:
        """Does nothing."""

    def after_execution_fails(self, executor: Any, error: Exception) -> None:
        """Does nothing."""


# ── in other processes ──


class BlockStore:
    """An actor that holds blocks by number; who asks for one that is not there yet waits for it."""

    def __init__(self) -> None:
        self._blocks: dict[int, bytes] = {}
        self._given: Counter[int] = Counter()
        self._failed: dict[int, str] = {}
        self._done: set[int] = set()
        self._ended = False
        self._changed = asyncio.Condition()

    async def put(self, number: int, block: bytes) -> None:
        """Stores a pickled block."""
        async with self._changed:
            self._blocks[number] = block
            self._changed.notify_all()

    async def end(self) -> None:
        """Says that no more blocks will come, which ends the waiting for them."""
        async with self._changed:
            self._ended = True
            self._changed.notify_all()

    async def take(self, number: int) -> tuple[bytes, int, str]:
        """Returns a block, how often it was taken before, and why it was not answered then; empty if there is none."""
        async with self._changed:
            await self._changed.wait_for(lambda: number in self._blocks or number in self._done or self._ended)
        if number not in self._blocks:
            return b"", 0, ""
        self._given[number] += 1
        return self._blocks[number], self._given[number] - 1, self._failed.get(number, "")

    async def fail(self, number: int, why: str) -> None:
        """Keeps the reason why the replica that took a block is about to die."""
        self._failed[number] = why

    async def remove(self, number: int) -> None:
        """Removes a block whose results have arrived."""
        self._blocks.pop(number, None)
        self._done.add(number)


class AnswerBlock:
    """A replica for `map_batches`: takes {"block": number}, answers that block, and adds its pickled results.

    An error that ends the run is returned as a text instead of results, because Ray would wrap an exception.
    """

    def __init__(self, make_runner: Callable[[], Runner], store: Any, attempts: int, version: str):
        import ray

        self._ray = ray
        self._store, self._attempts = store, attempts
        self._broken = ""
        try:
            if version != __version__:
                raise ValueError(f"videollava-jax {__version__} is installed, and the job was started with {version}")
            self._replica = Replica(make_runner)
        except Exception as error:
            self._broken = _error_text(error)

    def __call__(self, batch: Any) -> Any:
        """Answers the block of a number, or returns the error that ends the run."""
        (number,) = batch["block"].to_pylist()
        results = pickle.dumps(self._broken) if self._broken else self._results(number)
        return {"block": [number], "results": [results]}

    def _results(self, number: int) -> bytes:
        """Returns the pickled results of a block, or the error that ends the run; empty if there is no such block."""
        raw, before, why = self._ray.get(self._store.take.remote(number))
        if not raw:
            return b""
        block = pickle.loads(raw)  # noqa: S301  # from the driver, likewise
        if before >= self._attempts:
            return pickle.dumps(_lost_results(block, before, why))
        try:
            return pickle.dumps(self._answer(block))
        except MemoryError as error:
            return pickle.dumps(_error_text(error))
        except RuntimeError as error:  # of the device: another process or another machine may have a sound one
            self._ray.get(self._store.fail.remote(number, _error_text(error)))
            os._exit(1)

    def _answer(self, block: Block) -> list[Result]:
        with unpacked(block) as here:
            return [self._with_host_name(here.with_driver_paths(result)) for result in self._replica.run(here.requests)]

    def _with_host_name(self, result: Result) -> Result:
        """Adds this machine's name to the error that a file, which the driver has found, is missing here."""
        if result.cause != "not_found":
            return result
        hint = f"on {socket.gethostname()}, while the driver has it: expected media under one path on all machines"
        return dataclasses.replace(result, error=f"{result.error}, {hint}")


def _error_text(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]} (on {socket.gethostname()})"


def _lost_results(block: Block, attempts: int, why: str) -> list[Result]:
    """Returns error results for a block that was never answered, because all replicas that tried it died."""
    times = "once" if attempts == 1 else f"{attempts} times"
    error = f"its replica died {times} while it answered this line and {len(block.requests) - 1} others"
    error += f" ({why})" if why else ""
    return [
        Result(id=request.id, finish_reason="error", error=error, cause="replica_lost") for request in block.requests
    ]
