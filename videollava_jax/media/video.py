"""Reads chosen frames of a video as RGB, with PyAV, seeking to keyframes where that saves decoding."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from videollava_jax.media import animation
from videollava_jax.media.container import library_error, opened_video, reopened_video, still_image
from videollava_jax.media.deadline import Deadline
from videollava_jax.media.errors import Cause, MediaError, MediaLimits
from videollava_jax.media.frame_files import FrameFiles
from videollava_jax.media.frame_sampling import FrameSampling, TimedSampling, Uniform
from videollava_jax.media.image import check_pixels, read_image
from videollava_jax.media.packets import PacketTable, list_packets, packets_of
from videollava_jax.media.source import OpenSource, Source, open_source

# Formats with an index of keyframes. In others a seek is a search that may land elsewhere.
_INDEXED = {"mov", "matroska", "avi"}
# Formats whose every image is a frame.
_ANIMATIONS = {"gif", "apng"}
# Decoding this many frames costs about as much as a seek.
_SEEK_COST = 4


@dataclass(frozen=True)
class Video:
    """Frames of a video.

    Attributes:
      frames: uint8 [F, H, W, 3], RGB, 0-255, upright.
      indices: int64 [F], the numbers of these frames in the video, from 0 in the order of presentation.
      timestamps: float64 [F], seconds since the video's first frame; NaN if the file gives none.
      fps: average frames per second, None if the file gives none.
      total_frames: frames in the video.
      decoded_frames: how many frames were decoded to get these.
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
    source: Source | FrameFiles | Sequence[str | os.PathLike[str]],
    frame_sampling: FrameSampling = Uniform(8),  # noqa: B008
    limits: MediaLimits = MediaLimits(),  # noqa: B008
) -> Video:
    """Reads the frames of a video that `frame_sampling` chooses.

    First the packets are listed without decoding, which gives the true number of frames, whatever the header says.
    Then each wanted frame is reached by decoding on or by seeking to a keyframe, whichever decodes less. If the
    packets do not identify the frames for certain, or a seek lands on another packet than expected, everything is
    decoded in order instead. The frames are the same either way.

    Rotation and mirroring metadata are applied; non-square pixels stay as they are. 10-bit video becomes 8-bit;
    transparency is dropped, not blended. A GIF of one frame is a video of one frame; other still images are refused.
    Formats that do not state their length (transport and program streams, FLV, ASF, raw streams) are read to their end.

    Args:
      source: a path, the bytes of a file, or a binary file object; or `FrameFiles` or a list of paths, image files that
        are the frames of one video.
      frame_sampling: which frames; the default `Uniform(8)` is that of transformers' documentation.
      limits: a larger video is refused before memory is taken.

    Raises:
      MediaError: the file is not a video, is damaged, cut short, empty, of a format that could open other files, or
        over the limits; or frames that it should hold do not decode, or change their size.
      ValueError: `frame_sampling` asks for frames that the video does not have.
    """
    if isinstance(source, (list, tuple)):
        source = FrameFiles(source)
    if isinstance(source, FrameFiles):
        return _read_files(source, frame_sampling, limits)
    with open_source(source, limits.max_bytes, limits.seconds) as opened:  # type: ignore[arg-type]
        reader = _Reader(opened, frame_sampling, limits)
        return reader.read_webp() if animation.is_webp(opened) else reader.read()


def _read_files(files: FrameFiles, frame_sampling: FrameSampling, limits: MediaLimits) -> Video:
    total = len(files.paths)
    if total > limits.max_frames:
        raise MediaError(files.name, Cause.TOO_LARGE, f"over the limit of {limits.max_frames} frames")
    times = files.times()
    wanted = _wanted(files.name, frame_sampling, limits, total, files.fps, times if files.fps else None, 0.0)
    picked, deadline = _Picked(files.name, limits, wanted), Deadline(limits.seconds)
    for number in sorted(picked.numbers):
        deadline.check(files.name)
        picked.add(number, read_image(files.paths[number], limits), times[number])
    return picked.video(files.fps, total)


def _wanted(
    name: str,
    frame_sampling: FrameSampling,
    limits: MediaLimits,
    total: int,
    fps: float | None,
    times: npt.NDArray[np.float64] | None,
    tick: float,
) -> npt.NDArray[np.int64]:
    """Returns the frame numbers that `frame_sampling` chooses, checked against the video and the limits."""
    if times is not None and isinstance(frame_sampling, TimedSampling):
        wanted = np.asarray(frame_sampling.indices_at(times, tick))
    else:
        wanted = np.asarray(frame_sampling.indices(total, fps))
    if wanted.ndim != 1 or not len(wanted) or wanted.min() < 0 or wanted.max() >= total:
        raise ValueError(f"{frame_sampling}: expected numbers of frames from 0 to {total - 1}, got {wanted}")
    if len(wanted) > limits.max_frames_returned:
        limit = f"the limit max_frames_returned of {limits.max_frames_returned}"
        raise MediaError(name, Cause.TOO_LARGE, f"{frame_sampling} asks for {len(wanted)} frames, over {limit}")
    return wanted.astype(np.int64)


def _ascending(times: Sequence[int | None], tick: float) -> npt.NDArray[np.float64] | None:
    """Returns the times of all frames, seconds after the first; None if the file gives none, or impossible ones."""
    if not tick or not times or None in times:
        return None
    ticks = np.array(times, np.int64)
    seconds: npt.NDArray[np.float64] = (ticks - ticks[0]) * tick
    return seconds if (np.diff(seconds) >= 0).all() and (len(times) == 1 or seconds[-1] > 0) else None


def _rate(stated: float | None, times: npt.NDArray[np.float64] | None) -> float | None:
    """Returns the average frames per second: what the file states, unless its frames have other times."""
    if times is None or len(times) < 2 or not times[-1]:
        return stated
    measured = float((len(times) - 1) / times[-1])
    return stated if stated and abs(stated / measured - 1) < 0.02 else measured


class _CannotSeek(Exception):
    """A seek failed, or landed elsewhere than the packets said. The file is fine, but must be decoded in order."""


class _Reader:
    """Reads the wanted frames of one open video."""

    def __init__(self, source: OpenSource, frame_sampling: FrameSampling, limits: MediaLimits):
        self.source = source
        self.frame_sampling = frame_sampling
        self.limits = limits

    def read(self) -> Video:
        with opened_video(self.source, self.limits) as video:
            container, stream = video.container, video.stream
            table = list_packets(self.source, video, self.limits)
            exact = video.stated is not None and table.counted and table.starts
            exact |= video.format in _ANIMATIONS
            tick = float(stream.time_base or 0)
            stated, total = video.rate, len(table.shown)
            times = _ascending(table.times, tick)
            fps = _rate(stated, times)
            wanted = self._wanted(total, fps, times, tick)
            if table.seekable and video.format in _INDEXED:
                # Where leaving frames out confuses the decoder's order, all are decoded.
                for skipping in (True, False) if table.skippable else (False,):
                    try:
                        return self._by_seeking(container, stream, table, wanted, skipping).video(fps, total)
                    except _CannotSeek:
                        pass
        while True:
            picked, all_times = self._in_order(table, wanted, exact, stated)
            # A packet can hold two frames, the first frames of a recording may not decode, and a raw stream has no
            # times before it is decoded. Now that the true number and times are known, choose again.
            total, times = picked.decoded, _ascending(all_times, tick)
            fps = _rate(stated, times)
            chosen = self._wanted(total, fps, times, tick)
            if np.array_equal(chosen, wanted):
                return picked.video(fps, total)
            wanted = chosen

    def read_webp(self) -> Video:
        if animation.frame_count(self.source, self.limits) < 2:
            raise still_image(self.source)
        times = animation.times(self.source, self.limits)
        total, fps = len(times), _rate(None, times)
        wanted = self._wanted(total, fps, times, 0.001)
        picked = _Picked(self.source.name, self.limits, wanted)
        for pixels, time in zip(animation.play(self.source, self.limits), times, strict=True):
            self.source.check_time()
            picked.add(picked.decoded, pixels, float(time))
        return picked.video(fps, total)

    def _wanted(
        self, total: int, fps: float | None, times: npt.NDArray[np.float64] | None, tick: float
    ) -> npt.NDArray[np.int64]:
        return _wanted(self.source.name, self.frame_sampling, self.limits, total, fps, times, tick)

    def _by_seeking(
        self, container: Any, stream: Any, table: PacketTable, wanted: npt.NDArray[np.int64], skipping: bool
    ) -> _Picked:
        picked = _Picked(self.source.name, self.limits, wanted)
        first = table.pts[table.order[0]]
        needed = {table.order[number] for number in picked.numbers} if skipping else None
        run = None
        for number in sorted(picked.numbers):
            self.source.check_time()
            start = table.start_for(table.order[number])
            if start is None:
                raise _CannotSeek
            if run is None or start > run.position + _SEEK_COST:
                run = _Run(container, stream, table, start, needed)
            for at, frame in run.frames:
                if at == number:
                    picked.add(number, frame, float((frame.pts - first) * stream.time_base))
                    break
                picked.decoded += 1
                self.source.check_time()
            else:
                raise _CannotSeek
        return picked

    def _in_order(
        self, table: PacketTable, wanted: npt.NDArray[np.int64], exact: bool, rate: float | None
    ) -> tuple[_Picked, list[int | None]]:
        """Decodes everything; returns the wanted frames and the time of every frame, in the stream's time base."""
        picked, times = _Picked(self.source.name, self.limits, wanted), list[int | None]()
        with reopened_video(self.source, self.limits) as video:
            stream = video.stream
            for frame in self._decoded(video.container, stream, table):
                if not table.timed:
                    picked.add(picked.decoded, frame, picked.decoded / rate if rate else np.nan)
                    continue
                times.append(frame.pts)
                known = frame.pts is not None and times[0] is not None
                picked.add(picked.decoded, frame, float((frame.pts - times[0]) * stream.time_base) if known else np.nan)
        more = exact and picked.decoded > len(table.shown)
        fewest = len(table.shown) if exact and not table.counted else table.fewest
        if not picked.decoded or picked.decoded < fewest or more:
            cause = Cause.DECODE_FAILED if picked.decoded else Cause.NO_FRAMES
            message = f"damaged: it holds {len(table.shown)} frames, of which {picked.decoded} could be decoded"
            raise MediaError(self.source.name, cause, message)
        return picked, times

    def _decoded(self, container: Any, stream: Any, table: PacketTable) -> Iterator[Any]:
        context = stream.codec_context
        first_keyframe = table.keyframes[0] if table.keyframes else 0
        count = 0
        try:
            for position, packet in enumerate(packets_of(container, stream)):
                self.source.check_time()
                try:
                    frames = packet.decode()
                except av.error.InvalidDataError:
                    if position < first_keyframe or position not in table.holding:
                        continue
                    raise
                yield from frames
                count += len(frames)
            yield from context.decode(None)
        except (av.FFmpegError, MemoryError) as error:
            check_pixels(self.source.name, "frames", context.width, context.height, self.limits)
            raise library_error(self.source.name, error, f"decoding stopped after frame {count}") from None


class _Run:
    """Decodes from a keyframe on and checks each packet and frame against the packet table.

    Attributes:
      position: position of the packet that the decoder received last.
      needed: positions of the packets whose frames are wanted. Of the others those that no frame refers to are not
        decoded, about half of a usual film. None to decode all.
      frames: yields frames with their numbers, in the order of presentation and, if all are decoded, without gaps. Only
        frames presented before the keyframe, which are not wanted, may be missing.
    """

    def __init__(self, container: Any, stream: Any, table: PacketTable, start: int, needed: set[int] | None):
        self.table = table
        self.position = start
        self.needed = needed
        self.frames = self._numbered(container, stream, start)

    def _numbered(self, container: Any, stream: Any, start: int) -> Iterator[tuple[int, Any]]:
        try:
            container.seek(self.table.pts[start], stream=stream)
            packets = packets_of(container, stream)
            packet = next(packets, None)
            landed = self._keyframe(packet, start)
            # From the first packet on, the first frame must be number 0.
            last = -1 if landed == 0 else None
            for frame in self._decoded(chain([packet], packets), stream.codec_context, landed):
                number = self.table.numbers.get(frame.pts)
                if number is None or (last is not None and not self._follows(number, last)):
                    raise _CannotSeek
                if last is not None or self._is_keyframe(frame, landed):
                    last = number
                yield number, frame
        except av.FFmpegError:
            raise _CannotSeek from None

    def _decoded(self, packets: Iterable[Any], context: Any, landed: int) -> Iterator[Any]:
        for position, packet in enumerate(packets, landed):
            self.position = position
            if position >= len(self.table.pts) or packet.pts != self.table.pts[position]:
                raise _CannotSeek
            if self.needed is not None:
                context.skip_frame = "DEFAULT" if position in self.needed else "NONREF"
            try:
                yield from packet.decode()
            except av.error.InvalidDataError:
                if position in self.table.holding:
                    raise
        yield from context.decode(None)

    def _follows(self, number: int, last: int) -> bool:
        return number == last + 1 if self.needed is None else number > last

    def _keyframe(self, packet: Any, start: int) -> int:
        """Returns the position of the keyframe on which a seek landed, at `start` or before."""
        for position in self.table.keyframes:
            if packet is None or position > start:
                break
            if self.table.pts[position] == packet.pts:
                return position
        raise _CannotSeek

    def _is_keyframe(self, frame: Any, landed: int) -> bool:
        """Returns whether this is the frame of the packet on which the seek landed; it must then be a keyframe."""
        time = self.table.pts[landed]
        if time is None or frame.pts > time or (frame.pts == time and not frame.key_frame):
            raise _CannotSeek
        return bool(frame.pts == time)


class _Picked:
    """Collects the wanted frames among the decoded ones, by number."""

    def __init__(self, source: str, limits: MediaLimits, wanted: npt.NDArray[np.int64]):
        self.source, self.limits, self.wanted = source, limits, wanted
        self.numbers: set[int] = set(wanted.tolist())
        self.frames: dict[int, npt.NDArray[np.uint8]] = {}
        self.seconds: dict[int, float] = {}
        self.decoded = 0

    def add(self, number: int, frame: Any, seconds: float) -> None:
        """Counts a decoded frame, and keeps its pixels if it is wanted."""
        self.decoded += 1
        if number not in self.numbers:
            return
        try:
            pixels = frame if isinstance(frame, np.ndarray) else upright_rgb(frame)
        except (av.FFmpegError, ValueError, MemoryError) as error:
            raise library_error(self.source, error, f"frame {number} cannot be converted to RGB") from None
        if getattr(frame, "is_corrupt", False):
            raise MediaError(self.source, Cause.DECODE_FAILED, f"frame {number} is damaged")
        shape = next(iter(self.frames.values()), pixels).shape
        if pixels.shape != shape:
            message = f"its frames change size, from {shape[1]} by {shape[0]} to {pixels.shape[1]} by {pixels.shape[0]}"
            raise MediaError(self.source, Cause.DECODE_FAILED, message)
        if len(self.wanted) * pixels.nbytes > self.limits.max_bytes_returned:
            limit = f"the limit max_bytes_returned of {self.limits.max_bytes_returned}"
            message = f"{len(self.wanted)} frames take {len(self.wanted) * pixels.nbytes} bytes, over {limit}"
            raise MediaError(self.source, Cause.TOO_LARGE, message)
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
            source=self.source,
        )


def upright_rgb(frame: Any) -> npt.NDArray[np.uint8]:
    """Converts a decoded frame to uint8 [H, W, 3], rotated by right angles and mirrored as its display matrix says.

    The matrix maps a point (x, y), with y downwards, to (a x + c y, b x + d y).
    """
    pixels: npt.NDArray[np.uint8] = frame.to_ndarray(format="rgb24")
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return pixels
    a, b, _, c, d = np.frombuffer(bytes(matrix)[:20], np.int32).tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):
        pixels, a, d = pixels.transpose(1, 0, 2), c, b
    return np.ascontiguousarray(pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])
