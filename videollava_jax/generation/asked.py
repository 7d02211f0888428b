"""From the options of a call of `generate` to what decoding is asked for besides the options that every face has."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from videollava_jax.generation.buckets import PROMPT_BUCKET, bucket
from videollava_jax.generation.call_options import CallOptions
from videollava_jax.generation.fields import SECONDS, SearchOptions
from videollava_jax.generation.filters import Filters
from videollava_jax.generation.history import Sequences, prompt_array
from videollava_jax.generation.lookup import Lookup
from videollava_jax.generation.processors import Past, Processors, ScoreFunction

_DEFAULTS = SearchOptions()
_LOOK_BACK = (
    "sequence_bias",
    "bad_words_ids",
    "encoder_repetition_penalty",
    "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size",
)
_FILTERS = ("top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
_OTHERS = (
    "forced_bos_token_id",
    "forced_eos_token_id",
    "remove_invalid_values",
    "renormalize_logits",
    "exponential_decay_length_penalty",
    "begin_suppress_tokens",
)

Criterion = Callable[..., Any]
"""Takes ids int64 [B, T + n], prompts and answers so far, and the scores of the steps (None where they are not kept);
returns a bool, or bool [B], the rows that have ended. One that is transformers' own gets torch tensors."""


@dataclass(frozen=True)
class Asked:
    """What a call asks of decoding; the defaults ask for nothing.

    Attributes:
      processors: what changes scores.
      scores, logits: whether those of each step are kept.
      criteria: end answers, on the host.
      prompts_BT: int64, the prompts as they were given, for the criteria.
      lookup: how the next tokens are guessed; None for no guesses.
      deadline: by `time.monotonic`, when answers are cut; None for never.
    """

    processors: Processors | None = None
    scores: bool = False
    logits: bool = False
    criteria: tuple[Criterion, ...] = ()
    prompts_BT: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 0), np.int64))
    lookup: Lookup | None = None
    deadline: float | None = None

    @property
    def looked_at(self) -> bool:
        """Whether the host has to look at the answers every few steps."""
        return bool(self.criteria) or self.deadline is not None


NOTHING_ASKED = Asked()


def asked_by(
    call: CallOptions,
    prompts_BT: npt.NDArray[np.int64],
    rows: Sequence[npt.NDArray[np.int32]],
    V: int,
    *,
    logits_processor: Sequence[ScoreFunction] = (),
    stopping_criteria: Sequence[Criterion] = (),
) -> Asked:
    """Returns what a call asks for.

    Args:
      prompts_BT: the prompts as they were given, each as often as it has answers.
      rows: the same without padding.
      V: size of the vocabulary.
      logits_processor, stopping_criteria: as in `generate`.
    """
    search = call.search
    returned = search.return_dict_in_generate
    scores, logits = returned and search.output_scores, returned and search.output_logits
    functions = tuple(logits_processor)
    return Asked(
        _processors(call, prompts_BT.shape[1], rows, V, functions, kept=scores or logits),
        scores,
        logits,
        tuple(stopping_criteria),
        prompts_BT,
        _lookup(search, rows),
        None if search.max_time == SECONDS else time.monotonic() + search.max_time,
    )


def _lookup(search: SearchOptions, rows: Sequence[npt.NDArray[np.int32]]) -> Lookup | None:
    """How the next tokens of the one row are guessed.

    Raises:
      ValueError: there are several rows, or beams.
    """
    if not search.prompt_lookup_num_tokens:
        return None
    if len(rows) > 1:
        raise ValueError(
            f"prompt_lookup_num_tokens: expected one prompt with one answer and no beams, got {len(rows)} rows: leave "
            "it out, the answers are the same"
        )
    prompt_1T = prompt_array(rows, bucket(max(1, len(rows[0])), PROMPT_BUCKET))
    return Lookup(prompt_1T, search.prompt_lookup_num_tokens, search.max_matching_ngram_size)


def _differs(search: SearchOptions, names: Sequence[str]) -> bool:
    return any(getattr(search, name) != getattr(_DEFAULTS, name) for name in names)


def _processors(
    call: CallOptions,
    prompt: int,
    rows: Sequence[npt.NDArray[np.int32]],
    V: int,
    functions: tuple[ScoreFunction, ...],
    *,
    kept: bool,
) -> Processors | None:
    """The processors of a call; None where it asks for none and keeps nothing."""
    search, options = call.search, call.every
    looks_back = _differs(search, _LOOK_BACK) or bool(functions)
    beams_drawn = options.do_sample and search.num_beams > 1
    filtered = options.do_sample and (_differs(search, _FILTERS) or beams_drawn)
    others = _differs(search, _OTHERS) or call.min_new_tokens > 0
    if not (looks_back or filtered or others or kept or search.num_beams > 1):
        return None
    forced = search.forced_bos_token_id
    start, factor = search.exponential_decay_length_penalty or (0, 1.0)
    return Processors(
        past=_past(search, options.eos_token_id, rows) if looks_back else None,
        min_new_tokens=_int(call.min_new_tokens),
        # transformers forces the first token of a sequence, which is part of every longer prompt.
        forced_first_V=_mask([] if forced is None or prompt > 1 else [forced], V),
        forced_last_V=_mask(search.forced_eos_token_id, V),
        decay_start=_int(start),
        decay_factor=_float(factor),
        not_first_V=_mask(search.begin_suppress_tokens, V),
        begin=_int(0 if prompt > 1 or forced is None else 1),
        make_finite=jnp.asarray(search.remove_invalid_values),
        renormalize=jnp.asarray(search.renormalize_logits),
        filters=_filters(search, len(options.eos_token_id)) if filtered else None,
        functions=functions,
    )


def _past(search: SearchOptions, ends: Sequence[int], rows: Sequence[npt.NDArray[np.int32]]) -> Past:
    banned = [word for word in search.bad_words_ids if word not in [(end,) for end in ends]]
    return Past(
        prompt_BT=prompt_array(rows, bucket(max(1, *map(len, rows)), PROMPT_BUCKET)),
        biases=Sequences.of(search.sequence_bias),
        banned=Sequences.of([(word, -np.inf) for word in banned]),
        prompt_penalty=_float(search.encoder_repetition_penalty),
        no_repeat=_int(search.no_repeat_ngram_size),
        no_repeat_of_prompt=_int(search.encoder_no_repeat_ngram_size),
    )


def _filters(search: SearchOptions, ends: int) -> Filters:
    return Filters(
        top_h=_float(2.0 if search.top_h is None else search.top_h),
        typical_p=_float(search.typical_p),
        epsilon_cutoff=_float(search.epsilon_cutoff if search.epsilon_cutoff < 1 else 0),
        eta_cutoff=_float(search.eta_cutoff if search.eta_cutoff < 1 else 0),
        keep=1 if search.num_beams == 1 else max(2, ends + 1),
    )


def _int(value: int) -> jax.Array:
    return jnp.asarray(value, jnp.int32)


def _float(value: float) -> jax.Array:
    return jnp.asarray(value, jnp.float32)


def _mask(ids: Sequence[int], V: int) -> jax.Array:
    mask = np.zeros(V, bool)
    mask[list(ids)] = True
    return jnp.asarray(mask)
