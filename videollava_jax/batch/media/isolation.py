"""Media read by worker processes: one that crashes, hangs or wants too much memory is an error, and nothing else.

Each worker has pipes of its own: pools that share a pipe and its lock among workers can be stopped by one that dies
while it holds the lock. The engine's reading threads each wait for one worker, so no more are at work than threads.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import select
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from videollava_jax.batch.media.worker import LENGTH, Task
from videollava_jax.config import require_whole_windows
from videollava_jax.media import Cause, MediaLimits
from videollava_jax.processing.processor import VideoLlavaProcessor
from videollava_jax.processing.segments import Media

_SURE = frozenset((Cause.NOT_FOUND, Cause.NOT_A_FILE))
"""Errors that no worker's state can bring about."""
START_SECONDS = 120
"""For a worker's imports, on a busy machine."""


class WorkerError(ValueError):
    """What a worker says of a medium, or what became of the worker.

    Attributes:
      cause: a `media.Cause`, or "worker_crashed", "worker_timeout".
    """

    def __init__(self, cause: str, message: str):
        super().__init__(message)
        self.cause = cause


@dataclass(frozen=True, kw_only=True)
class WorkerLimits:
    """What reading a medium may take.

    Attributes:
      seconds: by the clock.
      memory: bytes of address space, beyond what a worker has after its imports.
      max_bytes: of a file.
      attempts: at a medium that crashes or hangs its worker.
    """

    seconds: float = 60.0
    memory: int = 4 * 2**30
    max_bytes: int = 2**30
    attempts: int = 2

    def __post_init__(self) -> None:
        for name in ("seconds", "memory", "max_bytes", "attempts"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: expected more than 0, got {getattr(self, name)}")


class IsolatedReader:
    """An engine's `reader`: the processor's `read_medium`, in processes. Any thread may call.

    Attributes:
      started: workers that were started; more than there are threads when some have died.
    """

    def __init__(self, processor: VideoLlavaProcessor, limits: WorkerLimits = WorkerLimits()):
        self._processor, self._limits = processor, limits
        self._media_limits = MediaLimits(
            max_bytes=limits.max_bytes, max_image_bytes=min(limits.max_bytes, MediaLimits().max_image_bytes)
        )
        self._idle: list[_Worker] = []
        self._all: set[_Worker] = set()
        self._lock = threading.Lock()
        self._stopped = False
        self.started = 0

    def __call__(self, medium: Media, frame_sampling: Any) -> npt.NDArray[np.uint8]:
        """uint8 [F, S, S, 3], RGB, 0-255.

        Raises:
          WorkerError: it cannot be read, or its worker died of it, at every attempt.
          ValueError: frames that the model does not take.
        """
        if not isinstance(medium.source, (str, os.PathLike)):
            return self._processor.read_medium(medium, frame_sampling)  # pixels already
        processor = self._processor
        preprocess = processor.image_processor if medium.kind == "image" else processor.video_processor
        task = Task(medium.kind, medium.source, frame_sampling, preprocess, self._media_limits, self._limits.seconds)
        pixels = self._attempt(task)
        if medium.kind == "video":
            require_whole_windows(os.fspath(medium.source), len(pixels), processor.frame_window)
        return pixels

    def _attempt(self, task: Task) -> npt.NDArray[np.uint8]:
        """Pixels from any worker, but errors from a new one alone: what a hostile file has left in a worker (memory,
        threads) must not be the error of the file that comes after it."""
        lost, new = 0, False
        while True:
            worker = self._take(new)
            used, worker.used, new = worker.used, True, True
            try:
                pixels = worker.read(task)
            except WorkerError as error:
                if error.cause in _SURE:
                    self._give_back(worker)
                    raise
                self._discard(worker)
                if not used:
                    raise
            except _Lost as error:
                self._discard(worker)
                lost += 1
                if self._stopped:
                    raise WorkerError("stopped", "the run was stopped") from None
                if not used and lost >= self._limits.attempts:
                    name = os.fspath(task.source)
                    raise WorkerError(error.cause, f"{name}: {error}, {lost} times of {lost}") from None
            except BaseException:
                self._discard(worker)
                raise
            else:
                self._give_back(worker)
                return pixels

    def _take(self, new: bool) -> _Worker:
        with self._lock:
            if self._stopped:
                raise WorkerError("stopped", "the run was stopped")
            if self._idle and not new:
                return self._idle.pop()
        worker = _Worker(self._limits.memory)
        with self._lock:
            self.started += 1
            self._all.add(worker)
        if self._stopped:
            worker.kill()
        return worker

    def _give_back(self, worker: _Worker) -> None:
        with self._lock:
            self._idle.append(worker)

    def _discard(self, worker: _Worker) -> None:
        worker.close()
        with self._lock:
            self._all.discard(worker)

    def stop(self) -> None:
        """Kills the workers: what is being read fails at once, and what would be. A signal handler may call it."""
        self._stopped = True
        for worker in list(self._all):
            worker.kill()

    def close(self) -> None:
        """Ends the workers; no reading may be under way."""
        self.stop()
        for worker in list(self._all):
            self._discard(worker)


class _Lost(Exception):
    """A worker that is of no more use."""

    def __init__(self, cause: str, message: str):
        super().__init__(message)
        self.cause = cause


class _Worker:
    """A process and its pipes; `used` once it was given something to read."""

    def __init__(self, memory: int):
        home = str(Path(__file__).parents[3])
        path = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH", "")]))
        self._process = subprocess.Popen(
            # -P: the working directory may be full of strangers' files, and holds no modules.
            [sys.executable, "-P", "-m", "videollava_jax.batch.media.worker", str(memory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # Arenas of malloc, one a thread, would take much of the address space that is limited.
            env={"MALLOC_ARENA_MAX": "2", **os.environ, "PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C is for the run, which then ends its workers
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._tasks: IO[bytes] = self._process.stdin
        self._answers = self._process.stdout.fileno()
        self._ready = False
        self.used = False

    def read(self, task: Task) -> npt.NDArray[np.uint8]:
        """The pixels, or a WorkerError of the worker's; `_Lost` when it has died or was too slow."""
        if not self._ready:
            self._receive(time.monotonic() + START_SECONDS, f"a worker did not start within {START_SECONDS} s")
            self._ready = True
        raw = pickle.dumps(task)
        try:
            self._tasks.write(LENGTH.pack(len(raw)) + raw)
            self._tasks.flush()
        except OSError:
            raise self._died() from None
        late = f"its worker was still reading after {task.seconds:g} s"
        said, pixels = self._receive(time.monotonic() + task.seconds, late)
        if "error" in said:
            raise WorkerError(str(said.get("cause")), str(said["error"]))
        return _checked(said, pixels, task)

    def _receive(self, deadline: float, late: str) -> tuple[dict[str, Any], memoryview]:
        (length,) = LENGTH.unpack(self._exactly(LENGTH.size, deadline, late))
        if length > MediaLimits().max_bytes_returned:
            raise _Lost("worker_crashed", "its worker answered with nonsense")
        content = self._exactly(length, deadline, late)
        end = content.find(b"\n") + 1
        try:
            said = json.loads(content[:end])
        except ValueError:
            said = None
        if not isinstance(said, dict):
            raise _Lost("worker_crashed", "its worker answered with nonsense")
        return said, memoryview(content)[end:]

    def _exactly(self, count: int, deadline: float, late: str) -> bytearray:
        """So many bytes of the worker's answers, before the deadline."""
        found = bytearray(count)
        view, have = memoryview(found), 0
        poll = select.poll()
        poll.register(self._answers, select.POLLIN | select.POLLHUP)
        while have < count:
            if not poll.poll(max(0, math.ceil(1000 * (deadline - time.monotonic())))):
                self.kill()
                raise _Lost("worker_timeout", late)
            got = os.readv(self._answers, [view[have:]])
            if not got:
                raise self._died()
            have += got
        return found

    def _died(self) -> _Lost:
        with suppress(subprocess.TimeoutExpired):  # its pipe is closed a moment before it has a status
            self._process.wait(5)
        self.kill()
        status = self._process.wait()
        cause = "worker_timeout" if -status in (14, 24) else "worker_crashed"  # SIGALRM and SIGXCPU: its own clocks
        return _Lost(cause, f"its worker died ({f'signal {-status}' if status < 0 else f'status {status}'})")

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> None:
        """Kills it, takes its status, closes its pipes."""
        self.kill()
        self._process.wait()
        with suppress(OSError):
            self._tasks.close()
        assert self._process.stdout is not None
        self._process.stdout.close()


def _checked(said: dict[str, Any], pixels: memoryview, task: Task) -> npt.NDArray[np.uint8]:
    """The pixels that a worker sent, in the shape that they have to have."""
    side = task.preprocess.crop_size
    shape = tuple(said.get("shape", ()))
    if len(shape) != 4 or shape[1:] != (side, side, 3) or math.prod(shape) != len(pixels) or not len(pixels):
        raise _Lost("worker_crashed", "its worker answered with nonsense")
    return np.frombuffer(pixels, np.uint8).reshape(shape)
