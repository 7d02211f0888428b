"""Media for a job: good ones, and bad ones of every kind that is known to do harm."""

from __future__ import annotations

import functools
import io
import os
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import av
import numpy as np
from PIL import Image

from tests.media import bombs
from tests.media.clips import KINDS, write
from tests.media.test_hostile import SCRIPTS
from videollava_jax.assets.world import EVAL_SEEDS, encode_mp4, sample_clip, sample_image

CONTAINERS = (
    "h264_b_frames.mp4", "h264.mkv", "mpeg4.avi", "vp8.webm", "h264.mov", "h264.ts", "animation.gif", "fragmented.mp4",
    "mpeg2.mpg", "h264_variable_rate.mkv",
)  # fmt: skip
IMAGES = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF")
Expected = Literal["answer", "error", "either"]


@dataclass(frozen=True)
class Medium:
    """A medium of the job.

    Attributes:
      name: as its line has it.
      kind: its row in the table.
      type: "image" or "video", as its line says.
      expected: what its record has to be.
    """

    name: str
    kind: str
    type: str
    expected: Expected


# ── good media ──


def write_good(place: Path, i: int) -> Medium:
    """Clips and images of the tiny model's world, and other containers."""
    if i % 4 == 3:
        base = CONTAINERS[i // 4 % len(CONTAINERS)]
        name = f"good-{i}-{base}"
        write(place / name, **KINDS[base] | {"frames": 16 + i % 32})
        return Medium(name, "good: other containers", "video", "answer")
    if i % 4 == 2:
        name = f"good-{i}.png"
        Image.fromarray(sample_image(EVAL_SEEDS[i]).frames[0]).save(place / name)
        return Medium(name, "good: images", "image", "answer")
    (place / f"good-{i}.mp4").write_bytes(encode_mp4(sample_clip(EVAL_SEEDS[i]).frames))
    return Medium(f"good-{i}.mp4", "good: clips", "video", "answer")


# ── bad media ──


@dataclass(frozen=True)
class Bad:
    """How a kind of bad media is made.

    Attributes:
      kind: its row in the table.
      write: called with the directory, the beginning of a name, draws and files without fault; gives the name.
      expected: what its record has to be.
    """

    kind: str
    write: Callable[[Path, str, random.Random, Intact], str]
    expected: Expected = "error"


class Intact:
    """Files without fault, whose bytes are changed.

    Args:
      place: a directory of their own.
    """

    def __init__(self, place: Path):
        self._place = place

    def video(self, name: str) -> bytes:
        path = self._place / name
        return (path if path.exists() else write(path, **KINDS[name])).read_bytes()

    @functools.cache  # noqa: B019
    def image(self, format: str) -> bytes:
        file = io.BytesIO()
        noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
        Image.fromarray(noise).save(file, format=format)
        return file.getvalue()

    @functools.cache  # noqa: B019
    def audio(self, name: str) -> bytes:
        path = self._place / name
        with av.open(str(path), "w") as container:
            stream = container.add_stream({"wav": "pcm_s16le"}.get(path.suffix[1:], "aac"), rate=16000, layout="mono")
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.int16), format="s16", layout="mono")
            frame.rate = 16000
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return path.read_bytes()

    @functools.cache  # noqa: B019
    def bomb(self, name: str) -> bytes:
        small = self.video("h264_b_frames.mp4")
        if name == "index.mp4":
            return bombs.announced(small, 30_000_000)
        if name == "index_sound.mp4":
            return bombs.announced(small, 2**32 - 1, values=True)
        if name == "index.mov":
            return bombs.compressed_index(150 * 2**20)
        if name == "png":
            return bombs.png_bomb()
        if name.isupper():
            return bombs.image_bomb(name)
        return bombs.h264_bomb(self._place, name).read_bytes()


def _put(place: Path, name: str, content: bytes) -> str:
    (place / name).write_bytes(content)
    return name


def _own(content: bytes, stem: str) -> bytes:
    """The same with something after it that nobody reads: of files that are equal one is read for all."""
    return content + bombs.boxed(b"free", stem.encode())


def _changed(content: bytes, rng: random.Random) -> bytes:
    """Some bytes others; half of the time near the beginning, where the headers are."""
    changed = bytearray(content)
    within = len(content) if rng.random() < 0.5 else min(len(content), 500)
    for _ in range(rng.choice((1, 8, 30, 300))):
        changed[rng.randrange(within)] = rng.randrange(256)
    return bytes(changed)


def _cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(1, len(content))]


def _without_a_part(content: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(content))
    return content[:start] + content[start + rng.randrange(1, len(content)) :]


def _damaged_video(damage: Callable[[bytes, random.Random], bytes]) -> Callable[..., str]:
    def made(place: Path, stem: str, rng: random.Random, intact: Intact) -> str:
        base = rng.choice(CONTAINERS)
        return _put(place, f"{stem}-{base}", damage(intact.video(base), rng))

    return made


def _damaged_image(damage: Callable[[bytes, random.Random], bytes]) -> Callable[..., str]:
    def made(place: Path, stem: str, rng: random.Random, intact: Intact) -> str:
        format = rng.choice(IMAGES)
        return _put(place, f"{stem}.{format.lower()}", damage(intact.image(format), rng))

    return made


def _bomb(*names: str) -> Callable[..., str]:
    def made(place: Path, stem: str, rng: random.Random, intact: Intact) -> str:
        name = rng.choice(names)
        return _put(place, f"{stem}.{name.lower().split('.')[-1]}", _own(intact.bomb(name), stem))

    return made


def _playlist(place: Path, stem: str, rng: random.Random, intact: Intact) -> str:
    victim = place / "victim.mp4"
    victim.write_bytes(intact.video("h264_b_frames.mp4"))
    text = rng.choice(list(SCRIPTS.values())).format(victim=victim, playlist=victim, port=9)
    text += "\n" * rng.randrange(99)
    return _put(place, f"{stem}{rng.choice(('.mp4', '.mkv', '.txt', '.m3u8'))}", text.encode())


def _other_file(place: Path, stem: str, rng: random.Random, intact: Intact) -> str:
    kinds = {
        "txt": b"Once upon a time.\n" * rng.randrange(1, 999),
        "html": b"<!DOCTYPE html><html><body><video src='a.mp4'></video></body></html>" + rng.randbytes(9),
        "json": b'{"video": "%d.mp4"}' % rng.randrange(9999),
        "zip": b"PK\3\4" + rng.randbytes(2000),
        "elf": Path(os.path.realpath(sys.executable)).read_bytes()[: rng.randrange(9999, 99999)],
        "noise": rng.randbytes(20_000),
    }
    return _put(place, f"{stem}-{(kind := rng.choice(list(kinds)))}.mp4", kinds[kind])


def _audio(place: Path, stem: str, rng: random.Random, intact: Intact) -> str:
    name = rng.choice(("a.wav", "a.m4a", "a.mkv", "a.mp4"))
    return _put(place, f"{stem}-{name}", _own(intact.audio(name), stem))


def _no_file(place: Path, stem: str, rng: random.Random, intact: Intact) -> str:
    return f"{stem}.mp4"


def _empty(place: Path, stem: str, rng: random.Random, intact: Intact) -> str:
    return _put(place, f"{stem}.mp4", b"")


def _directory(place: Path, stem: str, rng: random.Random, intact: Intact) -> str:
    (place / f"{stem}.mp4").mkdir()
    return f"{stem}.mp4"


def _pipe(place: Path, stem: str, rng: random.Random, intact: Intact) -> str:
    os.mkfifo(place / f"{stem}.mp4")
    return f"{stem}.mp4"


def _outside(place: Path, stem: str, rng: random.Random, intact: Intact) -> str:
    if rng.random() < 0.5:
        return f"../{stem}.mp4"
    (place / f"{stem}.mp4").symlink_to(sys.executable)
    return f"{stem}.mp4"


def _faulty(kind: str) -> Callable[..., str]:
    def made(place: Path, stem: str, rng: random.Random, intact: Intact) -> str:
        return _put(place, f"{kind}-{stem}.mp4", _own(intact.video("h264_b_frames.mp4"), stem))

    return made


BAD = (
    Bad("bad: bytes changed in a video", _damaged_video(_changed), "either"),
    Bad("bad: a video cut short", _damaged_video(_cut), "either"),
    Bad("bad: a video without a part", _damaged_video(_without_a_part), "either"),
    Bad("bad: bytes changed in an image", _damaged_image(_changed), "either"),
    Bad("bad: an image cut short", _damaged_image(_cut), "either"),
    Bad("hostile: image bombs", _bomb("png", "JPEG", "BMP", "GIF")),
    Bad("hostile: video bombs", _bomb("huge.mp4", "huge.mkv", "huge.flv", "huge.ts", "huge.avi")),
    Bad("hostile: index bombs", _bomb("index.mp4", "index_sound.mp4", "index.mov")),
    Bad("hostile: playlists, scripts", _playlist),
    Bad("bad: other files", _other_file),
    Bad("bad: sound alone", _audio),
    Bad("bad: empty", _empty),
    Bad("bad: a directory", _directory),
    Bad("hostile: a pipe", _pipe),
    Bad("bad: not there", _no_file),
    Bad("hostile: out of the root", _outside),
    Bad("hostile: hangs its reader", _faulty("hangs")),
    Bad("hostile: takes all memory", _faulty("eats")),
    Bad("hostile: crashes its reader", _faulty("crashes")),
    Bad("hostile: leaves memory behind", _faulty("leaves"), "either"),
    Bad("hostile: spins", _faulty("spins")),
)


def write_media(place: Path, good: int, bad: int, seed: int) -> list[Medium]:
    """Writes the media of a job under `place/media`, in the order of its lines."""
    root, intact = place / "media", Intact(place / "intact")
    for directory in (root, place / "intact"):
        directory.mkdir()
    media = [write_good(root, i) for i in range(good)]
    for i in range(bad):
        kind, rng = BAD[i % len(BAD)], random.Random(f"{seed}/{i}")
        name = kind.write(root, f"bad-{i}", rng, intact)
        type = "image" if "image" in kind.kind else "video"
        media.append(Medium(name, kind.kind, type, kind.expected))
    random.Random(seed).shuffle(media)
    return media
