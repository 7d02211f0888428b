"""What a worker process has sent, checked like a stranger's: pixels, and which frames of a video they are. No JAX."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from videollava_jax.batch.media.tasks import FileTask, Task
from videollava_jax.media import Frames, Medium, MediumPixels

_BRIGHTEST = 1024
"""What no pixel on the scale 0-255 reaches; cubic interpolation goes a little below 0 and above 255."""


class Garbage(Exception):
    """What a worker sent is no answer to its task."""


def most_bytes(task: Task | FileTask) -> int:
    """Returns the most bytes of pixels that a task can have."""
    if isinstance(task, FileTask):
        return task.limits.max_bytes_returned
    return task.limits.max_frames_returned * 3 * task.preprocess.crop_size**2 * task.preprocess.dtype.itemsize


def pixels_of(reply: dict[str, Any], pixels: memoryview, task: Task) -> MediumPixels:
    """Returns the pixels of a task, if they have the expected shape and the frames are as many numbers.

    Raises:
      Garbage: they have not.
    """
    side, dtype = task.preprocess.crop_size, task.preprocess.dtype
    shape = _shape(reply, dtype.itemsize, len(pixels))
    if shape[1:] != [side, side, 3]:
        raise Garbage
    made = np.frombuffer(pixels, dtype).reshape(shape)
    if made.dtype != np.uint8 and not (np.abs(made) < _BRIGHTEST).all():  # NaN among them
        raise Garbage
    try:
        return MediumPixels(made, _frames(reply.get("frames"), shape[0]))
    except (KeyError, TypeError, ValueError):
        raise Garbage from None


def medium_of(reply: dict[str, Any], pixels: memoryview, task: FileTask) -> Medium:
    """Returns the frames of a file, if their size is within the limits and their numbers are those of a video.

    Raises:
      Garbage: they are not.
    """
    shape, limits = _shape(reply, 1, len(pixels)), task.limits
    kind, count = reply.get("kind"), shape[0]
    if kind not in ("image", "video") or task.kind not in (None, kind) or shape[3] != 3:
        raise Garbage
    if shape[1] * shape[2] > limits.max_pixels or count > (1 if kind == "image" else limits.max_frames_returned):
        raise Garbage
    indices: Any = reply.get("indices")
    times: Any = reply.get("times")
    total: Any = reply.get("total")
    decoded: Any = reply.get("decoded")
    fps: Any = reply.get("fps")
    if not (_numbers(indices, count, int) and _numbers([total, decoded], 2, int)) or not min([*indices, total]) >= 0:
        raise Garbage
    if not _numbers(times, count, float, empty=True) or not _numbers([fps], 1, float, empty=True):
        raise Garbage
    seconds = np.array([math.nan if time is None else time for time in times], np.float64)
    frames: npt.NDArray[np.uint8] = np.frombuffer(pixels, np.uint8).reshape(shape)
    return Medium(kind, task.name, frames, np.array(indices, np.int64), seconds, total, fps=fps, decoded_frames=decoded)


def _shape(reply: dict[str, Any], itemsize: int, length: int) -> list[int]:
    shape = reply.get("shape")
    if not isinstance(shape, list) or len(shape) != 4 or any(type(side) is not int or side < 1 for side in shape):
        raise Garbage
    if math.prod(shape) * itemsize != length:
        raise Garbage
    return shape


def _numbers(given: Any, count: int, kind: type, *, empty: bool = False) -> bool:
    """Whether this is a list of `count` finite numbers that an array holds; None may be among them if `empty`."""
    if not isinstance(given, list) or len(given) != count:
        return False
    found: list[Any] = [number for number in given if not (empty and number is None)]
    return all(type(number) is kind for number in found) and all(abs(number) < 2**62 for number in found)  # NaN is not


def _frames(given: Any, count: int) -> Frames | None:
    """Returns the frames that a worker sent, if they are `count` numbers, and as many finite times or none."""
    if given is None:
        return None
    indices, seconds, total = given["indices"], given["seconds"], given["total"]
    times: Any = [0.0] * count if seconds is None else seconds
    if not len(indices) == len(times) == count or not all(type(number) is int for number in (*indices, total)):
        raise ValueError
    if not all(isinstance(time, float) and math.isfinite(time) for time in times):
        raise ValueError
    return Frames(tuple(indices), None if seconds is None else tuple(times), total)
