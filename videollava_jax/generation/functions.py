"""Checks of the functions that callers of `generate` pass: processors of scores, and stopping criteria."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from videollava_jax.generation.asked import Criterion
from videollava_jax.generation.processors import ScoreFunction


def score_functions(given: Any, rows: int, V: int) -> tuple[ScoreFunction, ...]:
    """Returns `logits_processor` as functions of JAX arrays, each tried on abstract arrays.

    Args:
      given: a function, a list of such, or None.
      rows, V: of the scores that they will get.

    Raises:
      ValueError: one is no function of JAX arrays, or returns another shape.
    """
    functions = _listed("logits_processor", given)
    for function in functions:
        if any(base.__module__.startswith("transformers.") for base in type(function).__mro__):
            raise ValueError(
                f"logits_processor: {type(function).__name__} computes with torch. Give the option that makes it "
                "(docs/generate.md has them), or a function of JAX arrays: (input_ids [B, S], scores [B, V]) -> scores"
            )
        try:
            returned = jax.eval_shape(function, np.zeros((rows, 8), np.int32), np.zeros((rows, V), np.float32))
        except Exception as error:
            raise ValueError(
                f"logits_processor: {function!r} does not run on JAX arrays ({type(error).__name__}: {error}). It is "
                "compiled, so it has to be a function of jax.numpy: (input_ids [B, S], scores [B, V]) -> scores"
            ) from error
        if getattr(returned, "shape", None) != (rows, V):
            raise ValueError(
                f"logits_processor: expected scores {[rows, V]} from {function!r}, got "
                f"{getattr(returned, 'shape', type(returned).__name__)}"
            )
    return functions


def criteria(given: Any) -> tuple[Criterion, ...]:
    """Returns `stopping_criteria` as functions.

    Raises:
      ValueError: one cannot be called.
    """
    return _listed("stopping_criteria", given)


def _listed(name: str, given: Any) -> tuple[Any, ...]:
    if given is None:
        return ()
    # transformers' lists of either are lists that can be called.
    functions = tuple(given) if isinstance(given, Iterable) else (given,)
    if wrong := [function for function in functions if not callable(function)]:
        raise ValueError(f"{name}: expected a function or a list of functions, got {type(wrong[0]).__name__}")
    return functions
