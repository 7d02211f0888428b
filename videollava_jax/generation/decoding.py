"""The host's side of decoding: starts chunks of steps on the device and reads the answers after each chunk."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from videollava_jax.generation import steps as compiled
from videollava_jax.generation.answers import Answers, Records, Vocabulary
from videollava_jax.generation.asked import NOTHING_ASKED, Asked, Criterion
from videollava_jax.generation.buckets import answer_capacity
from videollava_jax.generation.next_token import Sampling
from videollava_jax.generation.options import GenerationOptions
from videollava_jax.generation.penalties import penalties_of
from videollava_jax.generation.steps import Graph
from videollava_jax.generation.text import OnTokens, ended, ends_by_text
from videollava_jax.model.cache import Cache

STREAM_CHUNK = 8  # steps of a chunk while the host looks at the answers, or streams them


class Decoded(NamedTuple):
    """What decoding returns.

    Attributes:
      tokens: int64 [B, n], padded behind the end of each row.
      cache: holds every token but the last of the longest answer, which was never fed back.
      records: what was asked for of each step, of at least n steps; None for nothing.
      passes: runs of the decoder after the prompt's own, the longest answer's.
    """

    tokens: npt.NDArray[np.int64]
    cache: Cache
    records: Records | None
    passes: int


def decode(
    graph: Graph,
    state: Any,
    logits_BV: jax.Array,
    cache: Cache,
    keys_B: jax.Array,
    seen: Sequence[npt.NDArray[np.int32]],
    options: GenerationOptions,
    *,
    tokenizer: Any = None,
    on_tokens: OnTokens | None = None,
    asked: Asked = NOTHING_ASKED,
) -> Decoded:
    """Decodes answers after what the cache holds.

    Args:
      graph, state: the model.
      logits_BV: of the first new token.
      cache: with at least `answer_capacity(options.max_new_tokens)` free positions; its tail is donated.
      keys_B: a key for the draws of each row.
      seen: the tokens of each row's prompt, which the repetition penalty applies to.
      options: the same for all rows.
      tokenizer: needed with `options.stop_strings`.
      on_tokens: called after every chunk of steps.
      asked: what a call of `generate` asks for besides the options.

    Raises:
      FloatingPointError: logits that are not finite, naming the rows.
    """
    rows, V = logits_BV.shape
    vocabulary = vocabulary_of(options, V)
    limit = options.max_new_tokens
    chunk = STREAM_CHUNK if ends_by_text(options) or on_tokens or asked.looked_at else limit
    answers = compiled.choose(
        logits_BV, _unwritten(rows, V, keys_B, seen, options, asked), vocabulary, asked.processors
    )
    tail, never = cache.tail, jax.device_put(np.int32(rows + 1))
    ends = np.full(rows, limit)
    written, guessing = 0, 0
    while True:
        before, written = written, int(np.asarray(answers.count_B).max())
        tokens = np.asarray(answers.tokens_BN)[:, :written]
        for row in np.flatnonzero(ends == limit):
            end = ended(tokens[row], before, options, tokenizer)
            ends[row] = limit if end is None else end
        if asked.looked_at:
            _end_by_criteria(asked, tokens, before, ends, options.pad_token_id, answers.records)
        tokens = np.where(np.arange(written) < ends[:, None], tokens, options.pad_token_id)[:, : ends.max()]
        if on_tokens and tokens.shape[1] > before:
            on_tokens(tokens[:, before:].astype(np.int64))
        if (ends <= written).all() or np.asarray(answers.done_B).all():
            break
        steps = jax.device_put(np.int32(chunk - 1 if written == 1 else chunk))
        if asked.lookup is None:
            tail, answers = compiled.decode(
                graph, state, cache.prefix, tail, answers, vocabulary, steps, never, asked.processors
            )
        else:
            tail, answers, taken = compiled.decode_guessing(
                graph, state, cache.prefix, tail, answers, vocabulary, steps, asked.lookup, asked.processors
            )
            guessing += int(taken)
    require_finite(np.asarray(answers.finite_B))
    return Decoded(tokens.astype(np.int64), Cache(cache.prefix, tail), answers.records, guessing or written - 1)


def _end_by_criteria(
    asked: Asked,
    tokens_BN: npt.NDArray[np.int32],
    before: int,
    ends: npt.NDArray[np.int64],
    pad: int,
    records: Records | None,
) -> None:
    """Asks the criteria about every step from `before` on, one after the other, and writes the ends of rows.

    Args:
      tokens_BN: the answers so far.
      before: steps that they were asked about already.
      ends: of each row, in tokens of its answer.
      pad: stands behind the end of a row, as in transformers.
    """
    for count in range(before + 1, tokens_BN.shape[1] + 1):
        live_B = ends >= count
        if not live_B.any():
            return
        answers = np.where(np.arange(count) < ends[:, None], tokens_BN[:, :count], pad)
        ids = np.concatenate([asked.prompts_BT, answers], axis=1).astype(np.int64)
        ended_B = live_B & ended_by_criteria(asked, ids, records, count)
        ends[ended_B] = count


def ended_by_criteria(
    asked: Asked, ids: npt.NDArray[np.int64], records: Records | None, count: int
) -> npt.NDArray[np.bool_]:
    """Returns bool [rows], which rows end by a criterion, or because the time of the call is over.

    Args:
      ids: prompts and answers so far, [rows, T + count].
      records: of the steps so far.
      count: of steps.

    Raises:
      ValueError: a criterion returns neither a bool nor one for each row.
    """
    kept = asked.criteria and records is not None and records.scores_NBV is not None
    scores = tuple(records.scores_NBV[:count]) if kept else None  # type: ignore[union-attr, index]
    late = asked.deadline is not None and time.monotonic() > asked.deadline
    ended_B = np.full(len(ids), late)
    for criterion in asked.criteria:
        said = np.asarray(_answer_of(criterion, ids, scores), bool)
        if said.shape not in ((), (len(ids),)):
            raise ValueError(
                f"stopping_criteria: expected a bool or one for each of {len(ids)} rows, got shape {said.shape}"
            )
        ended_B |= said
    return ended_B


def _answer_of(criterion: Criterion, ids: npt.NDArray[np.int64], scores: Any) -> Any:
    """Calls a criterion; one of transformers' own, which exist where torch does, gets tensors."""
    torch = sys.modules.get("torch")
    theirs = any(base.__name__ == "StoppingCriteria" for base in type(criterion).__mro__)
    if torch is None or not theirs:
        return criterion(ids, scores)
    tensors = None if scores is None else tuple(torch.from_numpy(np.array(step)) for step in scores)
    return criterion(torch.from_numpy(ids), tensors)


def require_finite(finite_B: npt.NDArray[np.bool_]) -> None:
    """Raises a FloatingPointError that names the rows whose logits have not all been finite."""
    if not finite_B.all():
        raise FloatingPointError(
            f"logits of rows {np.flatnonzero(~finite_B).tolist()} are not finite: the weights or pixels hold NaN or "
            "infinity, or overflow in this dtype"
        )


def vocabulary_of(options: GenerationOptions, V: int) -> Vocabulary:
    """Returns the tokens that decoding treats specially, on the device."""
    special: dict[str, Any] = {
        "eos_E": np.array(options.eos_token_id, np.int32),
        "suppressed_V": marks([np.array(options.suppress_tokens, np.int32)], V)[0],
        "pad": np.int32(options.pad_token_id),
    }
    vocabulary: Vocabulary = jax.device_put(Vocabulary(**special))
    return vocabulary


def sampling_of_rows(rows: int, keys_B: jax.Array, options: GenerationOptions) -> Sampling:
    """Returns how the tokens of rows are chosen, which all have the same options, on the device.

    The arrays are made by NumPy: each shape of `jnp.full` would be a program to compile.
    """
    values: dict[str, Any] = {
        "draw_B": np.full(rows, options.do_sample),
        "temperature_B": np.full(rows, options.temperature, np.float32),
        "top_k_B": np.full(rows, options.top_k, np.int32),
        "top_p_B": np.full(rows, options.top_p, np.float32),
        "min_p_B": np.full(rows, options.min_p, np.float32),
    }
    sampling: Sampling = jax.device_put(Sampling(keys_B=keys_B, **values, draw=options.do_sample))
    return sampling


def _unwritten(
    rows: int,
    V: int,
    keys_B: jax.Array,
    seen: Sequence[npt.NDArray[np.int32]],
    options: GenerationOptions,
    asked: Asked,
) -> Answers:
    """Returns answers without a token, on the device; made by NumPy, as `sampling_of_rows` says."""
    capacity = answer_capacity(options.max_new_tokens)
    sampling = sampling_of_rows(rows, keys_B, options)
    arrays: dict[str, Any] = {
        "token_B": np.full(rows, options.pad_token_id, np.int32),
        "tokens_BN": np.full((rows, capacity), options.pad_token_id, np.int32),
        "count_B": np.zeros(rows, np.int32),
        "limit_B": np.full(rows, options.max_new_tokens, np.int32),
        "done_B": np.zeros(rows, bool),
        "finite_B": np.ones(rows, bool),
        "penalties": penalties_of(seen, [options] * rows, V) if options.penalises else None,
    }
    records = Records.empty((capacity, rows, V), scores=asked.scores, logits=asked.logits)
    answers: Answers = jax.device_put(Answers(**arrays, sampling=sampling, records=records))
    return answers


def row_keys(seed: int | Sequence[int], rows: int, copies: int = 1) -> jax.Array:
    """Returns a key for each copy of each row; it depends on the row's seed and the copy's number alone."""
    seeds = [seed] * rows if isinstance(seed, int) else list(seed)
    if len(seeds) != rows:
        raise ValueError(f"seed: expected one number or one for each of {rows} rows, got {len(seeds)}")
    keys: jax.Array = _keys(np.array([s % 2**32 for s in seeds], np.uint32), copies)
    return keys


@partial(jax.jit, static_argnums=1)
def _keys(seeds_B: jax.Array, copies: int) -> jax.Array:
    """The keys [B × copies] of seeds uint32, as `fold_in(key(seed), copy)` draws them one by one."""
    keys_B = jax.vmap(jax.random.key)(seeds_B)
    return jax.vmap(jax.random.fold_in)(jnp.repeat(keys_B, copies), jnp.tile(jnp.arange(copies), len(seeds_B)))


def marks(rows: Sequence[npt.NDArray[np.int32]], V: int) -> npt.NDArray[np.bool_]:
    """Returns bool [rows, V], the tokens among the ids of each row."""
    found = np.zeros((len(rows), V), bool)
    for row, ids in enumerate(rows):
        found[row, ids] = True
    return found
