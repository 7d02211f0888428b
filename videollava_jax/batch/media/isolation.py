"""Reads media in worker processes, so that a file that crashes one, hangs or takes too much memory is only an error.

Each worker has its own pipes. In a pool whose workers share a pipe and its lock, one that dies with the lock stops all
others. Each of the engine's reading threads waits for one worker, so there are no more busy workers than threads.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pickle
import select
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

from videollava_jax.batch.media.replies import Garbage, medium_of, most_bytes, pixels_of
from videollava_jax.batch.media.tasks import FileTask, Task, name_of
from videollava_jax.batch.media.worker import LENGTH
from videollava_jax.config import require_whole_windows
from videollava_jax.media import Cause, MediaLimits, Medium, MediumPixels, Uniform, Video
from videollava_jax.media.source import source_name
from videollava_jax.media.urls import short_name
from videollava_jax.processing.given_media import is_read_from_files
from videollava_jax.processing.processor import VideoLlavaProcessor
from videollava_jax.processing.segments import Media, MediaKind

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_AnyTask = TypeVar("_AnyTask", Task, FileTask)
_Read = TypeVar("_Read")
_EIGHT = Uniform(8)
_FINAL_CAUSES = frozenset((Cause.NOT_FOUND, Cause.NOT_A_FILE))
"""Causes that do not depend on a worker's state, so a new worker need not try again."""
START_SECONDS = 120
"""How long a worker's imports may take on a busy machine."""
_LONGEST_LINE = 64 * 1024
_CAUSES = frozenset((*map(str, Cause), "invalid_request"))
_ENVIRONMENT = (
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "LD_LIBRARY_PATH",
    "TMPDIR",
    "VIRTUAL_ENV",
    "PYTHONHOME",
    "TZ",
    "VIDEOLLAVA_MARK",
)
"""What a worker gets of the environment, which may hold tokens. By the last one a run's processes can be found."""


class WorkerError(ValueError):
    """A worker could not read a medium, or crashed or hung while reading it.

    Attributes:
      cause: a `media.Cause`, "worker_crashed", "worker_timeout" or "stopped".
    """

    def __init__(self, cause: str, message: str):
        super().__init__(message)
        self.cause = cause


@dataclass(frozen=True, kw_only=True)
class WorkerLimits:
    """Limits on the cost of reading a medium.

    Attributes:
      seconds: wall time.
      memory: bytes of address space, in addition to those that a worker has after its imports.
      max_bytes: bytes of a file.
      attempts: how many new workers a medium may crash or hang.
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
    """Reads media in worker processes. Thread-safe.

    It is the `reader` of an engine or of a processor's call, and does the work of the processor's `read`; it also has
    the functions of `videollava_jax.media` that read files. `close` ends the workers, or the end of a `with`.

    Args:
      processor: how media become pixels.
      limits: of each medium.
      media_limits: of each file, but for its bytes and seconds, which `limits` has.

    Attributes:
      started: how many workers were started; more than there are threads if some died.
      confined: whether the kernel keeps workers from the network and from starting programs; None before the first.
    """

    def __init__(
        self,
        processor: VideoLlavaProcessor,
        limits: WorkerLimits = WorkerLimits(),
        media_limits: MediaLimits = MediaLimits(),  # noqa: B008
    ):
        self._processor, self._limits = processor, limits
        self._media_limits = dataclasses.replace(
            media_limits,
            max_bytes=limits.max_bytes,
            max_image_bytes=min(limits.max_bytes, media_limits.max_image_bytes),
            seconds=limits.seconds,
        )
        self._idle: list[_Worker] = []
        self._all: set[_Worker] = set()
        self._lock = threading.Lock()
        self._stopped = False
        self.started = 0
        self.confined: bool | None = None

    def __call__(self, medium: Media, frame_sampling: Any) -> MediumPixels:
        """Reads a medium, as the processor's `read` does.

        Raises:
          WorkerError: it cannot be read, or it crashed or hung its worker at every attempt.
          ValueError: the model does not take this number of frames.
        """
        if not is_read_from_files(medium.source):
            return self._processor.read(medium, frame_sampling)  # given as pixels
        processor = self._processor
        preprocess = processor.preprocessors[medium.kind]
        rule = processor.frames(frame_sampling)
        task = Task(medium.kind, medium.source, rule, preprocess, self._media_limits, self._limits.seconds)
        read = self._attempt(task, pixels_of)
        if medium.kind == "video":
            require_whole_windows(name_of(medium.source), len(read.pixels), processor.frame_window)
        return read

    def open_medium(self, source: Any, frame_sampling: Any = _EIGHT) -> Medium:
        """Reads an image or a video as `media.open_medium` does, or raises a WorkerError."""
        return self._file(None, source, frame_sampling)

    def read_image(self, source: Any) -> npt.NDArray[np.uint8]:
        """Reads an image as `media.read_image` does, or raises a WorkerError."""
        pixels: npt.NDArray[np.uint8] = self._file("image", source, None).frames[0]
        return pixels

    def read_video(self, source: Any, frame_sampling: Any = _EIGHT) -> Video:
        """Reads frames of a video as `media.read_video` does, or raises a WorkerError."""
        read = self._file("video", source, frame_sampling)
        return Video(
            frames=read.frames,
            indices=read.indices,
            timestamps=read.timestamps,
            fps=read.fps,
            total_frames=read.total_frames,
            decoded_frames=read.decoded_frames,
            source=read.path,
        )

    def _file(self, kind: MediaKind | None, source: Any, frame_sampling: Any) -> Medium:
        """Reads the frames of a file, of its bytes or of a file object, which is read to its end."""
        if is_read_from_files(source):
            name = name_of(source)
        else:
            name = source_name(source)
            most = self._limits.max_bytes
            source = bytes(source.read(most + 1) if hasattr(source, "read") else source)
            if len(source) > most:
                raise WorkerError(str(Cause.TOO_LARGE), f"{name}: more than {most} bytes; raise WorkerLimits.max_bytes")
        task = FileTask(kind, name, source, frame_sampling, self._media_limits, self._limits.seconds)
        return self._attempt(task, medium_of)

    def _attempt(self, task: _AnyTask, checked: Callable[[dict[str, Any], memoryview, _AnyTask], _Read]) -> _Read:
        """Accepts pixels from any worker, but errors only from a new one.

        A hostile file may leave a worker with little memory or with stray threads, and must not make the next file
        fail.
        """
        lost, new = 0, False
        while True:
            worker = self._take(new)
            used, worker.used, new = worker.used, True, True
            try:
                read = worker.read(task, checked)
                self._note_confinement(worker)
            except WorkerError as error:
                if error.cause in _FINAL_CAUSES:
                    self._give_back(worker)
                    raise
                self._discard(worker)
                if not used:
                    raise
            except _WorkerLost as error:
                self._discard(worker)
                lost += 1
                if self._stopped:
                    raise WorkerError("stopped", "the run was stopped") from None
                if not used and lost >= self._limits.attempts:
                    name = task.name
                    raise WorkerError(error.cause, f"{name}: {error}, {lost} times of {lost}") from None
            except BaseException:
                self._discard(worker)
                raise
            else:
                self._give_back(worker)
                return read

    def _note_confinement(self, worker: _Worker) -> None:
        if worker.confined is False and self.confined is None:
            warnings.warn(
                "this system does not keep the processes that read media from the network and from starting programs: "
                "expected Linux on x86-64 or arm64 with seccomp; read files of strangers elsewhere",
                RuntimeWarning,
                stacklevel=2,
            )
        self.confined = worker.confined

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
        """Kills the workers, so that current and later reads fail at once. A signal handler may call it."""
        self._stopped = True
        for worker in list(self._all):
            worker.kill()

    def __enter__(self) -> IsolatedReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the workers. No thread may be reading."""
        self.stop()
        for worker in list(self._all):
            self._discard(worker)


class _WorkerLost(Exception):
    """A worker has died, hung or sent garbage, and cannot be used again."""

    def __init__(self, cause: str, message: str):
        super().__init__(message)
        self.cause = cause


def import_path() -> str:
    """Returns the PYTHONPATH with which a new process finds this package, installed or not."""
    return os.pathsep.join(filter(None, [str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH", "")]))


class _Worker:
    """A worker process and its pipes. `used` says whether it has received a task."""

    def __init__(self, memory: int):
        self._process = subprocess.Popen(
            # -P: no modules from the working directory, which may hold files of strangers.
            [sys.executable, "-P", "-m", "videollava_jax.batch.media.worker", str(memory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # malloc reserves an arena for each thread, which would use up much of the limited address space.
            env={
                **{name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
                "MALLOC_ARENA_MAX": "2",
                "PYTHONPATH": import_path(),
            },
            start_new_session=True,  # so that Ctrl-C reaches only the run, which ends its workers itself
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._tasks: IO[bytes] = self._process.stdin
        self._answers = self._process.stdout.fileno()
        self.confined: bool | None = None
        self.used = False

    def read(self, task: _AnyTask, checked: Callable[[dict[str, Any], memoryview, _AnyTask], _Read]) -> _Read:
        """Returns what a task reads, as `checked` makes it of the worker's reply.

        Raises:
          WorkerError: the worker could not read it.
          _WorkerLost: the worker has died, was too slow or sent garbage.
        """
        if self.confined is None:
            late = f"a worker did not start within {START_SECONDS} s"
            self.confined = self._receive(time.monotonic() + START_SECONDS, late, 0)[0].get("confined") is True
        raw = pickle.dumps(task)
        try:
            self._tasks.write(LENGTH.pack(len(raw)) + raw)
            self._tasks.flush()
        except OSError:
            raise self._died() from None
        late = f"its worker was still reading after {task.seconds:g} s"
        reply, pixels = self._receive(time.monotonic() + task.seconds, late, most_bytes(task))
        if "error" in reply:
            cause, message = reply.get("cause"), short_name(str(reply["error"]), plain=True)
            known = isinstance(cause, str) and cause in _CAUSES
            raise WorkerError(str(cause if known else Cause.DECODE_FAILED), message)
        try:
            return checked(reply, pixels, task)
        except Garbage:
            raise _garbage() from None

    def _receive(self, deadline: float, late: str, most: int) -> tuple[dict[str, Any], memoryview]:
        """Receives a line of JSON and at most `most` bytes after it."""
        (length,) = LENGTH.unpack(self._exactly(LENGTH.size, deadline, late))
        if length > _LONGEST_LINE + most:
            raise _garbage()
        content = self._exactly(length, deadline, late)
        end = content.find(b"\n", 0, _LONGEST_LINE) + 1
        try:
            reply = json.loads(content[:end])
        except (ValueError, RecursionError):
            reply = None
        if not isinstance(reply, dict):
            raise _garbage()
        return reply, memoryview(content)[end:]

    def _exactly(self, count: int, deadline: float, late: str) -> bytearray:
        """Reads exactly `count` bytes from the worker, before the deadline; memory is taken as they come."""
        found = bytearray()
        poll = select.poll()
        poll.register(self._answers, select.POLLIN | select.POLLHUP)
        while len(found) < count:
            if not poll.poll(max(0, math.ceil(1000 * (deadline - time.monotonic())))):
                self.kill()
                raise _WorkerLost("worker_timeout", late)
            got = os.read(self._answers, min(count - len(found), 2**20))
            if not got:
                raise self._died()
            found += got
        return found

    def _died(self) -> _WorkerLost:
        with suppress(subprocess.TimeoutExpired):  # the pipe closes a moment before the exit status is known
            self._process.wait(5)
        self.kill()
        status = self._process.wait()
        cause = "worker_timeout" if -status in (14, 24) else "worker_crashed"  # SIGALRM and SIGXCPU, its own limits
        return _WorkerLost(cause, f"its worker died ({f'signal {-status}' if status < 0 else f'status {status}'})")

    def kill(self) -> None:
        """Kills the process, without waiting for its end."""
        self._process.kill()

    def close(self) -> None:
        """Kills the process, waits for its end and closes its pipes."""
        self.kill()
        self._process.wait()
        with suppress(OSError):
            self._tasks.close()
        assert self._process.stdout is not None
        self._process.stdout.close()


def _garbage() -> _WorkerLost:
    return _WorkerLost("worker_crashed", "its worker sent garbage")
