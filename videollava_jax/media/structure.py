"""Checks by a container's own headers that a file is complete, and says how many frames they announce."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from videollava_jax.media import avi, chunks, gif, matroska, mp4
from videollava_jax.media.errors import Cause, MediaError, MediaLimits, cut_short
from videollava_jax.media.mp4_tracks import Statement, read_statements
from videollava_jax.media.source import OpenSource

# In a hostile file of tiny boxes the check stops here.
_MAX_STEPS = 500_000
_MP4_FIRST = {b"ftyp", b"styp", b"moov", b"moof", b"mdat", b"free", b"skip", b"wide", b"pnot"}
_MP4_INDEX = {b"moov", b"moof", b"meta"}  # meta is the index of AVIF images


class Stated(Protocol):
    """What a container says about the frames of one track."""

    @property
    def keyframe_first(self) -> bool:
        """Whether the first frame is marked as a keyframe."""

    @property
    def nested(self) -> Callable[[bytes], bool] | None:
        """Says whether a packet seems to hold the next one too; None where that cannot be."""

    def check(self, packets: int, shown: int) -> None:
        """Compares with the packets that FFmpeg found, all of them and those that an edit list does not hide.

        Raises:
          MediaError: some are missing, or there are more.
        """


@dataclass(frozen=True)
class StatedFrames:
    """What most containers say.

    Attributes:
      name: of the file.
      frames: how many there are, each a packet; None if the container does not say.
      keyframe_first: whether the first one is marked as a keyframe.
      nested: whether a packet seems to hold the next one too.
    """

    name: str
    frames: int | None
    keyframe_first: bool = False
    nested: Callable[[bytes], bool] | None = None

    def check(self, packets: int, shown: int) -> None:
        """See `Stated.check`."""
        if self.frames not in (None, packets):
            message = f"damaged: its container holds {self.frames} frames, but {packets} could be read"
            raise MediaError(self.name, Cause.DECODE_FAILED, message)


@dataclass(frozen=True)
class Structure:
    """What a container says of its video tracks, in the order of the tracks; for MP4 what its index says, by id."""

    name: str
    videos: list[StatedFrames] | None = None
    tracks: dict[int, Statement] | None = None

    def of(self, number: int, track: int) -> Stated | None:
        """Returns what is said of the video track of an order number and, in MP4, of an id; None for other formats."""
        if self.tracks:
            if track not in self.tracks and len(self.tracks) > 1:
                raise MediaError(self.name, Cause.DECODE_FAILED, f"damaged: its index has no track {track}")
            return self.tracks.get(track) or next(iter(self.tracks.values()))
        if self.tracks is not None:
            return StatedFrames(self.name, None)  # a compressed index
        if self.videos is None:
            return None
        return self.videos[number] if number < len(self.videos) else StatedFrames(self.name, None)


def read_structure(source: OpenSource, limits: MediaLimits) -> Structure:
    """Checks a video's structure and counts its frames: MP4 and related formats, Matroska, AVI, GIF.

    Raises:
      MediaError: the file ends too early, has a gap, or is an MP4 without its index (a recording never finished), or
        its index would take memory out of proportion.
    """
    head = source.read(0, 16)
    if head[:6] in gif.MAGIC:
        return Structure(source.name, [StatedFrames(source.name, gif.count_images(source, limits))])
    if head.startswith(chunks.PNG):
        frames = chunks.count_png_frames(source)
        return Structure(source.name, None if frames is None else [StatedFrames(source.name, frames)])
    check_whole(source)
    mp4.check_index(source, limits)
    if head[4:8] in _MP4_FIRST:
        return Structure(source.name, tracks=read_statements(source))
    if head.startswith(matroska.MAGIC):
        counts = matroska.count_blocks(source, limits)
        return Structure(source.name, [StatedFrames(source.name, *count, matroska.holds_a_block) for count in counts])
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        frames_of = avi.count_chunks(source)
        return Structure(source.name, [StatedFrames(source.name, n, nested=avi.holds_a_chunk) for n in frames_of])
    return Structure(source.name)


def read_index(source: OpenSource) -> Structure:
    """Counts the frames of a file that FFmpeg takes for an MP4 though it does not begin like one."""
    return Structure(source.name, tracks=read_statements(source))


def check_whole(source: OpenSource) -> None:
    """Checks the sizes in MP4 and related formats, AVI, WebP and GIF.

    Raises:
      MediaError: the file ends too early, or is an MP4 without its index (a recording never finished).
    """
    head = source.read(0, 16)
    if head[4:8] in _MP4_FIRST:
        _check_mp4(source)
    elif head[:4] == b"RIFF" and head[8:12] in (b"AVI ", b"WEBP"):
        # The last chunk may lack its padding byte if its length is odd; size 0 means the recording was not finished.
        end = 8 + int.from_bytes(head[4:8], "little")
        if end > source.size + 1:
            raise cut_short(source.name, source.size, end)
    elif head[:6] in gif.MAGIC:
        gif.check_blocks(source)


def _check_mp4(source: OpenSource) -> None:
    """Checks the outermost boxes. Bytes at the end of the file that are no box are accepted, as players do."""
    kinds: set[bytes] = set()
    end = 0
    for step, box in enumerate(mp4.boxes(source, 0, source.size)):
        if step == _MAX_STEPS:
            return
        end = box.end
        if end > source.size:
            if box.kind in _MP4_INDEX or (box.kind == b"mdat" and kinds & _MP4_INDEX):
                raise cut_short(source.name, source.size, end)
            break
        kinds.add(box.kind)
    if not kinds & _MP4_INDEX and end + 8 > source.size:
        message = "cut short: it ends before its index (moov); fetch or copy it again"
        raise MediaError(source.name, Cause.TRUNCATED, message)
