"""Changes to small media files, each made from a seed and a number, and the files that are changed."""

from __future__ import annotations

import hashlib
import io
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
from PIL import Image

from tests.media.clips import KINDS, edited, picture, with_sound, without_first, write, x264
from tests.media.field_pictures import field_pictures, remux


@dataclass(frozen=True)
class Whole:
    """A file without fault.

    Attributes:
      name: its row in the table.
      content: its bytes.
      samples: where its compressed frames begin.
      states: whether its container says how many frames there are; None for an image.
    """

    name: str
    content: bytes
    samples: tuple[int, ...]
    states: bool | None


# Our small videos by name, with their number of frames, and whether the container says how many there are.
_VIDEOS: dict[str, tuple[int, bool]] = {
    "h264_b_frames.mp4": (24, True),
    "h264_open_gop.mp4": (24, True),
    "fragmented.mp4": (24, True),
    "hevc_open_gop.mp4": (16, True),
    "av1.mp4": (12, True),
    "mpeg4_b_frames.mp4": (12, True),
    "h264.mov": (12, True),
    "h264.mkv": (12, True),
    "mpeg2.mkv": (12, True),
    "vp8.webm": (16, True),
    "vp9.webm": (12, True),
    "h264.avi": (12, True),
    "mpeg4.avi": (16, True),
    "mjpeg.avi": (12, True),
    "animation.gif": (12, True),
    "animation.apng": (8, True),
    "h264.ts": (12, False),
    "mpeg2.mpg": (12, False),
    "h264.flv": (12, False),
    "wmv2.wmv": (12, False),
    "raw.h264": (12, False),
}
_IMAGES = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF")


def write_wholes(place: Path) -> list[Whole]:
    """Writes the files that are changed: in a new process the same bytes every time, with the same libraries."""
    wholes = []
    for name, (frames, states) in _VIDEOS.items():
        kind = KINDS[name] | {"frames": frames}
        if kind["codec"] == "libx264":
            kind = {"options": x264()} | kind  # one thread
        content = write(place / name, **kind).read_bytes()
        wholes.append(Whole(name, content, _samples(content), states))
    for name, content in _made(place).items():
        wholes.append(Whole(name, content, _samples(content), True))
    wholes.append(Whole("image, progressive JPEG", _progressive(), (), None))
    pictures = [Image.fromarray(picture(i, (64, 48))) for i in range(8)]
    for format in ("GIF", "WEBP"):  # as PIL writes them: with local colours and partial frames
        content = _saved(pictures, format)
        wholes.append(Whole(f"animation by PIL, {format}", content, (), True))
    return wholes + [Whole(f"image, {format}", _saved(pictures[:1], format), (), None) for format in _IMAGES]


def fingerprint(wholes: list[Whole]) -> str:
    """Returns some digits by which to see whether two processes have the same files."""
    return hashlib.sha256(b"".join(whole.content for whole in wholes)).hexdigest()[:8]


def _made(place: Path) -> dict[str, bytes]:
    """Field pictures, a video with sound, one that an edit list shortens, and one that begins within a group."""
    (place / "fields.h264").write_bytes(field_pictures(8, group=4))
    remux(place / "fields.h264", place / "fields.ts")
    made = {
        f"fields.{s}": remux(place / "fields.ts", place / f"fields.{s}").read_bytes() for s in ("mp4", "mkv", "avi")
    }
    made |= {f"with sound.{s}": with_sound(place / f"sound.{s}").read_bytes() for s in ("mp4", "mkv", "avi")}
    made["shortened.mp4"] = edited((place / "h264_b_frames.mp4").read_bytes(), 5 * 1024, None)
    kind = KINDS["h264_open_gop.mkv"] | {"frames": 36}
    made["cut.mkv"] = without_first(write(place / "open.mkv", **kind), place / "cut.mkv", 9).read_bytes()
    return made


def _progressive() -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture(0, (64, 48))).save(file, "JPEG", progressive=True)
    return file.getvalue()


def _saved(pictures: list[Image.Image], format: str) -> bytes:
    file = io.BytesIO()
    more: dict[str, Any] = dict(save_all=True, append_images=pictures[1:]) if len(pictures) > 1 else {}
    pictures[0].save(file, format=format, **more)
    return file.getvalue()


def _samples(content: bytes) -> tuple[int, ...]:
    """Finds where the packets begin that lie in the file as one piece."""
    found, start = [], 0
    with av.open(io.BytesIO(content)) as container:
        for packet in container.demux(video=0):
            at = content.find(bytes(packet)[:64], start) if packet.size else -1
            if at >= 0:
                found.append(at)
                start = at + 1
    return tuple(found)


# ── changes ──


def free_choice(whole: Whole, content: bytes, total: int, found: int) -> str:
    """Returns why another number of frames may be meant, though the container states one: as an outcome, or ""."""
    if whole.name == "cut.mkv" and abs(found - total) <= 3:
        return "read, other frames at its beginning"  # the B frames before it refer to what was cut off
    if whole.name.endswith(".mp4") and len(content) == len(whole.content):
        changed = [at for at, pair in enumerate(zip(content, whole.content, strict=True)) if pair[0] != pair[1]]
        free = [table for kind in (b"elst", b"stss") for table in _entries(whole.content, kind)]
        if changed and all(any(at in table for table in free) for at in changed):
            return "read, as its changed index says"
    return ""


def _entries(content: bytes, kind: bytes) -> list[range]:
    """Returns where the entries of an MP4's tables of a kind are: after the size, the kind, flags and a number."""
    found = [match.start() for match in re.finditer(re.escape(kind), content)]
    return [range(at + 12, at - 4 + int.from_bytes(content[at - 4 : at], "big")) for at in found]


_MARKS = re.compile(
    rb"moov|trak|mdia|minf|stbl|stsd|stts|ctts|stsc|stsz|stco|stss|edts|elst|tkhd|mdhd|hdlr|moof|traf|tfhd|tfdt|trun|mdat"
    rb"|avcC|hvcC|RIFF|LIST|movi|idx1|strh|strf|avih|\d\d(?:dc|db)"
    rb"|\x1f\x43\xb6\x75|\x16\x54\xae\x6b|\x18\x53\x80\x67|\xa3|\xae|\xd7\x81|\x21[\xf9\xff]|\x00\x2c|ANMF|VP8|fcTL|fdAT"
)


def _flipped(rng: random.Random, whole: Whole) -> bytes:
    return _edited(whole, rng.randrange(len(whole.content)), lambda byte: byte ^ 1 << rng.randrange(8))


def _byte(rng: random.Random, whole: Whole) -> bytes:
    return _edited(whole, rng.randrange(len(whole.content)), lambda _: rng.randrange(256))


def _bytes(rng: random.Random, whole: Whole) -> bytes:
    changed = bytearray(whole.content)
    for _ in range(rng.choice((2, 8, 30))):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def _near_a_mark(rng: random.Random, whole: Whole) -> bytes:
    marks = [found.start() for found in _MARKS.finditer(whole.content)] or [0]
    at = rng.choice(marks) + rng.randrange(-4, 16)
    value = rng.choice((rng.randrange(256), 0, 255))
    return _edited(whole, min(max(at, 0), len(whole.content) - 1), lambda _: value)


def _flipped_near_a_mark(rng: random.Random, whole: Whole) -> bytes:
    marks = [found.start() for found in _MARKS.finditer(whole.content)] or [0]
    at = rng.choice(marks) + rng.randrange(-4, 16)
    return _edited(whole, min(max(at, 0), len(whole.content) - 1), lambda byte: byte ^ 1 << rng.randrange(8))


def _head_of_a_sample(rng: random.Random, whole: Whole) -> bytes:
    """A part of a compressed frame's first bytes: zeros, ones, or one bit."""
    start = rng.choice(whole.samples or (0,))
    if rng.random() < 0.5:
        return _edited(whole, start + rng.randrange(12), lambda byte: byte ^ 1 << rng.randrange(8))
    count = rng.choice((1, 4, 8))
    return _filled(whole, start, start + count, rng.choice((b"\0", b"\xff")) * count)


def _a_stretch(rng: random.Random, whole: Whole) -> bytes:
    start = rng.randrange(len(whole.content))
    count = rng.choice((4, 16, 64, 200, 512))
    return _filled(whole, start, start + count, rng.choice((bytes(count), rng.randbytes(count))))


def _cut(rng: random.Random, whole: Whole) -> bytes:
    return whole.content[: rng.randrange(1, len(whole.content))]


def _without_a_part(rng: random.Random, whole: Whole) -> bytes:
    start = rng.randrange(len(whole.content))
    return whole.content[:start] + whole.content[start + rng.choice((1, 4, 32, 200, 1000)) :]


def _with_a_part_twice(rng: random.Random, whole: Whole) -> bytes:
    start = rng.randrange(len(whole.content))
    return whole.content[: start + rng.choice((1, 4, 32, 200, 1000))] + whole.content[start:]


def _edited(whole: Whole, at: int, changed: Callable[[int], int]) -> bytes:
    content = bytearray(whole.content)
    at = min(at, len(content) - 1)
    content[at] = changed(content[at])
    return bytes(content)


def _filled(whole: Whole, start: int, end: int, filling: bytes) -> bytes:
    end = min(end, len(whole.content))
    return whole.content[:start] + filling[: end - start] + whole.content[end:]


CHANGES: dict[str, Callable[[random.Random, Whole], bytes]] = {
    "one bit": _flipped,
    "one byte": _byte,
    "several bytes": _bytes,
    "a byte of the structure": _near_a_mark,
    "a bit of the structure": _flipped_near_a_mark,
    "the head of a sample": _head_of_a_sample,
    "a stretch": _a_stretch,
    "cut short": _cut,
    "without a part": _without_a_part,
    "with a part twice": _with_a_part_twice,
}


def mutated(wholes: list[Whole], seed: int, number: int) -> tuple[Whole, str, bytes]:
    """Makes the mutation of a seed and a number: the file it comes from, the kind of change, the changed bytes."""
    rng = random.Random(f"{seed}/{number}")
    whole, kind = rng.choice(wholes), rng.choice(list(CHANGES))
    while (content := CHANGES[kind](rng, whole)) == whole.content:
        pass
    return whole, kind, content
