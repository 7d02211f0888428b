"""Sampling by rate goes by the times of frames: recordings of variable rate, animations, raw streams."""

from fractions import Fraction

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.media.clips import write
from tests.media.test_video import animation
from videollava_jax.media import Fps, read_video


def fast_then_slow(i):
    """The time of frame `i` in hundredths of a second: 50 in the first second, then 5 a second."""
    return 2 * i if i < 50 else 100 + 20 * (i - 50)


EVERY_SECOND = [0, *range(50, 100, 5)]


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv", "gif", "apng", "nut"])
def test_one_frame_a_second_of_a_variable_rate(tmp_path, suffix):
    codec, pix_fmt = {"gif": ("gif", "rgb8"), "apng": ("apng", "rgb24")}.get(suffix, ("libx264", "yuv420p"))
    path = write(tmp_path / f"a.{suffix}", codec, pix_fmt, frames=100, time=fast_then_slow, rate=50)
    video = read_video(path, Fps(1, max_frames=100))
    np.testing.assert_array_equal(video.indices, EVERY_SECOND)
    np.testing.assert_allclose(video.timestamps, np.arange(len(EVERY_SECOND)), atol=0.011)
    assert video.fps == pytest.approx(99 / 10.8, rel=0.05)
    np.testing.assert_array_equal(read_video(path, Fps(1, max_frames=4)).indices, [0, 60, 75, 95])


def test_an_animated_webp_of_variable_rate():
    content, _ = animation("WEBP", [20] * 10 + [500] * 8, lossless=True)
    video = read_video(content, Fps(1, max_frames=100))
    np.testing.assert_array_equal(video.indices, [0, 11, 13, 15, 17])  # frame 11 is shown from 0.7 s to 1.2 s
    np.testing.assert_allclose(video.timestamps, [0, 0.7, 1.7, 2.7, 3.7])


RAW = {
    "a.h264": dict(codec="libx264", rate=10),
    "a.hevc": dict(codec="libx265", rate=10, options={"x265-params": "log-level=none"}),
    "a.m2v": dict(codec="mpeg2video", rate=30),
}


@pytest.mark.parametrize("name", RAW)
def test_a_raw_stream_has_the_rate_of_its_codec(tmp_path, name):
    """FFmpeg says 25 for every raw stream."""
    path, rate = write(tmp_path / name, frames=40, **RAW[name]), RAW[name]["rate"]
    with av.open(str(path)) as container:
        assert container.streams.video[0].average_rate in (25, rate)
    video = read_video(path, Fps(2, max_frames=100))
    assert video.fps == rate
    np.testing.assert_array_equal(video.indices, np.arange(0, 40, rate / 2).astype(int))
    np.testing.assert_allclose(video.timestamps, video.indices / rate)


def test_a_raw_stream_without_a_clock_has_no_rate(tmp_path):
    path = write(tmp_path / "a.mjpeg", "mjpeg", "yuvj420p", frames=10)
    with pytest.raises(ValueError, match="frame rate, which this file does not give"):
        read_video(path, Fps(2))
    video = read_video(path)
    assert video.fps is None
    assert np.isnan(video.timestamps).all()


def test_digital_video_has_the_rate_of_its_system(tmp_path):
    """FFmpeg says 60,000 frames a second: the unit of its times."""
    path = write(tmp_path / "a.dv", "dvvideo", size=(720, 576), rate=25, frames=30)
    video = read_video(path, Fps(5, max_frames=100))
    assert video.fps == pytest.approx(25)
    np.testing.assert_array_equal(video.indices, np.arange(0, 30, 5))


RATES = [*map(Fraction, (5, 10, 24, 25, 30, 50, 60)), Fraction(30000, 1001)]


@given(total=st.integers(2, 500), rate=st.sampled_from(RATES), fps=st.integers(1, 12))
def test_at_a_constant_rate_the_frame_on_display_is_taken(total, rate, fps):
    step = max(rate / fps, Fraction(1))
    expected = [int(step * k) for k in range(total) if step * k < total]
    times = np.arange(total) / float(rate)
    np.testing.assert_array_equal(Fps(fps, max_frames=10_000).indices_at(times, 1e-7), expected)


@given(
    gaps=st.lists(st.integers(0, 3000), min_size=1, max_size=60),
    fps=st.sampled_from([0.3, 1, 4, 29.97]),
    most=st.integers(1, 5),
    window=st.integers(1, 4),
)
def test_any_times(gaps, fps, most, window):
    times = np.concatenate([[0], np.cumsum(gaps)]) / 1000
    rule = Fps(fps, max_frames=most * window, multiple_of=window)
    chosen = rule.indices_at(times, 0.001)
    assert 1 <= len(chosen) <= most * window
    assert len(chosen) % window == 0
    assert chosen[0] >= 0
    assert chosen[-1] < len(times)
    assert (np.diff(chosen) >= 0).all()


def test_a_still_frame_is_taken_once():
    np.testing.assert_array_equal(Fps(2).indices_at(np.array([0, 10.0, 10.1, 20.0]), 0.001), [0, 1, 2, 3])
    np.testing.assert_array_equal(Fps(2).indices_at(np.array([0, 0.1, 10.05, 10.1]), 0.001), [0, 1])
    np.testing.assert_array_equal(Fps(2).indices_at(np.array([0.0]), 0.001), [0])
