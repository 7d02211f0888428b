"""What cannot be used is refused with one error, `MediaError`, that says why on one line."""

import io
import os
import socket

import av
import numpy as np
import pytest
from PIL import Image

from tests.media.clips import write
from tests.media.refusal import check_error, refused
from videollava_jax.media import Cause, Indices, MediaError, MediaLimits, media_kind, read_image, read_video

READERS = (read_image, read_video, media_kind)


def saved(format, count=1, **options):
    """Noise, so that any part that is cut off is missed."""
    rng = np.random.default_rng(0)
    frames = [Image.fromarray(rng.integers(0, 256, (48, 64, 3), np.uint8)) for _ in range(count)]
    file = io.BytesIO()
    more = dict(save_all=True, append_images=frames[1:]) if count > 1 else {}
    frames[0].save(file, format=format, **more, **options)
    return file.getvalue()


@pytest.mark.parametrize("read", READERS)
def test_paths_that_are_no_files(tmp_path, read):
    refused(read, tmp_path / "none.mp4", Cause.NOT_FOUND)
    refused(read, tmp_path / "none" / "none.mp4", Cause.NOT_FOUND)
    refused(read, "a" * 5000, Cause.NOT_FOUND)
    refused(read, "null\0character.mp4", Cause.NOT_FOUND)
    refused(read, tmp_path, Cause.NOT_A_FILE)
    refused(read, b"", Cause.NOT_MEDIA)
    empty = tmp_path / "empty.mp4"
    empty.touch()
    refused(read, empty, Cause.NOT_MEDIA)


@pytest.mark.parametrize("read", READERS)
def test_an_address_is_not_followed(read):
    for address in ("http://127.0.0.1/x.mp4", "concat:a.mp4|b.mp4", "file:///etc/passwd", "data:video/mp4;base64,AAAA"):
        refused(read, address, Cause.NOT_FOUND)
    assert "fetch it first" in str(refused(read, "https://127.0.0.1/x.mp4"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("read", READERS)
def test_pipes_sockets_and_devices_are_not_waited_for(tmp_path, read):
    pipe = tmp_path / "pipe.mp4"
    os.mkfifo(pipe)
    refused(read, pipe, Cause.NOT_A_FILE)
    refused(read, os.devnull, Cause.NOT_A_FILE)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        refused(read, tmp_path / "socket", Cause.NOT_A_FILE)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="this system has no file modes")
def test_a_file_without_permission(tmp_path, videos):
    if os.geteuid() == 0:
        pytest.skip("root reads every file")
    path = tmp_path / "secret.mp4"
    path.write_bytes(videos["single.mp4"].read_bytes())
    path.chmod(0)
    refused(read_video, path, Cause.UNREADABLE)


def test_a_name_is_put_on_one_line(tmp_path):
    error = refused(read_video, tmp_path / "line\nbreak\x1b[31m.mp4", Cause.NOT_FOUND)
    assert "\x1b" not in str(error)
    assert len(str(refused(read_video, "data:video/mp4;base64," + "A" * 100_000))) < 500


def test_what_is_no_source_is_a_value_error(videos):
    for source in (3, None, ["a.mp4"]):
        for read in READERS if not isinstance(source, list) else (read_image, media_kind):  # a list is frame files
            with pytest.raises(ValueError, match="expected a path, bytes or a binary file object"):
                read(source)
    with pytest.raises(ValueError, match="binary mode"):
        read_video(io.StringIO("text"))


def test_a_file_object_that_fails(videos):
    class Failing(io.BytesIO):
        def read(self, size=-1):
            raise OSError(5, "Input/output error")

    refused(read_video, Failing(), Cause.UNREADABLE)


@pytest.mark.parametrize("good", [0, 3, 6])
def test_a_disk_that_fails(videos, monkeypatch, good):
    """All reads after the first few fail, FFmpeg's and ours."""
    reads = 0

    class Failing:
        def __init__(self, file):
            self.file, self.seek, self.tell = file, file.seek, file.tell

        def read(self, size=-1):
            nonlocal reads
            reads += 1
            if reads > good:
                raise OSError(5, "Input/output error")
            return self.file.read(min(size, 300))

    monkeypatch.setattr("videollava_jax.media.source.NamelessFile", Failing)
    for name in ("h264.mkv", "h264.ts", "mpeg4.avi"):
        reads = 0
        refused(read_video, videos[name])


def test_repeated_frames_count_against_the_limit(videos):
    for name in ("mpeg4_b_frames.mp4", "h264_b_frames.mp4", "h264.ts"):
        limits = MediaLimits(max_bytes_returned=100 * 64 * 48 * 3 - 1)
        with pytest.raises(MediaError, match="max_bytes_returned") as caught:
            read_video(videos[name], Indices((0,) * 100), limits)
        assert caught.value.cause == Cause.TOO_LARGE


def test_limits(videos):
    path = videos["h264_b_frames.mp4"]
    for limit in (
        dict(max_pixels=64 * 48 - 1),
        dict(max_bytes=1000),
        dict(max_frames=59),
        dict(max_frames_returned=7),
        dict(max_bytes_returned=8 * 64 * 48 * 3 - 1),
    ):
        for source in (path, path.read_bytes(), io.BytesIO(path.read_bytes())):
            refused(read_video, source, Cause.TOO_LARGE, **limit)
    exact = MediaLimits(
        max_pixels=64 * 48, max_bytes=path.stat().st_size, max_frames=60, max_frames_returned=8,
        max_bytes_returned=8 * 64 * 48 * 3,
    )  # fmt: skip
    assert read_video(path, limits=exact).frames.shape == (8, 48, 64, 3)
    refused(read_image, saved("PNG"), Cause.TOO_LARGE, max_pixels=64 * 48 - 1)
    refused(read_image, saved("PNG"), Cause.TOO_LARGE, max_image_bytes=1000)
    with pytest.raises(ValueError, match="max_pixels"):
        MediaLimits(max_pixels=0)


CUTS = (0.05, 0.3, 0.5, 0.7, 0.9)


@pytest.mark.parametrize(
    "name",
    [
        "h264_b_frames.mp4", "faststart.mp4", "h264.mov", "h264.mkv", "vp8.webm", "vp9.webm", "mpeg4.avi", "mjpeg.avi",
        "ffv1.mkv", "animation.gif", "animation.apng",
    ],
)  # fmt: skip
def test_a_video_cut_short_is_refused(videos, name):
    whole = videos[name].read_bytes()
    for share in CUTS:
        refused(read_video, whole[: int(len(whole) * share)], Cause.TRUNCATED)
    for missing in (1, 2, 7):
        try:
            video = read_video(whole[:-missing])
        except MediaError as error:
            check_error(error)
        else:  # only padding or the trailer is gone
            np.testing.assert_array_equal(video.frames, read_video(whole).frames)


def test_a_fragmented_video_is_read_to_a_fragment_that_is_whole(videos):
    whole = videos["fragmented.mp4"].read_bytes()
    fragments = [i - 4 for i in range(len(whole)) if whole.startswith(b"moof", i)]
    for cut in (0.5, 0.7):
        refused(read_video, whole[: int(len(whole) * cut)], Cause.TRUNCATED)
    assert read_video(whole[: fragments[3]]).total_frames == 36


@pytest.mark.parametrize("name", ["h264.ts", "wmv2.wmv", "raw.h264"])
def test_formats_that_do_not_say_their_length_are_read_as_far_as_they_go(videos, name):
    whole = videos[name].read_bytes()
    total = read_video(videos[name]).total_frames
    for share in CUTS:
        try:
            video = read_video(whole[: int(len(whole) * share)])
        except MediaError as error:
            check_error(error)
        else:
            assert 0 < video.total_frames <= total


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("PNG", {}), ("JPEG", {}), ("JPEG", {"progressive": True}), ("GIF", {}), ("WEBP", {}),
        ("WEBP", {"lossless": True}), ("BMP", {}), ("TIFF", {}), ("PPM", {}),
    ],
    ids=lambda value: value if isinstance(value, str) else "_".join(value),
)  # fmt: skip
def test_an_image_cut_short_is_refused(format, options):
    whole = saved(format, **options)
    assert read_image(whole).shape == (48, 64, 3)
    for share in CUTS:
        refused(read_image, whole[: int(len(whole) * share)], Cause.TRUNCATED)


def test_an_animated_webp_cut_short_is_refused():
    whole = saved("WEBP", 5)
    for share in CUTS:
        for read in READERS:
            refused(read, whole[: int(len(whole) * share)], Cause.TRUNCATED)


def test_a_video_without_frames(tmp_path):
    path = tmp_path / "none.mp4"
    with av.open(str(path), "w", options={"movflags": "empty_moov+frag_custom"}) as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()
    refused(read_video, path)


def test_a_still_image_is_no_video():
    for format in ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM"):
        assert "read_image" in str(refused(read_video, saved(format), Cause.NOT_MEDIA))


def test_formats_that_are_not_let_in(tmp_path):
    subtitles = b"1\n00:00:00,000 --> 00:00:02,000\nA line\n\n2\n00:00:02,000 --> 00:00:04,000\nAnother\n\n"
    refused(read_video, subtitles, Cause.FORBIDDEN_FORMAT)


def test_damage_in_the_header(videos):
    for name in ("h264.mkv", "h264_b_frames.mp4", "mpeg4.avi"):
        whole = bytearray(videos[name].read_bytes())
        whole[40:400] = bytes(360)
        refused(read_video, bytes(whole))


@pytest.mark.parametrize("name", ["ffv1.mkv", "h264.mkv", "vp9.webm", "h264_b_frames.mp4"])
def test_frames_do_not_go_missing_in_silence(videos, name):
    """FFmpeg alone would skip the damaged part and return the rest."""
    whole = videos[name].read_bytes()
    total = read_video(videos[name]).total_frames
    rng = np.random.default_rng(0)
    outcomes = []
    for _ in range(40):
        damaged = bytearray(whole)
        start = int(rng.integers(len(whole) // 10, len(whole) * 9 // 10))
        damaged[start : start + 200] = rng.integers(0, 256, 200, np.uint8).tobytes()
        try:
            outcomes.append(read_video(bytes(damaged)).total_frames)
        except MediaError as error:
            check_error(error)
            outcomes.append("refused")
    assert outcomes.count("refused") >= 30
    # Damage to the head of one packet may be undetectable.
    assert sum(outcome not in ("refused", total) for outcome in outcomes) <= 2, outcomes


def test_a_live_recording_leaves_its_sizes_open_and_is_read(videos):
    """As browsers record: neither the Segment nor its Clusters state their sizes."""
    whole = bytearray(videos["vp9.webm"].read_bytes())
    for element in (b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75"):
        size = whole.index(element) + 4
        width = 9 - whole[size].bit_length()
        whole[size : size + width] = ((1 << 7 * width + 1) - 1).to_bytes(width, "big")
    np.testing.assert_array_equal(read_video(bytes(whole)).frames, read_video(videos["vp9.webm"]).frames)
    last_block = whole.rindex(b"\x1c\x53\xbb\x6b") - 3  # before the index, Cues
    refused(read_video, bytes(whole[:last_block]), Cause.TRUNCATED)


def test_a_file_that_grew_over_the_limit_is_not_read(tmp_path):
    path = write(tmp_path / "clip.mp4", "libx264", frames=3)
    with open(path, "r+b") as file:
        file.truncate(20 * 2**30)  # sparse
    refused(read_video, path, Cause.TOO_LARGE)
    refused(read_image, path, Cause.TOO_LARGE)


@pytest.mark.parametrize(
    "content", [b"root:$6$salt$hunter2:19000::", b"\0\1hunter2" * 9, b"%PDF-1.7 hunter2", b"hunter2"]
)
def test_an_error_shows_no_byte_of_a_file(tmp_path, content):
    """It may be a file that the one who asked may not read."""
    path = tmp_path / "file"
    path.write_bytes(content)
    for read in (read_image, read_video):
        for source in (path, content):
            assert "hunter2" not in str(refused(read, source))
