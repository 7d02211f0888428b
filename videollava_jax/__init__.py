"""Video-LLaVA in JAX and Flax. The public names are loaded when first used: media and prompts need no JAX."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from videollava_jax.version import __version__

if TYPE_CHECKING:
    from videollava_jax.config import VideoLlavaConfig
    from videollava_jax.engine import Engine, Request, Result
    from videollava_jax.generation.pretrained import VideoLlavaForConditionalGeneration
    from videollava_jax.processing.processor import VideoLlavaProcessor

__all__ = [
    "Engine",
    "Request",
    "Result",
    "VideoLlavaConfig",
    "VideoLlavaForConditionalGeneration",
    "VideoLlavaProcessor",
    "__version__",
]

_HOMES = {
    "Engine": "videollava_jax.engine",
    "Request": "videollava_jax.engine",
    "Result": "videollava_jax.engine",
    "VideoLlavaConfig": "videollava_jax.config",
    "VideoLlavaForConditionalGeneration": "videollava_jax.generation.pretrained",
    "VideoLlavaProcessor": "videollava_jax.processing.processor",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
