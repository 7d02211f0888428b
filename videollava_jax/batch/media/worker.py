"""The program of a worker process, which reads media within limits, so that a bad file can only crash the worker.

The worker trusts its parent, which sends tasks as pickles. The parent does not trust the worker, as it has decoded
hostile files: answers are a line of JSON and raw pixels, and are checked. Each message is preceded by its length in 8
bytes. No JAX.

    python -m videollava_jax.batch.media.worker BYTES-OF-MEMORY
"""

from __future__ import annotations

import json
import math
import os
import pickle
import resource
import signal
import struct
import sys
from pathlib import Path
from typing import Any, BinaryIO

from videollava_jax.batch.media.confinement import confine
from videollava_jax.batch.media.tasks import FileTask, Reply, Task
from videollava_jax.media import MediaError

LENGTH = struct.Struct("<Q")
CPU_SHARE = 4
"""The most CPU seconds of a task, on all processors together, for each second of its time limit."""


def main() -> None:
    """Answers tasks from standard input until it ends."""
    tasks = sys.stdin.buffer
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that a library's prints do not mix with answers
    _limit_memory(int(sys.argv[1]))
    _send(answers, {"confined": confine()})
    while len(head := tasks.read(LENGTH.size)) == LENGTH.size:
        # From the parent, which started this process; rules of frames may be any class of its.
        task = pickle.loads(tasks.read(LENGTH.unpack(head)[0]))  # noqa: S301
        _limit_time(task.seconds)
        reply, pixels = _answer(task)
        signal.alarm(0)
        _send(answers, reply, pixels)


def _answer(task: Task | FileTask) -> Reply:
    try:
        return task.reply()
    except MediaError as error:
        return {"error": str(error), "cause": error.cause}, b""
    except MemoryError:
        return {"error": f"{task.name}: takes more memory than a worker has", "cause": "too_large"}, b""
    except (ValueError, OSError) as error:
        return {"error": " ".join(str(error).split())[:500], "cause": "invalid_request"}, b""
    except Exception as error:  # a library's own exception, whose text may contain memory addresses
        return {
            "error": f"{task.name}: cannot be decoded ({type(error).__name__})",
            "cause": "decode_failed",
        }, b""


def _send(file: BinaryIO, reply: dict[str, Any], content: bytes | memoryview = b"") -> None:
    line = json.dumps(reply).encode() + b"\n"
    file.write(LENGTH.pack(len(line) + len(content)) + line)
    file.write(content)
    file.flush()


def _limit_memory(beyond: int) -> None:
    """Limits the address space to `beyond` bytes more than now; allows no core dumps, no writing, few open files."""
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGESIZE")
    for what, limit in (
        (resource.RLIMIT_AS, taken + beyond),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 256),
    ):
        hard = resource.getrlimit(what)[1]
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(what, (limit, limit))


def _limit_time(seconds: float) -> None:
    """Makes the kernel end this process if a task takes too long, as the parent may have been killed by then."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(used.ru_utime + used.ru_stime + CPU_SHARE * seconds), hard))
    signal.alarm(math.ceil(seconds) + 2)


if __name__ == "__main__":
    main()
