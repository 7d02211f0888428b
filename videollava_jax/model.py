"""The whole model: media to features, features into the text, text to logits."""

from __future__ import annotations

from typing import Any, TypeAlias, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from videollava_jax.cache import KVCache
from videollava_jax.config import VideoLlavaConfig
from videollava_jax.decoder import Llama
from videollava_jax.layers import ACTIVATIONS, Linear
from videollava_jax.vision import VisionTower

State: TypeAlias = "nnx.State[Any, Any]"


class Projector(nnx.Module):
    """Tower features to decoder width (`VideoLlavaMultiModalProjector`); one projector for both media."""

    def __init__(self, config: VideoLlavaConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        width = config.vision_config.hidden_size * len(config.feature_layers)
        D, bias = config.text_config.hidden_size, config.multimodal_projector_bias
        self.linear_1 = Linear(width, D, bias=bias, dtype=dtype, rngs=rngs)
        self.linear_2 = Linear(D, D, bias=bias, dtype=dtype, rngs=rngs)
        self.act = config.projector_hidden_act

    def __call__(self, features: jax.Array) -> jax.Array:
        return self.linear_2(ACTIVATIONS[self.act](self.linear_1(features)))


class VideoLlava(nnx.Module):
    """Video-LLaVA, mirroring transformers' `VideoLlavaForConditionalGeneration`, both variants.

    The names in this tree are transformers' (without the leading `model.`), so `named_parameters` and a
    checkpoint agree. The module is used as an immutable tree: split once, merged inside the compiled functions.
    """

    def __init__(self, config: VideoLlavaConfig, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        text, vision = config.text_config, config.vision_config
        frames = config.temporal_frames if config.variant == "original" else None
        self.image_tower = VisionTower(vision, dtype=dtype, rngs=rngs)
        self.video_tower = VisionTower(vision, temporal_frames=frames, dtype=dtype, rngs=rngs)
        self.multi_modal_projector = Projector(config, dtype=dtype, rngs=rngs)
        self.language_model = Llama(text, dtype=dtype, rngs=rngs)
        self.lm_head = (
            None
            if config.tie_word_embeddings
            else Linear(text.hidden_size, text.vocab_size, bias=False, dtype=dtype, rngs=rngs)
        )
        self.config = config

    def encode_images(self, pixels: jax.Array) -> jax.Array:
        """Images to decoder features.

        Args:
          pixels: float [N, S, S, 3], normalised.

        Returns:
          [N, tokens_per_image, D]: without the class token unless the select strategy is "full".
        """
        hidden = self.image_tower(pixels, self.config.feature_layers)
        if self.config.vision_feature_select_strategy == "default":
            hidden = hidden[:, 1:]
        return self.multi_modal_projector(hidden)

    def encode_videos(self, pixels: jax.Array) -> jax.Array:
        """Videos to decoder features.

        Args:
          pixels: float [V, F, S, S, 3], normalised.

        Returns:
          [V, F × tokens_per_frame, D], frame after frame, each with its class token first.
        """
        V, F = pixels.shape[:2]
        hidden = self.video_tower(pixels.reshape(V * F, *pixels.shape[2:]), self.config.feature_layers)
        features = self.multi_modal_projector(hidden)
        return features.reshape(V, F * features.shape[1], -1)

    def embed(
        self,
        ids_BT: jax.Array,
        image_features: jax.Array | None = None,
        video_features: jax.Array | None = None,
    ) -> jax.Array:
        """Token embeddings, with features in the places of the media tokens, in order.

        Args:
          ids_BT: int32; as many image (video) tokens in all as there are image (video) feature vectors, which
            the caller has checked.
          image_features, video_features: [media, tokens, D], or None where a batch has none.
        """
        x_BTD = self.language_model.embed_tokens(ids_BT)
        for token_id, features in (
            (self.config.image_token_id, image_features),
            (self.config.video_token_id, video_features),
        ):
            if features is not None:
                flat_MD = features.reshape(-1, features.shape[-1]).astype(x_BTD.dtype)
                is_media_BT = ids_BT == token_id
                index_BT = jnp.cumsum(is_media_BT.reshape(-1)).reshape(ids_BT.shape) - 1
                placed_BTD = jnp.take(flat_MD, index_BT, axis=0, mode="clip")
                x_BTD = jnp.where(is_media_BT[:, :, None], placed_BTD, x_BTD)
        return x_BTD

    def logits(self, x_BTD: jax.Array) -> jax.Array:
        """Decoder states to logits over the vocabulary, in the dtype of the weights."""
        if self.lm_head is None:
            return jnp.einsum("BTD,VD->BTV", x_BTD, self.language_model.embed_tokens.weight[...])
        return self.lm_head(x_BTD)

    def __call__(
        self,
        ids_BT: jax.Array,
        token_mask_BT: jax.Array | None = None,
        image_features: jax.Array | None = None,
        video_features: jax.Array | None = None,
    ) -> jax.Array:
        """Logits [B, T, V] of whole sequences; `token_mask_BT` is False on padding, None for no padding."""
        mask_BT = jnp.ones(ids_BT.shape, bool) if token_mask_BT is None else token_mask_BT.astype(bool)
        return self.logits(self.language_model(self.embed(ids_BT, image_features, video_features), mask_BT))

    def prefill(
        self,
        ids_BT: jax.Array,
        token_mask_BT: jax.Array,
        image_features: jax.Array | None = None,
        video_features: jax.Array | None = None,
        *,
        capacity: int,
    ) -> tuple[jax.Array, KVCache]:
        """Logits [B, V] after prompts that are padded on the left, and the cache that holds the prompts."""
        embedded = self.embed(ids_BT, image_features, video_features)
        x_BTD, cache = self.language_model.prefill(embedded, token_mask_BT, capacity)
        return self.logits(x_BTD[:, -1:])[:, 0], cache

    def extend(
        self,
        ids_BT: jax.Array,
        token_mask_BT: jax.Array,
        cache: KVCache,
        image_features: jax.Array | None = None,
        video_features: jax.Array | None = None,
    ) -> tuple[jax.Array, KVCache]:
        """Logits [B, V] after T more tokens a row, padded on the left, and the longer cache."""
        embedded = self.embed(ids_BT, image_features, video_features)
        x_BTD, cache = self.language_model.extend(embedded, token_mask_BT, cache)
        return self.logits(x_BTD[:, -1:])[:, 0], cache


def abstract_model(config: VideoLlavaConfig, *, dtype: DTypeLike = jnp.float32) -> VideoLlava:
    """The model with shapes and dtypes for parameters: nothing is drawn or allocated."""
    return nnx.eval_shape(lambda: VideoLlava(config, dtype=dtype, rngs=cast(nnx.Rngs, _OneKey())))


class _OneKey:
    """In the place of `nnx.Rngs` where nothing is drawn: for the 7B shape, counting draws takes five seconds."""

    def params(self) -> jax.Array:
        return jax.random.key(0)


def named_parameters(state: State) -> dict[str, jax.Array]:
    """Parameters by name, as transformers names them: `language_model.layers.0.mlp.up_proj.weight`."""
    return {".".join(map(str, path)): variable.get_value() for path, variable in nnx.to_flat_state(state)}


def parameter_shapes(config: VideoLlavaConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter of a model, by name."""
    return {name: tuple(value.shape) for name, value in named_parameters(nnx.state(abstract_model(config))).items()}


def with_parameters(state: State, parameters: dict[str, jax.Array]) -> State:
    """The state with its values replaced, by name; the names must be exactly those of `named_parameters`."""
    return nnx.from_flat_state(
        [(path, variable.replace(parameters[".".join(map(str, path))])) for path, variable in nnx.to_flat_state(state)]
    )
