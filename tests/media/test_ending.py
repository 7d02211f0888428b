"""Downloads whose server did not say their length: whole only if the file's own format says so."""

import io

import numpy as np
import pytest
from PIL import Image

from tests.media.clips import FRAGMENTS, write
from videollava_jax.media.ending import says_its_end


def picture(kind, **options):
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def video(tmp_path, suffix, codec="mpeg4", **options):
    return write(tmp_path / f"video{suffix}", codec, frames=12, **options).read_bytes()


WHOLE = {
    "png": lambda _: picture("PNG"),
    "jpeg": lambda _: picture("JPEG"),
    "gif": lambda _: picture("GIF"),
    "webp": lambda _: picture("WEBP"),
    "webp of odd length": lambda _: picture("WEBP", lossless=True),
    "mp4": lambda place: video(place, ".mp4"),
    "mp4 with its index first": lambda place: video(place, ".mp4", container_options={"movflags": "faststart"}),
    "mov": lambda place: video(place, ".mov"),
    "mkv": lambda place: video(place, ".mkv"),
    "webm": lambda place: video(place, ".webm", "libvpx"),
    "avi": lambda place: video(place, ".avi"),
}
OPEN = {
    "mp4 in fragments": lambda place: video(place, ".mp4", container_options=FRAGMENTS),
    "live mkv": lambda place: video(place, ".mkv", container_options={"live": "1"}),
    "transport stream": lambda place: video(place, ".ts", "mpeg2video", rate=25),
    "text": lambda _: b"text",
    "nothing": lambda _: b"",
    "one byte": lambda _: b"\x89",
    "mdat to the end": lambda _: b"\0\0\0\x08moov" + b"\0\0\0\0mdat" + b"x" * 99,
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_file_says_so_and_no_part_of_it_does(tmp_path, name):
    content = WHOLE[name](tmp_path)
    assert says_its_end(io.BytesIO(content))
    cuts = {len(content) - 1, *range(1, len(content), max(1, len(content) // 200))}
    assert [cut for cut in sorted(cuts) if says_its_end(io.BytesIO(content[:cut]))] == []
    assert not says_its_end(io.BytesIO(content + b"more"))


@pytest.mark.parametrize("name", OPEN)
def test_what_does_not_say_where_it_ends(tmp_path, name):
    assert not says_its_end(io.BytesIO(OPEN[name](tmp_path)))
