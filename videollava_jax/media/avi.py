"""Walks over the chunks of an AVI and counts those of each stream: FFmpeg skips chunks whose names it does not know."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from videollava_jax.media.errors import Cause, MediaError
from videollava_jax.media.source import OpenSource

# Forty hours of video and sound. In a hostile file of tiny chunks the check stops here.
_MAX_CHUNKS = 10_000_000
# A stream's number, and what it is: video (compressed or not), a palette, sound, text, a part of an index.
_DATA = re.compile(rb"(\d\d)(dc|db|pc|wb|tx|sb|iv|dx)|ix\d\d|JUNK", re.DOTALL)
_NESTED = re.compile(rb"\d\d(?:dc|db)")
_FRAMES = (b"dc", b"db", b"iv", b"dx")


@dataclass(frozen=True)
class _Chunk:
    """A chunk: a four-character name, a length and content, padded to an even length; lists have a kind as well."""

    name: bytes
    kind: bytes
    start: int
    end: int


def count_chunks(source: OpenSource) -> list[int]:
    """Walks over the chunks that hold frames.

    Returns:
      How many frames there are of each video stream, in the order of the streams, without empty ones, which repeat
      the frame before; none if the recording was never finished, so that no sizes stand in it.

    Raises:
      MediaError: where a chunk should begin there is none, or one of a stream that is not there.
    """
    walk = _Walk(source)
    offset = 0
    while offset + 12 <= source.size:
        chunk = walk.chunk(offset)
        if chunk.name != b"RIFF" or chunk.end == chunk.start:
            break  # bytes after the end, or a recording that was never finished
        walk.lists(chunk.start, min(chunk.end, source.size))
        offset = chunk.end + (chunk.end & 1)
    return [walk.frames[i] for i, kind in enumerate(walk.streams) if kind == b"vids"] if walk.finished else []


def holds_a_chunk(packet: bytes) -> bool:
    """Whether a packet ends with a whole chunk of a video: its length may have been changed to reach over it."""
    for found in _NESTED.finditer(packet):
        start = found.end() + 4
        if start + int.from_bytes(packet[found.end() : start], "little") in (len(packet), len(packet) - 1):
            return True
    return False


class _Walk:
    """Collects the streams of an AVI and counts their frames."""

    def __init__(self, source: OpenSource):
        self.source = source
        self.streams: list[bytes] = []
        self.frames: Counter[int] = Counter()
        self.finished = True
        self.chunks = 0

    def chunk(self, offset: int) -> _Chunk:
        head = self.source.read(offset, 12)
        end = offset + 8 + int.from_bytes(head[4:8], "little")
        is_list = head[:4] in (b"RIFF", b"LIST")
        return _Chunk(head[:4], head[8:12] if is_list else b"", offset + (12 if is_list else 8), end)

    def lists(self, start: int, end: int) -> None:
        """Reads the chunks of the file and of its header, of any name."""
        while start + 8 <= end:
            chunk = self.chunk(start)
            if chunk.kind == b"movi":
                if chunk.end <= chunk.start:
                    self.finished = False
                    return
                if chunk.end > end:
                    raise self._damaged(start)
                self._data(chunk.start, chunk.end)
            elif chunk.kind in (b"hdrl", b"strl"):
                self.lists(chunk.start, min(chunk.end, end))
            elif chunk.name == b"strh":
                self.streams.append(self.source.read(chunk.start, 4))
            start = chunk.end + (chunk.end & 1)

    def _data(self, start: int, end: int) -> None:
        """Reads the chunks of frames and sound."""
        while start + 8 <= end:
            chunk = self.chunk(start)
            self.chunks += 1
            if self.chunks > _MAX_CHUNKS or chunk.end > end:
                raise self._damaged(start)
            if chunk.kind == b"rec ":
                self._data(chunk.start, chunk.end)
            else:
                self._one(chunk, start)
            start = chunk.end + (chunk.end & 1)

    def _one(self, chunk: _Chunk, offset: int) -> None:
        name, size = _DATA.fullmatch(chunk.name), chunk.end - chunk.start
        if name is None:
            raise self._damaged(offset)
        if name[1] is None:
            return
        number, what = int(name[1]), name[2]
        if number >= len(self.streams):
            raise self._damaged(offset)
        is_video = self.streams[number] == b"vids"
        if is_video != (what in (*_FRAMES, b"pc")) or (what == b"pc" and not self._is_palette(chunk)):
            raise self._damaged(offset)
        self.frames[number] += what in _FRAMES and size > 0

    def _is_palette(self, chunk: _Chunk) -> bool:
        """Whether a chunk is as long as the colours that it changes: the first one, their number (0 for 256)."""
        count = self.source.read(chunk.start + 1, 1)
        return bool(count) and chunk.end - chunk.start == 4 + 4 * (count[0] or 256)

    def _damaged(self, offset: int) -> MediaError:
        return MediaError(self.source.name, Cause.DECODE_FAILED, f"the video is damaged at byte {offset}")
