"""Checks of what a model is given: token ids with their mask, and pixels that fit the ids."""

from __future__ import annotations

from typing import SupportsIndex

import numpy as np
import numpy.typing as npt
from jax.typing import ArrayLike

from videollava_jax.config import ModelConfig, checked_pooling, poolings, require_whole_windows
from videollava_jax.generation.buckets import PROMPT_BUCKET, bucket

Ids = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]


def checked_text(config: ModelConfig, input_ids: ArrayLike, attention_mask: ArrayLike | None) -> tuple[Ids, Mask]:
    """Returns token ids int32 [B, T] and their mask bool [B, T], True on tokens; without a mask all are tokens.

    Raises:
      ValueError: ids that are not of the vocabulary, a mask of another shape, or a row without tokens.
    """
    ids = checked_ids(config, input_ids)
    if attention_mask is None:
        return ids, np.ones(ids.shape, bool)
    return ids, checked_mask(attention_mask, ids.shape, "input_ids")


def checked_ids(config: ModelConfig, input_ids: ArrayLike | None) -> Ids:
    """Returns token ids int32 [B, T].

    Raises:
      ValueError: ids that are not of the vocabulary, or of another shape.
    """
    ids = np.asarray(input_ids)
    if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer) or not ids.size:
        raise ValueError(f"input_ids: expected integers [batch, tokens], got {ids.dtype} {list(ids.shape)}")
    V = config.text_config.vocab_size
    if ids.min() < 0 or ids.max() >= V:
        raise ValueError(f"input_ids: expected ids in 0..{V - 1}, got {ids.min()}..{ids.max()}")
    return ids.astype(np.int32)


def checked_mask(attention_mask: ArrayLike, shape: tuple[int, ...], whose: str) -> Mask:
    """Returns a mask as bool [B, S], True on tokens.

    Args:
      shape: that it is to have.
      whose: shape that is, for the message.

    Raises:
      ValueError: another shape, or a row without tokens.
    """
    mask = np.asarray(attention_mask).astype(bool)
    if mask.shape != shape:
        raise ValueError(f"attention_mask: expected the shape of {whose} {list(shape)}, got {list(mask.shape)}")
    if not mask.any(axis=1).all():
        raise ValueError(f"attention_mask: row {int(np.argmin(mask.any(axis=1)))} holds no tokens")
    return mask


def inferred_mask(input_ids: ArrayLike, padding: int | None) -> Mask | None:
    """Returns the mask of prompts that came without one, as transformers infers it: False on the token of padding.

    Args:
      input_ids: of any shape, unchecked.
      padding: the token that pads prompts; None where there is none, or where it ends answers too.

    Returns:
      bool, of the shape of the ids; None where no token is padding.
    """
    mask = np.asarray(input_ids) != padding
    return None if padding is None or mask.all() else mask


def require_tokens_at_the_end(mask: Mask) -> None:
    """Raises a ValueError where a row ends in padding, because its answer would follow the padding."""
    if not mask[:, -1].all():
        raise ValueError(
            f"attention_mask: row {int(np.argmin(mask[:, -1]))} ends in padding, and an answer follows the end of "
            "its prompt: pad on the left (processor.tokenizer.padding_side = 'left')"
        )


def checked_media(
    config: ModelConfig,
    ids: Ids,
    images: ArrayLike | None,
    videos: ArrayLike | None,
    video_pooling: SupportsIndex,
) -> tuple[ArrayLike | None, ArrayLike | None, int]:
    """Returns images, videos and the pooling of videos, once the ids have a token for each feature of the media.

    Args:
      images: pixels [N, C, S, S]; empty arrays and None become None.
      videos: pixels [V, F, C, S, S], likewise.

    Raises:
      ValueError: pixels of another shape, another number of tokens, or a pooling that the tower does not have.
    """
    pooling = checked_pooling(video_pooling, config.vision_config.patches_per_side)
    given: list[ArrayLike | None] = []
    for kind, pixels, token, rank in (
        ("images", images, config.image_token_id, 4),
        ("videos", videos, config.video_token_id, 5),
    ):
        placeholders = int((ids == token).sum())
        features = 0 if pixels is None else features_of(config, kind, np.shape(pixels), rank, pooling)
        if placeholders != features:
            shape = () if pixels is None else np.shape(pixels)
            frames = shape[0] * shape[1] if len(shape) == 5 else 0
            raise ValueError(
                f"input_ids hold {placeholders} tokens for {kind}, the given {kind} make {features} "
                f"({list(shape) or 'none given'}{f' with video_pooling={pooling}' if frames else ''}): "
                f"{_mismatch_remedy(config, placeholders, frames)}"
            )
        given.append(pixels if features else None)
    return given[0], given[1], pooling


def features_of(config: ModelConfig, kind: str, shape: tuple[int, ...], rank: int, pooling: int) -> int:
    """Returns the number of feature vectors of pixels of a shape.

    Args:
      kind: "images" or "videos".
      rank: of their pixels, 4 or 5.

    Raises:
      ValueError: a shape that the towers do not take.
    """
    side, channels = config.vision_config.image_size, config.vision_config.num_channels
    if len(shape) != rank or shape[-3:] != (channels, side, side):
        form = f"[{'N' if rank == 4 else 'V, F'}, {channels}, {side}, {side}]"
        raise ValueError(f"pixel_values_{kind}: expected {form}, got {list(shape)}")
    if rank == 4:
        return shape[0] * config.tokens_per_image
    require_whole_windows("pixel_values_videos", shape[1], config.frame_window)
    return shape[0] * shape[1] * config.pooled_tokens_per_frame(pooling)


def _mismatch_remedy(config: ModelConfig, placeholders: int, frames: int) -> str:
    """What to do about placeholders that are more or fewer than the features of `frames` frames."""
    for pooling in poolings(config.vision_config.patches_per_side):
        if frames and frames * config.pooled_tokens_per_frame(pooling) == placeholders:
            return (
                f"the prompt was made for video_pooling={pooling}, which the model has to be told too: pass it "
                "everything that the processor returned, as in model.generate(**inputs)"
            )
    return "give the media of every placeholder, and no others"


def pad_to_bucket(ids: Ids, mask: Mask) -> tuple[Ids, Mask]:
    """Pads on the left to a multiple of 32 tokens, so that prompts of similar lengths share what was compiled."""
    T = ids.shape[1]
    width = ((0, 0), (bucket(T, PROMPT_BUCKET) - T, 0))
    return np.pad(ids, width), np.pad(mask, width)
