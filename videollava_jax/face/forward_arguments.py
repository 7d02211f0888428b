"""The further arguments of transformers' `forward`: those that are known, those that ask for nothing, those refused."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

KNOWN = (
    *("pixel_values", "video_pooling", "inputs_embeds", "position_ids", "past_key_values", "cache", "use_cache"),
    *("output_hidden_states", "output_attentions", "vision_feature_layer", "vision_feature_select_strategy"),
)
_ONE_EACH = "give each sequence a row of its own"
_REFUSED: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "mm_encoder_outputs": (({},), "give the pixels of media, or inputs_embeds with their features in them"),
    "num_items_in_batch": ((), "the loss is the mean over the labels of the call"),
    "cu_seq_lens_q": ((), _ONE_EACH),
    "cu_seq_lens_k": ((), _ONE_EACH),
}
"""Values that ask for nothing, and what to do instead of others."""
_HINTS = ("cache_position", "return_dict")
"""transformers 5.24 takes the first no more: positions follow from the cache, or are given as position_ids."""


def sort(given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the known ones among the further arguments of a forward pass, without those that are None.

    Raises:
      TypeError: an unknown argument.
      ValueError: one that asks for what is not done.
    """
    names = (*KNOWN, *_REFUSED, *_HINTS)
    for name, value in given.items():
        if name not in names:
            near = difflib.get_close_matches(name, names, 1)
            raise TypeError(f"forward: unknown argument {name!r}" + (f": did you mean {near[0]!r}?" if near else ""))
        if name in _REFUSED and value is not None and not any(value == each for each in _REFUSED[name][0]):
            raise ValueError(f"{name} is not supported: {_REFUSED[name][1]}")
    return {name: given[name] for name in KNOWN if given.get(name) is not None}


def kept(logits_to_keep: Any, tokens: int) -> Sequence[int]:
    """Returns the indices of the tokens whose logits `logits_to_keep` names.

    Args:
      logits_to_keep: how many last tokens, 0 for all; or int [n], indices of tokens.
      tokens: of a row.

    Raises:
      ValueError: anything else.
    """
    found = np.asarray(logits_to_keep)
    if found.ndim == 0 and np.issubdtype(found.dtype, np.integer) and found >= 0:
        return range(tokens)[-int(found) :]  # -0 is 0: all
    if found.ndim != 1 or not np.issubdtype(found.dtype, np.integer) or (abs(found + 0.5) > tokens).any():
        raise ValueError(
            f"logits_to_keep: expected a number of last tokens from 0 on, or indices of the {tokens} tokens, got "
            f"{logits_to_keep!r}"
        )
    return [int(index) % tokens for index in found]
