"""The decoder: Llama, one path for a whole sequence, for a prompt that fills a cache, and for one more token.

Module and parameter names are those of transformers' `LlamaModel`.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from videollava_jax.attention import attention
from videollava_jax.cache import KVCache
from videollava_jax.config import TextConfig
from videollava_jax.layers import ACTIVATIONS, Embedding, Linear, RMSNorm, rotary


class KeysValues(NamedTuple):
    """Keys (rotated) and values of one layer, each [B, K, S, H]."""

    keys: jax.Array
    values: jax.Array


class LlamaAttention(nnx.Module):
    """Causal self-attention with rotary positions and grouped key-value heads (`LlamaAttention`)."""

    def __init__(self, config: TextConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        D, H = config.hidden_size, config.head_dim
        N, K, bias = config.num_attention_heads, config.num_key_value_heads, config.attention_bias
        self.q_proj = Linear(D, N * H, bias=bias, dtype=dtype, rngs=rngs)
        self.k_proj = Linear(D, K * H, bias=bias, dtype=dtype, rngs=rngs)
        self.v_proj = Linear(D, K * H, bias=bias, dtype=dtype, rngs=rngs)
        self.o_proj = Linear(N * H, D, bias=bias, dtype=dtype, rngs=rngs)
        self.num_heads, self.num_kv_heads, self.head_dim = N, K, H
        self.rope_theta = config.rope_theta

    def __call__(
        self,
        x_BTD: jax.Array,
        positions_BT: jax.Array,
        key_mask_BS: jax.Array | None,
        past: KeysValues | None,
        index: int | jax.Array,
    ) -> tuple[jax.Array, KeysValues]:
        B, T, _ = x_BTD.shape
        q_BTNH = self.q_proj(x_BTD).reshape(B, T, self.num_heads, self.head_dim)
        k_BTKH = self.k_proj(x_BTD).reshape(B, T, self.num_kv_heads, self.head_dim)
        v_BTKH = self.v_proj(x_BTD).reshape(B, T, self.num_kv_heads, self.head_dim)
        q_BTNH = rotary(q_BTNH, positions_BT, theta=self.rope_theta)
        k_BTKH = rotary(k_BTKH, positions_BT, theta=self.rope_theta)
        new = KeysValues(k_BTKH.swapaxes(1, 2), v_BTKH.swapaxes(1, 2))
        if past is not None:
            new = KeysValues(
                jax.lax.dynamic_update_slice_in_dim(past.keys, new.keys.astype(past.keys.dtype), index, axis=2),
                jax.lax.dynamic_update_slice_in_dim(past.values, new.values.astype(past.values.dtype), index, axis=2),
            )
        out_BTNH = attention(q_BTNH, new.keys, new.values, key_mask_BS=key_mask_BS, causal_offset=index)
        return self.o_proj(out_BTNH.reshape(B, T, -1)), new


class LlamaMLP(nnx.Module):
    """The gated MLP (`LlamaMLP`)."""

    def __init__(self, config: TextConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        D, M, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = Linear(D, M, bias=bias, dtype=dtype, rngs=rngs)
        self.up_proj = Linear(D, M, bias=bias, dtype=dtype, rngs=rngs)
        self.down_proj = Linear(M, D, bias=bias, dtype=dtype, rngs=rngs)
        self.hidden_act = config.hidden_act

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down_proj(ACTIVATIONS[self.hidden_act](self.gate_proj(x)) * self.up_proj(x))


class LlamaLayer(nnx.Module):
    """One pre-norm block (`LlamaDecoderLayer`)."""

    def __init__(self, config: TextConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.self_attn = LlamaAttention(config, dtype=dtype, rngs=rngs)
        self.mlp = LlamaMLP(config, dtype=dtype, rngs=rngs)
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps, dtype=dtype)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps, dtype=dtype)

    def __call__(
        self,
        x_BTD: jax.Array,
        positions_BT: jax.Array,
        key_mask_BS: jax.Array | None = None,
        past: KeysValues | None = None,
        index: int | jax.Array = 0,
    ) -> tuple[jax.Array, KeysValues]:
        attended, keys_values = self.self_attn(self.input_layernorm(x_BTD), positions_BT, key_mask_BS, past, index)
        x_BTD = x_BTD + attended
        return x_BTD + self.mlp(self.post_attention_layernorm(x_BTD)), keys_values


class Llama(nnx.Module):
    """The decoder without its head (`LlamaModel`)."""

    def __init__(self, config: TextConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size, dtype=dtype, rngs=rngs)
        self.layers = nnx.List([LlamaLayer(config, dtype=dtype, rngs=rngs) for _ in range(config.num_hidden_layers)])
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps, dtype=dtype)

    def __call__(self, x_BTD: jax.Array, token_mask_BT: jax.Array) -> jax.Array:
        """Hidden states of whole sequences, [B, T, D]. `token_mask_BT`: bool, False on padding."""
        positions_BT = positions_of(token_mask_BT)
        for layer in self.layers:
            x_BTD, _ = layer(x_BTD, positions_BT, token_mask_BT)
        return self.norm(x_BTD)

    def prefill(self, x_BTD: jax.Array, token_mask_BT: jax.Array, capacity: int) -> tuple[jax.Array, KVCache]:
        """Hidden states of prompts, padded on the left, and a cache of `capacity` slots that holds them."""
        T = x_BTD.shape[1]
        if capacity < T:
            raise ValueError(f"a prompt of {T} tokens does not fit a cache of {capacity} slots")
        positions_BT = positions_of(token_mask_BT)
        keys, values = [], []
        for layer in self.layers:
            x_BTD, kv = layer(x_BTD, positions_BT, token_mask_BT)
            keys.append(kv.keys)
            values.append(kv.values)
        cache = KVCache(
            keys=tuple(keys),
            values=tuple(values),
            valid_BS=token_mask_BT,
            next_position_B=token_mask_BT.sum(axis=1, dtype=jnp.int32),
            length=jnp.asarray(T, jnp.int32),
        )
        return self.norm(x_BTD), cache.grow(capacity)

    def extend(self, x_BTD: jax.Array, token_mask_BT: jax.Array, cache: KVCache) -> tuple[jax.Array, KVCache]:
        """Hidden states of T more tokens a row after those in the cache; one token is a decode step.

        The caller has checked that `cache.length + T` is within the capacity.
        """
        valid_BS = jax.lax.dynamic_update_slice_in_dim(cache.valid_BS, token_mask_BT, cache.length, axis=1)
        positions_BT = cache.next_position_B[:, None] + positions_of(token_mask_BT)
        keys, values = [], []
        for layer, k, v in zip(self.layers, cache.keys, cache.values, strict=True):
            x_BTD, kv = layer(x_BTD, positions_BT, valid_BS, KeysValues(k, v), cache.length)
            keys.append(kv.keys)
            values.append(kv.values)
        cache = dataclasses.replace(
            cache,
            keys=tuple(keys),
            values=tuple(values),
            valid_BS=valid_BS,
            next_position_B=cache.next_position_B + token_mask_BT.sum(axis=1, dtype=jnp.int32),
            length=cache.length + x_BTD.shape[1],
        )
        return self.norm(x_BTD), cache


def positions_of(token_mask_BT: jax.Array) -> jax.Array:
    """int32 [B, T]: how many tokens stand before each one in its row; padding counts for nothing."""
    return jnp.maximum(jnp.cumsum(token_mask_BT, axis=1, dtype=jnp.int32) - 1, 0)
