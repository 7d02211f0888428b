"""Which frames are taken: the rules of frame sampling, and videos of fewer frames than are asked for."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from videollava_jax.media import Fps, Indices, Linspace, Uniform, Within, read_video


@given(total=st.integers(1, 10_000), count=st.integers(1, 40))
def test_sampling_rules(total, count):
    uniform, linspace = Uniform(count).indices(total, None), Linspace(count).indices(total, None)
    for indices in (uniform, linspace):
        assert len(indices) == count
        assert indices[0] == 0
        assert indices[-1] < total
        assert (np.diff(indices) >= 0).all()
    np.testing.assert_array_equal(uniform, np.arange(0, total, total / count).astype(int)[:count])
    np.testing.assert_array_equal(linspace, np.linspace(0, total - 1, count).astype(int))


def test_sampling_by_rate():
    np.testing.assert_array_equal(Fps(1, max_frames=100).indices(100, 10.0), np.arange(0, 100, 10))
    assert len(Fps(5, max_frames=8).indices(1000, 10.0)) == 8
    with pytest.raises(ValueError, match="frame rate"):
        Fps(1).indices(10, None)
    with pytest.raises(ValueError, match="has 5 frames"):
        Indices((5,)).indices(5, None)


@pytest.mark.parametrize(("name", "indices"), [("single.mp4", [0] * 8), ("three.mp4", [0, 0, 0, 1, 1, 1, 2, 2])])
def test_a_short_video_repeats_its_frames(videos, name, indices):
    video = read_video(videos[name])
    assert video.total_frames == max(indices) + 1
    np.testing.assert_array_equal(video.indices, indices)
    assert video.frames.shape == (8, 48, 64, 3)
    for number in set(indices):
        repeats = video.frames[np.array(indices) == number]
        assert (repeats == repeats[0]).all()
    assert (np.diff(video.timestamps) >= 0).all()


HUNDREDTHS = st.integers(0, 4000).map(lambda number: number / 100)
"""Of seconds: none is as close to a frame's time as the ticks of a file are, which count as the same."""


@given(total=st.integers(1, 300), start=HUNDREDTHS, length=HUNDREDTHS.filter(bool), count=st.integers(1, 12))
def test_a_part_is_sampled_as_a_video_of_its_own(total, start, length, count):
    times, end = np.arange(total) / 8, start + length
    inside = np.flatnonzero((times >= start - 1e-9) & (times <= end + 1e-9))
    part = Within(start, end, Linspace(count))
    if start > total / 8:
        with pytest.raises(ValueError, match="the part begins at"):
            part.indices(total, 8.0)
        return
    if not len(inside):  # the frame on display
        inside = np.flatnonzero(times <= start)[-1:]
    expected = inside[Linspace(count).indices(len(inside), 8.0)]
    np.testing.assert_array_equal(part.indices(total, 8.0), expected)
    if total > 1:
        np.testing.assert_array_equal(part.indices_at(times, 1e-5), expected)
        rate = Within(start, end, Fps(2, max_frames=12)).indices_at(times, 1e-5)
        np.testing.assert_array_equal(
            rate, inside[0] + Fps(2, max_frames=12).indices_at(times[inside] - times[inside[0]], 1e-5)
        )


def test_a_part_of_a_file(videos):
    whole = read_video(videos["three.mp4"], Uniform(3))
    second = read_video(videos["three.mp4"], Within(whole.timestamps[1], None, Uniform(2)))
    np.testing.assert_array_equal(second.indices, [1, 2])
    np.testing.assert_array_equal(second.frames, whole.frames[1:])
    with pytest.raises(ValueError, match="the part begins at 100 s"):
        read_video(videos["three.mp4"], Within(100.0, 101.0, Uniform(2)))
    for start, end in ((1, 1), (2, 1), (-1, None), (float("nan"), None), (0, float("inf"))):
        with pytest.raises(ValueError, match="expected 0 <= start < end"):
            Within(start, end, Uniform(2))
    with pytest.raises(ValueError, match="frame rate"):
        Within(0, 1, Uniform(2)).indices(10, None)


def test_frames_beyond_the_end_are_an_error(videos):
    with pytest.raises(ValueError, match="has 3 frames"):
        read_video(videos["three.mp4"], Indices((3,)))
