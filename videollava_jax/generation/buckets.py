"""Lengths are rounded up to few sizes, so that few shapes are compiled. No JAX."""

from __future__ import annotations

PROMPT_BUCKET = 32
ANSWER_BUCKET = 32


def bucket(length: int, step: int) -> int:
    """Returns the smallest multiple of `step` that holds `length`."""
    return -(-length // step) * step


def answer_capacity(max_new_tokens: int) -> int:
    """Returns the positions of a cache that are kept for an answer."""
    return bucket(max_new_tokens, ANSWER_BUCKET)
