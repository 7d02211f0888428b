"""Lists the packets of a video without decoding them: how many frames there are, and where decoding can begin."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import av

from videollava_jax.media.container import library_error
from videollava_jax.media.errors import Cause, MediaError, MediaLimits
from videollava_jax.media.source import OpenSource


@dataclass
class PacketTable:
    """Every packet of a stream, in decoding order. A packet's position is its index in this table.

    Attributes:
      pts: presentation times, in the stream's time base; None if the file gives none.
      keyframes: positions of the packets marked as keyframes.
      shown: positions of the packets that become frames. The others are only references for these: the alternate
        references of VP8 and VP9, and frames that an edit list hides.
      doubtful: how many of the shown packets may yield no frame ("not coded" pictures of MPEG-4).
    """

    pts: list[int | None] = field(default_factory=list)
    keyframes: list[int] = field(default_factory=list)
    shown: list[int] = field(default_factory=list)
    doubtful: int = 0

    @cached_property
    def order(self) -> list[int]:
        """Positions of the shown packets in the order in which they are presented."""
        return sorted(self.shown, key=lambda position: self.pts[position] or 0)

    @cached_property
    def numbers(self) -> dict[int | None, int]:
        """The number of each frame by its presentation time."""
        return {self.pts[position]: number for number, position in enumerate(self.order)}

    @cached_property
    def seekable(self) -> bool:
        """Whether the table gives each frame's number and time for certain.

        That takes: every packet has a time and no two are equal, every shown packet is a frame, and the first packet
        is a keyframe that is presented first (a decoder drops frames before it, so all numbers would be off).
        """
        times = [self.pts[position] for position in self.shown]
        first = self.pts[0] if self.pts else None
        if first is None or None in times or self.doubtful or self.keyframes[:1] != [0]:
            return False
        return len(set(times)) == len(times) and all(time is not None and time >= first for time in times)

    @cached_property
    def undecodable(self) -> int:
        """How many shown packets refer to frames before the file's first, as the recording began within a group."""
        first = self.keyframes[0] if self.keyframes else len(self.pts)
        start = self.pts[first] if self.keyframes else None
        times = ((position, self.pts[position]) for position in self.shown)
        return sum(
            position < first or (time is not None and start is not None and time < start) for position, time in times
        )

    def start_for(self, position: int) -> int | None:
        """Returns the position of the last keyframe from which this frame decodes correctly, or None.

        That is not always the last keyframe stored before the frame: in an open group, frames that are presented
        before the keyframe but stored after it refer to the previous group.

            stored     I0 P3 B1 B2   I6 B4 B5   P9 ...
            presented  I0 B1 B2 P3   B4 B5 I6   P9 ...       B4 and B5 need P3: they start from I0
        """
        time = self.pts[position]
        for number in range(bisect_right(self.keyframes, position) - 1, -1, -1):
            start = self.keyframes[number]
            start_time = self.pts[start]
            if start_time is not None and time is not None and start_time <= time:
                return start
        return None


def list_packets(source: OpenSource, container: Any, stream: Any, limits: MediaLimits) -> PacketTable:
    """Reads every packet of the stream without decoding.

    Raises:
      MediaError: the file is damaged or cut short, has no packet, or has more than `max_frames`.
    """
    table = PacketTable()
    codec = stream.codec_context.name
    try:
        for packet in packets_of(container, stream):
            position = len(table.pts)
            if position >= limits.max_frames:
                raise MediaError(
                    source.name,
                    Cause.TOO_LARGE,
                    f"more than {limits.max_frames} frames; raise MediaLimits.max_frames if they are meant",
                )
            # Transport streams mark gaps in reception so; elsewhere the mark means that the file ends in the packet.
            if packet.is_corrupt and container.format.name != "mpegts":
                raise MediaError(source.name, Cause.TRUNCATED, f"cut short in packet {position}; fetch it again")
            table.pts.append(packet.pts)
            if packet.is_keyframe:
                table.keyframes.append(position)
            if not packet.is_discard and _shows(codec, packet):
                table.shown.append(position)
                table.doubtful += codec == "mpeg4" and packet.size < 20
    except (av.FFmpegError, MemoryError) as error:
        raise library_error(source.name, error, f"reading stopped after packet {len(table.pts)}") from None
    if not table.shown:
        raise MediaError(source.name, Cause.NO_FRAMES, "expected frames, got a video stream without any")
    return table


def packets_of(container: Any, stream: Any) -> Iterator[Any]:
    """Yields the stream's packets from the container's position on, except empty ones, which would end decoding."""
    for packet in container.demux(stream):
        if packet.size:
            yield packet


def _shows(codec: str, packet: Any) -> bool:
    """Returns whether a packet becomes a frame. VP8 and VP9 have packets that do not; their first bits say so."""
    data = memoryview(packet)
    first = data[0]
    if codec.endswith("vp8"):  # RFC 6386, 9.1: bit 4 of the frame tag is show_frame
        return bool(first & 0x10)
    if codec.endswith("vp9"):  # VP9 bitstream specification, 6.2: marker 10, profile, show_existing, type, show
        if _is_superframe(data):
            return True
        reserved = (first & 0x30) == 0x30  # profile 3 has one bit more
        bits = first << 1 if reserved else first
        return bool(bits & 0x08) or bool(bits & 0x02)
    return True


def _is_superframe(data: memoryview) -> bool:
    """Returns whether a VP9 packet holds several frames: hidden ones, then one that is shown.

    By annex B of the bitstream specification such a packet ends with an index between two equal bytes: the marker
    110, the width of a size minus one (2 bits), and the number of frames minus one (3 bits).
    """
    marker = data[-1]
    length = 2 + ((marker >> 3 & 3) + 1) * ((marker & 7) + 1)
    return marker & 0xE0 == 0xC0 and len(data) >= length and data[-length] == marker
