"""The engine: requests in, results out, each medium decoded, encoded and prefilled once for all its questions.

The public names are loaded when first used: the schedule and its events need no JAX.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from videollava_jax.engine.engine import Engine
    from videollava_jax.engine.request import Request, Result, Scored, TokenLogprob

__all__ = ["Engine", "Request", "Result", "Scored", "TokenLogprob"]

_HOMES = {
    "Engine": "engine",
    "Request": "request",
    "Result": "request",
    "Scored": "request",
    "TokenLogprob": "request",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
