"""Image files that are the frames of one video."""

import numpy as np
import pytest
from PIL import Image

from tests.media.refusal import refused
from videollava_jax.engine.digests import content_digest, file_version
from videollava_jax.media import Cause, Fps, FrameFiles, Indices, MediaError, Uniform, open_medium, read_video


@pytest.fixture
def frames(tmp_path):
    """Twelve frames, each of its own grey: 0.png to 11.png, among files that are no frames."""
    for i in range(12):
        Image.new("RGB", (8, 6), (20 * i,) * 3).save(tmp_path / f"{i}.png")
    (tmp_path / "notes.txt").write_text("of no frame")
    return tmp_path


def test_numbers_in_names_are_numbers(frames):
    files = FrameFiles.in_directory(frames, fps=4)
    assert [path.rsplit("/", 1)[1] for path in files.paths] == [f"{i}.png" for i in range(12)]
    for source in (files, list(files.paths)):
        video = read_video(source, Uniform(4))
        np.testing.assert_array_equal(video.indices, [0, 3, 6, 9])
        np.testing.assert_array_equal(video.frames[:, 0, 0, 0], [0, 60, 120, 180])
        assert (video.total_frames, video.decoded_frames) == (12, 4)
    assert open_medium(files, Indices((5, 7))).description == "0.png and 11 more files: 8 by 6 pixels, 2 of 12 frames"


def test_their_rate_is_what_is_said(frames):
    video = read_video(FrameFiles.in_directory(frames, fps=4), Fps(2))
    np.testing.assert_array_equal(video.indices, [0, 2, 4, 6, 8, 10])
    np.testing.assert_allclose(video.timestamps, np.arange(6) / 2)
    with pytest.raises(ValueError, match="frame rate"):
        read_video(FrameFiles.in_directory(frames), Fps(2))
    assert np.isnan(read_video(FrameFiles.in_directory(frames)).timestamps).all()


def test_only_the_chosen_files_are_opened(frames):
    (frames / "3.png").write_bytes(b"no picture")
    files = FrameFiles.in_directory(frames)
    assert read_video(files, Indices((2, 4))).total_frames == 12
    assert refused(lambda source, limits: read_video(source, Indices((3,)), limits), files).source.endswith("3.png")
    Image.new("RGB", (9, 6)).save(frames / "3.png")
    with pytest.raises(MediaError, match="change size"):
        read_video(files, Indices((2, 3)))


def test_what_is_no_list_of_files_is_refused(frames):
    for wrong in ([], "a.png", ["a.png", 3], 7):
        with pytest.raises(ValueError, match="frame files: expected"):
            FrameFiles(wrong)
    for fps in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="positive number"):
            FrameFiles(["a.png"], fps)
    for place, cause in ((frames / "none", Cause.NOT_FOUND), (frames / "0.png", Cause.NOT_A_FILE)):
        with pytest.raises(MediaError) as caught:
            FrameFiles.in_directory(place)
        assert caught.value.cause == cause
    (frames / "empty").mkdir()
    with pytest.raises(MediaError, match="without image files"):
        FrameFiles.in_directory(frames / "empty")


def test_equal_files_have_equal_digests(frames):
    a, b = FrameFiles.in_directory(frames), FrameFiles.in_directory(frames, fps=3)
    assert content_digest(a) == content_digest(FrameFiles(a.paths))
    assert content_digest(a) != content_digest(b)
    before = file_version(a)
    Image.new("RGB", (8, 6), (255, 0, 0)).save(frames / "5.png")
    assert file_version(a) != before
    assert content_digest(a) != content_digest(FrameFiles(a.paths[:-1]))
