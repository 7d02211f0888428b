"""What changes the scores of tokens before one is chosen: transformers' logits processors, on the device.

A call that asks for none of them has no `Processors`, and compiles and computes nothing for them. All values are
traced, so other values of the same options compile nothing new.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from videollava_jax.generation.filters import Filters
from videollava_jax.generation.history import NOTHING, Sequences, history, repeated
from videollava_jax.generation.penalties import Penalties, penalised

ScoreFunction = Callable[[jax.Array, jax.Array], jax.Array]
"""Takes ids int32 [B, S], a row's tokens so far on the right and padding before them, and scores float32 [B, V];
returns scores [B, V]. It is compiled into the decode loop."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Past:
    """What depends on the tokens of the prompt and the answer so far.

    Attributes:
      prompt_BT: int32, with `NOTHING` before a prompt.
      biases: added to the scores of tokens that complete a sequence (`SequenceBiasLogitsProcessor`).
      banned: the same with -inf (`NoBadWordsLogitsProcessor`).
      prompt_penalty: float32 scalar; above 1 makes the prompt's tokens likelier (`EncoderRepetitionPenaltyLogits…`).
      no_repeat: int32 scalar, runs of this many tokens occur once (`NoRepeatNGramLogitsProcessor`); 0 for none.
      no_repeat_of_prompt: int32 scalar, likewise for runs of the prompt (`EncoderNoRepeatNGramLogitsProcessor`).
    """

    prompt_BT: jax.Array
    biases: Sequences
    banned: Sequences
    prompt_penalty: jax.Array
    no_repeat: jax.Array
    no_repeat_of_prompt: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Processors:
    """The processors of a call, with values that ask for nothing where an option was left out.

    Attributes:
      past: None where nothing looks at earlier tokens.
      min_new_tokens: int32 scalar, tokens before which no end token is chosen.
      forced_first_V, forced_last_V: bool, the tokens that the first and the last place of an answer have; none if all
        are False.
      decay_start, decay_factor: int32 and float32 scalars (`ExponentialDecayLengthPenalty`); a factor of 1 is none.
      not_first_V: bool, tokens that are not chosen at the place `begin` of an answer.
      begin: int32 scalar.
      make_finite: bool scalar (`InfNanRemoveLogitsProcessor`).
      renormalize: bool scalar (`LogitNormalization`).
      filters: what tokens are drawn from, besides top-k and top-p; None for nothing else.
      functions: the caller's, after all of these but the filters.
    """

    past: Past | None
    min_new_tokens: jax.Array
    forced_first_V: jax.Array
    forced_last_V: jax.Array
    decay_start: jax.Array
    decay_factor: jax.Array
    not_first_V: jax.Array
    begin: jax.Array
    make_finite: jax.Array
    renormalize: jax.Array
    filters: Filters | None
    functions: tuple[ScoreFunction, ...] = field(metadata={"static": True})


@dataclass(frozen=True)
class Place:
    """Where the next token stands.

    Attributes:
      tokens_BN: int32, the answers so far.
      count_B, limit_B: int32, tokens of each answer, and the number that ends it.
      penalties: of the rows; None for none.
      eos_E: int32, tokens that end an answer.
      suppressed_V: bool, tokens that are never chosen.
      pad: int32 scalar, the token of padding.
    """

    tokens_BN: jax.Array
    count_B: jax.Array
    limit_B: jax.Array
    penalties: Penalties | None
    eos_E: jax.Array
    suppressed_V: jax.Array
    pad: jax.Array


def processed(scores_BV: jax.Array, place: Place, processors: Processors) -> jax.Array:
    """Applies every processor but the filters, in transformers' order.

    Args:
      scores_BV: float32, logits, or log-probabilities in a beam search.
    """
    V = scores_BV.shape[1]
    count_B1, past = place.count_B[:, None], processors.past
    ends_V = jnp.zeros((V,), bool).at[place.eos_E].set(True, mode="drop")
    so_far_BS = None
    if past is not None:
        so_far_BS = history(past.prompt_BT, place.tokens_BN, place.count_B)
        scores_BV = past.biases.biased(scores_BV, so_far_BS)
        of_prompt_BV = _marks(past.prompt_BT, V)
        scores_BV = jnp.where(of_prompt_BV, penalised(scores_BV, 1 / past.prompt_penalty), scores_BV)
    if place.penalties is not None:
        scores_BV = place.penalties.applied(scores_BV)
    if past is not None and so_far_BS is not None:
        N = place.tokens_BN.shape[1]
        prompt_BS = jnp.pad(past.prompt_BT, ((0, 0), (N, 0)), constant_values=NOTHING)
        twice_BV = repeated(so_far_BS, so_far_BS, past.no_repeat, V)
        twice_BV |= repeated(so_far_BS, prompt_BS, past.no_repeat_of_prompt, V)
        scores_BV = past.banned.biased(jnp.where(twice_BV, -jnp.inf, scores_BV), so_far_BS)
    scores_BV = jnp.where(ends_V & (count_B1 < processors.min_new_tokens), -jnp.inf, scores_BV)
    for forced_V, here_B1 in (
        (processors.forced_first_V, count_B1 == 0),
        (processors.forced_last_V, count_B1 == place.limit_B[:, None] - 1),
    ):
        scores_BV = jnp.where(here_B1 & forced_V.any(), jnp.where(forced_V, 0.0, -jnp.inf), scores_BV)
    most = float(np.finfo(np.float32).max)
    finite_BV = jnp.clip(jnp.nan_to_num(scores_BV, nan=0.0, posinf=most, neginf=-most), -most, most)
    scores_BV = jnp.where(processors.make_finite, finite_BV, scores_BV)
    beyond_B1 = jnp.maximum(count_B1 - processors.decay_start, 0)
    decay_BV = jnp.abs(scores_BV) * (processors.decay_factor**beyond_B1 - 1)
    scores_BV = jnp.where(ends_V & jnp.isfinite(scores_BV), scores_BV + decay_BV, scores_BV)
    hidden_BV = place.suppressed_V | (processors.not_first_V & (count_B1 == processors.begin))
    scores_BV = jnp.where(hidden_BV, -jnp.inf, scores_BV)
    for function in processors.functions:
        assert so_far_BS is not None
        scores_BV = function(jnp.where(so_far_BS == NOTHING, place.pad, so_far_BS), scores_BV).astype(jnp.float32)
    return scores_BV


def renormalized(scores_BV: jax.Array, processors: Processors) -> jax.Array:
    """Returns log-probabilities where the call asks for them; this comes after all else, filters included."""
    return jnp.where(processors.renormalize, jax.nn.log_softmax(scores_BV, axis=-1), scores_BV)


def _marks(ids_BT: jax.Array, V: int) -> jax.Array:
    """Returns bool [B, V], the tokens among the ids of each row."""
    rows = jnp.arange(len(ids_BT))[:, None]
    return jnp.zeros((len(ids_BT), V), bool).at[rows, jnp.where(ids_BT == NOTHING, V, ids_BT)].set(True, mode="drop")
