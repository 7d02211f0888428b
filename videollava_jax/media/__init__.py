"""Turns image and video files into pixels: opening within limits, frame sampling, decoding, resizing. No JAX."""

from videollava_jax.media.errors import Cause, MediaError, MediaLimits
from videollava_jax.media.float_preprocess import FloatPreprocessor
from videollava_jax.media.frame_files import FrameFiles
from videollava_jax.media.frame_sampling import Fps, FrameSampling, Indices, Linspace, Uniform, Within
from videollava_jax.media.frames import Frames, MediumPixels
from videollava_jax.media.image import read_image
from videollava_jax.media.kind import is_video, media_kind
from videollava_jax.media.medium import Medium, open_medium
from videollava_jax.media.preprocess import FramePreprocessor, Preprocessor
from videollava_jax.media.video import Video, read_video

Sampling = FrameSampling  # its earlier public name

__all__ = [
    "Cause",
    "FloatPreprocessor",
    "Fps",
    "FrameFiles",
    "FramePreprocessor",
    "FrameSampling",
    "Frames",
    "Indices",
    "Linspace",
    "MediaError",
    "MediaLimits",
    "Medium",
    "MediumPixels",
    "Preprocessor",
    "Sampling",
    "Uniform",
    "Video",
    "Within",
    "is_video",
    "media_kind",
    "open_medium",
    "read_image",
    "read_video",
]
