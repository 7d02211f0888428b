"""Reads the boxes of MP4 and related formats, and checks that the index does not announce more than the file can hold.

When FFmpeg opens a file it unpacks the index, to about 40 bytes for each sample of each track. The index is
run-length encoded: 4 kB can announce four thousand million samples. So the samples are counted before FFmpeg opens
the file.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from videollava_jax.media.errors import Cause, MediaError, MediaLimits
from videollava_jax.media.source import OpenSource

# FFmpeg looks for tables inside these, at any depth. `free` and `hoov` are names for a `moov` that was replaced.
_PARENTS = frozenset(
    b"moov trak mdia minf stbl edts moof traf mvex dinf udta tref ilst wave sinf iprp ipco free hoov".split()
)
# Sample descriptions hold boxes after fields that differ by codec, so the boxes in them are found by their names.
_TABLES = re.compile(b"stsz|stz2|trun|elst|stts|stsc|stco|co64")
_MAX_DESCRIPTION = 16 * 2**20
# About three hours of a recording in fragments of a thirtieth of a second, with seven boxes in each.
_MAX_BOXES = 2_000_000
_MAX_DEPTH = 32
_MAX_TRACKS = 1000  # FFmpeg's own limit
# Bytes of a compressed index after unpacking; the index of ten hours takes about 30 MB.
_MAX_UNPACKED = 64 * 2**20
# FFmpeg keeps sound whose samples are single values in pieces of this many values, each perhaps less than a byte.
_SOUND_PIECE = 1024
_SOUND_VALUES_PER_BYTE = 64
# Each edit repeats part of the index: with many edits the index can be longer than the file.
_EDITED_PER_FRAME = 16


@dataclass(frozen=True)
class Box:
    """A box: a length, a four-character code, and content.

    Attributes:
      kind: the code.
      start: offset of the content.
      end: offset of the end by the box's own length, which may lie beyond the end of the file.
    """

    kind: bytes
    start: int
    end: int


def boxes(source: OpenSource, start: int, end: int) -> Iterator[Box]:
    """Yields the boxes from `start` to `end` one after the other, until one has an impossible length."""
    while start + 8 <= end:
        header = source.read(start, 16)
        if len(header) < 8:
            return
        length, kind = struct.unpack_from(">I4s", header)
        content = start + 8
        if length == 1 and len(header) == 16:
            (length,) = struct.unpack_from(">Q", header, 8)
            content += 8
        elif length == 0:
            length = end - start
        if start + length < content:
            return
        start += length
        yield Box(kind, content, start)


def check_index(source: OpenSource, limits: MediaLimits) -> None:
    """Refuses an index that would take memory out of proportion to the size of the file.

    Every sample takes at least one byte, of media data or of a table, so a file of `size` bytes has at most `size`.

    Raises:
      MediaError: there are more samples than bytes, an edit list repeats the index many times, or a compressed index
        unpacks to more than `_MAX_UNPACKED` bytes.
    """
    index = _Index(source, limits)
    index.read(source, 0, source.size)
    index.check()


@dataclass
class _Track:
    """The counts that the tables of one track announce."""

    handlers: set[bytes] = field(default_factory=set)
    samples: int = 0
    edits: int = 1
    single_values: bool = False  # one run of durations, each one tick
    chunks: int = 0
    runs: npt.NDArray[np.float64] | None = None  # [runs, 2]: first chunk, samples a chunk

    def entries(self, size: int) -> int:
        """Returns how many entries FFmpeg's index will have for this track."""
        if self.handlers != {b"soun"} or not self.single_values or self.runs is None:
            return self.samples
        first, samples = self.runs.T
        values = float((np.maximum(np.append(first[1:], self.chunks + 1) - first, 0) * samples).sum())
        return int(values if values > size * _SOUND_VALUES_PER_BYTE else self.chunks + values // _SOUND_PIECE)


class _Index:
    """The sum of what all tables of a file announce."""

    def __init__(self, source: OpenSource, limits: MediaLimits):
        self.source, self.limits = source, limits
        self.tracks = [_Track()]
        self.fragmented = 0
        self.unpacked = 0
        self.boxes = 0

    def read(self, source: OpenSource, start: int, end: int) -> None:
        """Adds up the tables in the boxes from `start` to `end`."""
        ranges = [boxes(source, start, end)]
        while ranges:
            box = next(ranges[-1], None)
            if box is None:
                ranges.pop()
                continue
            self.boxes += 1
            if box.kind == b"trak":
                self.tracks.append(_Track())
            if self.boxes > _MAX_BOXES or len(ranges) > _MAX_DEPTH or len(self.tracks) > _MAX_TRACKS:
                raise self._error(f"an index of more than {_MAX_BOXES} boxes or {_MAX_TRACKS} tracks")
            box_end = min(box.end, source.size)
            if box.kind in _PARENTS:
                ranges.append(boxes(source, box.start, box_end))
            elif box.kind == b"cmov":
                self._unpack(source, box.start, box_end)
            elif box.kind == b"meta":
                handler = source.read(box.start, 64).find(b"hdlr")  # before it 4 bytes of flags, or none
                ranges.append(boxes(source, box.start + max(0, handler - 4), box_end))
            elif box.kind == b"stsd":
                if box_end - box.start > _MAX_DESCRIPTION:
                    raise self._error(f"sample descriptions of {box_end - box.start} bytes")
                for found in _TABLES.finditer(source.read(box.start, box_end - box.start)):
                    self._table(source, found[0], box.start + found.end(), box_end)
            else:
                self._table(source, box.kind, box.start, box_end)

    def check(self) -> None:
        """Raises a MediaError if the sum is out of proportion to the file."""
        size = self.source.size + self.unpacked
        entries = self.fragmented + sum(track.entries(size) for track in self.tracks)
        if entries > size:
            raise self._error(f"its index announces {entries} samples in {size} bytes")
        for track in self.tracks:
            if track.edits > 1 and track.entries(size) * track.edits > self.limits.max_frames * _EDITED_PER_FRAME:
                raise self._error(f"an edit list of {track.edits} parts over {track.samples} samples")

    def _table(self, source: OpenSource, kind: bytes, start: int, end: int) -> None:
        track = self.tracks[-1]
        if kind in (b"stsz", b"stz2"):
            track.samples = max(track.samples, _number(source, start + 8))
        elif kind == b"trun":
            self.fragmented += _number(source, start + 4)
        elif kind == b"elst":
            track.edits = max(track.edits, _number(source, start + 4))
        elif kind == b"hdlr":
            track.handlers |= {source.read(start + 8, 4)} & {b"vide", b"soun", b"subp", b"clcp"}
        elif kind == b"stts":
            track.single_values = _number(source, start + 4) == 1 and _number(source, start + 12) == 1
        elif kind in (b"stco", b"co64"):
            track.chunks = max(track.chunks, _number(source, start + 4))
        elif kind == b"stsc":
            table = source.read(start + 8, max(0, end - start - 8))
            rows = min(_number(source, start + 4), len(table) // 12)
            track.runs = np.frombuffer(table, ">u4", rows * 3).reshape(rows, 3)[:, :2].astype(np.float64)

    def _unpack(self, source: OpenSource, start: int, end: int) -> None:
        """Reads QuickTime's compressed movie header: `dcom`, which says zlib, and `cmvd`, which holds a `moov`."""
        content = source.read(start, end - start)
        if content[4:12] != b"dcomzlib" or content[16:20] != b"cmvd":
            return
        if self.unpacked:
            raise self._error("more than one compressed index")
        unpacker = zlib.decompressobj()
        try:
            moov = unpacker.decompress(content[24:], _MAX_UNPACKED)
        except zlib.error:
            return  # FFmpeg will refuse it too
        if unpacker.unconsumed_tail:
            raise self._error(f"a compressed index that unpacks to more than {_MAX_UNPACKED} bytes")
        self.unpacked = len(moov)
        self.read(OpenSource(self.source.name, io.BytesIO(moov), len(moov), self.source.deadline), 0, len(moov))

    def _error(self, message: str) -> MediaError:
        return MediaError(self.source.name, Cause.TOO_LARGE, message)


def _number(source: OpenSource, offset: int) -> int:
    return int.from_bytes(source.read(offset, 4), "big")
