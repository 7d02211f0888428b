"""The processes of one run, each with devices and rows of its own: found, agreed with, and ended together."""

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
from jax.experimental import multihost_utils

LAST_WORDS = 3.0
"""Seconds that the first process stays when it fails: the coordinator goes with it, and then JAX aborts the others,
which may be about to say the same."""


def join_processes() -> None:
    """Finds the other processes of the run, where the surroundings say that there are some.

    Raises:
      ValueError: the surroundings say too little: how many there are, or which one this is.
    """
    if _several():
        # JAX asks Cloud TPU, Slurm and Open MPI for the last two, and reads the first from JAX_COORDINATOR_ADDRESS.
        jax.distributed.initialize(num_processes=_number("JAX_NUM_PROCESSES"), process_id=_number("JAX_PROCESS_ID"))


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
    """int32 [processes, …]: an array of each process, which call this together with arrays of one shape."""
    if jax.process_count() == 1:
        return numbers[None]
    return np.asarray(multihost_utils.process_allgather(numbers))


def summed(*numbers: int) -> tuple[int, ...]:
    """Each number summed over all processes, which call this together."""
    return tuple(int(number) for number in gathered(np.asarray(numbers, np.int32)).sum(axis=0))


def require_agreement(facts: Mapping[str, Any]) -> None:
    """Makes sure that all processes, which call this together, know the same.

    Args:
      facts: by names that all have in common, for JSON.

    Raises:
      ValueError: in every process, with the names of what differs and its own values.
    """
    digests = [zlib.crc32(json.dumps(value, sort_keys=True).encode()) for value in facts.values()]
    everywhere = gathered(np.asarray(digests, np.uint32).view(np.int32))
    differs = (everywhere != everywhere[0]).any(axis=0)
    differing = {name: facts[name] for name, other in zip(facts, differs, strict=True) if other}
    if differing:
        told = "; ".join(f"{name} is {value} here" for name, value in differing.items())
        raise ValueError(f"the processes differ: {told}. Expected the same model, data and recipe on all hosts")


@contextmanager
def ended_at_once(told: tuple[type[Exception], ...], going_on: str) -> Iterator[None]:
    """Where there are several processes, an exception ends this one at once, with a message and status 1.

    To unwind would be to wait for the others: in the checkpoint that is being written, in JAX's own shutdown. And they
    wait for this one. When it is gone they are told so, by a connection that closes or by missing heartbeats.

    Args:
      told: exceptions whose message says enough; of others there is a traceback.
      going_on: how to go on, for the message.
    """
    try:
        yield
    except BaseException as error:
        if jax.process_count() == 1:
            raise
        if not isinstance(error, told):
            traceback.print_exc()
        print(
            f"process {jax.process_index()} of {jax.process_count()} ends: {type(error).__name__}: {error}. If another "
            f"one ended before it, or does not answer, that one's output says why. {going_on}",
            file=sys.stderr,
            flush=True,
        )
        if jax.process_index() == 0:
            time.sleep(LAST_WORDS)
        os._exit(1)
