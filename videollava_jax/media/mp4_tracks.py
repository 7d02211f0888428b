"""Reads from an MP4's index how many frames its tracks hold, in every table that says so, and whether they agree.

FFmpeg reads on when tables disagree or a box has a name that it does not know, and does not report the frames that are
lost. A frame may be missing for one reason only: an edit list hides it. As one changed number in an edit list or in the
times could hide frames too, the list must agree with all durations if it hides any.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from videollava_jax.media.errors import Cause, MediaError, cut_short
from videollava_jax.media.mp4 import Box, boxes
from videollava_jax.media.source import OpenSource

_TOP_OF_FRAGMENTED = set(
    b"ftyp styp moov moof mdat free skip wide uuid sidx ssix mfra prft emsg pdin meta udta".split()
)
_IN_FRAGMENT = set(b"mfhd traf meta pssh uuid free skip".split())
_IN_TRACK_FRAGMENT = set(b"tfhd tfdt trun sdtp sbgp sgpd subs saiz saio senc meta uuid free skip".split())
_IN_TRACK = set(b"tkhd edts mdia meta udta tref trgr load tapt clip matt crgn hnti uuid free skip wide".split())
_IN_TABLES = set(
    b"stsd stts ctts cslg stsc stsz stz2 stco co64 stss stsh stps padb stdp".split()
    + b"sdtp sbgp sgpd subs saiz saio uuid free".split()
)
_ON_THE_WAY = (b"mdia", b"minf", b"stbl", b"edts")
_MAX_TABLE = 256 * 2**20


@dataclass
class Statement:
    """What the tables of one track say.

    Attributes:
      name: of the file.
      frames: samples that are not empty; None without a table of sizes.
      samples: how many sizes there are.
      mapped: how many samples the table of chunks places.
      bytes: of all samples.
      unclaimed: bytes of media data in the file that are no track's sample.
      in_fragments: samples in fragments.
      edits: of each part of the edit list, its duration by the movie's clock and its start by the track's; -1 is a gap.
      movie_clock, clock: ticks a second, of the movie and of the track.
      shown_for, duration: of the track with its edits, in the movie's clock; of its samples, in its own.
      runs: int64 [runs, 2], counts of samples and their duration.
      whole: whether the first sample is a keyframe.
      odd: whether there are boxes of unknown kinds, which may have been tables.
      has_edits: whether there should be an edit list.
      delay: from the first sample's decoding to its showing.
      reordering: how much this differs between samples.
    """

    name: str
    frames: int | None = None
    samples: int = 0
    mapped: int | None = None
    bytes: int = 0
    unclaimed: int = 0
    in_fragments: int = 0
    edits: list[tuple[int, int]] = field(default_factory=list)
    movie_clock: int = 0
    clock: int = 0
    shown_for: int = 0
    duration: int = 0
    runs: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 2), np.int64))
    whole: bool = True
    odd: bool = False
    has_edits: bool = False
    delay: int = 0
    reordering: int = 0

    @property
    def keyframe_first(self) -> bool:
        """See `structure.Stated`."""
        return False  # FFmpeg goes by the index

    @property
    def nested(self) -> None:
        """See `structure.Stated`."""

    def check(self, packets: int, shown: int) -> None:
        """See `structure.Stated.check`."""
        if self.mapped is not None and self.mapped != self.samples:
            raise self._damaged(f"its index has sizes of {self.samples} frames and places for {self.mapped}")
        if self.frames is not None and self.frames < self.samples and self.unclaimed > 0:
            raise self._damaged(f"its index has {self.samples - self.frames} empty frames, and no frame has some bytes")
        if (self.odd or self.has_edits) and not self.edits and self._is_shortened():
            raise self._damaged("its track is shorter than its frames, and it has no edit list")
        if self.frames is None:
            return
        stated = self.frames + self.in_fragments
        if shown == packets == stated:
            return
        if not self.edits or self.in_fragments:
            raise self._damaged(f"its index has {stated} frames, but {shown} could be read")
        self._check_edits(stated, shown)

    def _check_edits(self, stated: int, shown: int) -> None:
        hides = f"its index has {stated} frames and its edit list shows {shown}, but"
        parts, gaps = (sum(part[0] for part in self.edits if (part[1] >= 0) == kept) for kept in (True, False))
        # With an empty part at the beginning some writers count it into the track's length, some do not.
        if min(abs(parts + gaps - self.shown_for), abs(parts - self.shown_for)) > len(self.edits):
            raise self._damaged(f"{hides} its parts are not as long as the track")
        if self.odd:
            raise self._damaged(f"{hides} one of its tables has an unknown name")
        if not self.clock or not _is_plausible(self.movie_clock, self.clock) or not len(self.runs):
            raise self._damaged(f"{hides} by a clock of {self.movie_clock} ticks a second")
        if self.runs[:, 0].sum() != self.samples:
            raise self._damaged(f"{hides} there are times of {self.runs[:, 0].sum()}")
        lengths = np.repeat(self.runs[:, 1], self.runs[:, 0])
        longest = int(lengths.max())
        if abs(int(lengths.sum()) - self.duration) > longest + max(
            self.delay, self.reordering
        ):  # some count from the first shown
            raise self._damaged(f"{hides} its frames are not as long as the track")
        if len(self.runs) == 1 and (int(lengths.sum()) - self.duration) % longest:
            raise self._damaged(f"{hides} the track does not last for a number of frames")
        times = self.delay + np.cumsum(lengths) - lengths
        expected = 0
        for duration, start in self.edits:
            end = start + duration * self.clock / self.movie_clock
            rounding = 1 + 2 * self.clock / self.movie_clock
            if start >= 0 and end > int(lengths.sum()) + self.delay + rounding:
                raise self._damaged(f"{hides} it reaches beyond the track's end")
            # Where the end is rounded, a beginning a moment after a frame's would be meant to be that frame's.
            if end > int(lengths.sum()) + self.delay and ((start - times > 0) & (start - times < rounding)).any():
                raise self._damaged(f"{hides} it begins a moment after a frame")
            expected += int(((times >= start) & (times < end)).sum()) if start >= 0 else 0
        # Durations that differ are not in the order of showing; a part of a group begins with frames out of order.
        if abs(expected - shown) > (len(self.runs) > 1 or not self.whole):
            raise self._damaged(f"{hides} by their times {expected} would be shown")

    def _is_shortened(self) -> bool:
        """Whether the track's header says that less is shown than the samples last."""
        lasts = int((self.runs[:, 0] * self.runs[:, 1]).sum())
        return bool(self.shown_for * self.clock < (lasts - 2 * int(self.runs[:, 1].max(initial=0))) * self.movie_clock)

    def _damaged(self, message: str) -> MediaError:
        return MediaError(self.name, Cause.DECODE_FAILED, f"damaged: {message}")


def _is_plausible(movie_clock: int, clock: int) -> bool:
    """Whether a writer would choose this clock: round, slow, or the track's; by another all edits move."""
    related = movie_clock and (clock % movie_clock == 0 or movie_clock % clock == 0)
    return 0 < movie_clock <= 10**7 and bool(movie_clock <= 1000 or movie_clock % 100 == 0 or related)


def read_statements(source: OpenSource) -> dict[int, Statement]:
    """Returns what the index says of each track, by the track's id; nothing of a compressed index.

    Raises:
      MediaError: a fragment is missing, of no track, or holds what no fragment may.
    """
    tracks: dict[int, Statement] = {}
    clock, sequence = 0, None
    top = list(boxes(source, 0, source.size))
    fragmented = any(box.kind == b"moof" for box in top)
    for box in top:
        end = min(box.end, source.size)
        if box.kind == b"moov" and not tracks:
            for child in boxes(source, box.start, end):
                if child.kind == b"mvhd":
                    clock = _clock_and_duration(source, child)[0]
                elif child.kind == b"trak":
                    number, track = _track(source, child)
                    tracks[number] = track
        elif fragmented and box.kind not in _TOP_OF_FRAGMENTED:
            raise _unknown(source, box)
        elif box.kind == b"moof":
            if box.end > source.size:
                raise cut_short(source.name, source.size, box.end)
            sequence = _fragment(source, Box(box.kind, box.start, end), tracks, sequence)
    if fragmented and (top[-1].end < source.size or top[-1].kind == b"moof"):  # half a header, or none of its frames
        raise cut_short(source.name, source.size, top[-1].end + 8)
    media = sum(min(box.end, source.size) - box.start for box in top if box.kind == b"mdat")
    claimed = sum(track.bytes for track in tracks.values())
    for track in tracks.values():
        track.movie_clock, track.unclaimed = clock, 0 if fragmented else media - claimed
    return tracks


def _track(source: OpenSource, trak: Box) -> tuple[int, Statement]:
    number, track = 0, Statement(source.name)
    runs, chunks = None, None
    pending = [trak]
    while pending:
        parent = pending.pop()
        for box in boxes(source, parent.start, min(parent.end, source.size)):
            known = _IN_TRACK if parent is trak else _IN_TABLES if parent.kind == b"stbl" else (box.kind,)
            track.odd |= box.kind not in known
            if box.kind in _ON_THE_WAY:
                pending.append(box)
                track.has_edits |= box.kind == b"edts"
            elif box.kind == b"tkhd":
                number, track.shown_for = _id_and_duration(source, box)
            elif box.kind == b"mdhd":
                track.clock, track.duration = _clock_and_duration(source, box)
            elif box.kind == b"elst":
                track.edits = _edits(source, box)
            elif box.kind == b"stss":
                track.whole = _number(source, box.start + 4) == 0 or _number(source, box.start + 8) == 1
            elif box.kind == b"stts":
                track.runs = _table(source, box, 2)
            elif box.kind == b"ctts":
                later = _table(source, box, 2)[:, 1].astype(np.int32).astype(np.int64)  # of both versions, with a sign
                if len(later):
                    track.delay, track.reordering = int(later[0]), int(later.max() - later.min())
            elif box.kind in (b"stsz", b"stz2"):
                track.samples, track.frames, track.bytes = _sizes(source, box)
            elif box.kind == b"stsc":
                runs = _table(source, box, 3)
            elif box.kind in (b"stco", b"co64"):
                chunks = _number(source, box.start + 4)
    if runs is not None and chunks is not None:
        track.mapped = _mapped(runs, chunks)
    return number, track


def _mapped(runs: npt.NDArray[np.int64], chunks: int) -> int:
    """Returns how many samples lie in the chunks; a run says from which chunk on there are how many in each."""
    first = runs[:, 0]
    lengths = np.clip(np.append(first[1:], chunks + 1) - first, 0, None)
    return int((lengths * runs[:, 1]).sum())


def _fragment(
    source: OpenSource, moof: Box, tracks: dict[int, Statement], before: tuple[int, bytes] | None
) -> tuple[int, bytes] | None:
    """Adds the samples of a fragment to its tracks; returns its number and the rest of its header's bytes."""
    number = None
    content = source.read(moof.start, min(moof.end - moof.start, 2**16))
    for box in boxes(source, moof.start, moof.end):
        if box.kind not in _IN_FRAGMENT or box.end > moof.end or _too_long(box):
            raise _unknown(source, box)
        if box.kind == b"mfhd":
            number = _number(source, box.start + 4)
        elif box.kind == b"traf":
            _track_fragment(source, box, tracks)
    if number is None or box.end != moof.end:
        raise _damaged(source, moof, "a fragment without a number, or not filled by its boxes")
    if before is not None and (number > before[0] + 1 or (number, content) == before):
        raise _damaged(source, moof, f"fragment {number} follows fragment {before[0]}")
    return number, content


def _too_long(box: Box) -> bool:
    """Whether a box of fixed fields reaches over the next one."""
    return box.end - box.start > {b"mfhd": 8, b"tfhd": 32, b"tfdt": 12}.get(box.kind, 2**63)


def _track_fragment(source: OpenSource, traf: Box, tracks: dict[int, Statement]) -> None:
    track = None
    for box in boxes(source, traf.start, traf.end):
        if box.kind not in _IN_TRACK_FRAGMENT or box.end > traf.end or _too_long(box):
            raise _unknown(source, box)
        if box.kind == b"tfhd":
            track = tracks.get(_number(source, box.start + 4))
        elif box.kind == b"trun":
            if track is None:
                raise _damaged(source, box, "a fragment of no track")
            flags, samples = _number(source, box.start) & 0xFFFFFF, _number(source, box.start + 4)
            fields = (flags >> 8 & 15).bit_count()
            size = 8 + 4 * ((flags & 1) + (flags >> 2 & 1)) + 4 * fields * samples
            if size != box.end - box.start:
                raise _damaged(source, box, "a fragment's table of another length than it says")
            track.in_fragments += samples
    if track is None or box.end != traf.end:
        raise _damaged(source, traf, "a fragment of no track, or not filled by its boxes")


def _sizes(source: OpenSource, box: Box) -> tuple[int, int, int]:
    """Returns how many samples a table of sizes has, how many of them are not empty, and the bytes of all."""
    common, samples = _number(source, box.start + 4), _number(source, box.start + 8)
    width = {8: 1, 16: 2}.get(common & 0xFF, 0) if box.kind == b"stz2" else 4
    if (box.kind == b"stsz" and common) or not width:
        return samples, samples, samples * common
    content = _content(source, box, 12)[: samples * width]
    sizes = np.frombuffer(content, f">u{width}", len(content) // width)
    return samples, samples - int((sizes == 0).sum()), int(sizes.sum(dtype=np.int64))


def _table(source: OpenSource, box: Box, columns: int) -> npt.NDArray[np.int64]:
    """Reads a table of 32-bit numbers, int64 [rows, columns]."""
    content = _content(source, box, 8)
    rows = min(_number(source, box.start + 4), len(content) // (4 * columns))
    return np.frombuffer(content, ">u4", rows * columns).reshape(rows, columns).astype(np.int64)


def _content(source: OpenSource, box: Box, skipped: int) -> bytes:
    """Returns what a box holds after its first bytes, up to a limit that no table reaches."""
    return source.read(box.start + skipped, max(0, min(box.end - box.start - skipped, _MAX_TABLE)))


def _edits(source: OpenSource, box: Box) -> list[tuple[int, int]]:
    layout = struct.Struct(">QqI" if source.read(box.start, 1) == b"\1" else ">IiI")
    content = _content(source, box, 8)
    rows = min(_number(source, box.start + 4), len(content) // layout.size)
    return [layout.unpack_from(content, i * layout.size)[:2] for i in range(rows)]


def _id_and_duration(source: OpenSource, tkhd: Box) -> tuple[int, int]:
    content = source.read(tkhd.start, 36).ljust(36, b"\0")
    long = content[0] == 1
    (number,) = struct.unpack_from(">I", content, 20 if long else 12)
    (duration,) = struct.unpack_from(">Q" if long else ">I", content, 28 if long else 20)
    return number, duration


def _clock_and_duration(source: OpenSource, header: Box) -> tuple[int, int]:
    content = source.read(header.start, 32).ljust(32, b"\0")
    long = content[0] == 1
    (clock,) = struct.unpack_from(">I", content, 20 if long else 12)
    (duration,) = struct.unpack_from(">Q" if long else ">I", content, 24 if long else 16)
    return clock, duration


def _number(source: OpenSource, offset: int) -> int:
    return int.from_bytes(source.read(offset, 4), "big")


def _unknown(source: OpenSource, box: Box) -> MediaError:
    return _damaged(source, box, f"a fragment does not hold {box.kind!r}")


def _damaged(source: OpenSource, box: Box, message: str) -> MediaError:
    return MediaError(source.name, Cause.DECODE_FAILED, f"the video is damaged at byte {box.start - 8}: {message}")
