"""Files made to harm: they take no memory, open no other file, and end in `MediaError` at worst."""

import ctypes
import io
import os
import re
import socket
import struct
import subprocess
import sys
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from tests.media.clips import box, write, x264
from tests.media.refusal import check_error, refused
from videollava_jax.media import Cause, MediaError, MediaLimits, media_kind, read_image, read_video

MEGABYTE = 2**20


# ── Memory ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def png_bomb(width=9000, height=9000):
    """243 MB of black pixels in a few hundredths of a megabyte, less than the size of which PIL warns."""
    packer = zlib.compressobj(9)
    row = bytes(1 + width * 3)
    pixels = b"".join(packer.compress(row * 100) for _ in range(height // 100)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b""))
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def image_bomb(format, width=9000, height=9000, **options):
    """A small image whose header says that it is a large one."""
    file = io.BytesIO()
    Image.new("RGB", (64, 64), (200, 9, 9)).save(file, format=format, **options)
    content = bytearray(file.getvalue())
    if format == "JPEG":
        struct.pack_into(">HH", content, content.index(b"\xff\xc0") + 5, height, width)
    elif format == "GIF":
        struct.pack_into("<HH", content, 6, width, height)
    elif format == "BMP":
        struct.pack_into("<ii", content, 18, width, height)
    elif format == "WEBP":  # an animation: VP8X
        content[24:30] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    elif format == "AVIF":
        struct.pack_into(">II", content, content.index(b"ispe") + 8, width, height)
    return bytes(content)


def sequence_parameters(width, height):
    """An H.264 sequence parameter set (ITU-T H.264, 7.3.2.1), baseline profile."""
    bits = ""

    def fixed(count, value):
        nonlocal bits
        bits += f"{value:0{count}b}"

    def golomb(value):
        nonlocal bits
        binary = f"{value + 1:b}"
        bits += "0" * (len(binary) - 1) + binary

    fixed(8, 66), fixed(8, 0xC0), fixed(8, 62)
    for value in (0, 0, 2, 1):  # id, bits of frame numbers, order by decoding, reference frames
        golomb(value)
    fixed(1, 0), golomb(width // 16 - 1), golomb(height // 16 - 1)
    fixed(5, 0b10001)  # frames only, no direct inference, no cropping, no VUI, the stop bit
    bits += "0" * (-len(bits) % 8)
    content = int(bits, 2).to_bytes(len(bits) // 8, "big")
    return b"\x67" + re.sub(b"\0\0(?=[\0-\3])", b"\0\0\3", content)


def h264_bomb(folder, name, width=8192, height=8192):
    """A small video whose sequence parameters say that it is a large one, in a container that says small."""
    small = write(
        folder / "small.h264", "libx264", frames=10, options=x264(bframes=0, cabac=0) | {"profile": "baseline"}
    )
    huge = sequence_parameters(width, height)

    def swapped(content):
        units = [unit for unit in re.split(b"\0\0\0?\1", content) if unit]
        return b"".join(b"\0\0\0\1" + (huge if unit[0] & 31 == 7 else unit) for unit in units)

    path = folder / name
    if path.suffix == ".h264":
        path.write_bytes(swapped(small.read_bytes()))
        return path
    parameters = [unit for unit in re.split(b"\0\0\0?\1", small.read_bytes()) if unit and unit[0] & 31 == 8]
    with av.open(str(small)) as read, av.open(str(path), "w") as written:
        stream = written.add_stream_from_template(read.streams.video[0])
        stream.codec_context.extradata = b"\0\0\0\1" + huge + b"\0\0\0\1" + parameters[0]
        for i, packet in enumerate(packet for packet in read.demux(video=0) if packet.size):
            copy = av.Packet(swapped(bytes(packet)))
            copy.pts = copy.dts = 100 * i
            copy.time_base, copy.stream, copy.is_keyframe = Fraction(1, 1000), stream, packet.is_keyframe
            written.mux(copy)
    return path


def announced(content, samples, *, values=False):
    """An mp4 whose index announces this many samples of a byte, in as few bytes as it was."""
    content = bytearray(content)
    struct.pack_into(">II", content, box(content, b"stsz") + 4, 1, samples)
    struct.pack_into(">I", content, box(content, b"stsc") + 8 + 4, samples)
    struct.pack_into(">II", content, box(content, b"stts") + 8, samples, 1 if values else 512)
    if values:  # of sound
        handler = box(content, b"hdlr") + 8
        content[handler : handler + 4] = b"soun"
    return bytes(content)


def boxed(kind, content):
    return struct.pack(">I4s", 8 + len(content), kind) + content


def compressed_index(size):
    """A QuickTime file whose compressed header unpacks to `size` bytes."""
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(bytes(MEGABYTE)) for _ in range(size // MEGABYTE)) + packer.flush()
    index = boxed(b"cmov", boxed(b"dcom", b"zlib") + boxed(b"cmvd", struct.pack(">I", size) + packed))
    return boxed(b"ftyp", b"qt  \0\0\0\0qt  ") + boxed(b"moov", index) + boxed(b"mdat", bytes(100))


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
    """Outcome, and megabytes at the peak, after each file, all in one process of their own."""
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
    """48,000 samples a second, each a byte or less, are as many as its index announces."""
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
    """As QuickTime wrote it."""
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


# ── Other files ─────────────────────────────────────────────────────────────────────────────────────────────────────


class Opened:
    """Tells whether a file was opened, by inotify."""

    IN_OPEN = 0x20

    def __init__(self, path):
        library = ctypes.CDLL(None, use_errno=True)
        if not hasattr(library, "inotify_init1"):
            pytest.skip("openings are watched with inotify")
        self.descriptor = library.inotify_init1(os.O_NONBLOCK)
        assert library.inotify_add_watch(self.descriptor, os.fsencode(path), self.IN_OPEN) >= 0

    def __call__(self):
        try:
            return bool(os.read(self.descriptor, 4096))
        except BlockingIOError:
            return False

    def close(self):
        os.close(self.descriptor)


@pytest.fixture
def victim(tmp_path, videos):
    path = tmp_path / "victim.mp4"
    path.write_bytes(videos["h264_b_frames.mp4"].read_bytes())
    return path


@pytest.fixture
def opened(victim):
    watch = Opened(victim)
    yield watch
    watch.close()


@pytest.fixture
def server():
    """A server on this machine, which nobody should call."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        yield listening


CONCAT = "ffconcat version 1.0\nfile '{victim}'\nfile 'http://127.0.0.1:{port}/x.mp4'\n"
M3U8 = (
    "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{victim}\n#EXTINF:9,\nhttp://127.0.0.1:{port}/x.ts\n#EXT-X-ENDLIST\n"
)
SDP = "s=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {port} RTP/AVP 96\na=rtpmap:96 H264/90000\n"
SCRIPTS = {
    "concat": CONCAT,
    "concat_of_a_playlist": "ffconcat version 1.0\nfile '{playlist}'\n",
    "hls": M3U8,
    "hls_after_a_byte_order_mark": "\ufeff" + M3U8,
    "hls_of_a_playlist": "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{playlist}\n",
    "hls_with_a_key": '#EXTM3U\n#EXT-X-KEY:METHOD=AES-128,URI="file://{victim}"\n#EXTINF:9,\n{victim}\n',
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\n" + SDP,
    "sdp_without_version": SDP,
    "dash": '<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet '
    'mimeType="video/mp4"><Representation id="1" bandwidth="1"><BaseURL>file://{victim}</BaseURL></Representation>'
    "</AdaptationSet></Period></MPD>",
    "dash_after_a_comment": '<!-- clip -->\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period>'
    '<AdaptationSet mimeType="video/mp4"><Representation id="1" bandwidth="1"><BaseURL>file://{victim}</BaseURL>'
    "</Representation></AdaptationSet></Period></MPD>",
    "smil": '<smil><body><video src="{victim}"/></body></smil>',
    "asx": '<asx version="3.0"><entry><ref href="{victim}"/></entry></asx>',
    "pls": "[playlist]\nFile1={victim}\nNumberOfEntries=1\n",
    "text": "{victim}\n",
}


UNTOLD = ("text", "sdp_without_version", "dash_after_a_comment")  # refused, but not told for what they are


@pytest.mark.parametrize("suffix", [".mp4", ".txt", ".m3u8", ".png"])
@pytest.mark.parametrize("kind", SCRIPTS)
def test_a_playlist_opens_nothing(tmp_path, victim, opened, server, kind, suffix):
    port = server.getsockname()[1]
    playlist = tmp_path / "playlist.m3u8"
    playlist.write_text(M3U8.format(victim=victim, port=port))
    disguised = tmp_path / f"clip{suffix}"
    disguised.write_text(SCRIPTS[kind].format(victim=victim, playlist=playlist, port=port), encoding="utf-8")
    for source in (disguised, disguised.read_bytes()):
        for read in (read_video, read_image, media_kind):
            error = refused(read, source)
            assert error.cause in (Cause.FORBIDDEN_FORMAT, Cause.NOT_MEDIA)
            if read is not read_image and kind not in UNTOLD:
                assert "a playlist or script that names other files" in str(error)
    assert not opened()
    with pytest.raises(BlockingIOError):
        server.accept()


def test_the_watch_notices(tmp_path, victim, opened, server):
    script = tmp_path / "clip.mp4"
    script.write_text(f"ffconcat version 1.0\nfile '{victim}'\n")
    with av.open(str(script), options={"safe": "0"}) as container:
        next(container.decode(video=0))
    assert opened()
    with socket.create_connection(server.getsockname()):
        server.accept()[0].close()


def test_an_mp4_that_refers_to_another_file_opens_nothing(victim, opened):
    content = bytearray(victim.read_bytes())
    assert opened()
    reference = boxed(b"url ", b"\0\0\0\0" + f"file://{victim}".encode() + b"\0")
    table = box(content, b"dref")
    entry = table + 8
    assert content[entry + 4 : entry + 8] == b"url "
    grown = len(reference) - 12
    content[entry : entry + 12] = reference
    start = 0
    for kind in (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref"):
        at = content.index(kind, start) - 4
        (size,) = struct.unpack_from(">I", content, at)
        struct.pack_into(">I", content, at, size + grown)
        start = at + 8
    try:
        read_video(bytes(content))
    except MediaError as error:
        check_error(error)
    assert not opened()


# ── Damage ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_mutated_files_are_read_or_refused(videos):
    rng = np.random.default_rng(0)
    outcomes = {"read": 0, "refused": 0}
    names = (
        "h264_b_frames.mp4", "fragmented.mp4", "h264.mkv", "mpeg4.avi", "vp8.webm", "animation.gif", "h264.ts",
        "mpeg2.mpg", "wmv2.wmv", "animation.apng",
    )  # fmt: skip
    for name in names:
        whole = np.frombuffer(videos[name].read_bytes(), np.uint8)
        for _ in range(10):
            mutated = whole.copy()
            mutated[rng.integers(0, len(whole), 8)] = rng.integers(0, 256, 8, np.uint8)
            try:
                video = read_video(mutated.tobytes(), limits=MediaLimits(max_pixels=10**6))
            except MediaError as error:
                check_error(error)
                outcomes["refused"] += 1
            else:
                outcomes["read"] += 1
                assert len(video.frames) == 8
    assert min(outcomes.values()) > 0, outcomes


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"])
@pytest.mark.filterwarnings("ignore")  # PIL warns of odd metadata in images that it reads
def test_mutated_images_are_read_or_refused(format):
    rng = np.random.default_rng(0)
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (48, 64, 3), np.uint8)).save(file, format=format)
    whole = np.frombuffer(file.getvalue(), np.uint8)
    for seed in range(100):
        mutated = whole.copy()
        within = len(whole) if seed % 2 else 100
        mutated[rng.integers(0, within, 3)] = rng.integers(0, 256, 3, np.uint8)
        for read in (read_image, media_kind):
            try:
                result = read(mutated.tobytes(), limits=MediaLimits(max_pixels=10**6))
            except MediaError as error:
                check_error(error)
            else:
                assert result in ("image", "video") if read is media_kind else result.dtype == np.uint8
