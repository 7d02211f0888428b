"""Runs a job on a Ray cluster: this process keeps the ledger, and replicas of the engine answer blocks of requests.

    requests ──blocks──▶ store ◀──by number── replicas ──blocks of results──▶ the job's ledger
    (this process)       an actor on           `map_batches` over numbers,
                         this machine          wherever Ray runs them

Ray Data must know its dataset before it begins, but requests are made one by one as they are needed. So the dataset
consists of numbers: a replica receives a number and takes the block of that number from the store, waiting for it if
necessary. If a node is lost, Ray gives its number to another replica. Therefore a block stays in the store until its
results have arrived.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import logging
import math
import os
import pickle
import queue
import signal
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from videollava_jax.batch.ray.blocks import Block, blocks, unpacked
from videollava_jax.batch.ray.replica import Replica
from videollava_jax.batch.runner import Runner
from videollava_jax.engine import Request, Result
from videollava_jax.version import __version__

MOST_BLOCKS = 1000
"""The most blocks in one execution of Ray Data. For more, another begins, and its replicas load their models again."""


class ReplicaError(OSError):
    """The cluster has no room for a replica, or a replica has ended the run."""


@dataclass(frozen=True, kw_only=True)
class RayOptions:
    """The options of a cluster.

    Attributes:
      replicas: the most replicas, even if there is not yet room for all; None for as many as there is room for now.
      resources: of each replica, by Ray's names. If empty, a TPU or GPU for each of `devices` if the cluster has any,
        otherwise a CPU.
      devices: devices in the mesh of a replica.
      block: the least requests in a block. A lost replica loses one block; larger blocks mean less idle time between
        blocks.
      attempts: how many replicas may die while they answer a block.
    """

    replicas: int | None = None
    resources: Mapping[str, float] = field(default_factory=dict)
    devices: int = 1
    block: int = 2048
    attempts: int = 3

    def __post_init__(self) -> None:
        for name in ("replicas", "devices", "block", "attempts"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected 1 or more, got {value}")


class RayRunner:
    """A runner for `run_batch` whose requests are answered on the machines of a Ray cluster.

    The cluster is the one that RAY_ADDRESS names, else one that runs on this machine, else a new one on this machine
    that ends with the runner. All machines need this version of this package, and the media and the model under the
    same paths as this process; files in `spool` are sent to them.

    Args:
      make_runner: makes an `Engine` in each replica; sent there by cloudpickle.
      options: how the cluster is used.
      spool: the job's directory of media from URLs, `Paths(output).media`.
      lines: how many lines the input has; an estimate suffices.

    Raises:
      ValueError: Ray is not installed.
      ReplicaError: the cluster has no room for a replica.
    """

    def __init__(self, make_runner: Callable[[], Runner], options: RayOptions, *, spool: Path, lines: int):
        self._ray = _imported()
        # Not more numbers than blocks: only when none is left do idle replicas make room for those of a lost node.
        self._numbers = max(1, min(MOST_BLOCKS, math.ceil(lines / options.block)))
        self._make_runner, self._options, self._spool = make_runner, options, spool
        self._stopped = False
        self._ours = not self._ray.is_initialized()
        if self._ours:
            _connect(self._ray)
        try:
            self._resources = dict(options.resources) or self._default_resources()
            self.replicas = options.replicas or self._replicas_that_fit()
            if not self.replicas:
                wanted = ", ".join(f"{name}={count:g}" for name, count in self._resources.items())
                raise ReplicaError(f"the Ray cluster has no machine with {wanted}, which one replica needs")
        except BaseException:
            self.close()
            raise

    def run(self, requests: Iterable[Request]) -> Iterator[Result]:
        """Yields one result for each request, block by block.

        If every replica that tries a block dies, its requests have errors with the cause "replica_lost".

        Raises:
          ReplicaError: a replica could not start, or failed for a reason that lies in no single request.
        """
        left = blocks(requests, self._options.block, self._spool)
        for first in left:
            execution = _Execution(
                self._ray, self._make_runner, self._resources, self.replicas, self._numbers, self._options.attempts
            )
            try:
                yield from self._answers(execution, itertools.chain([first], itertools.islice(left, self._numbers - 1)))
            finally:
                execution.close(seconds=0 if self._stopped else 5)

    def _answers(self, execution: _Execution, left: Iterable[Block]) -> Iterator[Result]:
        """Yields the results of the blocks of one execution."""
        numbered, ended = enumerate(left), False
        waiting: dict[int, str] = {}  # the id of the first request of each block without results, by number
        while True:
            while not ended and len(waiting) < 2 * self.replicas:  # each replica answers one and has one ready
                number, block = next(numbered, (0, None))
                if block is None:
                    execution.end()
                    ended = True
                else:
                    execution.put(number, block)
                    waiting[number] = block.requests[0].id
            if not waiting:
                return
            found = execution.results()
            if found is not None:
                number, results = found
                del waiting[number]
                yield from results
            elif self._stopped:  # the run ends at the next result, whichever it is
                name = next(iter(waiting.values()))
                yield Result(id=name, finish_reason="error", error="the run was stopped", cause="stopped")
                return

    def stop(self) -> None:
        """Ends the wait for replicas. A signal handler may call it."""
        self._stopped = True

    def close(self) -> None:
        """Leaves the cluster, which ends the replicas, and a cluster that this runner has started."""
        if self._ours:
            self._ray.shutdown()

    def _default_resources(self) -> dict[str, float]:
        there = self._ray.cluster_resources()
        kind = next((name for name in ("TPU", "GPU") if there.get(name)), None)
        return {"CPU": 1} if kind is None else {kind: self._options.devices}

    def _replicas_that_fit(self) -> int:
        machines = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        return sum(
            min(int(machine.get(name, 0) // count) for name, count in self._resources.items()) for machine in machines
        )


def _imported() -> Any:
    try:
        import ray
        import ray.data
    except ImportError:
        raise ValueError(
            "several machines are reached through Ray, which is not installed: pip install 'videollava-jax[ray]'"
        ) from None
    return ray


def _connect(ray: Any) -> None:
    """Connects to a cluster without printing, and keeps the current signal handlers.

    Ray's own handler of SIGTERM would raise anywhere, even while a lock is held.
    """
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    theirs = ray._private.utils.set_sigterm_handler
    ray._private.utils.set_sigterm_handler = lambda handler: None
    try:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    finally:
        ray._private.utils.set_sigterm_handler = theirs
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    if threading.current_thread() is threading.main_thread():
        for number, handler in handlers.items():
            signal.signal(number, handler)


class _Execution:
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
            found = pickle.loads(raw)
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
        """Ends the replicas, and waits at most `seconds` for the blocks that they are answering."""
        self._closed = True
        self._store.end.remote()
        self._thread.join(timeout=seconds)


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
        self._ray = _imported()
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
        block = pickle.loads(raw)
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
