"""The processes of one run, each with its own devices and rows: they find each other, agree, and end together."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
import numpy.typing as npt
from jax._src.distributed import global_state  # the address of the coordinator and its store of keys: nowhere else
from jax.experimental import multihost_utils

from videollava_jax.training.run.guards import leave
from videollava_jax.training.run.peers import HEARTBEAT, Peers

LAST_WORDS = 3.0
"""Seconds that the first process stays alive after it fails.

The coordinator ends with it, and JAX then aborts the other processes, which may be about to print the same error.
"""


@contextmanager
def joined(going_on: str) -> Iterator[Peers | None]:
    """Connects to the other processes of the run, where the environment names some, and watches them.

    Args:
      going_on: the last sentence of the message of a process that ends because another one has: how to go on.

    Yields:
      The watch over the other processes; None where this one is alone.

    Raises:
      ValueError: the environment does not say how many processes there are, or which one this is.
    """
    if _several():
        # JAX reads the address from JAX_COORDINATOR_ADDRESS, and gets number and id from Cloud TPU, Slurm or Open MPI.
        jax.distributed.initialize(
            num_processes=_number("JAX_NUM_PROCESSES"),
            process_id=_number("JAX_PROCESS_ID"),
            heartbeat_timeout_seconds=HEARTBEAT,
        )
    found = global_state
    if found.client is None or found.coordinator_address is None or found.num_processes == 1:
        yield None
        return
    host = found.coordinator_address.rsplit(":", 1)[0].strip("[]")
    with Peers(found.process_id, found.num_processes, found.client, host, going_on) as peers:
        yield peers


def _several() -> bool:
    if "JAX_COORDINATOR_ADDRESS" in os.environ:
        return True
    slurm = int(os.environ.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in os.environ
    mpi = int(os.environ.get("OMPI_COMM_WORLD_SIZE", "1")) > 1
    pod = len(os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")) > 1
    return slurm or mpi or pod


def _number(variable: str) -> int | None:
    value = os.environ.get(variable)
    return None if value is None else int(value)


def gathered(numbers: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Gathers an array from every process: int32 [processes, …]. All call this together with arrays of one shape."""
    if jax.process_count() == 1:
        return numbers[None]
    return np.asarray(multihost_utils.process_allgather(numbers))


def summed(*numbers: int) -> tuple[int, ...]:
    """Sums each number over all processes, which call this together."""
    return tuple(int(number) for number in gathered(np.asarray(numbers, np.int32)).sum(axis=0))


def require_agreement(facts: Mapping[str, Any]) -> None:
    """Checks that all processes have equal values. All call this together.

    Args:
      facts: values for JSON, under the same names in all processes.

    Raises:
      ValueError: raised in every process, with the names of the values that differ and its own values.
    """
    digests = [zlib.crc32(json.dumps(value, sort_keys=True).encode()) for value in facts.values()]
    everywhere = gathered(np.asarray(digests, np.uint32).view(np.int32))
    differs = (everywhere != everywhere[0]).any(axis=0)
    differing = {name: facts[name] for name, other in zip(facts, differs, strict=True) if other}
    if differing:
        values = "; ".join(f"{name} is {value} here" for name, value in differing.items())
        raise ValueError(f"the processes differ: {values}. Expected the same model, data and recipe on all hosts")


@contextmanager
def ended_at_once(expected: tuple[type[Exception], ...], going_on: str, peers: Peers | None = None) -> Iterator[None]:
    """Ends the process with a message and status 1 at an exception, where the run has several processes.

    It exits without unwinding: unwinding would wait for the other processes, in a checkpoint that is being written or
    in JAX's shutdown, while they wait for this one. They notice its end by a closed connection.

    Args:
      expected: exceptions whose message is enough; others print a traceback.
      going_on: the last sentence of the message: how to go on.
      peers: the watch over the other processes, which then end too.
    """
    try:
        yield
    except BaseException as error:
        if jax.process_count() == 1:
            raise
        if peers is not None:
            peers.fail()
        if not isinstance(error, expected):
            traceback.print_exc()
        print(
            f"process {jax.process_index()} of {jax.process_count()} ends: {type(error).__name__}: {error}. If another "
            f"one ended before it, or does not answer, that one's output says why. {going_on}",
            file=sys.stderr,
            flush=True,
        )
        if jax.process_index() == 0:
            time.sleep(LAST_WORDS)
        leave(1)
