"""Runs a job on a Ray cluster: this process keeps the ledger, and replicas of the engine answer blocks of requests.

requests ──blocks──▶ store ◀──by number── replicas ──blocks of results──▶ the job's ledger
(this process)       (execution.py)       wherever Ray runs them
"""

from __future__ import annotations

import itertools
import logging
import math
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from videollava_jax.batch.ray.blocks import Block, blocks
from videollava_jax.batch.ray.execution import MOST_BLOCKS, Execution, ReplicaError
from videollava_jax.batch.runner import Runner
from videollava_jax.engine import Request, Result
from videollava_jax.extras import installs


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
            execution = Execution(
                self._ray, self._make_runner, self._resources, self.replicas, self._numbers, self._options.attempts
            )
            try:
                yield from self._answers(execution, itertools.chain([first], itertools.islice(left, self._numbers - 1)))
            finally:
                execution.close(seconds=0 if self._stopped else 5)

    def _answers(self, execution: Execution, left: Iterable[Block]) -> Iterator[Result]:
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
            f"several machines are reached through Ray, which is not installed: {installs('ray')}"
        ) from None
    return ray


def _connect(ray: Any) -> None:
    """Connects to a cluster without printing, and keeps the current signal handlers.

    Ray's own handler of SIGTERM would raise anywhere, even while a lock is held.

    Raises:
      OSError: Ray does not start, or no cluster answers.
      ValueError: Ray refuses its settings.
    """
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    theirs = ray._private.utils.set_sigterm_handler
    ray._private.utils.set_sigterm_handler = lambda handler: None
    try:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (ValueError, OSError):
        raise
    except Exception as error:  # Ray raises plain ones, as where a machine at work on other things takes too long
        raise OSError(f"Ray does not start here: {' '.join(str(error).split())}") from error
    finally:
        ray._private.utils.set_sigterm_handler = theirs
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    if threading.current_thread() is threading.main_thread():
        for number, handler in handlers.items():
            signal.signal(number, handler)
