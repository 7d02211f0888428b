"""The engine: requests in, results out, each medium decoded, encoded and prefilled once for all its questions."""

from videollava_jax.engine.engine import Engine
from videollava_jax.engine.request import Request, Result, Scored

__all__ = ["Engine", "Request", "Result", "Scored"]
