"""`register`: transformers' Auto classes give this package's classes, where they let a package do that."""

from __future__ import annotations

from transformers import AutoConfig, AutoProcessor
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.models.auto.video_processing_auto import AutoVideoProcessor

from videollava_jax.face.config import VideoLlavaConfig
from videollava_jax.face.image_processor import VideoLlavaImageProcessor
from videollava_jax.face.processor import VideoLlavaProcessor
from videollava_jax.face.video_processor import VideoLlavaVideoProcessor


def register() -> None:
    """Registers this package's configuration and processors with transformers' Auto classes, in this process.

    `AutoConfig` then gives ours. The others look up the class whose name the checkpoint's files hold among their own
    first, and find transformers' where it can be imported: see docs/transformers.md.
    """
    AutoConfig.register("video_llava", VideoLlavaConfig, exist_ok=True)
    AutoProcessor.register(VideoLlavaConfig, VideoLlavaProcessor, exist_ok=True)
    AutoImageProcessor.register(VideoLlavaConfig, slow_image_processor_class=VideoLlavaImageProcessor, exist_ok=True)
    AutoVideoProcessor.register(VideoLlavaConfig, VideoLlavaVideoProcessor, exist_ok=True)
