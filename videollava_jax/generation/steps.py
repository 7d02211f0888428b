"""The compiled functions: encode, prefill, extend, and a decode loop that stays on the device.

The module's structure (`GraphDef`) is a static argument and its parameters an ordinary one, so that models of
one configuration share what was compiled. Prompts come in buckets of length; the number of new tokens is traced.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from videollava_jax.generation.next_token import Sampling, next_tokens
from videollava_jax.model.cache import Cache, PrefixCache, TailCache, empty_tail
from videollava_jax.model.video_llava import VideoLlava

Graph = Any  # nnx.GraphDef[VideoLlava]
PROMPT_BUCKET = 32
ANSWER_BUCKET = 32


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Answers:
    """The answers of B rows so far, and what is needed to choose their next tokens.

    Attributes:
      token_B: int32, the last token of each row, which is not in its cache yet.
      tokens_BN: int32, the answers; `pad` where nothing was written.
      count_B: int32, tokens of each answer.
      limit_B: int32, at most N: an answer ends there.
      done_B: bool, rows that have ended: they write no more.
      finite_B: bool, rows whose logits were always finite; one that has others ends.
      seen_BV: bool, tokens that a repetition penalty touches; None where no row has one.
      sampling: how each row's tokens are chosen.
    """

    token_B: jax.Array
    tokens_BN: jax.Array
    count_B: jax.Array
    limit_B: jax.Array
    done_B: jax.Array
    finite_B: jax.Array
    seen_BV: jax.Array | None
    sampling: Sampling


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Vocabulary:
    """What tokens mean to decoding.

    Attributes:
      eos_E: int32, tokens that end a row.
      suppressed_V: bool, tokens that are never chosen.
      pad: int32 scalar.
    """

    eos_E: jax.Array
    suppressed_V: jax.Array
    pad: jax.Array


@partial(jax.jit, static_argnums=0)
def encode_images(graph: Graph, state: Any, pixels: jax.Array) -> jax.Array:
    """`VideoLlava.encode_images` of float32 [N, 3, S, S], as processors give them."""
    model: VideoLlava = nnx.merge(graph, state)
    return model.encode_images(jnp.moveaxis(pixels, -3, -1))


@partial(jax.jit, static_argnums=(0, 3))
def encode_videos(graph: Graph, state: Any, pixels: jax.Array, pooling: int = 1) -> jax.Array:
    """`VideoLlava.encode_videos` of float32 [V, F, 3, S, S], as processors give them; `pooling` is static."""
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
    """Logits [B, T, V] of whole sequences."""
    model: VideoLlava = nnx.merge(graph, state)
    return model(ids_BT, mask_BT, image_features, video_features)


@partial(jax.jit, static_argnums=0, static_argnames=("room",))
def prefill(
    graph: Graph,
    state: Any,
    ids_BT: jax.Array,
    mask_BT: jax.Array,
    image_features: jax.Array | None,
    video_features: jax.Array | None,
    *,
    room: int,
) -> tuple[jax.Array, Cache]:
    """Logits [B, V] after prompts that are padded on the left, and their cache with `room` free slots."""
    model: VideoLlava = nnx.merge(graph, state)
    x_BTD, prefix = model.prefill(model.embed(ids_BT, image_features, video_features), mask_BT)
    return model.next_logits(x_BTD), Cache(prefix, empty_tail(prefix, prefix.places, room, x_BTD.dtype))


@partial(jax.jit, static_argnums=0, donate_argnames=("tail",))
def extend(
    graph: Graph, state: Any, ids_BT: jax.Array, mask_BT: jax.Array, prefix: PrefixCache, tail: TailCache
) -> tuple[jax.Array, TailCache]:
    """`VideoLlava.extend`: logits [B, V] after more text, padded on the left; the old tail is donated."""
    model: VideoLlava = nnx.merge(graph, state)
    return model.extend(ids_BT, mask_BT, Cache(prefix, tail))


@partial(jax.jit, donate_argnames=("answers",))
def choose(logits_BV: jax.Array, answers: Answers, vocabulary: Vocabulary) -> Answers:
    """The answers with one more token each, where they have not ended."""
    return with_next_token(logits_BV, answers, vocabulary)


@partial(jax.jit, static_argnums=0, donate_argnames=("tail", "answers"))
def decode(
    graph: Graph,
    state: Any,
    prefix: PrefixCache,
    tail: TailCache,
    answers: Answers,
    vocabulary: Vocabulary,
    steps: jax.Array,
    enough: jax.Array,
) -> tuple[TailCache, Answers]:
    """Writes tokens until every row has ended, without returning to the host.

    Args:
      tail, answers: donated.
      steps: int32, stop after so many.
      enough: int32, or as soon as so many rows have ended since the call.
    """
    model: VideoLlava = nnx.merge(graph, state)
    ended_before = answers.done_B.sum()

    def unfinished(carry: tuple[jax.Array, TailCache, Answers]) -> jax.Array:
        step, _, answers = carry
        return (step < steps) & ~answers.done_B.all() & (answers.done_B.sum() - ended_before < enough)

    def body(carry: tuple[jax.Array, TailCache, Answers]) -> tuple[jax.Array, TailCache, Answers]:
        step, tail, answers = carry
        live_B1 = ~answers.done_B[:, None]
        logits_BV, tail = model.extend(answers.token_B[:, None], live_B1, Cache(prefix, tail))
        return step + 1, tail, with_next_token(logits_BV, answers, vocabulary)

    _, tail, answers = jax.lax.while_loop(unfinished, body, (jnp.asarray(0, jnp.int32), tail, answers))
    return tail, answers


def with_next_token(logits_BV: jax.Array, answers: Answers, vocabulary: Vocabulary) -> Answers:
    """The answers with the token that these logits give, where they have not ended."""
    live_B = ~answers.done_B
    scores_BV = jnp.where(vocabulary.suppressed_V, -jnp.inf, logits_BV.astype(jnp.float32))
    finite_B = answers.finite_B & (answers.done_B | jnp.isfinite(logits_BV).all(axis=-1))
    token_B = next_tokens(scores_BV, answers.seen_BV, answers.sampling, answers.count_B)
    token_B = jnp.where(live_B & finite_B, token_B, vocabulary.pad)
    write_BN = (jnp.arange(answers.tokens_BN.shape[1]) == answers.count_B[:, None]) & (live_B & finite_B)[:, None]
    count_B = answers.count_B + (live_B & finite_B)
    seen_BV = answers.seen_BV
    if seen_BV is not None:
        chosen_BV = jnp.arange(seen_BV.shape[1]) == token_B[:, None]
        seen_BV = seen_BV | (chosen_BV & live_B[:, None])
    ended_B = (token_B[:, None] == vocabulary.eos_E).any(axis=-1) | (count_B >= answers.limit_B) | ~finite_B
    return Answers(
        token_B=token_B,
        tokens_BN=jnp.where(write_BN, token_B[:, None], answers.tokens_BN),
        count_B=count_B,
        limit_B=answers.limit_B,
        done_B=answers.done_B | ended_B,
        finite_B=finite_B,
        seen_BV=seen_BV,
        sampling=answers.sampling,
    )


def bucket(length: int, step: int) -> int:
    """The smallest multiple of `step` that holds `length`: shapes, and so compilations, are few."""
    return -(-length // step) * step
