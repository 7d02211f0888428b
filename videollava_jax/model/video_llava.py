"""The whole model, for inference and training: media to features, features into the text, text to logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from math import isqrt
from types import MappingProxyType
from typing import Any, TypeAlias, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from videollava_jax.config import ModelConfig, checked_pooling, require_whole_windows
from videollava_jax.model.attention import Implementation, KeysValues
from videollava_jax.model.cache import Cache, Packing, PrefixCache, TailCache, as_prefix
from videollava_jax.model.decoder import Keep, Llama
from videollava_jax.model.layers import ACTIVATIONS, Linear, Quantization
from videollava_jax.model.sharding import like, resharded, shard_over_mesh, spec_of, whole
from videollava_jax.model.structure import HashedGraph
from videollava_jax.model.vision import VisionTower
from videollava_jax.processing.segments import MediaKind

State: TypeAlias = "nnx.State[Any, Any]"


class Projector(nnx.Module):
    """Tower features to decoder width (`VideoLlavaMultiModalProjector`); one projector for both media.

    It has `config.projector_layers` linear layers, `linear_1` and so on: transformers' two, or as many as the authors'
    `build_vision_projector` makes of "linear", "mlp3x_gelu" or "identity".
    """

    def __init__(self, config: ModelConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        for layer, (width, D) in enumerate(config.projector_widths, 1):
            bias = config.multimodal_projector_bias
            setattr(self, f"linear_{layer}", Linear(width, D, bias=bias, dtype=dtype, rngs=rngs))
        self.layers, self.act = config.projector_layers, config.projector_hidden_act

    def __call__(self, features: jax.Array) -> jax.Array:
        """Maps tower features [..., width] to [..., D]."""
        for layer in range(1, self.layers + 1):
            features = features if layer == 1 else ACTIVATIONS[self.act](features)
            features = getattr(self, f"linear_{layer}")(features)
        return features


class VideoLlava(nnx.Module):
    """Video-LLaVA, mirroring transformers' `VideoLlavaForConditionalGeneration`, both variants.

    The names in this tree are transformers' (without the leading `model.`), so `named_parameters` and a
    checkpoint agree. The module is used as an immutable tree: split once, merged inside the compiled functions.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
        quantization: Quantization | None = None,
    ):
        text, vision = config.text_config, config.vision_config
        frames = config.temporal_frames if config.variant == "original" else None
        self.image_tower = VisionTower(vision, dtype=dtype, rngs=rngs)
        self.video_tower = VisionTower(vision, temporal_frames=frames, dtype=dtype, rngs=rngs)
        self.multi_modal_projector = Projector(config, dtype=dtype, rngs=rngs)
        self.language_model = Llama(text, dtype=dtype, rngs=rngs, quantization=quantization)
        self.lm_head = (
            None
            if config.tie_word_embeddings
            else Linear(text.hidden_size, text.vocab_size, bias=False, dtype=dtype, rngs=rngs)
        )
        self.config = config

    def encode_images(self, pixels: jax.Array) -> jax.Array:
        """Encodes images.

        Args:
          pixels: float [N, S, S, 3], normalised.

        Returns:
          [N, tokens_per_image, D]: without the class token unless the select strategy is "full".
        """
        return by_row(self.multi_modal_projector(self.selected("image", pixels)), pixels)

    def encode_videos(self, pixels: jax.Array, pooling: int = 1) -> jax.Array:
        """Encodes videos.

        Args:
          pixels: float [V, F, S, S, 3], normalised. A tower with attention over time takes each run of
            `temporal_frames` frames as a clip of its own.
          pooling: static; side of the windows of patches that `pool_patches` averages, 1 for none.

        Returns:
          [V, F × pooled_tokens_per_frame(pooling), D], frame after frame, each with its class token first.
        """
        V, F = pixels.shape[:2]
        # The tower sees V × F frames: without this, two videos of 4 would pass for one clip of 8.
        require_whole_windows("pixels", F, self.config.frame_window)
        hidden = self.selected("video", pixels.reshape(V * F, *pixels.shape[2:]))
        return by_row(pool_patches(self.multi_modal_projector(hidden), pooling), pixels)

    def selected(self, kind: MediaKind, frames: jax.Array) -> jax.Array:
        """Runs the tower of a kind of media, and selects the layers and positions that the projector takes.

        Args:
          frames: float [N, S, S, 3], normalised: images, or the frames of videos, one video after the other.

        Returns:
          [N, positions, width], sharded over all devices of the mesh where frames (and windows of them) divide evenly.
        """
        if kind == "video":
            return self.video_tower(shard_over_mesh(frames, self.config.frame_window), self.config.feature_layers)
        hidden = self.image_tower(shard_over_mesh(frames), self.config.feature_layers)
        return hidden[:, 1:] if self.config.vision_feature_select_strategy == "default" else hidden

    def embed(
        self,
        ids_BT: jax.Array,
        image_features: jax.Array | None = None,
        video_features: jax.Array | None = None,
        x_BTD: jax.Array | None = None,
    ) -> jax.Array:
        """Embeds tokens, and replaces those of media by features, in order.

        Args:
          ids_BT: int32. The caller has checked that there are as many image (video) tokens as image (video) feature
            vectors.
          image_features, video_features: [media, tokens, D], or None where a batch has none.
          x_BTD: embeddings of the tokens; None looks the ids up.
        """
        if x_BTD is None:
            x_BTD = self.language_model.embed_tokens(ids_BT)
        else:
            weight_VD = self.language_model.embed_tokens.weight[...]
            x_BTD = resharded(x_BTD.astype(weight_VD.dtype), like(weight_VD, *spec_of(ids_BT), None))
        for token_id, features in (
            (self.config.image_token_id, image_features),
            (self.config.video_token_id, video_features),
        ):
            if features is not None:
                # The batch as one long row: any row may have any number of media.
                flat_1X = whole(ids_BT).reshape(1, -1)
                flat_1MD = whole(features).reshape(1, -1, features.shape[-1])
                placed = _with_features_in_order(
                    whole(x_BTD).reshape(1, -1, x_BTD.shape[-1]), flat_1X == token_id, flat_1MD
                )
                x_BTD = resharded(placed.reshape(x_BTD.shape), like(x_BTD, *spec_of(x_BTD)))
        return x_BTD

    def embed_prefix(self, ids_BT: jax.Array, features_BMD: jax.Array | None) -> jax.Array:
        """Embeds tokens, and replaces those of media by the features of their row, images and videos in order.

        Args:
          ids_BT: int32, with M media tokens in every row.
          features_BMD: the features of all media of a row, one medium after the other; None for text alone.
        """
        x_BTD = self.language_model.embed_tokens(ids_BT)
        if features_BMD is None:
            return x_BTD
        is_media_BT = (ids_BT == self.config.image_token_id) | (ids_BT == self.config.video_token_id)
        return _with_features_in_order(x_BTD, is_media_BT, features_BMD)

    @property
    def head_VD(self) -> jax.Array:
        """The weight of the head, which may be that of the embedding."""
        module = self.language_model.embed_tokens if self.lm_head is None else self.lm_head
        weight_VD: jax.Array = module.weight[...]
        return weight_VD

    def logits(self, x_BTD: jax.Array, dtype: DTypeLike | None = None) -> jax.Array:
        """Returns logits over the vocabulary of hidden states, in `dtype` or in that of the weights."""
        weight_VD = self.head_VD
        out = like(weight_VD, *spec_of(x_BTD)[:-1], spec_of(weight_VD)[0])
        return jnp.einsum("BTD,VD->BTV", x_BTD, weight_VD, preferred_element_type=dtype, out_sharding=out)

    def next_logits(self, x_BTD: jax.Array) -> jax.Array:
        """Returns logits [B, V] after the last token of each row, with the whole vocabulary on every device."""
        return whole(self.logits(x_BTD[:, -1:])[:, 0], axis=-1)

    def __call__(
        self,
        ids_BT: jax.Array,
        token_mask_BT: jax.Array | None = None,
        image_features: jax.Array | None = None,
        video_features: jax.Array | None = None,
    ) -> jax.Array:
        """Returns logits [B, T, V] of whole sequences; `token_mask_BT` is False on padding, None for no padding."""
        mask_BT = jnp.ones(ids_BT.shape, bool) if token_mask_BT is None else token_mask_BT.astype(bool)
        return self.logits(self.language_model(self.embed(ids_BT, image_features, video_features), mask_BT))

    def packed(
        self,
        ids_BT: jax.Array,
        positions_BT: jax.Array,
        segments_BT: jax.Array,
        media_index_BT: jax.Array,
        features_BMD: jax.Array | None,
    ) -> jax.Array:
        """Returns hidden states [B, T, D] of sequences packed into rows, for training.

        Args:
          positions_BT: int32, of each token in its sequence.
          segments_BT: int32, the sequence of each token; tokens see those of their own.
          media_index_BT: int32, the index of the feature vector that replaces a token in `features_BMD`; -1 for text.
          features_BMD: the features of all the media of a row; None where no row has any.
        """
        x_BTD = self.language_model.embed_tokens(ids_BT)
        if features_BMD is not None:
            x_BTD = _with_features(x_BTD, media_index_BT >= 0, jnp.maximum(media_index_BT, 0), features_BMD)
        return self.language_model.packed(x_BTD, positions_BT, segments_BT)

    def prefill(
        self, x_BTD: jax.Array, token_mask_BT: jax.Array, *, int8: bool = False, padded_right: bool = False
    ) -> tuple[jax.Array, PrefixCache]:
        """Runs prompts or prefixes, embedded and padded.

        Args:
          int8: keep keys and values in int8.
          padded_right: whether they are padded on the right, where no token sees the padding; else on the left.

        Returns:
          Hidden states [B, T, D], and the cache that holds them: a prefix for each row.
        """
        x_BTD, layers = self.language_model.prefill(x_BTD, token_mask_BT, padded_right=padded_right)
        cache = PrefixCache(
            layers=tuple(as_prefix(kv, int8=int8) for kv in layers),
            valid_GS=token_mask_BT,
            length_G=token_mask_BT.sum(axis=1, dtype=jnp.int32),
        )
        return x_BTD, cache

    def begin(
        self, ids_BT: jax.Array, token_mask_BT: jax.Array, prefix: PrefixCache, keep: Sequence[Keep] | None = None
    ) -> tuple[jax.Array, tuple[KeysValues, ...]]:
        """Runs text after G prefixes, B / G rows for each: hidden states [B, T, D], and the text's keys and values.

        Args:
          keep: of each layer, what is kept of its keys and values (`Llama.begin`).
        """
        return self.language_model.begin(self.language_model.embed_tokens(ids_BT), token_mask_BT, prefix, keep)

    def begin_packed(
        self, ids_WN: jax.Array, packing: Packing, prefix: PrefixCache, keep: Sequence[Keep] | None = None
    ) -> tuple[jax.Array, tuple[KeysValues, ...]]:
        """Runs texts after W prefixes, packed without padding: logits [E, V] after each row, its keys and values."""
        x_WND, layers = self.language_model.begin_packed(
            self.language_model.embed_tokens(ids_WN), packing, prefix, keep
        )
        return self.next_logits(packing.last(x_WND)), layers

    def extend(
        self,
        ids_BT: jax.Array,
        token_mask_BT: jax.Array,
        cache: Cache,
        *,
        prefix_attention: Implementation | None = None,
    ) -> tuple[jax.Array, TailCache]:
        """Runs T more tokens of each row, text padded on the left: logits [B, V] after them, and the longer tails.

        Args:
          prefix_attention: the implementation of attention to the prefix; None chooses one.
        """
        x_BTD = self.language_model.embed_tokens(ids_BT)
        x_BTD, tail = self.language_model.extend(x_BTD, token_mask_BT, cache, prefix_attention)
        return self.next_logits(x_BTD), tail

    def extend_each(self, ids_BT: jax.Array, token_mask_BT: jax.Array, cache: Cache) -> tuple[jax.Array, TailCache]:
        """Runs T more tokens of each row as `extend` does: logits [B, T, V] after each of them, and the tails."""
        x_BTD, tail = self.language_model.extend(self.language_model.embed_tokens(ids_BT), token_mask_BT, cache)
        return whole(self.logits(x_BTD), axis=-1), tail


def pool_patches(features_NPD: jax.Array, pooling: int) -> jax.Array:
    """Averages the patches of each frame over windows of pooling × pooling, but not the class token.

        C  a b c d     with 2    C  mean(a b e f)  mean(c d g h)
           e f g h

    The features are the projected ones and the mean is taken in float32: mode "average" of LLaVA-NeXT-Video and
    LLaVA-OneVision (`get_2dPool` in LLaVA-NeXT), whose frames have no class token.

    Args:
      features_NPD: [N, 1 + patches, D], the class token first, the patches row by row of a square.
      pooling: the side of the windows, a divisor of the side of the square; 1 changes nothing.

    Returns:
      [N, 1 + patches / pooling², D], of the same dtype.
    """
    N, P, D = features_NPD.shape
    side = isqrt(P - 1)
    windows = side // checked_pooling(pooling, side)
    if pooling == 1:
        return features_NPD
    grid = features_NPD[:, 1:].reshape(N, windows, pooling, windows, pooling, D)
    pooled_NPD = grid.mean(axis=(2, 4), dtype=jnp.float32).astype(features_NPD.dtype).reshape(N, windows**2, D)
    return jnp.concatenate([features_NPD[:, :1], pooled_NPD], axis=1)


def by_row(x_NPD: jax.Array, rows: jax.Array) -> jax.Array:
    """Joins the frames of each row: [N, P, D] to [R, N / R × P, D], sharded like the first axis of `rows`."""
    split = like(rows, *spec_of(rows)[:1])
    return resharded(x_NPD, split).reshape(rows.shape[0], -1, x_NPD.shape[-1], out_sharding=split)


def _with_features_in_order(x_BTD: jax.Array, is_media_BT: jax.Array, features_BMD: jax.Array) -> jax.Array:
    """Puts the feature vectors of each row in the places of its media tokens, in order."""
    return _with_features(x_BTD, is_media_BT, jnp.maximum(jnp.cumsum(is_media_BT, axis=1) - 1, 0), features_BMD)


def _with_features(x_BTD: jax.Array, is_media_BT: jax.Array, index_BT: jax.Array, features_BMD: jax.Array) -> jax.Array:
    """Replaces the embedding of each media token by the feature vector of its row that `index_BT` names."""
    placed_BTD = jnp.take_along_axis(features_BMD, index_BT[:, :, None], axis=1, mode="clip")
    return jnp.where(is_media_BT[:, :, None], placed_BTD.astype(x_BTD.dtype), x_BTD)


def abstract_model(
    config: ModelConfig, *, dtype: DTypeLike = jnp.float32, quantization: Quantization | None = None
) -> VideoLlava:
    """Returns the model with shapes and dtypes for parameters: nothing is drawn or allocated.

    Args:
      quantization: of the weights of the decoder's projections (`layers.Linear`); None for floats.
    """
    return nnx.eval_shape(
        lambda: VideoLlava(config, dtype=dtype, rngs=cast(nnx.Rngs, _OneKey()), quantization=quantization)
    )


class _OneKey:
    """Stands in for `nnx.Rngs` where nothing is drawn: for the 7B shape, counting draws takes five seconds."""

    def params(self) -> jax.Array:
        return jax.random.key(0)


def named_parameters(state: State) -> dict[str, jax.Array]:
    """Returns parameters under transformers' names: `language_model.layers.0.mlp.up_proj.weight`."""
    return {".".join(map(str, path)): variable.get_value() for path, variable in nnx.to_flat_state(state)}


def parameter(state: State, name: str) -> jax.Array:
    """Returns one of `named_parameters`, without looking at the others.

    Raises:
      KeyError: no such parameter.
    """
    node: Any = state
    for key in name.split("."):
        node = node[int(key) if key.isdigit() else key]
    found: jax.Array = node.get_value()
    return found


@lru_cache(maxsize=16)
def structure(config: ModelConfig, quantization: Quantization | None = None) -> tuple[Any, State]:
    """Returns the module's structure, which compiled functions take, and its state with shapes for parameters.

    Both are shared: nobody may change the state (`with_parameters` makes another).
    """
    graph, state = nnx.split(abstract_model(config, quantization=quantization))
    return HashedGraph.of(graph), state


@lru_cache
def parameter_shapes(config: ModelConfig) -> Mapping[str, tuple[int, ...]]:
    """Returns the shape of every parameter of a model, by name."""
    parameters = named_parameters(structure(config)[1])
    return MappingProxyType({name: tuple(value.shape) for name, value in parameters.items()})


def with_parameters(state: State, parameters: dict[str, jax.Array]) -> State:
    """Replaces the values of a state, by name: `parameters` has every name of `named_parameters`."""
    return nnx.from_flat_state(
        [(path, variable.replace(parameters[".".join(map(str, path))])) for path, variable in nnx.to_flat_state(state)]
    )
