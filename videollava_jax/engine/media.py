"""The media of prefixes encoded on the device: pixels in, features out."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from videollava_jax.engine import grid as on_device
from videollava_jax.engine.preparation import ReadPrefix
from videollava_jax.generation.loaded import LoadedModel
from videollava_jax.processing.processor import VideoLlavaProcessor

FRAMES = 8
"""Frames of a video that are encoded at a time where shapes are fixed, by a tower without attention over time."""


def encode_prefixes(
    model: LoadedModel, processor: VideoLlavaProcessor, reads: Sequence[ReadPrefix]
) -> jax.Array | None:
    """Encodes the media of W prefixes of one signature.

    Returns:
      Features [W, M, D], the media of each prefix one after the other; None where prefixes have no media.
    """
    kinds = reads[0].kinds
    if not kinds:
        return None
    features: jax.Array = on_device.encode(
        model.graph,
        model.state,
        kinds,
        reads[0].pooling,
        tuple(model.on_devices(np.stack(arrays)) for arrays in zip(*(read.pixels for read in reads), strict=True)),
        tuple(np.array(processor.preprocessors[kind].mean, np.float32) for kind in kinds),
        tuple(np.array(processor.preprocessors[kind].std, np.float32) for kind in kinds),
    )
    return features


def encode_in_pieces(
    model: LoadedModel, processor: VideoLlavaProcessor, reads: Sequence[ReadPrefix], positions: int
) -> jax.Array:
    """Encodes the media of W prefixes of one signature by programs that do not depend on it.

    Images are encoded one by one and videos a few frames at a time; the last of these are repeated if too few are left.

    Args:
      positions: at least the tokens of the media of a prefix.

    Returns:
      Features [W, M, D] as `encode_prefixes` returns them; M is the same for all media, and what follows the features
      of the media is meaningless.
    """
    config = model.model_config
    unit = config.frame_window if config.frame_window > 1 else FRAMES
    longest = max(unit * processor.pooled_tokens_per_frame(1), processor.tokens_per_image)
    shape = (len(reads), positions + longest, config.text_config.hidden_size)
    sharding = model.jax_device if model.placement is None else model.placement.batch(len(reads))
    features = on_device.no_features(shape, model.dtype, sharding)
    first = 0
    for i, kind in enumerate(reads[0].kinds):
        frames = np.stack([read.pixels[i] for read in reads])
        size, pooling = (1, 1) if kind == "image" else (unit, reads[0].pooling)
        preprocess = processor.preprocessors[kind]
        for start in range(0, frames.shape[1], size):
            piece = frames[:, start : start + size]
            count = piece.shape[1]
            piece = np.pad(piece, ((0, 0), (0, size - count), (0, 0), (0, 0), (0, 0)), mode="edge")
            encoded = on_device.encode(
                model.graph,
                model.state,
                (kind,),
                pooling,
                (model.on_devices(piece),),
                (np.array(preprocess.mean, np.float32),),
                (np.array(preprocess.std, np.float32),),
            )
            features = on_device.put_features(features, encoded, np.int32(first))
            first += encoded.shape[1] // size * count
    return features
