"""Video-LLaVA in JAX and Flax. The public names are loaded when first used: media and prompts need no JAX."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from videollava_jax.version import __version__

if TYPE_CHECKING:
    from videollava_jax.batch.media.isolation import IsolatedReader
    from videollava_jax.engine import Engine, Request, Result
    from videollava_jax.face.auto import register
    from videollava_jax.face.base_model import VideoLlavaModel
    from videollava_jax.face.cache import DynamicCache
    from videollava_jax.face.config import VideoLlavaConfig
    from videollava_jax.face.image_processor import VideoLlavaImageProcessor
    from videollava_jax.face.model import VideoLlavaForConditionalGeneration
    from videollava_jax.face.processor import VideoLlavaProcessor
    from videollava_jax.face.video_processor import VideoLlavaVideoProcessor

__all__ = [
    "DynamicCache",
    "Engine",
    "IsolatedReader",
    "Request",
    "Result",
    "VideoLlavaConfig",
    "VideoLlavaForConditionalGeneration",
    "VideoLlavaImageProcessor",
    "VideoLlavaModel",
    "VideoLlavaProcessor",
    "VideoLlavaVideoProcessor",
    "__version__",
    "register",
]

_HOMES = {
    "DynamicCache": "videollava_jax.face.cache",
    "Engine": "videollava_jax.engine",
    "IsolatedReader": "videollava_jax.batch.media.isolation",
    "Request": "videollava_jax.engine",
    "Result": "videollava_jax.engine",
    "VideoLlavaConfig": "videollava_jax.face.config",
    "VideoLlavaForConditionalGeneration": "videollava_jax.face.model",
    "VideoLlavaImageProcessor": "videollava_jax.face.image_processor",
    "VideoLlavaModel": "videollava_jax.face.base_model",
    "VideoLlavaProcessor": "videollava_jax.face.processor",
    "VideoLlavaVideoProcessor": "videollava_jax.face.video_processor",
    "register": "videollava_jax.face.auto",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
