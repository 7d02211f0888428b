"""The compiled functions: encode, prefill, extend, and a decode loop that stays on the device.

The module's structure (`GraphDef`) is a static argument and its parameters are an ordinary one, so models of one
configuration share their compiled programs. Prompts are padded to buckets of length, and the number of new tokens is
traced.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from videollava_jax.compiler_options import RECORDED_LOOP, UPDATE_IN_PLACE, JitByPlatform
from videollava_jax.generation.answers import Answers, Vocabulary, with_next_token
from videollava_jax.generation.beams import BeamRules, Beams, Candidates, advanced, candidates
from videollava_jax.generation.lookup import Lookup, guess, with_guessed_tokens, without_wrong_guesses
from videollava_jax.generation.next_token import Sampling
from videollava_jax.generation.processors import Processors
from videollava_jax.model.attention import Implementation, KeysValues
from videollava_jax.model.cache import Cache, PrefixCache, TailCache, empty_tail, written
from videollava_jax.model.decoder import Context
from videollava_jax.model.video_llava import VideoLlava

Graph = Any  # nnx.GraphDef[VideoLlava]


@partial(jax.jit, static_argnums=0)
def encode_images(graph: Graph, state: Any, pixels: jax.Array) -> jax.Array:
    """Runs `VideoLlava.encode_images` on pixels float32 [N, 3, S, S], as processors return them."""
    model: VideoLlava = nnx.merge(graph, state)
    return model.encode_images(jnp.moveaxis(pixels, -3, -1))


@partial(jax.jit, static_argnums=(0, 3))
def encode_videos(graph: Graph, state: Any, pixels: jax.Array, pooling: int = 1) -> jax.Array:
    """Runs `VideoLlava.encode_videos` on pixels float32 [V, F, 3, S, S], as processors return them."""
    model: VideoLlava = nnx.merge(graph, state)
    return model.encode_videos(jnp.moveaxis(pixels, -3, -1), pooling)


@partial(jax.jit, static_argnums=0)
def forward(
    graph: Graph,
    state: Any,
    ids_BT: jax.Array,
    mask_BT: jax.Array,
    image_features: jax.Array | None,
    video_features: jax.Array | None,
) -> jax.Array:
    """Computes the logits [B, T, V] of whole sequences."""
    model: VideoLlava = nnx.merge(graph, state)
    return model(ids_BT, mask_BT, image_features, video_features)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sequences:
    """New tokens of a batch, and where they stand.

    Attributes:
      ids_BT: int32; with embeddings, only those of media count.
      x_BTD: embeddings of the tokens; None looks the ids up.
      image_features, video_features: [media, tokens, D], or None where the batch has none.
      positions_BT: int32, rotary positions.
      mask_BS: bool, which keys hold a token: those of the past and the new ones, and False behind them.
      write_at: int32 scalar, the number of past keys.
      keep_K: int32, the tokens whose logits are wanted; None for hidden states instead of logits.
    """

    ids_BT: jax.Array
    x_BTD: jax.Array | None
    image_features: jax.Array | None
    video_features: jax.Array | None
    positions_BT: jax.Array
    mask_BS: jax.Array
    write_at: jax.Array
    keep_K: jax.Array | None


@dataclass(frozen=True)
class Wanted:
    """What a forward pass gives, apart from logits: compiled for each choice.

    Attributes:
      capacity: positions of the keys and values that are kept, at least those of the tokens; 0 to keep none. Past
        ones have their own.
      hidden_states, attentions: whether those of every layer are given.
    """

    capacity: int = 0
    hidden_states: bool = False
    attentions: bool = False


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ForwardPass:
    """What a forward pass gives.

    Attributes:
      out: logits [B, K, V], or the last hidden states [B, T, D].
      keys_values: of each layer, in order "SGKH"; None where none are kept.
      hidden_states: L + 1 × [B, T, D] as in `Trace`, or None.
      attentions: L × [B, N, T, S], or None.
    """

    out: jax.Array
    keys_values: tuple[KeysValues, ...] | None
    hidden_states: tuple[jax.Array, ...] | None
    attentions: tuple[jax.Array, ...] | None


@partial(jax.jit, static_argnums=0, static_argnames=("wanted",), donate_argnames=("past",))
def forward_pass(
    graph: Graph, state: Any, new: Sequences, past: tuple[KeysValues, ...] | None, *, wanted: Wanted
) -> ForwardPass:
    """Runs new tokens after past ones, if there are any, with whatever is wanted of every layer.

    Args:
      past: of each layer, in order "SGKH", with free positions for the new tokens; donated. None for no past.
    """
    model: VideoLlava = nnx.merge(graph, state)
    x_BTD = model.embed(new.ids_BT, new.image_features, new.video_features, new.x_BTD)
    layers = len(model.language_model.layers)
    if past is None:
        contexts = [Context(new.mask_BS)] * layers
    else:
        # The mask alone hides what is behind a single token: kernels for decoding know no causal rule.
        causal = new.ids_BT.shape[1] > 1
        contexts = [Context(new.mask_BS, kv, new.write_at, causal) for kv in past]
    trace = model.language_model.trace(x_BTD, new.positions_BT, contexts, attentions=wanted.attentions)
    out = trace.hidden_states[-1]
    if new.keep_K is not None:
        out = model.logits(jnp.take(out, new.keep_K, axis=1))
    kept = trace.keys_values
    if past is None and wanted.capacity:
        kept = tuple(_with_room(kv.reordered("SGKH"), wanted.capacity) for kv in kept)
    return ForwardPass(
        out,
        kept if past is not None or wanted.capacity else None,
        trace.hidden_states if wanted.hidden_states else None,
        trace.attentions,
    )


def _with_room(kv: KeysValues, capacity: int) -> KeysValues:
    """Pads keys and values in order "SGKH" to `capacity` positions."""
    room = ((0, capacity - kv.capacity), (0, 0), (0, 0), (0, 0))
    return dataclasses.replace(kv, keys=jnp.pad(kv.keys, room), values=jnp.pad(kv.values, room))


@partial(jax.jit, static_argnums=0, static_argnames=("capacity",))
def prefill(
    graph: Graph,
    state: Any,
    ids_BT: jax.Array,
    mask_BT: jax.Array,
    image_features: jax.Array | None,
    video_features: jax.Array | None,
    x_BTD: jax.Array | None = None,
    *,
    capacity: int,
) -> tuple[jax.Array, Cache]:
    """Computes the logits [B, V] after prompts padded on the left, and their cache with `capacity` free positions.

    Args:
      x_BTD: embeddings of the prompts; None looks the ids up.
    """
    model: VideoLlava = nnx.merge(graph, state)
    x_BTD, prefix = model.prefill(model.embed(ids_BT, image_features, video_features, x_BTD), mask_BT)
    return model.next_logits(x_BTD), Cache(prefix, empty_tail(prefix, prefix.prefixes, capacity, x_BTD.dtype))


@partial(jax.jit, static_argnames=("capacity", "dtype"))
def as_cache(
    layers: tuple[KeysValues, ...], valid_BS: jax.Array, length_B: jax.Array, *, capacity: int, dtype: Any
) -> Cache:
    """Makes a cache, with `capacity` free positions behind it, of keys and values in order "SGKH".

    Args:
      valid_BS: bool, which positions hold a token.
      length_B: int32, the rotary position of the next token of each row.
    """
    prefix = PrefixCache(tuple(kv.reordered("GKSH") for kv in layers), valid_BS, length_B)
    return Cache(prefix, empty_tail(prefix, prefix.prefixes, capacity, dtype))


@partial(jax.jit, static_argnames=("capacity",))
def joined(cache: Cache, past: jax.Array, *, capacity: int) -> tuple[KeysValues, ...]:
    """Returns a cache's prefixes with the tails behind them, as keys and values in order "SGKH".

    Args:
      past: int32 scalar, positions of the prefix; what it holds behind them is overwritten.
      capacity: of the result, at least the positions of prefix and tail.
    """
    return tuple(
        written(_with_room(before.reordered("SGKH"), capacity), after, past)
        for before, after in zip(cache.prefix.layers, cache.tail.layers, strict=True)
    )


@partial(jax.jit, static_argnums=0, donate_argnames=("tail",))
def extend(
    graph: Graph, state: Any, ids_BT: jax.Array, mask_BT: jax.Array, prefix: PrefixCache, tail: TailCache
) -> tuple[jax.Array, TailCache]:
    """Runs `VideoLlava.extend`: logits [B, V] after more text, padded on the left. The tail is donated."""
    model: VideoLlava = nnx.merge(graph, state)
    return model.extend(ids_BT, mask_BT, Cache(prefix, tail))


@partial(jax.jit, donate_argnames=("answers",))
def choose(
    logits_BV: jax.Array, answers: Answers, vocabulary: Vocabulary, processors: Processors | None = None
) -> Answers:
    """Appends the first token to every answer that has not ended. The answers are donated."""
    return with_next_token(logits_BV, answers, vocabulary, processors)


@partial(
    JitByPlatform,
    options={**UPDATE_IN_PLACE, **RECORDED_LOOP},
    placed="tail",
    static_argnums=0,
    static_argnames=("prefix_attention",),
    donate_argnames=("tail", "answers"),
)
def decode(
    graph: Graph,
    state: Any,
    prefix: PrefixCache,
    tail: TailCache,
    answers: Answers,
    vocabulary: Vocabulary,
    steps: jax.Array,
    enough: jax.Array,
    processors: Processors | None = None,
    *,
    prefix_attention: Implementation | None = None,
) -> tuple[TailCache, Answers]:
    """Decodes until every row has ended, without returning to the host.

    Args:
      graph, state: the model.
      prefix: shared by rows, only read.
      tail: each row's own part of the cache; donated.
      answers: donated.
      vocabulary: end, padding and suppressed tokens.
      steps: int32, the most steps to take.
      enough: int32, the number of rows that have to end during this call for it to stop early.
      processors: what changes scores before a token is chosen; None for nothing.
      prefix_attention: the implementation of attention to the prefix; None chooses one.
    """
    model: VideoLlava = nnx.merge(graph, state)
    ended_before = answers.done_B.sum()

    def unfinished(carry: tuple[jax.Array, TailCache, Answers]) -> jax.Array:
        step, _, answers = carry
        return (step < steps) & ~answers.done_B.all() & (answers.done_B.sum() - ended_before < enough)

    def body(carry: tuple[jax.Array, TailCache, Answers]) -> tuple[jax.Array, TailCache, Answers]:
        step, tail, answers = carry
        live_B1 = ~answers.done_B[:, None]
        cache = Cache(prefix, tail)
        logits_BV, tail = model.extend(answers.token_B[:, None], live_B1, cache, prefix_attention=prefix_attention)
        return step + 1, tail, with_next_token(logits_BV, answers, vocabulary, processors)

    _, tail, answers = jax.lax.while_loop(unfinished, body, (jnp.asarray(0, jnp.int32), tail, answers))
    return tail, answers


@partial(jax.jit, static_argnums=0, donate_argnames=("tail", "answers"))
def decode_guessing(
    graph: Graph,
    state: Any,
    prefix: PrefixCache,
    tail: TailCache,
    answers: Answers,
    vocabulary: Vocabulary,
    passes: jax.Array,
    lookup: Lookup,
    processors: Processors | None = None,
) -> tuple[TailCache, Answers, jax.Array]:
    """Decodes one row with guesses of its next tokens, each pass of the decoder over the last token and the guesses.

    Args:
      tail: with free positions for the guesses behind the longest answer.
      passes: int32, the most passes of the decoder.
      lookup: how guesses are made.
      graph, state, prefix, answers, vocabulary, processors: as in `decode`.

    Returns:
      The tail, the answers, and int32, the passes that were taken.
    """
    model: VideoLlava = nnx.merge(graph, state)

    def unfinished(carry: tuple[jax.Array, TailCache, Answers]) -> jax.Array:
        return (carry[0] < passes) & ~carry[2].done_B[0]

    def body(carry: tuple[jax.Array, TailCache, Answers]) -> tuple[jax.Array, TailCache, Answers]:
        taken, tail, answers = carry
        guess_1K = guess(answers, lookup)
        ids_1T = jnp.concatenate([answers.token_B[:, None], guess_1K], axis=1)
        logits_1TV, longer = model.extend_each(ids_1T, jnp.ones_like(ids_1T, bool), Cache(prefix, tail))
        found = with_guessed_tokens(logits_1TV[0], guess_1K, answers, vocabulary, processors)
        right = found.count_B[0] - answers.count_B[0]
        return taken + 1, without_wrong_guesses(tail, longer, right), found

    taken, tail, answers = jax.lax.while_loop(unfinished, body, (jnp.asarray(0, jnp.int32), tail, answers))
    return tail, answers, taken


# ── beam search ──


@jax.jit
def begin_beams(
    logits_RV: jax.Array,
    beams: Beams,
    rules: BeamRules,
    vocabulary: Vocabulary,
    sampling: Sampling,
    processors: Processors,
) -> Beams:
    """Takes the first step of a search by the logits [B × n, V] after the prompts: nothing is in a tail yet."""
    return advanced(*candidates(logits_RV, beams, rules, vocabulary, sampling, processors), rules)[0]


@partial(jax.jit, static_argnums=0, donate_argnames=("tail", "beams"))
def search_beams(
    graph: Graph,
    state: Any,
    prefix: PrefixCache,
    tail: TailCache,
    beams: Beams,
    rules: BeamRules,
    vocabulary: Vocabulary,
    sampling: Sampling,
    processors: Processors,
) -> tuple[TailCache, Beams]:
    """Searches until the search is over, without returning to the host; arguments are those of `decode`."""
    model: VideoLlava = nnx.merge(graph, state)

    def body(carry: tuple[TailCache, Beams]) -> tuple[TailCache, Beams]:
        tail, beams = carry
        logits_RV, tail = _extend_beams(model, prefix, tail, beams)
        beams, row_R = advanced(*candidates(logits_RV, beams, rules, vocabulary, sampling, processors), rules)
        return tail.of_rows(row_R), beams

    return jax.lax.while_loop(lambda carry: ~carry[1].over, body, (tail, beams))


@jax.jit
def first_candidates(
    logits_RV: jax.Array,
    beams: Beams,
    rules: BeamRules,
    vocabulary: Vocabulary,
    sampling: Sampling,
    processors: Processors,
) -> tuple[Candidates, Beams]:
    """Chooses the first tokens of a search whose candidates the host looks at."""
    return candidates(logits_RV, beams, rules, vocabulary, sampling, processors)


@partial(jax.jit, static_argnums=0, donate_argnames=("tail", "beams"))
def next_candidates(
    graph: Graph,
    state: Any,
    prefix: PrefixCache,
    tail: TailCache,
    beams: Beams,
    rules: BeamRules,
    vocabulary: Vocabulary,
    sampling: Sampling,
    processors: Processors,
) -> tuple[TailCache, Candidates, Beams]:
    """Runs the decoder on the last tokens of the beams, and chooses their candidates."""
    logits_RV, tail = _extend_beams(nnx.merge(graph, state), prefix, tail, beams)
    return tail, *candidates(logits_RV, beams, rules, vocabulary, sampling, processors)


@partial(jax.jit, donate_argnames=("tail", "beams"))
def advance_beams(found: Candidates, tail: TailCache, beams: Beams, rules: BeamRules) -> tuple[TailCache, Beams]:
    """Takes a step by candidates that the host has looked at."""
    beams, row_R = advanced(found, beams, rules)
    return tail.of_rows(row_R), beams


def _extend_beams(model: VideoLlava, prefix: PrefixCache, tail: TailCache, beams: Beams) -> tuple[jax.Array, TailCache]:
    last_R1 = jax.lax.dynamic_index_in_dim(beams.tokens_BnN, beams.step - 1, 2).reshape(-1, 1)
    return model.extend(last_R1, jnp.ones_like(last_R1, bool), Cache(prefix, tail))
