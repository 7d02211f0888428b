"""The host's side of beam search: the arrays that it begins with, and its answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from videollava_jax.generation import steps as compiled
from videollava_jax.generation.answers import Records
from videollava_jax.generation.asked import Asked
from videollava_jax.generation.beams import BeamRules, Beams, Candidates, new_beams
from videollava_jax.generation.buckets import answer_capacity
from videollava_jax.generation.call_options import CallOptions
from videollava_jax.generation.decoding import (
    ended_by_criteria,
    require_finite,
    sampling_of_rows,
    vocabulary_of,
)
from videollava_jax.generation.loaded import LoadedModel
from videollava_jax.generation.penalties import penalties_of
from videollava_jax.generation.text import ended, ends_by_text
from videollava_jax.model.cache import Cache


@dataclass(frozen=True)
class Found:
    """The best answers of a search, the best first of each prompt.

    Attributes:
      tokens: int64 [B × returned, n], padded.
      scores: float32 [B × returned].
      rows: int32 [B × returned, n], the row of the batch that each token was chosen from, -1 behind an answer.
      records: of each step.
      steps: tokens of the longest beam.
    """

    tokens: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float32]
    rows: npt.NDArray[np.int32]
    records: Records | None
    steps: int


def search(
    model: LoadedModel,
    logits_RV: jax.Array,
    cache: Cache,
    keys_R: jax.Array,
    prompts: Sequence[npt.NDArray[np.int32]],
    call: CallOptions,
    asked: Asked,
    tokenizer: Any = None,
) -> Found:
    """Searches answers after what the cache holds.

    Args:
      logits_RV: of the first new token, R = B × beams rows.
      cache: of R rows, the beams of a prompt as neighbours that share its prefix; its tail is donated.
      keys_R: for draws; the first of each prompt's is used.
      prompts: the tokens of each row's prompt.
      call, asked: what the call asks for; `asked.processors` is not None.
      tokenizer: needed with stop strings.

    Raises:
      FloatingPointError: logits that are not finite, naming the prompts.
    """
    options, n = call.every, call.search.num_beams
    R, V = logits_RV.shape
    B, N = R // n, answer_capacity(options.max_new_tokens)
    assert asked.processors is not None
    rules = beam_rules(call, N)
    vocabulary, sampling = vocabulary_of(options, V), sampling_of_rows(R, keys_R, options)
    shared = (rules, vocabulary, sampling, asked.processors)
    # transformers fills with the end token where the padding is token 0.
    fill = options.pad_token_id or next(iter(options.eos_token_id), 0)
    beams = new_beams(
        B,
        N,
        rules,
        jnp.asarray(fill, jnp.int32),
        jax.device_put(penalties_of(prompts, [options] * R, V)) if options.penalises else None,
        Records.empty((N, R, V), scores=asked.scores, logits=asked.logits),
    )
    if ends_by_text(options) or asked.looked_at:
        beams = _searched_with_a_look(model, logits_RV, cache, beams, shared, call, asked, tokenizer)
    else:
        beams = compiled.begin_beams(logits_RV, beams, *shared)
        if not bool(beams.over):
            _, beams = compiled.search_beams(model.graph, model.state, cache.prefix, cache.tail, beams, *shared)
    require_finite(np.asarray(beams.finite_B))
    return _found(beams, call.search.num_return_sequences)


def beam_rules(call: CallOptions, N: int) -> BeamRules:
    """Returns the rules of a search whose answers have at most N tokens."""
    search, ends = call.search, len(call.every.eos_token_id)
    lengths = np.arange(1, N + 1, dtype=np.float64) ** search.length_penalty
    return BeamRules(
        divisor_N=jnp.asarray(np.concatenate([[1.0], lengths]), jnp.float32),
        limit=jnp.asarray(call.every.max_new_tokens, jnp.int32),
        full_ends=jnp.asarray(search.early_stopping is True),
        longest=jnp.asarray(search.early_stopping == "never" and search.length_penalty > 0),
        beams=search.num_beams,
        candidates=max(2, 1 + ends) * search.num_beams,
    )


def _searched_with_a_look(
    model: LoadedModel,
    logits_RV: jax.Array,
    cache: Cache,
    beams: Beams,
    shared: tuple[Any, ...],
    call: CallOptions,
    asked: Asked,
    tokenizer: Any,
) -> Beams:
    """Searches step by step: the host looks at every candidate, whose text or criteria may end it."""
    tail = cache.tail
    found, beams = compiled.first_candidates(logits_RV, beams, *shared)
    while True:
        found = _with_ends(found, beams, call, asked, tokenizer)
        tail, beams = compiled.advance_beams(found, tail, beams, shared[0])
        if bool(beams.over):
            return beams
        tail, found, beams = compiled.next_candidates(model.graph, model.state, cache.prefix, tail, beams, *shared)


def _with_ends(found: Candidates, beams: Beams, call: CallOptions, asked: Asked, tokenizer: Any) -> Candidates:
    """Adds the candidates that end by their text, by a criterion or because the time is over."""
    count = int(beams.step) + 1
    B, K, _ = found.tokens_BKN.shape
    tokens = np.asarray(found.tokens_BKN)[:, :, :count].reshape(B * K, count)
    ends = np.array(found.ends_BK).reshape(-1)
    if ends_by_text(call.every):
        ends |= [ended(row, count - 1, call.every, tokenizer) is not None for row in tokens]
    each = np.repeat(asked.prompts_BT.reshape(B, -1, asked.prompts_BT.shape[1])[:, 0], K, axis=0)
    ids = np.concatenate([each, tokens], axis=1).astype(np.int64)
    ends |= ended_by_criteria(asked, ids, beams.records, count)
    return dataclasses.replace(found, ends_BK=jnp.asarray(ends.reshape(B, K)))


def _found(beams: Beams, returned: int) -> Found:
    def rows(x: jax.Array) -> npt.NDArray[Any]:
        kept = np.asarray(x)[:, :returned]
        return kept.reshape(-1, *kept.shape[2:])

    chosen = rows(beams.finished_rows_BnN)
    longest = int((chosen >= 0).sum(axis=1).max())
    return Found(
        tokens=rows(beams.finished_BnN)[:, :longest].astype(np.int64),
        scores=rows(beams.scores_Bn),
        rows=chosen[:, :longest],
        records=beams.records,
        steps=int(beams.step),
    )
