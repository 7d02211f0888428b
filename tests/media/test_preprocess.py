"""Preprocessing equals transformers', bit for bit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from videollava_jax.media import FramePreprocessor


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    height=st.integers(1, 120), width=st.integers(1, 120), seed=st.integers(0, 99), crop=st.sampled_from([28, 20, 35])
)
def test_preprocessing_equals_transformers(height, width, seed, crop):
    from transformers.models.video_llava.image_processing_video_llava import VideoLlavaImageProcessor

    frame = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    ours = FramePreprocessor(size=28, crop_size=crop)
    theirs = VideoLlavaImageProcessor.from_dict(ours.to_json())
    arguments = dict(data_format="channels_last", input_data_format="channels_last", return_tensors="np")
    expected = theirs.preprocess(frame, do_rescale=False, do_normalize=False, **arguments)["pixel_values_images"][0]
    got = ours(frame[None])[0]
    np.testing.assert_array_equal(got, expected)
    normalised = theirs.preprocess(frame, **arguments)["pixel_values_images"][0]
    np.testing.assert_allclose(ours.normalize(got), normalised, rtol=0, atol=1e-6)


def test_preprocessor_json_round_trip():
    ours = FramePreprocessor(size=56, crop_size=56)
    assert FramePreprocessor.from_json(ours.to_json()) == ours
    with pytest.raises(ValueError, match="do_center_crop"):
        FramePreprocessor.from_json({"do_center_crop": False})
