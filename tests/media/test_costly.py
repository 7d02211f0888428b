"""Small files that would take a decoder minutes or gigabytes are refused by their headers, whoever reads them."""

import io
import time

import numpy as np
import pytest
from PIL import Image

from tests.faults.memory import forgotten_peak, most_memory
from tests.media.clips import write
from videollava_jax.media import (
    FloatPreprocessor,
    FramePreprocessor,
    MediaError,
    MediaLimits,
    read_image,
    read_video,
)
from videollava_jax.media.animation import play, times
from videollava_jax.media.source import open_source


def animation(frames, size, duration=40):
    """Frames that differ in a block, as an encoder leaves equal ones out."""
    pictures = [Image.new("RGB", size) for _ in range(frames)]
    for i, picture in enumerate(pictures):
        picture.paste((255, 255, 255) if i % 2 else (0, 90, 0), (0, 0, 8, 8))
    file = io.BytesIO()
    pictures[0].save(file, "WEBP", save_all=True, append_images=pictures[1:], duration=duration, quality=1)
    return file.getvalue()


def many_scans(scans):
    """A progressive JPEG whose last scan is repeated."""
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(file, "JPEG", progressive=True)
    content = file.getvalue()
    last = content.rindex(b"\xff\xda")
    return content[:-2] + content[last:-2] * (scans - content.count(b"\xff\xda")) + content[-2:]


def element(identifier, content):
    return bytes.fromhex(identifier) + (len(content) | 1 << 56).to_bytes(8, "big") + content


def recording(place, *elements):
    """A Matroska file whose segment is open, with more elements behind."""
    path = write(place / "live.mkv", "mpeg4", frames=12, container_options={"live": "1"})
    return path.read_bytes() + b"".join(elements)


EMPTY = {
    "tags": ("1254C367", b"\x73\x73\x80", "bytes of titles, chapters and other metadata"),
    "chapters": ("1043A770", b"\x45\xb9\x80", "bytes of titles, chapters and other metadata"),
    "cues": ("1C53BB6B", b"\xbb\x80", "bytes of titles, chapters and other metadata"),
    "seek heads": ("114D9B74", b"\x4d\xbb\x80", "bytes of titles, chapters and other metadata"),
    "attachments": ("1941A469", b"\x61\xa7\x80", "files attached to it"),
    "tracks": ("1654AE6B", b"\xae\x80", "1000 tracks"),
    "not attachments": ("1941A469", b"\xec\x80", "bytes of titles, chapters and other metadata"),
}


@pytest.mark.parametrize("name", EMPTY)
def test_matroska_files_of_millions_of_empty_elements(tmp_path, name):
    identifier, piece, message = EMPTY[name]
    started = time.process_time()
    with pytest.raises(MediaError, match=message) as refused:
        read_video(recording(tmp_path, element(identifier, piece * 10_000_000)))
    assert refused.value.cause == "too_large"
    assert time.process_time() - started < 20


def test_matroska_files_with_usual_metadata(tmp_path):
    title = element("7373", element("67C8", element("45A3", b"TITLE") + element("4487", b"x" * 200)))
    font = element("61A7", element("466E", b"a.ttf") + element("4660", b"font/ttf") + element("465C", bytes(6_000_000)))
    content = recording(tmp_path, element("1254C367", title * 100), element("1941A469", font * 3))
    assert read_video(content).total_frames == 12


def test_animations_of_more_pixels_than_the_limit():
    content = animation(100, (400, 400))
    assert len(content) < 30_000
    assert read_video(content).total_frames == 100
    with pytest.raises(
        MediaError, match="100 frames of 400 by 400 pixels, in all over the limit of 15000000"
    ) as refused:
        read_video(content, limits=MediaLimits(max_animation_pixels=15_000_000))
    assert refused.value.cause == "too_large"
    # 600 frames of 33 million pixels in a few kilobytes, refused before the first one is decoded.
    large = animation(600, (20, 20))
    header = bytearray(large)
    header[24:30] = (5760 - 1).to_bytes(3, "little") * 2
    started = time.process_time()
    with pytest.raises(MediaError, match="in all over the limit"):
        read_video(bytes(header))
    assert time.process_time() - started < 5


def test_times_of_an_animation_are_those_of_its_frames():
    durations = [10, 40, 100, 0, 250]
    with open_source(animation(5, (30, 20), durations), 10**6) as source:
        np.testing.assert_allclose(times(source, MediaLimits()), [0, 0.01, 0.05, 0.15, 0.15])
        assert len(list(play(source, MediaLimits()))) == 5


def test_jpegs_of_many_scans():
    assert read_image(many_scans(12)).shape == (64, 64, 3)
    assert read_image(many_scans(100)).shape == (64, 64, 3)
    with pytest.raises(MediaError, match="a JPEG of 101 scans, over the limit of 100") as refused:
        read_image(many_scans(101))
    assert refused.value.cause == "too_large"


@pytest.mark.parametrize("padded", [False, True], ids=["as it is", "padded to a square"])
@pytest.mark.parametrize("kind", [FramePreprocessor, FloatPreprocessor])
def test_long_strips_take_no_memory_when_they_are_resized(kind, padded):
    """118 bytes of PNG, one pixel high: resized with its short edge at 224 it would take 4.8 GB."""
    file = io.BytesIO()
    Image.new("1", (32_000, 1), 1).save(file, "PNG")
    assert len(file.getvalue()) < 130
    pixels = read_image(file.getvalue())
    preprocess = kind(pad_to_square=True) if padded else kind()
    held, started = forgotten_peak(), time.process_time()
    for turned in (pixels, pixels.transpose(1, 0, 2)):
        made = preprocess(turned[None])
        assert made.shape == (1, 224, 224, 3)
        assert padded or (made[0, 112] > 200).all()
    assert time.process_time() - started < 10
    assert most_memory() - held < 200 * 2**20


def test_the_longest_strip_is_read_and_resized():
    """As many pixels as the limit allows, in one row."""
    file = io.BytesIO()
    Image.new("L", (33_000_000, 1), 200).save(file, "PNG")
    pixels = read_image(file.getvalue())
    held, started = forgotten_peak(), time.process_time()
    assert FramePreprocessor()(pixels[None]).min() > 190
    assert time.process_time() - started < 20
    assert most_memory() - held < 600 * 2**20
