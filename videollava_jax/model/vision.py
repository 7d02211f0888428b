"""The vision tower: CLIP's transformer over patches, and for the original video tower attention over time first.

Module and parameter names are transformers' own (with its misspelt `pre_layrnorm`), those of the temporal part
are the authors': a checkpoint's names are the paths in this tree.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from videollava_jax.config import VisionConfig
from videollava_jax.model.attention import KeysValues, attention
from videollava_jax.model.layers import ACTIVATIONS, Embedding, LayerNorm, Linear, normal
from videollava_jax.model.sharding import like, spec_of
from videollava_jax.model.stack import run_layers


class VisionEmbeddings(nnx.Module):
    """Patches to vectors, the class token before them, positions added (`CLIPVisionEmbeddings`)."""

    def __init__(self, config: VisionConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        D, p = config.hidden_size, config.patch_size
        self.class_embedding = nnx.Param(normal(rngs, (D,), D**-0.5, dtype))
        self.patch_embedding = PatchEmbedding(D, config.num_channels, p, dtype=dtype, rngs=rngs)
        self.position_embedding = Embedding(config.num_patches + 1, D, dtype=dtype, rngs=rngs)

    def __call__(self, pixels: jax.Array) -> jax.Array:
        """Embeds float [N, S, S, 3], normalised: [N, 1 + patches, D], the class token first."""
        patches_NPD = self.patch_embedding(pixels)
        N, _, D = patches_NPD.shape
        out = like(patches_NPD, *spec_of(patches_NPD))
        class_N1D = jnp.broadcast_to(self.class_embedding[...], (N, 1, D), out_sharding=out)
        return jnp.concatenate([class_N1D, patches_NPD], axis=1) + self.position_embedding.weight[...]


class PatchEmbedding(nnx.Module):
    """A convolution whose stride is its size, without bias: `weight` [D, channels, p, p] as PyTorch stores it."""

    def __init__(self, features: int, channels: int, patch: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.weight = nnx.Param(normal(rngs, (features, channels, patch, patch), 0.02, dtype))

    def __call__(self, pixels: jax.Array) -> jax.Array:
        """Embeds float [N, height, width, channels]: [N, patches, D], row by row."""
        weight = self.weight[...]
        p = weight.shape[-1]
        N, height, width, C = pixels.shape
        rows, columns = height // p, width // p
        # A strided convolution ignores pixels beyond the last whole patch.
        grid = pixels[:, : rows * p, : columns * p]
        grid = grid.reshape(N, rows, p, columns, p, C, out_sharding=like(pixels, *spec_of(pixels)[:1]))
        return jnp.einsum("NhpwqC,DCpq->NhwD", grid.astype(weight.dtype), weight).reshape(N, rows * columns, -1)


class VisionAttention(nnx.Module):
    """Self-attention that sees in both directions (`CLIPAttention`), over the middle axis of [batch, T, D]."""

    def __init__(self, config: VisionConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        D = config.hidden_size
        in_std = D**-0.5 * (2 * config.num_hidden_layers) ** -0.5
        self.q_proj = Linear(D, D, bias=True, dtype=dtype, rngs=rngs, std=in_std)
        self.k_proj = Linear(D, D, bias=True, dtype=dtype, rngs=rngs, std=in_std)
        self.v_proj = Linear(D, D, bias=True, dtype=dtype, rngs=rngs, std=in_std)
        self.out_proj = Linear(D, D, bias=True, dtype=dtype, rngs=rngs, std=D**-0.5)
        self.num_heads = config.num_attention_heads

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """Maps [batch, T, D] to [batch, T, D]."""
        B, T, D = x_BTD.shape
        heads = (B, T, self.num_heads, D // self.num_heads)
        q_BTNH = self.q_proj(x_BTD).reshape(heads)
        kv = KeysValues(self.k_proj(x_BTD).reshape(heads), self.v_proj(x_BTD).reshape(heads))
        return self.out_proj(attention(q_BTNH, kv).reshape(B, T, D))


class VisionMLP(nnx.Module):
    """Two projections and an activation (`CLIPMLP`)."""

    def __init__(self, config: VisionConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        D, M = config.hidden_size, config.intermediate_size
        self.fc1 = Linear(D, M, bias=True, dtype=dtype, rngs=rngs, std=(2 * D) ** -0.5)
        self.fc2 = Linear(M, D, bias=True, dtype=dtype, rngs=rngs, std=D**-0.5 * (2 * config.num_hidden_layers) ** -0.5)
        self.hidden_act = config.hidden_act

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., D] to [..., D]."""
        return self.fc2(ACTIVATIONS[self.hidden_act](self.fc1(x)))


class VisionLayer(nnx.Module):
    """One pre-norm block (`CLIPEncoderLayer`); with `temporal_frames`, after attention over time.

    The temporal part (the authors' `CLIPEncoderLayer` with `add_time_attn`), for each of the P positions:

        x += temporal_embedding                                   one vector for each frame, of this layer
        x += temporal_attn(temporal_layer_norm1(x))               full attention over the frames, no MLP
    """

    def __init__(self, config: VisionConfig, temporal_frames: int | None, *, dtype: DTypeLike, rngs: nnx.Rngs):
        D, eps = config.hidden_size, config.layer_norm_eps
        if temporal_frames is not None:
            self.temporal_embedding = nnx.Param(normal(rngs, (1, temporal_frames, D), D**-0.5, dtype))
            self.temporal_attn = VisionAttention(config, dtype=dtype, rngs=rngs)
            self.temporal_layer_norm1 = LayerNorm(D, eps=eps, dtype=dtype)
        self.self_attn = VisionAttention(config, dtype=dtype, rngs=rngs)
        self.layer_norm1 = LayerNorm(D, eps=eps, dtype=dtype)
        self.mlp = VisionMLP(config, dtype=dtype, rngs=rngs)
        self.layer_norm2 = LayerNorm(D, eps=eps, dtype=dtype)
        self.temporal_frames = temporal_frames

    def __call__(self, x_NPD: jax.Array) -> jax.Array:
        """Runs the block on [N, P, D]; N is a multiple of `temporal_frames` where there are any."""
        if self.temporal_frames is not None:
            x_NPD = self._attend_over_time(x_NPD)
        x_NPD = x_NPD + self.self_attn(self.layer_norm1(x_NPD))
        return x_NPD + self.mlp(self.layer_norm2(x_NPD))

    def _attend_over_time(self, x_NPD: jax.Array) -> jax.Array:
        assert self.temporal_frames is not None
        N, P, D = x_NPD.shape
        F = self.temporal_frames
        V = N // F
        # Clips stay whole: JAX might shard a clip's frames, or positions, over the devices.
        clips = like(x_NPD, *spec_of(x_NPD)[:1])
        x_VFPD = x_NPD.reshape(V, F, P, D, out_sharding=clips) + self.temporal_embedding[...][:, :, None, :]
        x_WFD = x_VFPD.swapaxes(1, 2).reshape(V * P, F, D, out_sharding=clips)
        x_WFD = x_WFD + self.temporal_attn(self.temporal_layer_norm1(x_WFD))
        return x_WFD.reshape(V, P, F, D, out_sharding=clips).swapaxes(1, 2).reshape(N, P, D, out_sharding=clips)


class VisionEncoder(nnx.Module):
    """The layers, under their name in checkpoints."""

    def __init__(self, config: VisionConfig, temporal_frames: int | None, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.layers = nnx.List(
            [VisionLayer(config, temporal_frames, dtype=dtype, rngs=rngs) for _ in range(config.num_hidden_layers)]
        )


class VisionTower(nnx.Module):
    """CLIP's vision transformer up to the last requested hidden state (`CLIPVisionModel`).

    Later layers and `post_layernorm` are kept, so that no tensor of a checkpoint is lost, but never run.
    """

    def __init__(self, config: VisionConfig, *, temporal_frames: int | None = None, dtype: DTypeLike, rngs: nnx.Rngs):
        D, eps = config.hidden_size, config.layer_norm_eps
        self.embeddings = VisionEmbeddings(config, dtype=dtype, rngs=rngs)
        self.pre_layrnorm = LayerNorm(D, eps=eps, dtype=dtype)
        self.encoder = VisionEncoder(config, temporal_frames, dtype=dtype, rngs=rngs)
        self.post_layernorm = LayerNorm(D, eps=eps, dtype=dtype)
        self.image_size = config.image_size
        self.temporal_frames = temporal_frames

    def __call__(self, pixels: jax.Array, feature_layers: tuple[int, ...]) -> jax.Array:
        """Returns hidden states of frames.

        Args:
          pixels: float [N, S, S, 3], normalised; N = videos × frames, frames of a video together. A tower with
            temporal attention takes each run of `temporal_frames` frames as one clip.
          feature_layers: hidden states to return: 0 the embeddings, `i` the output of the i-th layer.

        Returns:
          [N, 1 + patches, D × len(feature_layers)], the class token first.

        Raises:
          ValueError: frames of another size, or a number of them that is no multiple of `temporal_frames`.
        """
        if pixels.shape[1:3] != (self.image_size, self.image_size):
            raise ValueError(
                f"expected frames of {self.image_size} by {self.image_size} pixels, "
                f"got {pixels.shape[1]} by {pixels.shape[2]}"
            )
        if self.temporal_frames is not None and pixels.shape[0] % self.temporal_frames:
            raise ValueError(
                f"the original video tower attends over clips of {self.temporal_frames} frames: expected a multiple "
                f"of {self.temporal_frames} frames, got {pixels.shape[0]}"
            )
        several = len(feature_layers) > 1

        def step(layer: VisionLayer, x_NPD: jax.Array, _: None) -> tuple[jax.Array, jax.Array | None]:
            x_NPD = layer(x_NPD)
            return x_NPD, x_NPD if several else None

        embedded_NPD = self.pre_layrnorm(self.embeddings(pixels))
        last_NPD, outputs = run_layers(self.encoder.layers, step, embedded_NPD, count=max(feature_layers))
        if not several:
            return last_NPD
        return jnp.concatenate([embedded_NPD if i == 0 else outputs[i - 1] for i in feature_layers], axis=-1)
