"""The log-probabilities of chosen tokens and of the likeliest ones, kept on the device until the host takes them."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

WINDOW = 16
"""Tokens of a row whose log-probabilities are kept: the host has to look before more are written."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Logprobs:
    """Log-probabilities of the last W tokens of B rows: those of token i are at i modulo W.

    They are the log-softmax of the model's own logits, before anything that changes scores.

    Attributes:
      wanted_B: bool, rows that want them; without any of these nothing is computed.
      chosen_BW: float32, of the chosen tokens.
      ids_BWK: int32, the K likeliest tokens, the likeliest first.
      top_BWK: float32, their log-probabilities.
    """

    wanted_B: jax.Array
    chosen_BW: jax.Array
    ids_BWK: jax.Array
    top_BWK: jax.Array

    def with_tokens(self, logits_BV: jax.Array, token_B: jax.Array, count_B: jax.Array, live_B: jax.Array) -> Logprobs:
        """Returns them with those of one more token of each row that is live; `count_B` tokens came before."""
        here_B = self.wanted_B & live_B

        def computed(old: Logprobs) -> Logprobs:
            log_BV = jax.nn.log_softmax(logits_BV.astype(jnp.float32), axis=-1)
            chosen_B1 = jnp.take_along_axis(log_BV, token_B[:, None], axis=-1)
            top_BK, ids_BK = jax.lax.top_k(log_BV, old.ids_BWK.shape[-1])
            W = old.chosen_BW.shape[1]
            here_BW = (jnp.arange(W) == (count_B % W)[:, None]) & here_B[:, None]
            return Logprobs(
                old.wanted_B,
                jnp.where(here_BW, chosen_B1, old.chosen_BW),
                jnp.where(here_BW[:, :, None], ids_BK[:, None], old.ids_BWK),
                jnp.where(here_BW[:, :, None], top_BK[:, None], old.top_BWK),
            )

        updated: Logprobs = jax.lax.cond(here_B.any(), computed, lambda old: old, self)
        return updated
