"""The media of prefixes encoded on the device: uint8 pixels in, features out."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from videollava_jax.engine import grid as on_device
from videollava_jax.engine.preparation import ReadPrefix
from videollava_jax.generation.loaded import LoadedModel
from videollava_jax.processing.processor import VideoLlavaProcessor


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
