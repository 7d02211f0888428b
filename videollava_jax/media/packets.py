"""Lists the packets of a video without decoding them: how many frames there are, and where decoding can begin."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import av
import numpy as np

from videollava_jax.media.container import OpenVideo, library_error
from videollava_jax.media.errors import Cause, MediaError, MediaLimits
from videollava_jax.media.pictures import COUNTERS, Broken, Count
from videollava_jax.media.source import OpenSource


@dataclass
class PacketTable:
    """Every packet of a stream, in decoding order. A packet's position is its index in this table.

    Attributes:
      pts: presentation times, in the stream's time base; None if the file gives none.
      keyframes: positions of the packets marked as keyframes.
      shown: positions of the packets that become frames, twice for a packet of two. The others are second fields, hold
        no picture, or are only references for these: the alternate references of VP8 and VP9, and frames that an edit
        list hides.
      hidden: positions of the packets that hold pictures, none of them shown.
      discarded: positions of the packets that an edit list hides.
      leading: positions of packets before the first keyframe, and of those that refer to frames before it.
      counted: whether the pictures were counted in the packets themselves; otherwise each packet is taken for a frame.
      layered: whether frames are in several temporal layers.
      starts: whether decoding can begin with the first packet, as the container or the packet itself says.
      timed: whether the file gives times; FFmpeg invents some for raw streams.
      doubtful: how many of the shown packets may yield no frame, as the packet is not whole.
    """

    pts: list[int | None] = field(default_factory=list)
    keyframes: list[int] = field(default_factory=list)
    shown: list[int] = field(default_factory=list)
    hidden: list[int] = field(default_factory=list)
    discarded: list[int] = field(default_factory=list)
    leading: set[int] = field(default_factory=set)
    counted: bool = False
    layered: bool = False
    starts: bool = False
    timed: bool = True
    doubtful: int = 0

    @cached_property
    def order(self) -> list[int]:
        """Positions of the shown packets in the order in which they are presented."""
        return sorted(self.shown, key=lambda position: self.pts[position] or 0)

    @cached_property
    def times(self) -> list[int | None]:
        """The presentation times of the frames, in their order; none where there are none."""
        return [] if not self.timed else [self.pts[position] for position in self.order]

    @cached_property
    def numbers(self) -> dict[int | None, int]:
        """The number of each frame by its presentation time."""
        return {self.pts[position]: number for number, position in enumerate(self.order)}

    @cached_property
    def holding(self) -> set[int]:
        """Positions of the packets whose decoding must not fail: those that hold pictures."""
        return {*self.shown, *self.hidden, *self.discarded}

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
    def skippable(self) -> bool:
        """Whether a decoder may leave out pictures that no other refers to, without a change in those that are wanted.

        That takes a codec that we read, and packets of one frame each: no second fields, no hidden references.
        """
        return self.counted and not self.layered and self.shown == list(range(len(self.pts)))

    @cached_property
    def undecodable(self) -> int:
        """How many shown packets refer to frames before the file's first, as the recording began within a group."""
        if self.counted:
            return sum(position in self.leading for position in self.shown)
        first = self.keyframes[0] if self.keyframes else len(self.pts)
        start = self.pts[first] if self.keyframes else None
        times = ((position, self.pts[position]) for position in self.shown)
        return sum(
            position < first or (time is not None and start is not None and time < start) for position, time in times
        )

    @property
    def fewest(self) -> int:
        """How many frames must decode."""
        return len(self.shown) - self.doubtful - self.undecodable

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


def list_packets(source: OpenSource, video: OpenVideo, limits: MediaLimits) -> PacketTable:
    """Reads every packet of the stream without decoding.

    Raises:
      MediaError: the file is damaged or cut short, has no packet, has more than `max_frames`, or has fewer than its
        container says.
    """
    listing = _Listing(source, video)
    table, stated = listing.table, video.stated
    try:
        for packet in packets_of(video.container, video.stream):
            source.check_time()
            if len(table.pts) >= limits.max_frames:
                raise MediaError(
                    source.name,
                    Cause.TOO_LARGE,
                    f"more than {limits.max_frames} frames; raise MediaLimits.max_frames if they are meant",
                )
            listing.add(packet)
    except (av.FFmpegError, MemoryError) as error:
        raise library_error(source.name, error, f"reading stopped after packet {len(table.pts)}") from None
    if stated is not None:
        stated.check(len(table.pts), len(table.pts) - len(table.discarded))
    if not table.shown:
        raise MediaError(source.name, Cause.NO_FRAMES, "expected frames, got a video stream without any")
    if stated is not None:
        _check_hidden(source, table)
        _check_nested(source, table, listing.nested, certain=video.format == "avi")
    return table


class _Listing:
    """Fills a table, packet by packet.

    Attributes:
      nested: positions of packets that seem to hold the next one too.
    """

    def __init__(self, source: OpenSource, video: OpenVideo):
        self.source, self.video = source, video
        context = video.stream.codec_context
        counter = COUNTERS.get(context.name)
        self.count = counter(bytes(context.extradata or b"")) if counter else None
        self.beginning = _Beginning()
        self.table = PacketTable(timed=video.has_times, counted=counter is not None)
        self.nested: list[int] = []

    def add(self, packet: Any) -> None:
        table, stated = self.table, self.video.stated
        position, content = len(table.pts), bytes(packet)
        # Transport streams mark gaps in reception so; elsewhere the mark means that the file ends in the packet.
        if packet.is_corrupt and self.video.format != "mpegts":
            raise MediaError(self.source.name, Cause.TRUNCATED, f"cut short in packet {position}; fetch it again")
        table.pts.append(packet.pts)
        if packet.is_keyframe:
            table.keyframes.append(position)
        if stated is not None and stated.nested and stated.nested(content):
            self.nested.append(position)
        found = self._counted(position, content)
        marked = position == 0 and ((stated is not None and stated.keyframe_first) or found.starts)
        if position == 0:
            self.table.starts = bool(packet.is_keyframe or found.starts)
        if self.beginning.precedes(found, packet.is_keyframe or marked):
            table.leading.add(position)
        if packet.is_discard:
            table.discarded.append(position)
            return
        table.layered |= found.upper
        table.shown += [position] * found.shown
        if found.hidden:
            table.hidden.append(position)

    def _counted(self, position: int, content: bytes) -> Count:
        try:
            return self.count(content) if self.count else Count()
        except Broken as error:
            if self.video.stated is not None:
                message = f"damaged: packet {position}: {error}"
                raise MediaError(self.source.name, Cause.DECODE_FAILED, message) from None
        self.table.doubtful += 1
        return Count()


def _check_nested(source: OpenSource, table: PacketTable, positions: list[int], *, certain: bool) -> None:
    """Refuses packets that seem to hold the next one too; where that is not certain, if a frame's time is missing."""
    times = np.array(sorted(time for time in table.pts if time is not None), np.float64)
    for position in positions:
        time = table.pts[position]
        later = times[np.searchsorted(times, time, side="right") :][:1] if time is not None else times[:0]
        if certain or not len(later) or later[0] - time > 1.5 * np.median(np.diff(times)):
            message = f"damaged: packet {position} holds the next one too"
            raise MediaError(source.name, Cause.DECODE_FAILED, message)


class _Beginning:
    """Tells which frames refer to frames before the first keyframe, as the recording began within a group.

    In an open group these are the B pictures up to the next other picture, in the order in which they are stored.
    """

    def __init__(self) -> None:
        self._begun = self._open = False
        self._recovering = 0

    def precedes(self, count: Count, keyframe: bool) -> bool:
        """Returns whether a packet's frames refer to what is not there; called for each packet in order."""
        if not count.shown:
            return False
        if not self._begun:
            if not keyframe:
                return True
            self._begun, self._open, self._recovering = True, not count.closed, count.recovery
            only_b = False  # a keyframe is none, whatever it says
        else:
            only_b = count.only_b
            self._open &= only_b
        recovering = self._recovering > 0
        self._recovering -= count.shown if recovering else 0
        return recovering or (self._open and only_b)


def packets_of(container: Any, stream: Any) -> Iterator[Any]:
    """Yields the stream's packets from the container's position on, except empty ones, which would end decoding."""
    for packet in container.demux(stream):
        if packet.size:
            yield packet


def _check_hidden(source: OpenSource, table: PacketTable) -> None:
    """Refuses a hidden frame that stands where a shown one should.

    Encoders give a hidden reference frame the time of a shown one, or one next to it. Where it has a time of its own,
    as far from its neighbours as they are from each other, its mark was changed, and a frame would go missing.
    """
    shown = np.array([time for time in (table.pts[at] for at in table.shown) if time is not None], np.float64)
    gaps = np.diff(np.unique(shown))
    if not len(gaps) or len(shown) < len(table.shown):
        return
    for position in table.hidden:
        time = table.pts[position]
        if position in table.leading or time is None:
            continue
        if np.abs(shown - time).min() > 0.75 * np.median(gaps):
            message = f"damaged: packet {position} is marked as hidden, and no other frame has its time"
            raise MediaError(source.name, Cause.DECODE_FAILED, message)
