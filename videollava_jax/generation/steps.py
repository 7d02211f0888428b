"""The compiled functions: encode, prefill, extend, and a decode loop that stays on the device.

The module's structure (`GraphDef`) is a static argument and its parameters an ordinary one, so that models of
one configuration share what was compiled. Prompts come in buckets of length; the number of new tokens is traced.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from videollava_jax.generation.answers import Answers, Vocabulary, with_next_token
from videollava_jax.model.cache import Cache, PrefixCache, TailCache, empty_tail
from videollava_jax.model.video_llava import VideoLlava

Graph = Any  # nnx.GraphDef[VideoLlava]


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
    """Logits [B, V] after prompts that are padded on the left, and their cache with `capacity` free positions."""
    model: VideoLlava = nnx.merge(graph, state)
    x_BTD, prefix = model.prefill(model.embed(ids_BT, image_features, video_features), mask_BT)
    return model.next_logits(x_BTD), Cache(prefix, empty_tail(prefix, prefix.prefixes, capacity, x_BTD.dtype))


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
