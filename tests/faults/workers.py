"""What a worker process that was taken over may send: anything. It costs its own file, little memory, and no more.

    python -m tests.faults --only workers

A reply that was right is changed and given to the code that receives replies, as a worker's pipe would.
"""

from __future__ import annotations

import io
import json
import os
import random
import threading
import time
from contextlib import suppress
from typing import Any

import numpy as np

from tests.faults.memory import forgotten_peak, most_memory
from tests.faults.odd_values import dump, edit_bytes, odd, odd_name
from tests.faults.tables import Tally

SECONDS = 0.5
"""The time limit of a task: what comes later is not waited for."""
MEMORY = 64 * 2**20
"""The most bytes that a reply may take; the largest that is right has 300 kB."""


class _Ended:
    """The process of a worker that has sent everything."""

    def kill(self) -> None:
        pass

    def wait(self, timeout: float | None = None) -> int:
        return 0


def _tasks() -> list[tuple[Any, dict[str, Any], bytes]]:
    """Returns tasks, each with a reply that is right."""
    from videollava_jax.batch.media.tasks import FileTask, Task
    from videollava_jax.media import FloatPreprocessor, FramePreprocessor, MediaLimits

    frames = {"indices": [0, 3], "seconds": [0.0, 0.5], "total": 9}
    whole = {"kind": "video", "shape": [2, 30, 40, 3], "indices": [0, 3], "times": [0.0, None], "total": 9}
    whole |= {"decoded": 4, "fps": 8.0}
    limits, small = MediaLimits(max_pixels=10_000), FramePreprocessor(size=32, crop_size=32)
    floats = FloatPreprocessor(size=32, crop_size=32)
    return [
        (
            Task("video", "v.mp4", None, small, limits, SECONDS),
            {"shape": [2, 32, 32, 3], "frames": frames},
            bytes(6144),
        ),
        (Task("image", "i.png", None, small, limits, SECONDS), {"shape": [1, 32, 32, 3], "frames": None}, bytes(3072)),
        (
            Task("video", "f.mp4", None, floats, limits, SECONDS),
            {"shape": [2, 32, 32, 3], "frames": frames},
            np.full((2, 32, 32, 3), 7, np.float32).tobytes(),
        ),
        (FileTask(None, "a.mp4", "a.mp4", None, limits, SECONDS), whole, bytes(7200)),
    ]


def _changed(rng: random.Random, reply: dict[str, Any], pixels: bytes) -> bytes:
    """Returns a changed message, with its length in 8 bytes before it."""
    reply = json.loads(json.dumps(reply))
    what = rng.choice(["value", "value", "inner", "name", "bytes", "length", "cut", "error", "pixels", "noise", "more"])
    line = dump(reply)
    match what:
        case "value":
            reply[rng.choice(list(reply))] = odd(rng)
            line = dump(reply)
        case "inner" if isinstance(reply.get("frames"), dict):
            inner = reply["frames"]
            key = rng.choice(list(inner))
            inner[key] = odd(rng) if rng.random() < 0.5 or not isinstance(inner[key], list) else [odd(rng), odd(rng)]
            line = dump(reply)
        case "name":
            reply[odd_name(rng, "shape")] = odd(rng)
            line = dump(reply)
        case "bytes":
            line = edit_bytes(rng, line)
        case "error":
            reply["error"], reply["cause"] = odd(rng), odd(rng)
            line = dump(reply)
        case "pixels":
            pixels = rng.choice([b"", pixels[:-1], pixels + b"x", rng.randbytes(len(pixels)), b"\xff" * len(pixels)])
        case "more":
            pixels = pixels * rng.choice([2, 40])
    message = line + b"\n" + pixels
    length = len(message)
    if what == "length":
        length = rng.choice([0, 1, length - 1, length + 1, 2**31, 2**40, 2**63, 2**64 - 1, rng.randrange(2**64)])
    whole = length.to_bytes(8, "little") + message
    if what == "cut":
        whole = whole[: rng.randrange(len(whole))]
    return rng.randbytes(rng.randrange(1, 4000)) if what == "noise" else whole


def _received(task: Any, message: bytes, ends: bool) -> Any:
    """Receives a message as the parent of a worker does; the pipe stays open afterwards unless it `ends`."""
    from videollava_jax.batch.media import isolation
    from videollava_jax.batch.media.replies import medium_of, pixels_of
    from videollava_jax.batch.media.tasks import FileTask

    reads, writes = os.pipe()
    worker = object.__new__(isolation._Worker)
    worker._process, worker._tasks, worker._answers = _Ended(), io.BytesIO(), reads  # type: ignore[assignment]
    worker.confined, worker.used = True, True

    def send() -> None:
        with suppress(OSError), open(writes, "wb", buffering=0, closefd=ends) as file:
            sent = memoryview(message)
            while sent:
                sent = sent[file.write(sent) or 0 :]

    sender = threading.Thread(target=send)
    sender.start()
    try:
        return worker.read(task, medium_of if isinstance(task, FileTask) else pixels_of)
    finally:
        os.close(reads)
        sender.join()
        if not ends:
            os.close(writes)


def part(seed: int, scale: float) -> list[Tally]:
    """Sends `6000 * scale` replies; see `tests.faults.parts`."""
    from videollava_jax.batch.media import isolation

    tallies = [Tally(name) for name in ("pixels of a video", "pixels of an image", "pixels in floats", "a whole file")]
    tasks = _tasks()
    for task, reply, pixels in tasks:
        _received(
            task, (message := dump(reply) + b"\n" + pixels) and len(message).to_bytes(8, "little") + message, True
        )
    for number in range(round(6000 * scale)):
        rng = random.Random(f"{seed}/{number}")
        at = rng.randrange(len(tasks))
        task, reply, pixels = tasks[at]
        message, ends = _changed(rng, reply, pixels), rng.random() < 0.97
        began, held = time.perf_counter(), forgotten_peak()
        try:
            _received(task, message, ends)
            outcome, detail = "taken", ""
        except (isolation.WorkerError, isolation._WorkerLost) as error:
            said = str(error)
            fine = said.isprintable() and len(said) < 2000
            outcome, detail = ("refused", "") if fine else ("violation", f"its error: {said[:300]!r}")
        except Exception as error:
            outcome, detail = "crash", f"{type(error).__name__}: {error}"
        seconds, memory = time.perf_counter() - began, most_memory() - held
        if memory > MEMORY:
            outcome, detail = "violation", f"took {memory / 2**20:.0f} MiB"
        if seconds > SECONDS + 10:
            outcome, detail = "hang", f"took {seconds:.1f} s"
        tallies[at].add(outcome, f"reply {number} of seed {seed}: {detail}: {message[:300]!r}", seconds, memory)
    return tallies
