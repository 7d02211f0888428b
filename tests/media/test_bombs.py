"""Small files that would take much memory are refused before they do."""

import struct
import subprocess
import sys
import zlib
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from tests.media.bombs import MEGABYTE, announced, boxed, compressed_index, h264_bomb, image_bomb, png_bomb
from tests.media.clips import box
from tests.media.refusal import refused
from videollava_jax.media import Cause, MediaLimits, read_video

MEASURE = """
import sys, warnings
import av, numpy, PIL.Image
from videollava_jax.media import MediaError, MediaLimits, read_image, read_video
warnings.simplefilter("ignore")

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) // 1024 for line in status if line.startswith("VmHWM"))

with open(sys.argv[2], "rb") as small:  # what the first call alone takes
    read_video(small)
before = peak()
for path in sys.argv[3:]:
    try:
        (read_image if "image" in path else read_video)(path, limits=MediaLimits(max_pixels=int(sys.argv[1])))
        print(path, "read", peak() - before)
    except MediaError as error:
        print(path, error.cause, peak() - before)
"""


def measured(small, paths, max_pixels):
    """Reads files in a separate process: returns the outcome and the peak megabytes after each."""
    if not Path("/proc/self/status").exists():
        pytest.skip("peak memory is read from /proc")
    command = [sys.executable, "-c", MEASURE, str(max_pixels), str(small), *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line.rsplit(" ", 2) for line in done.stdout.splitlines()]
    return {Path(path).name: (outcome, int(megabytes)) for path, outcome, megabytes in lines}


def test_bombs_are_refused_before_they_take_memory(tmp_path, videos):
    small = videos["h264_b_frames.mp4"]
    paths = [h264_bomb(tmp_path, f"huge.{suffix}") for suffix in ("mp4", "mkv", "ts", "avi", "flv", "mpg", "h264")]
    contents = {
        "image.png": png_bomb(),
        "image.jpg": image_bomb("JPEG"),
        "image.gif": image_bomb("GIF"),
        "image_huge.gif": image_bomb("GIF", 65535, 65535),
        "image.bmp": image_bomb("BMP"),
        "image.webp": image_bomb("WEBP", 16000, 16000, save_all=True, append_images=[Image.new("RGB", (64, 64))]),
        "image.ppm": b"P6 9000 9000 255\n" + bytes(1000),
        "animated.webp": image_bomb("WEBP", 16000, 16000, save_all=True, append_images=[Image.new("RGB", (64, 64))]),
        "animated.gif": image_bomb("GIF"),
        "index.mp4": announced(small.read_bytes(), 30_000_000),
        "index_sound.mp4": announced(small.read_bytes(), 2**32 - 1, values=True),
        "index.mov": compressed_index(150 * MEGABYTE),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        paths.append(tmp_path / name)
    assert all(path.stat().st_size < MEGABYTE for path in paths)
    results = measured(small, paths, MediaLimits().max_pixels)
    assert list(results) == [path.name for path in paths]
    for name, (outcome, megabytes) in results.items():
        assert outcome == "too_large", (name, outcome)
        assert megabytes < 200, results


def test_the_bombs_would_take_memory(tmp_path, videos):
    paths = [h264_bomb(tmp_path, f"huge.{suffix}") for suffix in ("flv", "mp4")]
    results = measured(videos["h264_b_frames.mp4"], paths, max_pixels=8192 * 8192)
    assert all(megabytes > 250 for _, megabytes in results.values()), results


@pytest.mark.parametrize("samples", [100_000, 2**31 - 1, 2**32 - 1])
def test_an_index_of_more_samples_than_bytes(videos, samples):
    content = videos["h264_b_frames.mp4"].read_bytes()
    assert len(content) < 100_000
    assert "announces" in str(refused(read_video, announced(content, samples), Cause.TOO_LARGE))
    fragment = bytearray(videos["fragmented.mp4"].read_bytes())
    struct.pack_into(">I", fragment, box(fragment, b"trun") + 4, samples)
    assert "announces" in str(refused(read_video, bytes(fragment), Cause.TOO_LARGE))


def test_tables_are_found_where_ffmpeg_finds_them(videos):
    content = videos["faststart.mp4"].read_bytes()
    sizes = boxed(b"stsz", struct.pack(">III", 0, 1, 2**31))
    for kind in (b"free", b"udta", b"wave", b"stsd", b"meta"):
        inner = {
            b"stsd": bytes(8) + boxed(b"avc1", bytes(78) + sizes),
            b"meta": bytes(4) + boxed(b"hdlr", bytes(24)) + sizes,
        }
        refused(read_video, content + boxed(kind, inner.get(kind, sizes)), Cause.TOO_LARGE)


def test_sound_of_single_values_is_no_bomb(tmp_path):
    """Sound of 48,000 samples a second, each a byte or less, has a large index but is not a bomb."""
    path = tmp_path / "sound.mov"
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=10)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        sound = container.add_stream("pcm_mulaw", rate=8000, layout="mono")
        for i in range(10):
            container.mux(video.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")))
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), format="s16", layout="mono")
            frame.rate, frame.pts = 8000, 8000 * i
            container.mux(sound.encode(frame))
        for stream in (video, sound):
            container.mux(stream.encode(None))
    assert read_video(path).total_frames == 10


def test_an_edit_list_of_many_parts(videos):
    content = bytearray(videos["h264_b_frames.mp4"].read_bytes())
    struct.pack_into(">I", content, box(content, b"elst") + 4, 10**6)
    refused(read_video, bytes(content), Cause.TOO_LARGE)


def test_a_compressed_index_is_read(videos):
    """A compressed index as QuickTime wrote it."""
    content = videos["faststart.mp4"].read_bytes()
    start = content.index(b"moov") - 4
    end = start + int.from_bytes(content[start : start + 4], "big")
    index = content[start:end]
    packed = struct.pack(">I", len(index)) + zlib.compress(index)
    small = boxed(b"moov", boxed(b"cmov", boxed(b"dcom", b"zlib") + boxed(b"cmvd", packed)))
    padding = boxed(b"free", bytes(len(index) - len(small) - 8))
    expected = read_video(content)
    video = read_video(content[:start] + small + padding + content[end:])
    np.testing.assert_array_equal(video.frames, expected.frames)
    announcing = announced(content, 30_000_000)[start:end]
    packed = struct.pack(">I", len(announcing)) + zlib.compress(announcing)
    hidden = boxed(b"moov", boxed(b"cmov", boxed(b"dcom", b"zlib") + boxed(b"cmvd", packed)))
    refused(read_video, content[:start] + hidden + content[end:], Cause.TOO_LARGE)
