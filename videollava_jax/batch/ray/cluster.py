"""A job on a Ray cluster: this process keeps the ledger, and replicas of the engine answer blocks of its requests.

    requests ──blocks──▶ shelf ◀──by number── replicas ──blocks of results──▶ the job's ledger
    (this process)       an actor beside       `map_batches` over numbers,
                         this process          wherever Ray runs them

Ray Data wants to know what there is before it begins, and requests are made one by one as they are needed. So its
dataset is of numbers: a replica is given one and takes the block of that number from the shelf, or waits for it. What
is lost with a node, Ray asks for again, by the same number: a block stays on the shelf until its results are here.
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
"""Of one execution of Ray Data. When they are used up another begins, and the replicas load their models again."""


class ReplicaError(OSError):
    """Replicas cannot be had, or one has ended the run."""


@dataclass(frozen=True, kw_only=True)
class RayOptions:
    """How a cluster is used.

    Attributes:
      replicas: at most, though there is no room for all of them yet; None for as many as there is room for now.
      resources: of each replica, by Ray's names; empty for a TPU or a GPU for each of `devices`, where the cluster has
        any, and for a CPU otherwise.
      devices: of the mesh of a replica.
      block: requests of a block, at least. What is lost with a replica, and the more of them the less its device idles
        between two.
      attempts: at a block whose replica dies.
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
    """A runner for `run_batch`, whose requests are answered on the machines of a Ray cluster.

    The cluster is the one that RAY_ADDRESS names, or the one that runs on this machine, or one of this machine alone
    that ends with the runner. All machines have this version of this package, and see the media and the model under
    the same paths as this process; media in `spool` are sent along.

    Args:
      make_runner: makes an `Engine` in each replica; sent there by cloudpickle.
      spool: where the job keeps what data: URLs and hosts gave: `Paths(output).media`.
      lines: of the input; as good a guess as one has.

    Raises:
      ValueError: Ray is not installed.
      ReplicaError: the cluster has no room for a replica.
    """

    def __init__(self, make_runner: Callable[[], Runner], options: RayOptions, *, spool: Path, lines: int):
        self._ray = _imported()
        # Not more than there are blocks: idle replicas make room for those of a lost node when no number is left.
        self._numbers = max(1, min(MOST_BLOCKS, math.ceil(lines / options.block)))
        self._make_runner, self._options, self._spool = make_runner, options, spool
        self._stopped = False
        self._ours = not self._ray.is_initialized()
        if self._ours:
            _connect(self._ray)
        try:
            self._resources = dict(options.resources) or self._usual_resources()
            self.replicas = options.replicas or self._room()
            if not self.replicas:
                wanted = ", ".join(f"{name}={count:g}" for name, count in self._resources.items())
                raise ReplicaError(f"the Ray cluster has no machine with {wanted}, which one replica needs")
        except BaseException:
            self.close()
            raise

    def run(self, requests: Iterable[Request]) -> Iterator[Result]:
        """One result for each request, a block of them at a time.

        An error with the cause "replica_lost" is that of a block whose replicas died at every attempt.

        Raises:
          ReplicaError: a replica could not start, or raised what is no single request's fault.
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
        """The results of as many blocks as one execution takes."""
        numbered, ended = enumerate(left), False
        waiting: dict[int, str] = {}  # the first request of each block that is under way
        while True:
            while not ended and len(waiting) < 2 * self.replicas:  # one under way and one ready for each
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
            elif self._stopped:  # any result will do: the run ends when it is given one
                name = next(iter(waiting.values()))
                yield Result(id=name, finish_reason="error", error="the run was stopped", cause="stopped")
                return

    def stop(self) -> None:
        """Ends the waiting for replicas. A signal handler may call it."""
        self._stopped = True

    def close(self) -> None:
        """Leaves the cluster, which ends the replicas; one that this runner has started ends too."""
        if self._ours:
            self._ray.shutdown()

    def _usual_resources(self) -> dict[str, float]:
        there = self._ray.cluster_resources()
        kind = next((name for name in ("TPU", "GPU") if there.get(name)), None)
        return {"CPU": 1} if kind is None else {kind: self._options.devices}

    def _room(self) -> int:
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
    """To a cluster, and quietly.

    Ray would take SIGTERM for itself and leave the process wherever it is then, a lock in its hands: signals are for
    whoever handles them now.
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
    """One execution of Ray Data, and the shelf that it takes its blocks from."""

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
        self._shelf = ray.remote(Shelf).options(num_cpus=0, scheduling_strategy=here).remote()
        special = {name: count for name, count in resources.items() if name not in ("CPU", "GPU")}
        asked = ray.data.from_items([{"block": i} for i in range(numbers)], override_num_blocks=numbers)
        asked.context.enable_progress_bars = False
        asked.context.print_on_execution_start = False
        # A pool whose replicas are all at work grows to its size again; by Ray's own measure it would want queues.
        asked.context.autoscaling_config.actor_pool_util_upscaling_threshold = 1.0
        answers = asked.map_batches(
            AnswerBlock,
            fn_constructor_args=(make_runner, self._shelf, attempts, __version__),
            batch_size=1,
            batch_format="pyarrow",
            # From one on, so that a replica which is idle makes room for one that has lost its node.
            compute=ray.data.ActorPoolStrategy(
                min_size=1, max_size=replicas, initial_size=replicas, max_tasks_in_flight_per_actor=1
            ),
            num_cpus=resources.get("CPU", 0),
            num_gpus=resources.get("GPU", 0),
            resources=special,
        )
        self._came: queue.SimpleQueue[tuple[int, bytes] | BaseException | None] = queue.SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._collect, args=[answers], name="ray-answers", daemon=True)
        self._thread.start()

    def _collect(self, answers: Any) -> None:
        """The thread's work: what Ray gives, handed on as it comes."""
        try:
            for table in answers.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                for number, raw in zip(table["block"].to_pylist(), table["results"].to_pylist(), strict=True):
                    if raw:
                        self._came.put((number, raw))
                if self._closed:
                    return
            self._came.put(None)
        except BaseException as error:
            self._came.put(error)

    def put(self, number: int, block: Block) -> None:
        """Puts a block where replicas find it."""
        self._ray.get(self._shelf.put.remote(number, pickle.dumps(block)))

    def end(self) -> None:
        """No more blocks will come."""
        self._ray.get(self._shelf.end.remote())

    def results(self) -> tuple[int, list[Result]] | None:
        """The results of the next block that is done; None where there is none within a moment.

        Raises:
          ReplicaError: a replica says that it cannot go on, or Ray has given up.
        """
        try:
            came = self._came.get(timeout=0.2)
        except queue.Empty:
            return None
        if isinstance(came, tuple):
            number, raw = came
            found = pickle.loads(raw)
            if isinstance(found, list):
                self._shelf.remove.remote(number)
                return number, found
            told = found
        else:
            told = f"{type(came).__name__}: {str(came).strip().splitlines()[0]}" if came else "Ray Data has ended early"
        raise ReplicaError(f"a replica has failed: {told}. What is done is kept: the same command goes on from there")

    def close(self, seconds: float) -> None:
        """Ends the replicas, and waits so long at most for what they have under way."""
        self._closed = True
        self._shelf.end.remote()
        self._thread.join(timeout=seconds)


# ── in other processes ──


class Shelf:
    """Blocks by their number, in an actor; those that ask for one that is not there yet wait."""

    def __init__(self) -> None:
        self._blocks: dict[int, bytes] = {}
        self._given: Counter[int] = Counter()
        self._failed: dict[int, str] = {}
        self._done: set[int] = set()
        self._ended = False
        self._changed = asyncio.Condition()

    async def put(self, number: int, block: bytes) -> None:
        async with self._changed:
            self._blocks[number] = block
            self._changed.notify_all()

    async def end(self) -> None:
        async with self._changed:
            self._ended = True
            self._changed.notify_all()

    async def take(self, number: int) -> tuple[bytes, int, str]:
        """A block, how often it was given before, and why it was not answered then; nothing where there is none."""
        async with self._changed:
            await self._changed.wait_for(lambda: number in self._blocks or number in self._done or self._ended)
        if number not in self._blocks:
            return b"", 0, ""
        self._given[number] += 1
        return self._blocks[number], self._given[number] - 1, self._failed.get(number, "")

    async def fail(self, number: int, why: str) -> None:
        """Keeps why a replica is about to die."""
        self._failed[number] = why

    async def remove(self, number: int) -> None:
        """Takes away a block whose results have come."""
        self._blocks.pop(number, None)
        self._done.add(number)


class AnswerBlock:
    """A replica on the shelf's blocks, for `map_batches`: {"block": number} in, its pickled results beside it out.

    What ends the run is a text in the place of results: Ray would put its own around an exception.
    """

    def __init__(self, make_runner: Callable[[], Runner], shelf: Any, attempts: int, version: str):
        self._ray = _imported()
        self._shelf, self._attempts = shelf, attempts
        self._broken = ""
        try:
            if version != __version__:
                raise ValueError(f"videollava-jax {__version__} is installed, and the job was started with {version}")
            self._replica = Replica(make_runner)
        except Exception as error:
            self._broken = _told(error)

    def __call__(self, batch: Any) -> Any:
        (number,) = batch["block"].to_pylist()
        results = pickle.dumps(self._broken) if self._broken else self._results(number)
        return {"block": [number], "results": [results]}

    def _results(self, number: int) -> bytes:
        """The pickled results of a block, or what ends the run; nothing where the shelf has no such block."""
        raw, before, why = self._ray.get(self._shelf.take.remote(number))
        if not raw:
            return b""
        block = pickle.loads(raw)
        if before >= self._attempts:
            return pickle.dumps(_lost(block, before, why))
        try:
            return pickle.dumps(self._answer(block))
        except MemoryError as error:
            return pickle.dumps(_told(error))
        except RuntimeError as error:  # the device's: in another process, or at another place, it may be sound
            self._ray.get(self._shelf.fail.remote(number, _told(error)))
            os._exit(1)

    def _answer(self, block: Block) -> list[Result]:
        with unpacked(block) as here:
            return [self._named(here.as_on_the_driver(result)) for result in self._replica.run(here.requests)]

    def _named(self, result: Result) -> Result:
        """An error that only this machine has, with the machine's name."""
        if result.cause != "not_found":
            return result
        hint = f"on {socket.gethostname()}, while the driver has it: expected media under one path on all machines"
        return dataclasses.replace(result, error=f"{result.error}, {hint}")


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]} (on {socket.gethostname()})"


def _lost(block: Block, attempts: int, why: str) -> list[Result]:
    """The results of a block that has cost replicas their lives."""
    times = "once" if attempts == 1 else f"{attempts} times"
    error = f"its replica died {times} while it answered this line and {len(block.requests) - 1} others"
    error += f" ({why})" if why else ""
    return [
        Result(id=request.id, finish_reason="error", error=error, cause="replica_lost") for request in block.requests
    ]
