"""Resizing without antialiasing: the authors' own pixels, and torch's `interpolate` live."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests import authors
from videollava_jax.media import FloatPreprocessor, FramePreprocessor, Linspace, read_image, read_video
from videollava_jax.media.preprocess import background


def assert_theirs(got, expected, preprocess):
    """Normalised pixels, channels first, within 1/255 of theirs everywhere and 0.1/255 on average, on the scale 0-1."""
    difference = np.abs(got - expected) * np.array(preprocess.std, np.float32)[:, None, None]
    assert difference.max() < 1 / 255
    assert difference.mean() < 0.1 / 255
    assert difference.max() < 1e-5  # of rounding; the bounds above are what was asked for


def channels_first(pixels):
    return np.moveaxis(pixels, -1, -3)


def test_frames_of_a_clip_are_the_authors():
    theirs = authors.pixels()
    video = read_video(authors.CLIP, Linspace(8))
    np.testing.assert_array_equal(video.indices, theirs["frame_indices"])
    preprocess = FloatPreprocessor(interpolation="bilinear")
    got = channels_first(preprocess.normalize(preprocess(video.frames[[0, 7]])))
    assert got.shape == (2, 3, 224, 224)
    assert_theirs(authors.seen(got, theirs["at"]), theirs["video_pixels"], preprocess)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", ["wide", "tall"])
def test_images_are_the_authors(name, padded):
    theirs = authors.pixels()
    preprocess = FloatPreprocessor(pad_to_square=padded)
    image = read_image(authors.HERE / f"{name}.png")
    got = channels_first(preprocess.normalize(preprocess(image[None])[0]))
    expected = theirs[f"{name}_padded_pixels" if padded else f"{name}_pixels"]
    assert_theirs(authors.seen(got, theirs["at"]), expected, preprocess)
    # Antialiasing, or the other way to pad, gives other pixels.
    other = FramePreprocessor(pad_to_square=padded)
    far = authors.seen(channels_first(other.normalize(other(image[None])[0])), theirs["at"])
    assert np.abs(far - expected).mean() > 0.1 / 255


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    interpolation=st.sampled_from(["bicubic", "bilinear"]),
    crop=st.sampled_from([28, 21]),
    padded=st.booleans(),
)
def test_pixels_are_those_of_torch(torch, height, width, interpolation, crop, padded):
    frame = np.random.default_rng(height * 100 + width).integers(0, 256, (height, width, 3), np.uint8)
    ours = FloatPreprocessor(size=28, crop_size=crop, interpolation=interpolation, pad_to_square=padded)
    if padded:
        side = max(height, width)
        square = np.tile(np.array([122, 116, 104], np.uint8), (side, side, 1))
        square[(side - height) // 2 :, (side - width) // 2 :][:height, :width] = frame
    else:
        square = frame
    tensor = torch.tensor(square).permute(2, 0, 1)[None].float()
    short, long = sorted(square.shape[:2])
    new = [28, int(28 * long / short)]
    resized = torch.nn.functional.interpolate(
        tensor, size=new if square.shape[0] <= square.shape[1] else new[::-1], mode=interpolation, align_corners=False
    )[0].permute(1, 2, 0)
    top, left = (round((edge - crop) / 2) for edge in resized.shape[:2])
    expected = resized[top : top + crop, left : left + crop].numpy()
    got = ours(frame[None])
    assert got.dtype == ours.dtype == np.float32
    np.testing.assert_allclose(got[0], expected, rtol=0, atol=2e-3)  # of 255; torch's weights are float32


def test_a_long_image_takes_no_more_memory_than_its_pixels():
    line = np.full((1, 50_000, 3), 255, np.uint8)
    assert FloatPreprocessor()(line[None]).shape == (1, 224, 224, 3)
    for form in (FloatPreprocessor, FramePreprocessor):
        padded = form(pad_to_square=True)(line[None])[0]
        assert np.abs(padded[0].astype(float) - background(FramePreprocessor().mean)).max() < 1e-3


@settings(deadline=None, max_examples=30, derandomize=True)
@given(height=st.integers(1, 300), width=st.integers(1, 300), crop=st.sampled_from([28, 21]))
def test_antialiased_pixels_of_a_padded_image_are_those_of_the_padded_image(height, width, crop):
    frame = np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), np.uint8)
    side = max(height, width)
    square = Image.new("RGB", (side, side), background(FramePreprocessor().mean))
    square.paste(Image.fromarray(frame), ((side - width) // 2, (side - height) // 2))
    plain, padding = (FramePreprocessor(size=28, crop_size=crop, pad_to_square=pad) for pad in (False, True))
    np.testing.assert_array_equal(padding(frame[None]), plain(np.asarray(square)[None]))


def test_a_crop_larger_than_the_frame_is_refused():
    with pytest.raises(ValueError, match="crop_size 35 is not supported by torch's resizing: expected at most"):
        FloatPreprocessor(size=28, crop_size=35)
