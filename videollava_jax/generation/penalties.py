"""What makes tokens of a row likelier or less likely: biases, and penalties for tokens that were there before."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from videollava_jax.generation.options import GenerationOptions


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Penalties:
    """The penalties and biases of R rows. All are traced: other values compile nothing.

    Attributes:
      seen_RV: bool, tokens of the prompt and of the answer so far.
      counts_RV: int32, how often each token is in the answer so far.
      bias_RV: float32, added to the scores (OpenAI's `logit_bias`); 0 for none.
      repetition_R: float32, of the tokens of prompt and answer (Keskar et al. 2019, as transformers); 1 for none.
      frequency_R: float32, subtracted for each time that a token is in the answer (OpenAI); 0 for none.
      presence_R: float32, subtracted once for a token that is in the answer (OpenAI); 0 for none.
    """

    seen_RV: jax.Array
    counts_RV: jax.Array
    bias_RV: jax.Array
    repetition_R: jax.Array
    frequency_R: jax.Array
    presence_R: jax.Array

    def applied(self, scores_RV: jax.Array) -> jax.Array:
        """Returns scores float32 [R, V] with the biases, then the repetition penalty, then OpenAI's two."""
        scores_RV = scores_RV + self.bias_RV
        scores_RV = jnp.where(self.seen_RV, penalised(scores_RV, self.repetition_R[:, None]), scores_RV)
        scores_RV = scores_RV - self.frequency_R[:, None] * self.counts_RV
        return scores_RV - self.presence_R[:, None] * (self.counts_RV > 0)

    def with_tokens(self, token_R: jax.Array, live_R: jax.Array | bool = True) -> Penalties:
        """Returns the penalties after one more token of each row that is live."""
        chosen_RV = jnp.arange(self.seen_RV.shape[1]) == token_R[:, None]
        if not isinstance(live_R, bool):
            chosen_RV = chosen_RV & live_R[:, None]
        return dataclasses.replace(self, seen_RV=self.seen_RV | chosen_RV, counts_RV=self.counts_RV + chosen_RV)

    def of_rows(self, row_R: jax.Array) -> Penalties:
        """Returns the penalties of other rows, int32 [R]."""
        moved: Penalties = jax.tree.map(lambda x: x[row_R], self)
        return moved


def penalised(scores_BV: jax.Array, penalty: jax.Array) -> jax.Array:
    """Returns scores that a penalty makes so far less likely (Keskar et al. 2019, as transformers applies it)."""
    return jnp.where(scores_BV < 0, scores_BV * penalty, scores_BV / penalty)


def penalties_of(
    prompts: Sequence[npt.NDArray[np.int32]], options: Sequence[GenerationOptions | None], V: int
) -> Penalties:
    """Returns the penalties of rows without a token of an answer, as NumPy arrays.

    Args:
      prompts: the tokens of each row's prompt.
      options: of each row; None for an idle one, whose prompt counts for nothing.
      V: size of the vocabulary.
    """
    rows = len(options)
    seen, bias = np.zeros((rows, V), bool), np.zeros((rows, V), np.float32)
    for row, (prompt, own) in enumerate(zip(prompts, options, strict=True)):
        if own is not None:
            seen[row, prompt] = True
            for token, value in own.logit_bias:
                bias[row, token] = value

    def each(name: str, idle: float) -> npt.NDArray[np.float32]:
        return np.array([idle if own is None else getattr(own, name) for own in options], np.float32)

    arrays: dict[str, Any] = {
        "seen_RV": seen,
        "counts_RV": np.zeros((rows, V), np.int32),
        "bias_RV": bias,
        "repetition_R": each("repetition_penalty", 1),
        "frequency_R": each("frequency_penalty", 0),
        "presence_R": each("presence_penalty", 0),
    }
    return Penalties(**arrays)
