"""The compiled functions: encode, prefill, extend, and a decode loop that stays on the device.

The module's structure (`GraphDef`) is a static argument and its parameters are an ordinary one, so models of one
configuration share their compiled programs. Prompts are padded to buckets of length, and the number of new tokens is
traced.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from videollava_jax.generation.answers import Answers, Vocabulary, with_next_token
from videollava_jax.model.attention import Implementation
from videollava_jax.model.cache import Cache, PrefixCache, TailCache, empty_tail
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


@partial(jax.jit, static_argnums=0, static_argnames=("capacity",))
def prefill(
    graph: Graph,
    state: Any,
    ids_BT: jax.Array,
    mask_BT: jax.Array,
    image_features: jax.Array | None,
    video_features: jax.Array | None,
    *,
    capacity: int,
) -> tuple[jax.Array, Cache]:
    """Computes the logits [B, V] after prompts padded on the left, and their cache with `capacity` free positions."""
    model: VideoLlava = nnx.merge(graph, state)
    x_BTD, prefix = model.prefill(model.embed(ids_BT, image_features, video_features), mask_BT)
    return model.next_logits(x_BTD), Cache(prefix, empty_tail(prefix, prefix.prefixes, capacity, x_BTD.dtype))


@partial(jax.jit, static_argnums=0, donate_argnames=("tail",))
def extend(
    graph: Graph, state: Any, ids_BT: jax.Array, mask_BT: jax.Array, prefix: PrefixCache, tail: TailCache
) -> tuple[jax.Array, TailCache]:
    """Runs `VideoLlava.extend`: logits [B, V] after more text, padded on the left. The tail is donated."""
    model: VideoLlava = nnx.merge(graph, state)
    return model.extend(ids_BT, mask_BT, Cache(prefix, tail))


@partial(jax.jit, donate_argnames=("answers",))
def choose(logits_BV: jax.Array, answers: Answers, vocabulary: Vocabulary) -> Answers:
    """Appends the first token to every answer that has not ended. The answers are donated."""
    return with_next_token(logits_BV, answers, vocabulary)


@partial(jax.jit, static_argnums=0, static_argnames=("prefix_attention",), donate_argnames=("tail", "answers"))
def decode(
    graph: Graph,
    state: Any,
    prefix: PrefixCache,
    tail: TailCache,
    answers: Answers,
    vocabulary: Vocabulary,
    steps: jax.Array,
    enough: jax.Array,
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
        return step + 1, tail, with_next_token(logits_BV, answers, vocabulary)

    _, tail, answers = jax.lax.while_loop(unfinished, body, (jnp.asarray(0, jnp.int32), tail, answers))
    return tail, answers
