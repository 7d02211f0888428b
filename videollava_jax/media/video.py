"""Videos to RGB frames, with PyAV: the wanted frames only, seeking to keyframes where that saves decoding."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from videollava_jax.media.errors import Cause, MediaError, MediaLimits, Source, source_name
from videollava_jax.media.image import checked_size, describe
from videollava_jax.media.sampling import Sampling, Uniform

# FFmpeg goes by content, not by name, and some of its formats open other files (playlists, concat scripts, SDP).
# Only formats that hold their own pictures are let in.
FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,apng,webp_pipe,mpeg,mpegts,mpegvideo,m4v,"
    "h264,hevc,obu,ivf,flv,live_flv,ogg,asf,yuv4mpegpipe,nut,mxf,dv,rm,mjpeg,mjpeg_2000,mp3,wav,flac,aac"
)
# Formats whose seeking by presentation time lands on the keyframe before.
SEEKABLE = {"mov", "matroska", "webm"}
# Decoding this many frames costs about as much as a seek.
SEEK_COST = 4


@dataclass(frozen=True)
class Video:
    """Frames of a video.

    Attributes:
      frames: uint8 [F, H, W, 3], RGB, 0-255, upright.
      indices: int64 [F], which frames of the video they are.
      timestamps: float64 [F], seconds; NaN where the file gives none.
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


@dataclass(frozen=True)
class _Packet:
    pts: int | None
    is_keyframe: bool


def read_video(
    source: Source,
    sampling: Sampling = Uniform(8),  # noqa: B008
    limits: MediaLimits = MediaLimits(),  # noqa: B008
) -> Video:
    """Reads the frames of a video that `sampling` chooses.

    The packets are listed without decoding, which tells the true number of frames; then each wanted frame is
    reached by decoding on or by seeking to the keyframe before it, whichever decodes less. Where a file's
    timestamps cannot be trusted for that, everything is decoded in order. The frames are the same either way.

    Transparency is dropped, 10-bit video becomes 8-bit, rotation metadata is applied.

    Raises:
      MediaError: not a video, damaged, truncated, empty, of a format that could open other files, or larger
        than the limits; checked before frames are allocated.
      ValueError: `sampling` asks for frames that the video does not have.
    """
    return _Reader(source, limits).read(sampling)


class _Reader:
    def __init__(self, source: Source, limits: MediaLimits):
        self.name = source_name(source)
        self.limits = limits
        if isinstance(source, str | os.PathLike):
            size = checked_size(source)
            self.data: bytes | None = None
            self.path: str | None = os.fspath(source)
        else:
            self.data = source if isinstance(source, bytes) else source.read(limits.max_bytes + 1)
            size, self.path = len(self.data), None
        if size > limits.max_bytes:
            raise self.error(Cause.TOO_LARGE, f"{size} bytes, over the limit of {limits.max_bytes}")
        if not size:
            raise self.error(Cause.NOT_MEDIA, "the file is empty")

    def error(self, cause: Cause, message: str) -> MediaError:
        return MediaError(self.name, cause, message)

    def read(self, sampling: Sampling) -> Video:
        with self._open() as container:
            stream = self._stream(container)
            fps = float(stream.average_rate) if stream.average_rate else None
            seekable = container.format.name.split(",")[0] in SEEKABLE
            packets = self._packets(container, stream)
        if not packets:
            raise self.error(Cause.NO_FRAMES, "the video holds no frames")
        pts = [packet.pts for packet in packets if packet.pts is not None]
        if seekable and len(set(pts)) == len(packets):
            total = len(packets)
            wanted = self._wanted(sampling, total, fps)
            order = sorted(pts)
            found = self._by_seeking(packets, [order[i] for i in wanted])
            if found is not None:
                frames, times, decoded = found
                return Video(frames, wanted, times, fps, total, decoded, self.name)
        total = len(packets)
        while True:
            wanted = self._wanted(sampling, total, fps)
            frames, times, decoded = self._sequentially(wanted)
            if decoded == total:
                return Video(frames, wanted, times, fps, total, decoded, self.name)
            if not decoded:
                raise self.error(Cause.NO_FRAMES, f"none of the {len(packets)} packets decodes to a frame")
            # Packets are not always frames (invisible or packed ones): choose again by the true number.
            total = decoded

    def _wanted(self, sampling: Sampling, total: int, fps: float | None) -> npt.NDArray[np.int64]:
        wanted = sampling.indices(total, fps)
        if len(wanted) > self.limits.max_frames_returned:
            raise self.error(
                Cause.TOO_LARGE,
                f"{len(wanted)} frames were asked for, over the limit of {self.limits.max_frames_returned}",
            )
        return wanted

    @contextmanager
    def _open(self) -> Iterator[Any]:
        # A Python file, never a path: FFmpeg then has no protocol to follow.
        with open(self.path, "rb") if self.path is not None else io.BytesIO(self.data or b"") as file:
            try:
                container = av.open(file, options={"format_whitelist": FORMATS}, metadata_errors="replace")
            except (av.FFmpegError, ValueError):
                file.seek(0)
                head = file.read(4096)
                if head[4:8] == b"ftyp":
                    message = "an mp4 whose index (moov) cannot be read: the file is cut short or damaged"
                    raise self.error(Cause.TRUNCATED, message) from None
                raise self.error(Cause.NOT_MEDIA, f"not a video in a known format; got {describe(head)}") from None
            with container:
                yield container

    def _stream(self, container: Any) -> Any:
        pictures = av.stream.Disposition.attached_pic
        streams = [s for s in container.streams.video if not s.disposition & pictures]
        if not streams:
            kinds = ", ".join(sorted({s.type for s in container.streams})) or "nothing"
            raise self.error(Cause.NO_VIDEO_STREAM, f"no video stream; the file holds {kinds}")
        stream = streams[0]
        if stream.codec_context is None:
            raise self.error(Cause.DECODE_FAILED, "no decoder for this video's codec")
        context = stream.codec_context
        if context.width * context.height > self.limits.max_pixels:
            raise self.error(
                Cause.TOO_LARGE,
                f"frames of {context.width} by {context.height} pixels, over the limit of {self.limits.max_pixels}; "
                "raise MediaLimits.max_pixels if it is meant",
            )
        # The header can lie: the decoder checks each frame too, before it allocates.
        context.options = {"max_pixels": str(self.limits.max_pixels)}
        return stream

    def _packets(self, container: Any, stream: Any) -> list[_Packet]:
        """The packets that become frames, in decoding order."""
        packets: list[_Packet] = []
        last = 0
        try:
            for packet in container.demux(stream):
                if packet.size == 0 or packet.is_discard:
                    continue
                if packet.is_corrupt:
                    raise self.error(Cause.TRUNCATED, f"packet {len(packets)} is cut short")
                packets.append(_Packet(packet.pts, packet.is_keyframe))
                last = max(last, (packet.pts or 0) + (packet.duration or 0))
                if len(packets) > self.limits.max_frames:
                    raise self.error(Cause.TOO_LARGE, f"over the limit of {self.limits.max_frames} frames")
        except av.FFmpegError as error:
            raise self._damaged(error, len(packets)) from None
        declared = stream.frames
        if container.format.name.startswith("mov") and len(packets) < declared - stream.codec_context.has_b_frames:
            raise self.error(
                Cause.TRUNCATED, f"the index lists {declared} frames, the file holds {len(packets)}: it is cut short"
            )
        expected = _declared_seconds(stream) if container.format.name.startswith("matroska") else None
        if expected is not None:
            reached = float(last * stream.time_base)
            if reached < expected - max(1.0, 0.02 * expected) or reached < 0.5 * expected:
                raise self.error(
                    Cause.TRUNCATED,
                    f"the header says {expected:.2f} s, the file holds {reached:.2f} s: it is cut short",
                )
        return packets

    def _by_seeking(
        self, packets: list[_Packet], wanted: list[int]
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float64], int] | None:
        """The frames with these timestamps (ascending), or None where the file does not seek as it should."""
        place = {packet.pts: i for i, packet in enumerate(packets)}
        keyframes = [(i, p.pts) for i, p in enumerate(packets) if p.is_keyframe and p.pts is not None]
        kept: dict[int, npt.NDArray[np.uint8]] = {}
        times: dict[int, float] = {}
        decoded, position = 0, 0
        with self._open() as container:
            stream = self._stream(container)
            frames = self._decode(container, stream)
            for pts in sorted(set(wanted)):
                # Not merely the keyframe before it in the file: pictures that are shown before an open group's
                # keyframe but stored after it need the group before.
                usable = [i for i, key_pts in keyframes if i <= place[pts] and key_pts <= pts]
                if usable and usable[-1] > position + SEEK_COST:
                    try:
                        container.seek(packets[usable[-1]].pts, stream=stream, backward=True, any_frame=False)
                    except av.FFmpegError:
                        return None
                    frames = self._decode(container, stream)
                    position = usable[-1]
                for frame in frames:
                    decoded += 1
                    if frame.pts is None or frame.pts > pts:
                        return None
                    if frame.pts == pts:
                        kept[pts], times[pts] = self._pixels(frame), float(frame.time)
                        position = max(position, place[pts])
                        break
                else:
                    return None
        return self._stack([kept[pts] for pts in wanted]), np.array([times[pts] for pts in wanted]), decoded

    def _sequentially(
        self, wanted: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float64], int]:
        """The frames with these numbers, and how many frames the video has; everything is decoded."""
        numbers = set(wanted.tolist())
        kept: dict[int, npt.NDArray[np.uint8]] = {}
        times: dict[int, float] = {}
        decoded = 0
        with self._open() as container:
            for frame in self._decode(container, self._stream(container)):
                if decoded in numbers:
                    kept[decoded] = self._pixels(frame)
                    times[decoded] = float("nan") if frame.time is None else float(frame.time)
                decoded += 1
        chosen = [i for i in wanted.tolist() if i in kept]
        pixels = self._stack([kept[i] for i in chosen]) if chosen else np.zeros((0, 1, 1, 3), np.uint8)
        return pixels, np.array([times[i] for i in chosen]), decoded

    def _decode(self, container: Any, stream: Any) -> Iterator[Any]:
        count = 0
        try:
            for frame in container.decode(stream):
                yield frame
                count += 1
        except (av.FFmpegError, MemoryError) as error:
            raise self._damaged(error, count) from None

    def _pixels(self, frame: Any) -> npt.NDArray[np.uint8]:
        pixels: npt.NDArray[np.uint8] = frame.to_ndarray(format="rgb24")
        # FFmpeg gives the rotation counter-clockwise, as numpy turns.
        return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90) % 4))

    def _stack(self, frames: list[npt.NDArray[np.uint8]]) -> npt.NDArray[np.uint8]:
        shapes = {frame.shape for frame in frames}
        if len(shapes) > 1:
            raise self.error(Cause.DECODE_FAILED, f"frames change size within the video: {sorted(shapes)}")
        return np.stack(frames)

    def _damaged(self, error: BaseException, count: int) -> MediaError:
        if isinstance(error, av.error.InvalidDataError):
            return self.error(Cause.DECODE_FAILED, f"the video is damaged after frame {count}")
        return self.error(Cause.DECODE_FAILED, f"decoding failed after frame {count} ({type(error).__name__})")


def _declared_seconds(stream: Any) -> float | None:
    """The length that a Matroska muxer wrote beside the stream, `00:00:06.000000000`, or None without one."""
    match = re.fullmatch(r"(\d+):(\d+):(\d+\.?\d*)", stream.metadata.get("DURATION", ""))
    return None if match is None else int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3])
