"""The loaded model: its parameters on their devices, and the compiled steps that run on them.

Chats, the engine and the face that transformers' users see all stand on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from flax import nnx
from jax.sharding import Mesh
from jax.typing import ArrayLike

from videollava_jax.config import VideoLlavaConfig, checked_pooling, poolings, require_whole_windows
from videollava_jax.generation import steps as compiled
from videollava_jax.generation.answers import PROMPT_BUCKET, bucket
from videollava_jax.generation.decoding import decode
from videollava_jax.generation.options import GenerationOptions
from videollava_jax.generation.text import OnTokens
from videollava_jax.model.cache import Cache
from videollava_jax.model.layers import Quantization
from videollava_jax.model.sharding import Placement, put
from videollava_jax.model.video_llava import abstract_model, named_parameters, with_parameters
from videollava_jax.weights.quantize import SCALE

CACHE_GROWTH = 256  # slots that a full cache grows by


@dataclass(frozen=True)
class Features:
    """Projected features of the media of a batch: [N, tokens_per_image, D] and [V, F × tokens_per_frame, D]."""

    image: jax.Array | None
    video: jax.Array | None


class LoadedModel:
    """Video-LLaVA with its weights, ready to run.

    Attributes:
      config: the shape of the model.
      generation_config: defaults of `generate`, from the checkpoint's generation_config.json.
      graph, state: the module's structure and its parameters, which the compiled functions take.
      placement: where its parameters are, and inputs go, on a mesh; None for one device.
    """

    def __init__(
        self,
        config: VideoLlavaConfig,
        parameters: dict[str, jax.Array],
        generation_config: dict[str, Any] | None = None,
        *,
        mesh: Mesh | None = None,
        quantization: Quantization | None = None,
    ):
        """
        Args:
          parameters: by name; int8 weights come with their scales.
          quantization: of the projections; None for what the parameters show.
          mesh: that the parameters are on; None for one device.
        """
        self.config = config
        self.generation_config = generation_config or {}
        self.placement = None if mesh is None else Placement(config, mesh)
        if quantization is None and any(name.endswith(SCALE) for name in parameters):
            quantization = "int8"
        self.graph, state = nnx.split(abstract_model(config, quantization=quantization))
        self.state = with_parameters(state, parameters)

    @property
    def parameters(self) -> dict[str, jax.Array]:
        """Every parameter by its name."""
        return named_parameters(self.state)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of compute, and of caches that are not in int8."""
        return np.dtype(self.parameters["language_model.embed_tokens.weight"].dtype)

    def on_devices(self, batch: Any) -> Any:
        """Arrays whose first axis is a batch, split over the devices as the batch is; several, in a tree, alike."""
        if self.placement is None:
            return jax.tree.map(jnp.asarray, batch)
        placement = self.placement
        return jax.tree.map(lambda x: put(x, placement.batch(len(x))), batch)

    def prefill(
        self,
        input_ids: ArrayLike,
        attention_mask: ArrayLike | None = None,
        pixel_values_images: ArrayLike | None = None,
        pixel_values_videos: ArrayLike | None = None,
        *,
        video_pooling: SupportsIndex = 1,
        room: int,
    ) -> tuple[jax.Array, Cache]:
        """Logits [B, V] after prompts that are padded on the left, and a cache of them with `room` free slots.

        Arguments and errors are those of a call; what follows is computed by `extend` and `decode`.
        """
        ids, mask = self.checked_text(input_ids, attention_mask)
        if not mask[:, -1].all():
            raise ValueError(
                f"attention_mask: row {int(np.argmin(mask[:, -1]))} ends in padding, and an answer follows the end of "
                "its prompt: pad on the left (processor.tokenizer.padding_side = 'left')"
            )
        features = self.encode(ids, pixel_values_images, pixel_values_videos, video_pooling)
        ids, mask = _pad_to_bucket(ids, mask)
        filled: tuple[jax.Array, Cache] = compiled.prefill(
            self.graph, self.state, ids, mask, features.image, features.video, room=room
        )
        return filled

    def extend(self, input_ids: ArrayLike, cache: Cache, *, room: int) -> tuple[jax.Array, Cache]:
        """Logits [B, V] after more text for every row, and the longer cache with at least `room` free slots.

        Args:
          input_ids: int [B, T], text alone.
          cache: donated; a full one is grown.
        """
        ids, mask = self.checked_text(input_ids, None)
        self.encode(ids, None, None)  # refuses the tokens of media
        ids, mask = _pad_to_bucket(ids, mask)
        needed = ids.shape[1] + room
        if needed > cache.free:
            cache = cache.grow(bucket(cache.tail.capacity - cache.free + needed, CACHE_GROWTH))
        logits, tail = compiled.extend(self.graph, self.state, ids, mask, cache.prefix, cache.tail)
        return logits, Cache(cache.prefix, tail)

    def decode(
        self,
        logits_BV: jax.Array,
        cache: Cache,
        keys_B: jax.Array,
        prompts: Sequence[npt.NDArray[np.int32]],
        options: GenerationOptions,
        *,
        tokenizer: Any = None,
        on_tokens: OnTokens | None = None,
    ) -> tuple[npt.NDArray[np.int64], Cache]:
        """Decodes answers after what the cache holds: `decoding.decode` with this model."""
        return decode(
            self.graph,
            self.state,
            logits_BV,
            cache,
            keys_B,
            prompts,
            options,
            tokenizer=tokenizer,
            on_tokens=on_tokens,
        )

    def resolved(self, given: Mapping[str, Any]) -> GenerationOptions:
        """Returns generation options: what was given, then the checkpoint's, then transformers' defaults.

        Raises:
          TypeError: an unknown name.
          ValueError: a value of a wrong type or out of range.
        """
        return GenerationOptions.resolve(given, self.generation_config, self.config)

    def require_positions(self, prompt: int, max_new_tokens: int) -> None:
        """Raises a ValueError where a prompt of so many tokens and its answer are longer than the positions."""
        limit = self.config.text_config.max_position_embeddings
        if prompt + max_new_tokens > limit:
            raise ValueError(
                f"a prompt of {prompt} tokens and an answer of up to {max_new_tokens} do not fit the model's "
                f"{limit} positions: shorten the prompt, take fewer frames or pool them (video_pooling), or lower "
                "max_new_tokens"
            )

    def checked_text(
        self, input_ids: ArrayLike, attention_mask: ArrayLike | None
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
        ids = np.asarray(input_ids)
        if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer) or not ids.size:
            raise ValueError(f"input_ids: expected integers [batch, tokens], got {ids.dtype} {list(ids.shape)}")
        V = self.config.text_config.vocab_size
        if ids.min() < 0 or ids.max() >= V:
            raise ValueError(f"input_ids: expected ids in 0..{V - 1}, got {ids.min()}..{ids.max()}")
        mask = np.ones(ids.shape, bool) if attention_mask is None else np.asarray(attention_mask).astype(bool)
        if mask.shape != ids.shape:
            raise ValueError(
                f"attention_mask: expected the shape of input_ids {list(ids.shape)}, got {list(mask.shape)}"
            )
        if not mask.any(axis=1).all():
            raise ValueError(f"attention_mask: row {int(np.argmin(mask.any(axis=1)))} holds no tokens")
        return ids.astype(np.int32), mask

    def encode(
        self,
        ids: npt.NDArray[np.int32],
        images: ArrayLike | None,
        videos: ArrayLike | None,
        video_pooling: SupportsIndex = 1,
    ) -> Features:
        """Features of the media, once both kinds have been found to fit the ids."""
        config = self.config
        side = config.vision_config.image_size
        pooling = checked_pooling(video_pooling, config.vision_config.patches_per_side)
        given: list[ArrayLike | None] = []
        for kind, pixels, token, rank in (
            ("images", images, config.image_token_id, 4),
            ("videos", videos, config.video_token_id, 5),
        ):
            placeholders = int((ids == token).sum())
            expected = 0
            shape: tuple[int, ...] = ()
            if pixels is not None:
                shape = np.shape(pixels)
                if len(shape) != rank or shape[-3:] != (config.vision_config.num_channels, side, side):
                    form = f"[{'N' if rank == 4 else 'V, F'}, {config.vision_config.num_channels}, {side}, {side}]"
                    raise ValueError(f"pixel_values_{kind}: expected {form}, got {list(shape)}")
                if rank == 5:
                    require_whole_windows("pixel_values_videos", shape[1], config.frame_window)
                each = config.tokens_per_image if rank == 4 else shape[1] * config.pooled_tokens_per_frame(pooling)
                expected = shape[0] * each
            if placeholders != expected:
                frames = shape[0] * shape[1] if len(shape) == 5 else 0
                raise ValueError(
                    f"input_ids hold {placeholders} tokens for {kind}, the given {kind} make {expected} "
                    f"({list(shape) or 'none given'}{f' with video_pooling={pooling}' if frames else ''}): "
                    f"{self._mismatch_remedy(placeholders, frames)}"
                )
            given.append(pixels if expected else None)
        image, video = given
        return Features(
            None if image is None else compiled.encode_images(self.graph, self.state, jnp.asarray(image)),
            None if video is None else compiled.encode_videos(self.graph, self.state, jnp.asarray(video), pooling),
        )

    def _mismatch_remedy(self, placeholders: int, frames: int) -> str:
        """What to do about tokens that are not as many as the features of these many frames of videos."""
        for pooling in poolings(self.config.vision_config.patches_per_side):
            if frames and frames * self.config.pooled_tokens_per_frame(pooling) == placeholders:
                return (
                    f"the prompt was made for video_pooling={pooling}, which the model has to be told too: pass it "
                    "everything that the processor returned, as in model.generate(**inputs)"
                )
        return "give the media of every placeholder, and no others"


def _pad_to_bucket(
    ids: npt.NDArray[np.int32], mask: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
    """Padded on the left, so that prompts of similar lengths share what was compiled."""
    T = ids.shape[1]
    width = ((0, 0), (bucket(T, PROMPT_BUCKET) - T, 0))
    return np.pad(ids, width), np.pad(mask, width)
