"""Files to pixels: opening and limits, frame sampling, decoding, resizing. No JAX in here."""

from videollava_jax.media.errors import Cause, MediaError, MediaLimits
from videollava_jax.media.image import read_image
from videollava_jax.media.preprocess import FramePreprocessor
from videollava_jax.media.sampling import Fps, Indices, Linspace, Sampling, Uniform
from videollava_jax.media.video import Video, read_video

__all__ = [
    "Cause",
    "Fps",
    "FramePreprocessor",
    "Indices",
    "Linspace",
    "MediaError",
    "MediaLimits",
    "Sampling",
    "Uniform",
    "Video",
    "read_image",
    "read_video",
]
