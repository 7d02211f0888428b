"""The decoder, Llama: one path for whole sequences, text after a prefix, decode steps and packed training rows.

Module and parameter names are those of transformers' `LlamaModel`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from videollava_jax.config import TextConfig
from videollava_jax.model.attention import (
    Implementation,
    KeysValues,
    Part,
    attention,
    attention_weights,
    merged,
    partial_attention,
    step_attention,
)
from videollava_jax.model.cache import Cache, Packing, PrefixCache, TailCache, written
from videollava_jax.model.kernels import platform_of
from videollava_jax.model.layers import (
    ACTIVATIONS,
    Embedding,
    Linear,
    Quantization,
    RMSNorm,
    RotaryScaling,
    in_one_product,
    reads_in_place,
    rotary,
)
from videollava_jax.model.sharding import like, spec_of
from videollava_jax.model.stack import run_layers

Keep: TypeAlias = Callable[[KeysValues], KeysValues]
"""What is kept of the keys and values of a layer: their place in a cache, with them in it."""


@dataclass(frozen=True)
class Context:
    """What the tokens of a layer attend to.

    Attributes:
      mask_BS: bool, which of the row's own keys hold a token; None for all.
      past: the row's own keys and values so far, into which the new ones are written; None if there are only new ones.
      write_at: the position of the first new token among the row's own keys.
      causal: whether keys after a token are hidden from it. False in a ring, whose positions are in no order.
      prefix: keys and values of G rows before the row's own, each shared by B / G neighbouring rows.
      prefix_mask_GS: bool, which keys of the prefix hold a token.
      prefix_attention: the implementation of attention to the prefix; None chooses one.
      segments_BT: int32, the sequence of each token where several are packed into a row; None for one in each row.
      packing: of the rows that are packed into a sequence for each prefix; None for rows with padding.
      keep: what is kept of the row's own keys and values; None for themselves.
      waits: whether what follows attention waits until it is kept.
    """

    mask_BS: jax.Array | None = None
    past: KeysValues | None = None
    write_at: int | jax.Array = 0
    causal: bool = True
    prefix: KeysValues | None = None
    prefix_mask_GS: jax.Array | None = None
    prefix_attention: Implementation | None = None
    segments_BT: jax.Array | None = None
    packing: Packing | None = None
    keep: Keep | None = None
    waits: bool = False

    def kept(self, out: jax.Array, own: KeysValues) -> tuple[jax.Array, KeysValues]:
        """Returns the output of attention with what is kept of the row's own keys and values.

        Without waiting, the GPU compiler puts those of all layers into their cache last, and holds the products with
        all queries, keys and values until then.
        """
        kept = own if self.keep is None else self.keep(own)
        if not self.waits:
            return out, kept
        after: tuple[jax.Array, KeysValues] = jax.lax.optimization_barrier((out, kept))  # type: ignore[no-untyped-call]
        return after


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Trace:
    """Everything that the layers have computed.

    Attributes:
      hidden_states: L + 1 × [B, T, D]: the embeddings and the output of each layer, the last one behind the final norm.
      keys_values: L, each row's own: past and new ones.
      attentions: L × [B, N, T, S], the weights of attention; None where nobody asked for them.
    """

    hidden_states: tuple[jax.Array, ...]
    keys_values: tuple[KeysValues, ...]
    attentions: tuple[jax.Array, ...] | None


ALONE = Context()
"""A sequence without a prefix or a past: its tokens see each other, causally."""


class LlamaAttention(nnx.Module):
    """Causal self-attention with rotary positions and grouped key-value heads (`LlamaAttention`)."""

    def __init__(
        self, config: TextConfig, *, dtype: DTypeLike, rngs: nnx.Rngs, quantization: Quantization | None = None
    ):
        D, H = config.hidden_size, config.head_dim
        N, K, bias = config.num_attention_heads, config.num_key_value_heads, config.attention_bias
        self.q_proj = Linear(D, N * H, bias=bias, dtype=dtype, rngs=rngs, quantization=quantization)
        self.k_proj = Linear(D, K * H, bias=bias, dtype=dtype, rngs=rngs, quantization=quantization)
        self.v_proj = Linear(D, K * H, bias=bias, dtype=dtype, rngs=rngs, quantization=quantization)
        self.o_proj = Linear(N * H, D, bias=bias, dtype=dtype, rngs=rngs, quantization=quantization)
        self.num_heads, self.num_kv_heads, self.head_dim = N, K, H
        self.rope_theta, self.rope_scaling = config.rope_theta, _rotary_scaling(config)

    def __call__(self, x_BTD: jax.Array, positions_BT: jax.Array, context: Context) -> tuple[jax.Array, KeysValues]:
        """Attends, and returns [B, T, D] with the row's own keys and values: past and new ones."""
        B, T, _ = x_BTD.shape
        q_BTNH = self.q_proj(x_BTD).reshape(B, T, self.num_heads, self.head_dim)
        k_BTKH = self.k_proj(x_BTD).reshape(B, T, self.num_kv_heads, self.head_dim)
        v_BTKH = self.v_proj(x_BTD).reshape(B, T, self.num_kv_heads, self.head_dim)
        q_BTNH = rotary(q_BTNH, positions_BT, theta=self.rope_theta, scaling=self.rope_scaling)
        k_BTKH = rotary(k_BTKH, positions_BT, theta=self.rope_theta, scaling=self.rope_scaling)
        new = KeysValues(k_BTKH, v_BTKH)
        if context.packing is not None:
            return self._packed(q_BTNH, new, context, context.packing)
        if T == 1 and not context.causal and context.prefix is not None and context.past is not None:
            assert context.mask_BS is not None
            assert context.prefix_mask_GS is not None
            found = step_attention(
                *(q_BTNH, context.prefix, context.past, new, jnp.asarray(context.write_at)),
                prefix_mask_GS=context.prefix_mask_GS,
                tail_mask_BS=context.mask_BS,
                implementation=context.prefix_attention,
            )
            if found is not None:
                out_BTNH, own = found
                return self.o_proj(out_BTNH.reshape(B, T, -1)), own
        own = new if context.past is None else written(context.past, new, context.write_at)
        offset = context.write_at if context.causal else None
        if context.prefix is None:
            out_BTNH = attention(
                q_BTNH, own, key_mask_GS=context.mask_BS, causal_offset=offset, segments_GS=context.segments_BT
            )
        else:
            out_BTNH = merged(
                partial_attention(
                    q_BTNH,
                    context.prefix,
                    key_mask_GS=context.prefix_mask_GS,
                    implementation=context.prefix_attention,
                ),
                partial_attention(q_BTNH, own, key_mask_GS=context.mask_BS, causal_offset=offset),
            ).astype(q_BTNH.dtype)
        out_BTNH, own = context.kept(out_BTNH, own)
        return self.o_proj(out_BTNH.reshape(B, T, -1)), own

    def _packed(
        self, q_WNNH: jax.Array, new: KeysValues, context: Context, packing: Packing
    ) -> tuple[jax.Array, KeysValues]:
        """Attends where rows are packed: to the prefix as one sequence, to a row's own tokens row by row."""
        assert context.prefix is not None
        own = KeysValues(packing.by_row(new.keys), packing.by_row(new.values))
        before = partial_attention(
            q_WNNH, context.prefix, key_mask_GS=context.prefix_mask_GS, implementation=context.prefix_attention
        )
        after = partial_attention(packing.by_row(q_WNNH), own, key_mask_GS=packing.mask_ET, causal_offset=0)
        out_WNNH = merged(before, Part(*(packing.packed(x) for x in after))).astype(q_WNNH.dtype)
        out_WNNH, own = context.kept(out_WNNH, own)
        return self.o_proj(out_WNNH.reshape(*q_WNNH.shape[:2], -1)), own

    def weights(self, x_BTD: jax.Array, positions_BT: jax.Array, own: KeysValues, context: Context) -> jax.Array:
        """Returns the weights [B, N, T, S] with which a call of the same arguments has attended to its `own` keys."""
        q_BTNH = self.q_proj(x_BTD).reshape(*x_BTD.shape[:2], self.num_heads, self.head_dim)
        q_BTNH = rotary(q_BTNH, positions_BT, theta=self.rope_theta, scaling=self.rope_scaling)
        return attention_weights(q_BTNH, own, key_mask_BS=context.mask_BS, causal_offset=context.write_at)


class LlamaMLP(nnx.Module):
    """The gated MLP (`LlamaMLP`)."""

    def __init__(
        self, config: TextConfig, *, dtype: DTypeLike, rngs: nnx.Rngs, quantization: Quantization | None = None
    ):
        D, M, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = Linear(D, M, bias=bias, dtype=dtype, rngs=rngs, quantization=quantization)
        self.up_proj = Linear(D, M, bias=bias, dtype=dtype, rngs=rngs, quantization=quantization)
        self.down_proj = Linear(M, D, bias=bias, dtype=dtype, rngs=rngs, quantization=quantization)
        self.hidden_act = config.hidden_act

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., D] to [..., D]."""
        both = None
        if x.shape[-2] == 1 and platform_of(x) == "gpu":
            # A step of decoding, which reads every weight for a few rows. XLA merges smaller products by itself.
            both = in_one_product(x, self.gate_proj, self.up_proj)
        if both is None:
            gate_x, up_x = self._inputs(x)
            both = self.gate_proj(gate_x), self.up_proj(up_x)
        gate, up = both
        return self.down_proj(ACTIVATIONS[self.hidden_act](gate) * up)

    def _inputs(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the inputs of gate and up: apart where the GPU compiler would copy their weights to merge the two."""
        if platform_of(x) != "gpu" or reads_in_place(self.gate_proj):
            return x, x
        apart: tuple[jax.Array, jax.Array] = jax.lax.optimization_barrier((x, x))  # type: ignore[no-untyped-call]
        return apart


class LlamaLayer(nnx.Module):
    """One pre-norm block (`LlamaDecoderLayer`)."""

    def __init__(
        self, config: TextConfig, *, dtype: DTypeLike, rngs: nnx.Rngs, quantization: Quantization | None = None
    ):
        self.self_attn = LlamaAttention(config, dtype=dtype, rngs=rngs, quantization=quantization)
        self.mlp = LlamaMLP(config, dtype=dtype, rngs=rngs, quantization=quantization)
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps, dtype=dtype)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps, dtype=dtype)

    def __call__(
        self, x_BTD: jax.Array, positions_BT: jax.Array, context: Context = ALONE
    ) -> tuple[jax.Array, KeysValues]:
        """Runs the block on [B, T, D]; also returns the row's own keys and values, past and new ones."""
        attended, keys_values = self.self_attn(self.input_layernorm(x_BTD), positions_BT, context)
        x_BTD = x_BTD + attended
        return x_BTD + self.mlp(self.post_attention_layernorm(x_BTD)), keys_values


class Llama(nnx.Module):
    """The decoder without its head (`LlamaModel`); `quantization` is that of its projections' weights."""

    def __init__(
        self, config: TextConfig, *, dtype: DTypeLike, rngs: nnx.Rngs, quantization: Quantization | None = None
    ):
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size, dtype=dtype, rngs=rngs)
        self.layers = nnx.List(
            [
                LlamaLayer(config, dtype=dtype, rngs=rngs, quantization=quantization)
                for _ in range(config.num_hidden_layers)
            ]
        )
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps, dtype=dtype)
        self.whole_rows = config.max_position_embeddings if config.is_dynamic else None

    def __call__(self, x_BTD: jax.Array, token_mask_BT: jax.Array) -> jax.Array:
        """Returns hidden states [B, T, D] of whole sequences; `token_mask_BT` is False on padding."""
        return self.prefill(x_BTD, token_mask_BT)[0]

    def prefill(
        self,
        x_BTD: jax.Array,
        token_mask_BT: jax.Array,
        *,
        padded_right: bool = False,
        keep: Sequence[Keep] | None = None,
    ) -> tuple[jax.Array, tuple[KeysValues, ...]]:
        """Returns hidden states [B, T, D] of sequences from their first token on, and every layer's keys and values.

        Args:
          padded_right: whether all padding stands behind the tokens. The causal rule hides it from them, so that
            attention needs no mask.
          keep: as for `begin`.
        """
        context = ALONE if padded_right else Context(token_mask_BT)
        return self._run(x_BTD, positions_of(token_mask_BT), [context] * len(self.layers), keep)

    def begin(
        self, x_BTD: jax.Array, token_mask_BT: jax.Array, prefix: PrefixCache, keep: Sequence[Keep] | None = None
    ) -> tuple[jax.Array, tuple[KeysValues, ...]]:
        """Runs the first tokens after G prefixes, padded on the left; B / G neighbouring rows for each prefix.

        Args:
          keep: of each layer, called before the next layer begins; None keeps keys and values as they are.

        Returns:
          Hidden states [B, T, D], and the keys and values of these tokens in every layer, or what `keep` returns for
          them.
        """
        start_B = jnp.repeat(
            prefix.length_G, x_BTD.shape[0] // prefix.prefixes, out_sharding=like(prefix.length_G, *spec_of(x_BTD)[:1])
        )
        positions_BT = start_B[:, None] + positions_of(token_mask_BT)
        contexts = [Context(token_mask_BT, prefix=kv, prefix_mask_GS=prefix.valid_GS) for kv in prefix.layers]
        return self._run(x_BTD, positions_BT, contexts, keep)

    def begin_packed(
        self, x_WND: jax.Array, packing: Packing, prefix: PrefixCache, keep: Sequence[Keep] | None = None
    ) -> tuple[jax.Array, tuple[KeysValues, ...]]:
        """Runs what `begin` does with rows that are packed, without their padding.

        Returns:
          Hidden states [W, N, D], and the keys and values of every layer by row, padded on the left, [E, T, K, H], or
          what `keep` returns for them.
        """
        W = x_WND.shape[0]
        within_ET = positions_of(packing.mask_ET)
        positions_WN = prefix.length_G[:, None] + packing.packed(within_ET)
        contexts = [Context(prefix=kv, prefix_mask_GS=prefix.valid_GS, packing=packing) for kv in prefix.layers]
        assert prefix.prefixes == W
        return self._run(x_WND, positions_WN, contexts, keep)

    def extend(
        self,
        x_BTD: jax.Array,
        token_mask_BT: jax.Array,
        cache: Cache,
        prefix_attention: Implementation | None = None,
    ) -> tuple[jax.Array, TailCache]:
        """Runs T more tokens of each row, padded on the left: hidden states [B, T, D] and the longer tails.

        T = 1 is a decode step. It may go round the ring, so only the masks decide which keys are seen. For T > 1 the
        caller has checked that the tail has T free positions.
        """
        prefix, tail = cache.prefix, cache.tail
        T = x_BTD.shape[1]
        valid_BS = jax.lax.dynamic_update_slice_in_dim(tail.valid_BS, token_mask_BT, tail.write_at, axis=1)
        positions_BT = tail.next_position_B[:, None] + positions_of(token_mask_BT)
        contexts = [
            Context(valid_BS, past, tail.write_at, T > 1, before, prefix.valid_GS, prefix_attention)
            for past, before in zip(tail.layers, prefix.layers, strict=True)
        ]
        x_BTD, layers = self._run(x_BTD, positions_BT, contexts)
        tail = dataclasses.replace(
            tail,
            layers=layers,
            valid_BS=valid_BS,
            next_position_B=tail.next_position_B + token_mask_BT.sum(axis=1, dtype=jnp.int32),
            write_at=tail.next_write_at() if T == 1 else tail.write_at + T,
        )
        return x_BTD, tail

    def packed(self, x_BTD: jax.Array, positions_BT: jax.Array, segments_BT: jax.Array) -> jax.Array:
        """Returns hidden states [B, T, D] of sequences packed into rows, for training: no keys or values are kept.

        Args:
          positions_BT: int32, of each token in its sequence.
          segments_BT: int32, the sequence of each token; tokens see those of their own.

        Raises:
          ValueError: rows beyond `max_position_embeddings` with dynamic rope_scaling, whose frequencies would depend
            on what else is in the row.
        """
        if self.whole_rows is not None and x_BTD.shape[1] > self.whole_rows:
            raise ValueError(
                f"rows of {x_BTD.shape[1]} tokens: a decoder with dynamic rope_scaling is trained on rows of at most "
                f"max_position_embeddings, {self.whole_rows}: beyond it, the rotation of a sample would depend on the "
                "others in its row: lower data.row_tokens"
            )
        context = Context(segments_BT=segments_BT)

        def step(layer: LlamaLayer, x_BTD: jax.Array, _: None) -> tuple[jax.Array, None]:
            return layer(x_BTD, positions_BT, context)[0], None

        return self.norm(run_layers(self.layers, step, x_BTD)[0])

    def trace(
        self, x_BTD: jax.Array, positions_BT: jax.Array, contexts: Sequence[Context], *, attentions: bool = False
    ) -> Trace:
        """Runs the layers as the other methods do, and returns what each of them has computed.

        Args:
          contexts: of each layer, without a prefix.
          attentions: whether weights of attention are wanted, which are computed again for that.
        """
        hidden, kept, weights = [x_BTD], [], []
        for layer, context in zip(self.layers, contexts, strict=True):
            before_BTD = hidden[-1]
            after_BTD, own = layer(before_BTD, positions_BT, context)
            hidden.append(after_BTD)
            kept.append(own)
            if attentions:
                normed_BTD = layer.input_layernorm(before_BTD)
                weights.append(layer.self_attn.weights(normed_BTD, positions_BT, own, context))
        hidden[-1] = self.norm(hidden[-1])
        return Trace(tuple(hidden), tuple(kept), tuple(weights) if attentions else None)

    def _run(
        self,
        x_BTD: jax.Array,
        positions_BT: jax.Array,
        contexts: Sequence[Context],
        keep: Sequence[Keep] | None = None,
    ) -> tuple[jax.Array, tuple[KeysValues, ...]]:
        """Runs every layer with its context, and the last norm."""
        if keep is not None:
            # Of the last layer nothing need follow: what a prefill does not need is not computed.
            waiting = len(contexts) - 1 if platform_of(x_BTD) == "gpu" else 0
            contexts = [
                dataclasses.replace(context, keep=kept, waits=i < waiting)
                for i, (context, kept) in enumerate(zip(contexts, keep, strict=True))
            ]

        def step(layer: LlamaLayer, x_BTD: jax.Array, context: Context) -> tuple[jax.Array, KeysValues]:
            return layer(x_BTD, positions_BT, context)

        x_BTD, kept = run_layers(self.layers, step, x_BTD, each=contexts)
        return self.norm(x_BTD), tuple(kept)


def _rotary_scaling(config: TextConfig) -> RotaryScaling | None:
    if config.rope_scaling is None:
        return None
    return RotaryScaling(config.rope_scaling.kind, config.rope_scaling.factor, config.max_position_embeddings)


def positions_of(token_mask_BT: jax.Array) -> jax.Array:
    """Counts the tokens before each token of a row, without padding: int32 [B, T]."""
    return jnp.maximum(jnp.cumsum(token_mask_BT, axis=1, dtype=jnp.int32) - 1, 0)
