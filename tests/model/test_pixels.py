"""Normalisation of pixels: training and both paths of inference use the statistics of the medium's own kind."""

from __future__ import annotations

import copy
import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from tests.parity.reference import assert_close
from videollava_jax.assets import TINY
from videollava_jax.engine.media import encode_prefixes
from videollava_jax.engine.preparation import ReadPrefix
from videollava_jax.generation.steps import encode_images, encode_videos
from videollava_jax.model.pixels import normalised
from videollava_jax.model.sharding import make_mesh
from videollava_jax.training.run.base_model import load
from videollava_jax.training.run.recipe import Compute, Data, Recipe
from videollava_jax.training.update.optimizer import Rates

SAME = 1e-5
"""float32: absolute, on features near 1 that take different compiled programs."""


@pytest.fixture(scope="module")
def processor(tiny_processor):
    """The tiny model's processor, with other statistics for each kind of medium."""
    changed = copy.copy(tiny_processor)
    usual = changed.preprocessors["image"]
    changed._preprocessors = {
        "image": dataclasses.replace(usual, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7)),
        "video": dataclasses.replace(usual, mean=(0.6, 0.5, 0.4), std=(0.2, 0.3, 0.4)),
    }
    return changed


def test_training_and_inference_encode_the_same_features(tiny_model, processor):
    rng = np.random.default_rng(0)
    side, frames = processor.preprocessors["image"].crop_size, 8
    image = rng.integers(0, 256, (1, side, side, 3), dtype=np.uint8)
    clip = rng.integers(0, 256, (frames, side, side, 3), dtype=np.uint8)

    recipe = Recipe(
        model="tiny", output="", rates=Rates(projector=1.0), data=Data(train="-"), compute=Compute(dtype="float32")
    )
    loaded = load(TINY, recipe, make_mesh(1, 1), processor)
    learnt_from = loaded.model.features(
        loaded.trained | loaded.frozen, jnp.asarray(image[None]), jnp.asarray(clip[None, None])
    )

    read = ReadPrefix(np.zeros(0, np.int32), ("image", "video"), (image, clip))
    answered_from = encode_prefixes(tiny_model, processor, [read])
    assert learnt_from is not None
    assert answered_from is not None
    assert_close(learnt_from, answered_from, SAME)

    def on_host(kind: str, pixels: np.ndarray) -> np.ndarray:
        return np.moveaxis(processor.preprocessors[kind].normalize(pixels), -1, -3)

    model = tiny_model.graph, tiny_model.state
    generated_from = jnp.concatenate(
        [encode_images(*model, on_host("image", image)), encode_videos(*model, on_host("video", clip)[None])], axis=1
    )
    assert_close(answered_from, generated_from, SAME)


def test_the_device_normalises_as_the_host(processor):
    every_value = np.arange(256, dtype=np.uint8)[:, None].repeat(3, 1)
    preprocess = processor.preprocessors["video"]
    got = normalised(jnp.asarray(every_value), preprocess.mean, preprocess.std)
    np.testing.assert_allclose(got, preprocess.normalize(every_value), rtol=0, atol=1e-6)
    assert normalised(jnp.asarray(every_value), preprocess.mean, preprocess.std, jnp.bfloat16).dtype == jnp.bfloat16
