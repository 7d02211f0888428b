"""An index that does not mark the first frame as a keyframe hides no loss: the frame itself says that it is one."""

import pytest

from tests.media.clips import KINDS, box, write
from videollava_jax.media import MediaError, read_video
from videollava_jax.media.pictures.count import Broken
from videollava_jax.media.pictures.vpx import Vp9Counter


@pytest.fixture(scope="module", params=["hevc_open_gop.mp4", "h264_b_frames.mp4"])
def unmarked(request, tmp_path_factory):
    """A video whose table of keyframes begins elsewhere, the frames that it has, and where it keeps them."""
    path = tmp_path_factory.mktemp("videos") / request.param
    content = bytearray(write(path, **KINDS[request.param] | {"frames": 24}).read_bytes())
    content[box(content, b"stss") + 11] = 200
    return bytes(content), 24, range(box(content, b"mdat"), content.index(b"moov") - 4)


def test_a_first_frame_that_is_not_marked_is_read(unmarked):
    content, frames, _ = unmarked
    assert read_video(content).total_frames == frames


def test_frames_that_are_lost_behind_it_are_an_error(unmarked):
    content, frames, samples = unmarked
    refused = 0
    for start in range(samples.start, samples.stop, len(samples) // 40):
        damaged = content[:start] + b"\xff" * 40 + content[start + 40 :]
        try:
            assert read_video(damaged).total_frames == frames, start
        except MediaError:
            refused += 1
    assert refused > 5


def test_a_vp9_frame_of_profile_3_has_a_bit_that_is_0():
    with pytest.raises(Broken, match="a frame of no profile"):
        Vp9Counter(b"")(bytes([0b10111010, 195, 0]))
    assert Vp9Counter(b"")(bytes([0b10110011, 195, 0])).shown == 1
