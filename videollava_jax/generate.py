"""The compiled functions of generation: encode, prefill, and a decode loop that stays on the device.

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

from videollava_jax.cache import KVCache
from videollava_jax.model import VideoLlava
from videollava_jax.sampling import Sampling, next_tokens

Graph = Any  # nnx.GraphDef[VideoLlava]
PROMPT_BUCKET = 32
ANSWER_BUCKET = 32


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DecodeState:
    """What the decode loop carries.

    Attributes:
      cache: the keys and values of every token so far.
      logits_BV: of the token that comes next.
      tokens_BN: int32, the answers; `pad` where nothing was written.
      done_B: bool, rows that have ended: they write `pad` from then on.
      finite_B: bool, rows whose logits were always finite.
      seen_BV: bool, tokens that a repetition penalty touches; None without one.
      step: int32, tokens written so far.
    """

    cache: KVCache
    logits_BV: jax.Array
    tokens_BN: jax.Array
    done_B: jax.Array
    finite_B: jax.Array
    seen_BV: jax.Array | None
    step: jax.Array


@partial(jax.jit, static_argnums=0)
def encode_images(graph: Graph, state: Any, pixels: jax.Array) -> jax.Array:
    """`VideoLlava.encode_images` of float32 [N, 3, S, S], as processors give them."""
    model: VideoLlava = nnx.merge(graph, state)
    return model.encode_images(jnp.moveaxis(pixels, -3, -1))


@partial(jax.jit, static_argnums=0)
def encode_videos(graph: Graph, state: Any, pixels: jax.Array) -> jax.Array:
    """`VideoLlava.encode_videos` of float32 [V, F, 3, S, S], as processors give them."""
    model: VideoLlava = nnx.merge(graph, state)
    return model.encode_videos(jnp.moveaxis(pixels, -3, -1))


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
) -> tuple[jax.Array, KVCache]:
    """`VideoLlava.prefill`: logits [B, V] after the prompts, and their cache."""
    model: VideoLlava = nnx.merge(graph, state)
    return model.prefill(ids_BT, mask_BT, image_features, video_features, capacity=capacity)


@partial(jax.jit, static_argnums=0, donate_argnames=("cache",))
def extend(
    graph: Graph, state: Any, ids_BT: jax.Array, mask_BT: jax.Array, cache: KVCache
) -> tuple[jax.Array, KVCache]:
    """`VideoLlava.extend`: logits [B, V] after more tokens; the old cache is donated."""
    model: VideoLlava = nnx.merge(graph, state)
    return model.extend(ids_BT, mask_BT, cache)


@partial(jax.jit, static_argnums=0, donate_argnames=("carry",))
def decode(
    graph: Graph,
    state: Any,
    carry: DecodeState,
    sampling: Sampling,
    eos_E: jax.Array,
    suppressed_V: jax.Array,
    pad: jax.Array,
    limit: jax.Array,
) -> DecodeState:
    """Writes tokens until every row has ended or `limit` are written, without returning to the host.

    Args:
      carry: donated.
      eos_E: int32, tokens that end a row.
      suppressed_V: bool, tokens that are never chosen.
      pad: int32, written behind the end of a row.
      limit: int32, at most the width of `carry.tokens_BN`.
    """
    model: VideoLlava = nnx.merge(graph, state)

    def unfinished(carry: DecodeState) -> jax.Array:
        return (carry.step < limit) & ~carry.done_B.all()

    def body(carry: DecodeState) -> DecodeState:
        logits_BV = jnp.where(suppressed_V, -jnp.inf, carry.logits_BV.astype(jnp.float32))
        finite_B = carry.finite_B & (carry.done_B | jnp.isfinite(carry.logits_BV).all(axis=-1))
        token_B = jnp.where(carry.done_B, pad, next_tokens(logits_BV, carry.seen_BV, sampling, carry.step))
        live_B = ~carry.done_B
        seen_BV = carry.seen_BV
        if seen_BV is not None:
            seen_BV = seen_BV | (jax.nn.one_hot(token_B, seen_BV.shape[1], dtype=bool) & live_B[:, None])
        tokens_BN = jax.lax.dynamic_update_slice_in_dim(carry.tokens_BN, token_B[:, None], carry.step, axis=1)
        logits_BV, cache = model.extend(token_B[:, None], live_B[:, None], carry.cache)
        return DecodeState(
            cache=cache,
            logits_BV=logits_BV,
            tokens_BN=tokens_BN,
            done_B=carry.done_B | (token_B[:, None] == eos_E).any(axis=-1),
            finite_B=finite_B,
            seen_BV=seen_BV,
            step=carry.step + 1,
        )

    return jax.lax.while_loop(unfinished, body, carry)


def bucket(length: int, step: int) -> int:
    """The smallest multiple of `step` that holds `length`: shapes, and so compilations, are few."""
    return -(-length // step) * step
