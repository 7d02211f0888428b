"""The media of prefixes on their way to the device: uint8 pixels in, features out."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from videollava_jax.engine import grid as on_device
from videollava_jax.engine.preparation import ReadPrefix
from videollava_jax.generation.loaded import LoadedModel
from videollava_jax.processing.processor import VideoLlavaProcessor


def encode_prefixes(
    model: LoadedModel,
    processor: VideoLlavaProcessor,
    reads: Sequence[ReadPrefix],
    pooling: int,
) -> jax.Array | None:
    """The features of prefixes of one signature, [W, M, D] with the media of each one after the other; None without."""
    kinds = reads[0].kinds
    if not kinds:
        return None
    by_kind = {"image": processor.image_processor, "video": processor.video_processor}
    features: jax.Array = on_device.encode(
        model.graph,
        model.state,
        kinds,
        pooling,
        tuple(model.on_devices(np.stack(arrays)) for arrays in zip(*(read.pixels for read in reads), strict=True)),
        tuple(np.array(by_kind[kind].mean, np.float32) for kind in kinds),
        tuple(np.array(by_kind[kind].std, np.float32) for kind in kinds),
    )
    return features
