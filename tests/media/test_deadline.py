"""A file that takes longer than `MediaLimits.seconds` is refused, wherever its reading is when the time is over."""

import io
import time

import numpy as np
import pytest
from PIL import Image

from tests.media.clips import KINDS, picture, write
from videollava_jax.media import Cause, FrameFiles, MediaError, MediaLimits, media_kind, read_image, read_video
from videollava_jax.media.deadline import Deadline

VIDEOS = (
    "h264_b_frames.mp4", "fragmented.mp4", "h264.mkv", "vp9.webm", "mpeg4.avi", "h264.ts", "mpeg2.mpg", "h264.flv",
    "raw.h264", "animation.gif", "animation.apng",
)  # fmt: skip
IMAGES = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "AVIF")


def image(format, **more):
    file = io.BytesIO()
    Image.fromarray(picture(0, (64, 48))).save(file, format, **more)
    return file.getvalue()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A file of each format with the function that reads it."""
    place = tmp_path_factory.mktemp("media")
    found = {name: (read_video, write(place / name, **KINDS[name]).read_bytes()) for name in VIDEOS}
    found |= {format: (read_image, image(format)) for format in IMAGES}
    more = [Image.fromarray(picture(i, (64, 48))) for i in range(1, 6)]
    found["animated.webp"] = (read_video, image("WEBP", save_all=True, append_images=more))
    found["kind of a video"] = (media_kind, found["h264_b_frames.mp4"][1])
    found["kind of an image"] = (media_kind, found["PNG"][1])
    for i in range(4):
        (place / f"{i}.png").write_bytes(found["PNG"][1])
    found["frame files"] = (read_video, FrameFiles([place / f"{i}.png" for i in range(4)]))
    return found


NAMES = (*VIDEOS, *IMAGES, "animated.webp", "kind of a video", "kind of an image", "frame files")


@pytest.mark.parametrize("name", NAMES)
def test_the_time_may_be_over_at_any_check(files, name, monkeypatch):
    """At whichever check: it is the same error, and nothing of it is left for the next file in this thread."""
    read, source = files[name]
    checks, ends = 0, None

    def check(self, file):
        nonlocal checks
        checks += 1
        if checks == ends:
            raise MediaError(file, Cause.TOO_SLOW, "over")

    monkeypatch.setattr(Deadline, "check", check)
    whole = read(source)
    total = checks
    assert total > 1
    for ends in sorted({*range(1, min(total, 40)), *range(1, total, 1 + total // 40), total}):
        checks = 0
        with pytest.raises(MediaError) as refused:
            read(source)
        assert refused.value.cause == Cause.TOO_SLOW, (ends, refused.value)
        checks = -1_000_000
        again = read(source)
        np.testing.assert_array_equal(getattr(again, "frames", again), getattr(whole, "frames", whole))


def test_the_error_names_the_limit(files):
    with pytest.raises(MediaError, match=r"^<bytes>: reading it took over 1e-06 s; raise MediaLimits.seconds "):
        read_video(files["h264.ts"][1], limits=MediaLimits(seconds=1e-6))
    with pytest.raises(ValueError, match="seconds: expected more than 0, got nan"):
        MediaLimits(seconds=float("nan"))


class Slow(io.BytesIO):
    """A disk that has become slow."""

    def read(self, count=-1):
        time.sleep(0.02)
        return super().read(min(count, 4000) if count > 0 else 4000)


def test_a_slow_file_object_is_not_waited_for():
    started = time.monotonic()
    with pytest.raises(MediaError) as refused:
        read_image(Slow(bytes(10**8)), MediaLimits(seconds=0.3))
    assert refused.value.cause == Cause.TOO_SLOW
    assert time.monotonic() - started < 5


def test_an_animation_ends_in_time():
    """Its headers are within the limits: 1,000 images of 1,000 by 1,000 pixels, decoded one after another."""
    pictures = [Image.new("P", (1000, 1000), i % 250) for i in range(250)]
    file = io.BytesIO()
    pictures[0].save(file, "GIF", save_all=True, append_images=pictures[1:])
    started = time.process_time()
    with pytest.raises(MediaError, match=r"took over 0\.1 s; raise MediaLimits.seconds"):
        read_video(file.getvalue(), limits=MediaLimits(seconds=0.1))
    assert time.process_time() - started < 2
