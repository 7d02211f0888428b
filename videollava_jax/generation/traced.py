"""Hidden states and attentions of every step of `generate`, by one pass over prompts and answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, SupportsIndex

import jax
import numpy as np
import numpy.typing as npt
from jax.typing import ArrayLike

from videollava_jax.generation import steps as compiled
from videollava_jax.generation.buckets import PROMPT_BUCKET, bucket
from videollava_jax.generation.inputs import Ids, Mask
from videollava_jax.generation.loaded import LoadedModel
from videollava_jax.model.layers import embedded

Layers = tuple[npt.NDArray[Any], ...]

_embedded = jax.jit(embedded)


@dataclass(frozen=True)
class Traced:
    """What every layer has computed in each of the n steps, as transformers' `generate` returns it.

    Attributes:
      hidden_states: n × (L + 1) × [B, T, D] of the first step, [B, 1, D] of the others; or None.
      attentions: n × L × [B, N, T, T] of the first step, [B, N, 1, T + i] of step i; or None.
    """

    hidden_states: tuple[Layers, ...] | None
    attentions: tuple[Layers, ...] | None


def traced(
    model: LoadedModel,
    ids: Ids,
    mask: Mask,
    tokens: npt.NDArray[np.int64],
    images: ArrayLike | None,
    videos: ArrayLike | None,
    video_pooling: SupportsIndex,
    *,
    hidden_states: bool,
    attentions: bool,
) -> Traced:
    """Computes what the layers have computed while answers were generated.

    Args:
      ids, mask: prompts, [B, T].
      tokens: their answers, [B, n].
      images, videos, video_pooling: as in `generate`.
      hidden_states, attentions: what is wanted.
    """
    T, n = ids.shape[1], tokens.shape[1]
    S = T + n - 1  # the last token was never fed back
    pad = ((0, 0), (0, bucket(S, PROMPT_BUCKET) - S))
    answers = tokens[:, :-1].astype(np.int32)
    held = np.concatenate([mask, np.ones(answers.shape, bool)], axis=1)
    features = model.encode(ids, images, videos, video_pooling)
    given: dict[str, Any] = {
        # A placeholder that the model has written is a token as any other.
        "ids_BT": np.pad(np.concatenate([ids, np.zeros_like(answers)], axis=1), pad),
        "x_BTD": _embedded(
            model.parameters["language_model.embed_tokens.weight"],
            np.pad(np.concatenate([ids, answers], axis=1), pad),
        ),
        "positions_BT": np.pad(np.maximum(np.cumsum(held, axis=1, dtype=np.int32) - 1, 0), pad),
        "mask_BS": np.pad(held, pad),
        "write_at": np.int32(0),
    }
    found = compiled.forward_pass(
        model.graph,
        model.state,
        compiled.Sequences(
            **jax.device_put(given), image_features=features.image, video_features=features.video, keep_K=None
        ),
        None,
        wanted=compiled.Wanted(hidden_states=hidden_states, attentions=attentions),
    )
    starts = [0, *range(T, S)]
    ends = [T, *range(T + 1, S + 1)]
    hidden = None if found.hidden_states is None else [np.asarray(layer) for layer in found.hidden_states]
    weights = None if found.attentions is None else [np.asarray(layer) for layer in found.attentions]
    spans = list(zip(starts, ends, strict=True))
    return Traced(
        None if hidden is None else tuple(tuple(layer[:, a:b] for layer in hidden) for a, b in spans),
        None if weights is None else tuple(tuple(layer[:, :, a:b, :b] for layer in weights) for a, b in spans),
    )
