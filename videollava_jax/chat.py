"""`Chat` under its public name; it lives in `generation.chat`."""

from videollava_jax.generation.chat import Chat, Turn

__all__ = ["Chat", "Turn"]
