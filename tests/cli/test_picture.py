"""The picture of frames and answers: everything is on it, whatever the sizes."""

import numpy as np
import pytest

from videollava_jax.cli.picture import FRAME_HEIGHT, MARGIN, PAPER, draw_answers
from videollava_jax.generation.chat import Turn
from videollava_jax.media import Medium


def medium(count, height, width, kind="video"):
    frames = np.full((count, height, width, 3), 200, np.uint8)
    frames[..., 0] = 10 * np.arange(count)[:, None, None]
    return Medium(kind, "folder/clip.mp4", frames, np.arange(count), np.full(count, np.nan), count)


def turn(question, answer):
    return Turn(question, answer, (5,), 100, 0, 0.1)


def test_every_frame_is_on_it_at_its_proportions():
    picture = np.asarray(draw_answers([([medium(8, 90, 160)], [turn("What?", "That.")])]))
    for i in range(8):
        pixels = (picture == [10 * i, 200, 200]).all(-1)
        rows, columns = np.flatnonzero(pixels.any(1)), np.flatnonzero(pixels.any(0))
        assert len(rows) == FRAME_HEIGHT
        assert abs(len(columns) - FRAME_HEIGHT * 160 / 90) <= 1


@pytest.mark.parametrize("answer", ["", "short", "a long answer of many words, " * 20, "x" * 300])
def test_it_grows_with_the_answer_and_ends_in_a_margin(answer):
    low = draw_answers([([medium(2, 50, 50)], [])])
    picture = np.asarray(draw_answers([([medium(2, 50, 50)], [turn("What?", answer)])]))
    assert picture.shape[0] > low.height
    assert (picture[-MARGIN:] == PAPER).all()
    assert (picture[low.height - MARGIN : -MARGIN] < 100).any()  # ink


def test_images_text_alone_and_several_panels():
    one = draw_answers([([], [turn("What?", "That.")])])
    image = draw_answers([([medium(1, 500, 3, "image")], [turn("What?", "That.")])])
    both = draw_answers([([], [turn("What?", "That.")]), ([medium(1, 500, 3, "image")], [turn("What?", "That.")])])
    assert both.height == one.height + image.height
