"""The arguments of transformers' `forward` that ask for nothing here, and those that are refused by name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

_KNOWN: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "use_cache": ((False, True), ""),
    "cache_position": ((), "leave it out: positions follow from attention_mask"),
    "position_ids": ((), "leave it out: positions follow from attention_mask"),
    "cache": ((), "a conversation keeps its cache in videollava_jax.chat.Chat"),
    "mm_encoder_outputs": ((), "give the pixels of media"),
    "past_key_values": ((), "a conversation keeps its cache in videollava_jax.chat.Chat"),
    "inputs_embeds": ((), "give input_ids, and pixels of media"),
    "output_attentions": ((False,), "attention weights are never computed as arrays; use transformers on torch"),
    "output_hidden_states": ((False,), "use transformers on torch for the hidden states of each layer"),
    "vision_feature_layer": ((), "set it in the checkpoint's config.json"),
    "vision_feature_select_strategy": ((), "set it in the checkpoint's config.json"),
}
"""Values that ask for nothing, and what to do instead of others."""


def require_done(given: Mapping[str, Any]) -> None:
    """Checks the further arguments of a forward pass.

    Raises:
      TypeError: an unknown argument.
      ValueError: one that asks for what is not done.
    """
    for name, value in given.items():
        if name not in _KNOWN:
            near = difflib.get_close_matches(name, _KNOWN, 1)
            raise TypeError(f"forward: unknown argument {name!r}" + (f": did you mean {near[0]!r}?" if near else ""))
        neutral, instead = _KNOWN[name]
        if value is not None and not any(value is each for each in neutral):
            raise ValueError(f"{name} is not supported: {instead}")
