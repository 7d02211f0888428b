"""Videos to RGB frames, with PyAV: the wanted frames only, seeking to keyframes where that saves decoding."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from videollava_jax.media import animation
from videollava_jax.media.container import library_error, opened_video, reopened_video, still_image
from videollava_jax.media.errors import Cause, MediaError, MediaLimits
from videollava_jax.media.frame_sampling import FrameSampling, Uniform
from videollava_jax.media.image import check_pixels
from videollava_jax.media.packets import PacketTable, list_packets, packets_of
from videollava_jax.media.source import OpenSource, Source, open_source

# Formats that find keyframes by an index; elsewhere a seek is a search, and lands where it can.
_INDEXED = {"mov", "matroska", "avi"}
# Decoding this many frames costs about as much as a seek.
_SEEK_COST = 4


@dataclass(frozen=True)
class Video:
    """Frames of a video.

    Attributes:
      frames: uint8 [F, H, W, 3], RGB, 0-255, upright.
      indices: int64 [F], which frames of the video they are, counted from 0 in the order of presentation.
      timestamps: float64 [F], seconds after the video's first frame; NaN where the file gives none.
      fps: average frames a second, None where the file gives none.
      total_frames: frames in the video.
      decoded_frames: frames decoded to get these.
      source: the name of the file.
    """

    frames: npt.NDArray[np.uint8]
    indices: npt.NDArray[np.int64]
    timestamps: npt.NDArray[np.float64]
    fps: float | None
    total_frames: int
    decoded_frames: int
    source: str


def read_video(
    source: Source,
    frame_sampling: FrameSampling = Uniform(8),  # noqa: B008
    limits: MediaLimits = MediaLimits(),  # noqa: B008
) -> Video:
    """Reads the frames of a video that `frame_sampling` chooses.

    The packets are listed without decoding, which tells the true number of frames, whatever the header says; then
    each wanted frame is reached by decoding on or by seeking to a keyframe, whichever decodes less. Where a file's
    packets do not tell frames for certain, or a seek does not land on the packet it should, everything is decoded
    in order instead. The frames are the same either way.

    Rotation and mirroring metadata are applied, the shape of pixels is not. 10-bit video becomes 8-bit; transparency
    is dropped, not blended. A GIF of one frame is a video of one frame; other still images are refused. Formats that
    do not tell their length (transport and program streams, FLV, ASF, raw streams) are read as far as they go.

    Args:
      source: a path, the bytes of a file, or a binary file object.
      frame_sampling: which frames; `Uniform(8)` is what Video-LLaVA's users know.
      limits: beyond these the video is refused, before memory is taken.

    Raises:
      MediaError: not a video, damaged, cut short, empty, of a format that could open other files, or larger than
        the limits; also where frames that the file should hold do not decode, or change their size.
      ValueError: `frame_sampling` asks for frames that the video does not have.
    """
    with open_source(source, limits.max_bytes) as opened:
        reader = _Reader(opened, frame_sampling, limits)
        return reader.read_webp() if animation.is_webp(opened) else reader.read()


class _Disagreement(Exception):
    """A seek did not land where the packets said, or the file did not seek at all: nothing wrong, but no short cut."""


class _Reader:
    def __init__(self, source: OpenSource, frame_sampling: FrameSampling, limits: MediaLimits):
        self.source = source
        self.frame_sampling = frame_sampling
        self.limits = limits

    def read(self) -> Video:
        with opened_video(self.source, self.limits) as (container, stream):
            table = list_packets(self.source, container, stream, self.limits)
            rate = stream.average_rate or stream.guessed_rate
            fps = float(rate) if rate else None
            total = len(table.shown)
            wanted = self._wanted(total, fps)
            if table.seekable and container.format.name.split(",")[0] in _INDEXED:
                try:
                    return self._by_seeking(container, stream, table, wanted).video(fps, total)
                except _Disagreement:
                    pass
        while True:
            picked = self._in_order(table, wanted)
            if picked.decoded == total:
                return picked.video(fps, total)
            # A packet can hold two pictures, and a recording begin with some that do not decode: choose again by
            # the true number.
            total = picked.decoded
            wanted = self._wanted(total, fps)

    def read_webp(self) -> Video:
        if animation.frame_count(self.source, self.limits) < 2:
            raise still_image(self.source)
        times = [time for _, time in animation.play(self.source, self.limits)]
        total, fps = len(times), (len(times) - 1) / times[-1] if times[-1] else None
        wanted = self._wanted(total, fps)
        picked = _Picked(self.source, self.limits, wanted)
        for pixels, time in animation.play(self.source, self.limits):
            picked.add(picked.decoded, pixels, time)
        return picked.video(fps, total)

    def _wanted(self, total: int, fps: float | None) -> npt.NDArray[np.int64]:
        """The numbers that `frame_sampling` chooses, checked against the video and the limits."""
        wanted = np.asarray(self.frame_sampling.indices(total, fps))
        if wanted.ndim != 1 or not len(wanted) or wanted.min() < 0 or wanted.max() >= total:
            raise ValueError(f"{self.frame_sampling}: expected numbers of frames from 0 to {total - 1}, got {wanted}")
        if len(wanted) > self.limits.max_frames_returned:
            limit = f"the limit max_frames_returned of {self.limits.max_frames_returned}"
            message = f"{self.frame_sampling} asks for {len(wanted)} frames, over {limit}"
            raise MediaError(self.source.name, Cause.TOO_LARGE, message)
        return wanted.astype(np.int64)

    def _by_seeking(self, container: Any, stream: Any, table: PacketTable, wanted: npt.NDArray[np.int64]) -> _Picked:
        picked = _Picked(self.source, self.limits, wanted)
        first = table.pts[table.order[0]]
        run = None
        for number in sorted(picked.numbers):
            start = table.start_for(table.order[number])
            if start is None:
                raise _Disagreement
            if run is None or start > run.position + _SEEK_COST:
                run = _Run(container, stream, table, start)
            for at, frame in run.frames:
                if at == number:
                    picked.add(number, frame, float((frame.pts - first) * stream.time_base))
                    break
                picked.decoded += 1
            else:
                raise _Disagreement
        return picked

    def _in_order(self, table: PacketTable, wanted: npt.NDArray[np.int64]) -> _Picked:
        picked = _Picked(self.source, self.limits, wanted)
        first = None
        with reopened_video(self.source, self.limits) as (container, stream):
            for frame in self._decoded(container, stream, table):
                first = frame.pts if picked.decoded == 0 else first
                known = frame.pts is not None and first is not None
                picked.add(picked.decoded, frame, float((frame.pts - first) * stream.time_base) if known else np.nan)
        fewest = len(table.shown) - table.doubtful - table.undecodable
        if not picked.decoded or picked.decoded < fewest:
            cause = Cause.DECODE_FAILED if picked.decoded else Cause.NO_FRAMES
            message = f"damaged: it holds {len(table.shown)} frames, of which {picked.decoded} could be decoded"
            raise MediaError(self.source.name, cause, message)
        return picked

    def _decoded(self, container: Any, stream: Any, table: PacketTable) -> Iterator[Any]:
        context = stream.codec_context
        first_keyframe = table.keyframes[0] if table.keyframes else 0
        count = 0
        try:
            for position, packet in enumerate(packets_of(container, stream)):
                try:
                    frames = packet.decode()
                except av.error.InvalidDataError:
                    if position < first_keyframe:
                        continue
                    raise
                yield from frames
                count += len(frames)
            yield from context.decode(None)
        except (av.FFmpegError, MemoryError) as error:
            check_pixels(self.source.name, "frames", context.width, context.height, self.limits)
            raise library_error(self.source, error, f"decoding stopped after frame {count}") from None


class _Run:
    """Decoding from a keyframe on, each packet and each frame held against the table.

    Attributes:
      position: that of the packet last given to the decoder.
      frames: frames with their numbers, in the order of presentation. Each follows the one before it without a gap;
        only those shown before the keyframe, for which nobody asks, may be missing.
    """

    def __init__(self, container: Any, stream: Any, table: PacketTable, start: int):
        self.table = table
        self.position = start
        self.frames = self._numbered(container, stream, start)

    def _numbered(self, container: Any, stream: Any, start: int) -> Iterator[tuple[int, Any]]:
        try:
            container.seek(self.table.pts[start], stream=stream)
            packets = packets_of(container, stream)
            packet = next(packets, None)
            landed = self._keyframe(packet, start)
            # Decoding from the first packet on is decoding in order.
            last = -1 if landed == 0 else None
            for frame in self._decoded(chain([packet], packets), stream.codec_context, landed):
                number = self.table.numbers.get(frame.pts)
                if number is None or (last is not None and number != last + 1):
                    raise _Disagreement
                if last is not None or self._is_keyframe(frame, landed):
                    last = number
                yield number, frame
        except av.FFmpegError:
            raise _Disagreement from None

    def _decoded(self, packets: Iterable[Any], context: Any, landed: int) -> Iterator[Any]:
        for position, packet in enumerate(packets, landed):
            self.position = position
            if position >= len(self.table.pts) or packet.pts != self.table.pts[position]:
                raise _Disagreement
            yield from packet.decode()
        yield from context.decode(None)

    def _keyframe(self, packet: Any, start: int) -> int:
        """The position of the keyframe on which a seek landed, at `start` or before."""
        for position in self.table.keyframes:
            if packet is None or position > start:
                break
            if self.table.pts[position] == packet.pts:
                return position
        raise _Disagreement

    def _is_keyframe(self, frame: Any, landed: int) -> bool:
        """Whether the packet landed on has come out, as the keyframe that its container calls it."""
        time = self.table.pts[landed]
        if time is None or frame.pts > time or (frame.pts == time and not frame.key_frame):
            raise _Disagreement
        return bool(frame.pts == time)


class _Picked:
    """The wanted frames among those decoded, by number."""

    def __init__(self, source: OpenSource, limits: MediaLimits, wanted: npt.NDArray[np.int64]):
        self.source, self.limits, self.wanted = source, limits, wanted
        self.numbers: set[int] = set(wanted.tolist())
        self.frames: dict[int, npt.NDArray[np.uint8]] = {}
        self.seconds: dict[int, float] = {}
        self.decoded = 0

    def add(self, number: int, frame: Any, seconds: float) -> None:
        """Counts a frame, and keeps its pixels if it is wanted."""
        self.decoded += 1
        if number not in self.numbers:
            return
        try:
            pixels = frame if isinstance(frame, np.ndarray) else upright_rgb(frame)
        except (av.FFmpegError, ValueError, MemoryError) as error:
            raise library_error(self.source, error, f"frame {number} cannot be converted to RGB") from None
        if getattr(frame, "is_corrupt", False):
            raise MediaError(self.source.name, Cause.DECODE_FAILED, f"frame {number} is damaged")
        shape = next(iter(self.frames.values()), pixels).shape
        if pixels.shape != shape:
            message = f"its frames change size, from {shape[1]} by {shape[0]} to {pixels.shape[1]} by {pixels.shape[0]}"
            raise MediaError(self.source.name, Cause.DECODE_FAILED, message)
        if len(self.wanted) * pixels.nbytes > self.limits.max_bytes_returned:
            limit = f"the limit max_bytes_returned of {self.limits.max_bytes_returned}"
            message = f"{len(self.wanted)} frames take {len(self.wanted) * pixels.nbytes} bytes, over {limit}"
            raise MediaError(self.source.name, Cause.TOO_LARGE, message)
        self.frames[number] = pixels
        self.seconds[number] = seconds

    def video(self, fps: float | None, total: int) -> Video:
        numbers = self.wanted.tolist()
        return Video(
            frames=np.stack([self.frames[number] for number in numbers]),
            indices=self.wanted,
            timestamps=np.array([self.seconds[number] for number in numbers]),
            fps=fps,
            total_frames=total,
            decoded_frames=self.decoded,
            source=self.source.name,
        )


def upright_rgb(frame: Any) -> npt.NDArray[np.uint8]:
    """A decoded frame as uint8 [H, W, 3], turned and mirrored as its display matrix says, in right angles.

    The matrix maps a point (x, y), y downwards, to (a x + c y, b x + d y).
    """
    pixels: npt.NDArray[np.uint8] = frame.to_ndarray(format="rgb24")
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return pixels
    a, b, _, c, d = np.frombuffer(bytes(matrix)[:20], np.int32).tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):
        pixels, a, d = pixels.transpose(1, 0, 2), c, b
    return np.ascontiguousarray(pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])
