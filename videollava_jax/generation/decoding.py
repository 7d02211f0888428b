"""The host's side of decoding: starts chunks of steps on the device and reads the answers after each chunk."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from videollava_jax.generation import steps as compiled
from videollava_jax.generation.answers import Answers, Vocabulary
from videollava_jax.generation.buckets import answer_capacity
from videollava_jax.generation.next_token import Sampling
from videollava_jax.generation.options import GenerationOptions
from videollava_jax.generation.steps import Graph
from videollava_jax.generation.text import OnTokens, ended, ends_by_text
from videollava_jax.model.cache import Cache

STREAM_CHUNK = 8  # steps of a chunk while tokens are streamed or stop strings are looked for


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
) -> tuple[npt.NDArray[np.int64], Cache]:
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

    Returns:
      the new tokens int64 [B, n], padded behind the end of each row, and the cache. It holds every token but the last
      of the longest answer, which was never fed back.

    Raises:
      FloatingPointError: logits that are not finite, naming the rows.
    """
    rows, V = logits_BV.shape
    special: dict[str, Any] = {
        "eos_E": np.array(options.eos_token_id, np.int32),
        "suppressed_V": _marks([np.array(options.suppress_tokens, np.int32)], V)[0],
        "pad": np.int32(options.pad_token_id),
    }
    vocabulary = jax.device_put(Vocabulary(**special))
    limit = options.max_new_tokens
    chunk = STREAM_CHUNK if ends_by_text(options) or on_tokens else limit
    answers = compiled.choose(logits_BV, _unwritten(rows, V, keys_B, seen, options), vocabulary)
    tail, never = cache.tail, jax.device_put(np.int32(rows + 1))
    ends = np.full(rows, limit)
    written = 0
    while True:
        before, written = written, int(np.asarray(answers.count_B).max())
        tokens = np.asarray(answers.tokens_BN)[:, :written]
        for row in np.flatnonzero(ends == limit):
            end = ended(tokens[row], before, options, tokenizer)
            ends[row] = limit if end is None else end
        tokens = np.where(np.arange(written) < ends[:, None], tokens, options.pad_token_id)[:, : ends.max()]
        if on_tokens and tokens.shape[1] > before:
            on_tokens(tokens[:, before:].astype(np.int64))
        if (ends <= written).all() or np.asarray(answers.done_B).all():
            break
        steps = jax.device_put(np.int32(chunk - 1 if written == 1 else chunk))
        tail, answers = compiled.decode(graph, state, cache.prefix, tail, answers, vocabulary, steps, never)
    finite = np.asarray(answers.finite_B)
    if not finite.all():
        raise FloatingPointError(
            f"logits of rows {np.flatnonzero(~finite).tolist()} are not finite: the weights or pixels hold NaN or "
            "infinity, or overflow in this dtype"
        )
    return tokens.astype(np.int64), Cache(cache.prefix, tail)


def _unwritten(
    rows: int, V: int, keys_B: jax.Array, seen: Sequence[npt.NDArray[np.int32]], options: GenerationOptions
) -> Answers:
    """Returns answers without a token, on the device.

    The arrays are made by NumPy: each shape of `jnp.full` would be a program to compile.
    """
    penalise = options.repetition_penalty != 1.0

    def full(value: Any, dtype: Any, *shape: int) -> Any:
        return np.full((rows, *shape), value, dtype)

    sampling: dict[str, Any] = {
        "draw_B": full(options.do_sample, bool),
        "temperature_B": full(options.temperature, np.float32),
        "top_k_B": full(options.top_k, np.int32),
        "top_p_B": full(options.top_p, np.float32),
        "repetition_penalty_B": full(options.repetition_penalty, np.float32),
    }
    arrays: dict[str, Any] = {
        "token_B": full(options.pad_token_id, np.int32),
        "tokens_BN": full(options.pad_token_id, np.int32, answer_capacity(options.max_new_tokens)),
        "count_B": full(0, np.int32),
        "limit_B": full(options.max_new_tokens, np.int32),
        "done_B": full(False, bool),
        "finite_B": full(True, bool),
        "seen_BV": _marks(seen, V) if penalise else None,
    }
    chosen = Sampling(keys_B=keys_B, **sampling, draw=options.do_sample, penalise=penalise)
    answers: Answers = jax.device_put(Answers(**arrays, sampling=chosen))
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


def _marks(rows: Sequence[npt.NDArray[np.int32]], V: int) -> npt.NDArray[np.bool_]:
    marks = np.zeros((len(rows), V), bool)
    for row, ids in enumerate(rows):
        marks[row, ids] = True
    return marks
