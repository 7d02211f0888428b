"""Files that name other files open none, and damaged files are read or refused with a MediaError."""

import ctypes
import io
import os
import socket
import struct

import av
import numpy as np
import pytest
from PIL import Image

from tests.media.bombs import boxed
from tests.media.clips import box
from tests.media.refusal import check_error, refused
from videollava_jax.media import Cause, MediaError, MediaLimits, media_kind, read_image, read_video

# ── Other files ─────────────────────────────────────────────────────────────────────────────────────────────────────


class Opened:
    """Notices by inotify whether a file is opened."""

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
    """A server on this machine that must not be called."""
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
