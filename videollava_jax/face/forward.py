"""One forward pass with all that transformers' `forward` takes and gives: what is asked is checked, then computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from videollava_jax.face.cache import GROWTH, DynamicCache
from videollava_jax.face.forward_arguments import kept
from videollava_jax.generation.buckets import PROMPT_BUCKET, bucket
from videollava_jax.generation.inputs import Ids, Mask, checked_ids, checked_mask
from videollava_jax.generation.loaded import LoadedModel
from videollava_jax.generation.steps import Sequences, Wanted, forward_pass
from videollava_jax.model.layers import embedded

_EMBEDDING = "language_model.embed_tokens.weight"


@dataclass(frozen=True)
class Call:
    """The arguments of a forward pass, as users give them; `VideoLlavaForConditionalGeneration.__call__` says what."""

    input_ids: ArrayLike | None
    attention_mask: ArrayLike | None = None
    images: ArrayLike | None = None
    videos: ArrayLike | None = None
    video_pooling: SupportsIndex = 1
    inputs_embeds: ArrayLike | None = None
    position_ids: ArrayLike | None = None
    past: Any = None
    use_cache: bool = False
    output_hidden_states: bool = False
    output_attentions: bool = False


@dataclass(frozen=True)
class Computed:
    """What a forward pass gives.

    Attributes:
      out: logits [B, K, V] or hidden states [B, T, D].
      image: features of images [N, tokens_per_image, D], or None.
      video: features of frames [V × F, tokens_per_frame, D], or None.
      past: the cache, with the new tokens in it; None where none is kept.
      hidden_states: L + 1 × [B, T, D], or None.
      attentions: L × [B, N, T, S], or None.
    """

    out: jax.Array
    image: jax.Array | None
    video: jax.Array | None
    past: DynamicCache | None
    hidden_states: tuple[jax.Array, ...] | None
    attentions: tuple[jax.Array, ...] | None


def run(model: LoadedModel, call: Call, logits_to_keep: Any) -> Computed:
    """Computes a forward pass.

    Args:
      logits_to_keep: how many last tokens have logits, or int [n] which; 0 for all, None for hidden states instead.

    Raises:
      ValueError: arguments that do not fit together.
    """
    past = checked_past(call.past) if call.past is not None else DynamicCache() if call.use_cache else None
    S = 0 if past is None else past.get_seq_length()
    if (call.input_ids is None) == (call.inputs_embeds is None):
        both = "neither" if call.input_ids is None else "both"
        raise ValueError(f"expected either input_ids or inputs_embeds, got {both}")
    embeds = None if call.inputs_embeds is None else checked_embeddings(model, call.inputs_embeds)
    ids = checked_ids(model.model_config, call.input_ids) if embeds is None else ids_of(model, embeds)
    B, T = ids.shape
    if past is not None and past.max_batch_size not in (0, B):
        raise ValueError(f"past_key_values: expected a cache of {B} rows, as input_ids have, got {past.max_batch_size}")
    keep = None if logits_to_keep is None else kept(logits_to_keep, T)
    mask = _checked_mask(call.attention_mask, past, B, T)
    positions = _checked_positions(call.position_ids, past, B, T)
    features = model.encode(ids, call.images, call.videos, call.video_pooling)
    # Padding on the right changes nothing before it, and few lengths are compiled. A step of one token stays one.
    length = T if T == 1 else bucket(T, PROMPT_BUCKET)
    pad = ((0, 0), (0, length - T))
    layers = None if past is None else past.taken(length)
    capacity = layers[0].capacity if layers is not None else bucket(length + 1, GROWTH) if past is not None else 0
    keys = length if layers is None else capacity
    result = forward_pass(
        model.graph,
        model.state,
        Sequences(
            ids_BT=_array(np.pad(ids, pad)),
            x_BTD=None if embeds is None else jnp.pad(embeds, (*pad, (0, 0))),
            image_features=features.image,
            video_features=features.video,
            positions_BT=_array(np.pad(positions, pad)),
            mask_BS=_array(np.pad(mask, ((0, 0), (0, keys - mask.shape[1])))),
            write_at=_array(np.int32(S)),
            keep_K=None if keep is None else _array(_padded(keep)),
        ),
        layers,
        wanted=Wanted(capacity, call.output_hidden_states, call.output_attentions),
    )
    if past is not None and result.keys_values is not None:
        past.keep(result.keys_values, mask, positions[:, -1] + 1)
    hidden, weights = result.hidden_states, result.attentions
    return Computed(
        result.out[:, : T if keep is None else len(keep)],
        features.image,
        None if features.video is None or call.videos is None else by_frame(features.video, np.shape(call.videos)[1]),
        past,
        None if hidden is None else tuple(x_BTD[:, :T] for x_BTD in hidden),
        None if weights is None else tuple(x_BNTS[:, :, :T, : S + T] for x_BNTS in weights),
    )


_rows = jax.jit(embedded)  # compiled, since an array on a mesh is indexed inside a program alone


def _array(x: Any) -> jax.Array:
    """An array on the device. `jnp.asarray` would compile a program for each new shape."""
    placed: jax.Array = jax.device_put(x)
    return placed


def _padded(keep: Sequence[int]) -> Ids:
    """The indices with more behind them, so that few shapes are compiled."""
    count = len(keep)
    return np.pad(np.asarray(keep, np.int32), (0, 0 if count == 1 else bucket(count, PROMPT_BUCKET) - count))


def checked_past(past: Any) -> DynamicCache:
    """Returns what was given as `past_key_values`.

    Raises:
      ValueError: no cache of this package.
    """
    if not isinstance(past, DynamicCache):
        raise ValueError(
            "past_key_values: expected the past_key_values of an earlier call of this model, or "
            f"videollava_jax.DynamicCache(), got {type(past).__module__}.{type(past).__qualname__}"
        )
    return past


def checked_embeddings(model: LoadedModel, given: ArrayLike) -> jax.Array:
    """Returns embeddings as an array [B, T, D] that the model takes.

    Raises:
      ValueError: another shape, or no floats.
    """
    # Arrays of JAX may be on other devices than a model on a mesh.
    found = given if isinstance(given, jax.Array) and model.placement is None else np.asarray(given)
    D = model.model_config.text_config.hidden_size
    if found.ndim != 3 or found.shape[-1] != D or not found.size or not jnp.issubdtype(found.dtype, jnp.floating):
        raise ValueError(f"inputs_embeds: expected floats [batch, tokens, {D}], got {found.dtype} {list(found.shape)}")
    return found if isinstance(found, jax.Array) else jnp.asarray(found)


def ids_of(model: LoadedModel, embeds_BTD: jax.Array) -> Ids:
    """Returns ids int32 [B, T] of embeddings: those of placeholders where an embedding is theirs, 0 elsewhere.

    So transformers finds the places of media (`VideoLlavaModel.get_placeholder_mask`).
    """
    config, weight_VD = model.model_config, model.parameters[_EMBEDDING]
    media = np.array([config.image_token_id, config.video_token_id])
    rows_MD = np.asarray(_rows(weight_VD, media))
    equal_BTM = (np.asarray(embeds_BTD.astype(weight_VD.dtype))[:, :, None] == rows_MD).all(-1)
    found: Ids = (equal_BTM * media).max(-1).astype(np.int32)
    return found


def _checked_mask(given: ArrayLike | None, past: DynamicCache | None, B: int, T: int) -> Mask:
    """The mask bool [B, S + T] of past and new tokens; without one, all new ones are tokens."""
    before = np.ones((B, 0), bool) if past is None or past.mask is None else past.mask
    if given is None:
        return np.concatenate([before, np.ones((B, T), bool)], axis=1)
    return checked_mask(given, (B, before.shape[1] + T), "input_ids" if past is None else "past and new tokens")


def _checked_positions(given: ArrayLike | None, past: DynamicCache | None, B: int, T: int) -> Ids:
    """Rotary positions int32 [B, T]: those given, or else the next ones of each row, padding counted."""
    if given is None:
        next_B: Ids = np.zeros(B, np.int32) if past is None or past.next_B is None else past.next_B
        return (next_B[:, None] + np.arange(T)).astype(np.int32)
    found = np.asarray(given)
    found = found[None] if found.ndim == 1 else found
    if found.shape not in ((1, T), (B, T)) or not np.issubdtype(found.dtype, np.integer) or found.min() < 0:
        raise ValueError(f"position_ids: expected integers from 0 on [{B}, {T}], got {found.dtype} {list(found.shape)}")
    return np.broadcast_to(found.astype(np.int32), (B, T))


def by_frame(features: jax.Array, frames: int) -> jax.Array:
    """Splits the features of videos [V, F × tokens, D] into those of frames [V × F, tokens, D]."""
    return features.reshape(-1, features.shape[1] // frames, features.shape[-1])
