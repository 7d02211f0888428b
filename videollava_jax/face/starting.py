"""What `generate` begins with besides ids: embeddings, and a cache of earlier calls that it continues."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, SupportsIndex

import jax
import numpy as np
from jax.typing import ArrayLike

from videollava_jax.face.cache import GROWTH
from videollava_jax.face.forward import Call, checked_embeddings, checked_past, ids_of, run
from videollava_jax.generation import steps as compiled
from videollava_jax.generation.buckets import bucket
from videollava_jax.generation.inputs import Ids, Mask, checked_ids
from videollava_jax.generation.loaded import LoadedModel
from videollava_jax.model.cache import Cache


@dataclass(frozen=True)
class FromEmbeddings:
    """Prompts that are embeddings, with or without the media that go in the places of placeholders."""

    model: LoadedModel
    ids: Ids
    embeddings: jax.Array
    images: ArrayLike | None
    videos: ArrayLike | None
    video_pooling: SupportsIndex

    @classmethod
    def of(
        cls,
        model: LoadedModel,
        embeds: ArrayLike,
        past: Any,
        ids: ArrayLike | None,
        images: ArrayLike | None,
        videos: ArrayLike | None,
        video_pooling: SupportsIndex,
    ) -> FromEmbeddings:
        """Checks embeddings, and finds the places of media among them.

        Args:
          ids: of the same prompts, or None.

        Raises:
          ValueError: another shape than that of the ids, or a cache too.
        """
        if past is not None:
            raise ValueError("past_key_values: expected input_ids with a cache, got inputs_embeds")
        embeds_BTD = checked_embeddings(model, embeds)
        places = ids_of(model, embeds_BTD)
        if ids is not None and np.shape(ids) != places.shape:
            raise ValueError(
                f"input_ids: expected the shape of inputs_embeds {list(places.shape)}, got {list(np.shape(ids))}"
            )
        return cls(model, places, embeds_BTD, images, videos, video_pooling)

    def prefill(self, mask: Mask, *, capacity: int) -> tuple[jax.Array, Cache]:
        """Computes the prompts, as `generate.Start` says."""
        return self.model.prefill(
            self.ids,
            mask,
            self.images,
            self.videos,
            video_pooling=self.video_pooling,
            embeddings=self.embeddings,
            capacity=capacity,
        )

    def keep(self, cache: Cache, new: int) -> None:
        """Does nothing: nobody continues the cache."""


class FromCache:
    """Prompts whose first tokens are in a cache, which gets the others and the answers."""

    def __init__(
        self,
        model: LoadedModel,
        past: Any,
        input_ids: ArrayLike,
        images: ArrayLike | None,
        videos: ArrayLike | None,
        video_pooling: SupportsIndex,
    ):
        """Checks a cache against whole prompts; media whose placeholders are all in the cache are left out.

        Raises:
          ValueError: no cache of this package, or one that does not fit the prompts.
        """
        self._model, self._past = model, checked_past(past)
        ids, S = checked_ids(model.model_config, input_ids), self._past.get_seq_length()
        if self._past.max_batch_size not in (0, len(ids)) or ids.shape[1] <= S:
            raise ValueError(
                f"past_key_values: expected a cache of {len(ids)} rows and fewer than {ids.shape[1]} tokens, the first "
                f"ones of input_ids, got {self._past.max_batch_size} rows of {S}"
            )
        config, rest = model.model_config, ids[:, S:]
        images = images if (rest == config.image_token_id).any() or not S else None
        videos = videos if (rest == config.video_token_id).any() or not S else None
        self._rest = rest, images, videos, video_pooling
        self._mask: Mask | None = None

    def prefill(self, mask: Mask, *, capacity: int) -> tuple[jax.Array, Cache]:
        """Computes what the cache does not hold, as `generate.Start` says; the cache is empty until `keep`."""
        ids, images, videos, pooling = self._rest
        call = Call(ids, mask, images, videos, pooling, past=self._past, use_cache=True)
        logits_B1V = run(self._model, call, 1).out
        self._mask, next_B, layers = mask, self._past.next_B, self._past.taken(0)
        assert layers is not None
        valid = np.pad(mask, ((0, 0), (0, layers[0].capacity - mask.shape[1])))
        cache: Cache = compiled.as_cache(layers, valid, next_B, capacity=capacity, dtype=self._model.dtype)
        return logits_B1V[:, 0], cache

    def keep(self, cache: Cache, new: int) -> None:
        """Takes the cache back, as `generate.Start` says."""
        assert self._mask is not None
        answers = np.asarray(cache.tail.valid_BS)[:, :new]
        T, room = self._mask.shape[1], cache.prefix.valid_GS.shape[1] + cache.tail.capacity
        layers = compiled.joined(cache, jax.device_put(np.int32(T)), capacity=bucket(room, GROWTH))
        next_B: Ids = np.asarray(cache.prefix.length_G) + answers.sum(axis=1, dtype=np.int32)
        self._past.keep(layers, np.concatenate([self._mask, answers], axis=1), next_B)
