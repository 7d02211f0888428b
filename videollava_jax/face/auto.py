"""`register`: transformers' `AutoConfig` and `AutoProcessor` give this package's classes."""

from __future__ import annotations

from transformers import AutoConfig, AutoProcessor
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

from videollava_jax.face.config import VideoLlavaConfig
from videollava_jax.face.processor import VideoLlavaProcessor


def register() -> None:
    """Lets transformers' `AutoConfig` and `AutoProcessor` give this package's classes, in this process.

    What transformers does not allow a package without torch is in docs/transformers.md.
    """
    AutoConfig.register("video_llava", VideoLlavaConfig, exist_ok=True)
    AutoProcessor.register(VideoLlavaConfig, VideoLlavaProcessor, exist_ok=True)
    # A checkpoint's files name the class, and transformers looks a name up in its own list before the registered ones:
    # with `AutoProcessor.register` alone its own class is found, which needs torchvision. There is no public way.
    PROCESSOR_MAPPING_NAMES.pop("video_llava", None)
