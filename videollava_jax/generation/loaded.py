"""The loaded model: its parameters on their devices, and the compiled steps that run on them.

    input_ids ─ checked ─┐                                       ┌──── extend ◀── more text
    pixels ─── encode ───┴▶ prefill ─▶ logits of the next token, cache ─▶ decode ─▶ answers, cache

Chats, the engine and the face that transformers' users see all stand on it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, SupportsIndex, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import ArrayLike, DTypeLike

from videollava_jax import compilation_cache
from videollava_jax.config import ModelConfig
from videollava_jax.generation import decoding
from videollava_jax.generation import steps as compiled
from videollava_jax.generation.asked import NOTHING_ASKED, Asked
from videollava_jax.generation.buckets import bucket
from videollava_jax.generation.inputs import (
    Ids,
    checked_media,
    checked_text,
    pad_to_bucket,
    require_tokens_at_the_end,
)
from videollava_jax.generation.options import GenerationOptions
from videollava_jax.generation.text import OnTokens
from videollava_jax.hub import Wanted, find_model
from videollava_jax.json_files import read_object
from videollava_jax.model.cache import Cache
from videollava_jax.model.layers import Quantization
from videollava_jax.model.sharding import Placement, put
from videollava_jax.model.video_llava import State, named_parameters, structure, with_parameters
from videollava_jax.weights import load_checkpoint
from videollava_jax.weights.manifest import Verify
from videollava_jax.weights.quantize import SCALE

GENERATION_CONFIG = "generation_config.json"
CACHE_GROWTH = 256  # positions that a full cache grows by


@dataclass(frozen=True)
class Features:
    """Projected features of the media of a batch: [N, tokens_per_image, D] and [V, F × tokens_per_frame, D]."""

    image: jax.Array | None
    video: jax.Array | None


class LoadedModel:
    """Video-LLaVA with its weights, ready to run.

    Attributes:
      model_config: the shape of the model.
      quantization: of the projections; None for floats.
      generation_defaults: what the checkpoint's generation_config.json holds; its options hold where a caller says
        nothing.
      graph, state: the module's structure and its parameters, which the compiled functions take.
      placement: where its parameters are, and inputs go, on a mesh; None for one device.
      name_or_path: as it was loaded; "" for a model made of parameters.
      directory: that it was loaded from; None for a model made of parameters.
    """

    name_or_path: str = ""
    directory: Path | None = None

    def __init__(
        self,
        config: ModelConfig,
        parameters: dict[str, jax.Array],
        generation_config: dict[str, Any] | None = None,
        *,
        mesh: Mesh | None = None,
        quantization: Quantization | None = None,
        module: tuple[Any, State] | None = None,
    ):
        """Makes a model of parameters that are on their devices.

        Args:
          config: the shape of the model.
          parameters: by name; int8 weights come with their scales.
          generation_config: as generation_config.json holds it.
          mesh: that the parameters are on; None for one device.
          quantization: of the projections; None for what the parameters show.
          module: its structure and its state with shapes for parameters, where layers were replaced, as by adapters;
            None for those of the configuration.
        """
        self.model_config = config
        self._generation_defaults = generation_config or {}
        self.placement = None if mesh is None else Placement(config, mesh)
        if quantization is None and any(name.endswith(SCALE) for name in parameters):
            quantization = "int8"
        self.quantization = quantization
        self.graph, state = module or structure(config, quantization)
        self.state = with_parameters(state, parameters)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        dtype: DTypeLike | None = None,
        mesh: Mesh | None = None,
        quantization: Quantization | None = None,
        verify: Verify = "fast",
        revision: str | None = None,
        token: str | None = None,
        **download: Any,
    ) -> Self:
        """Loads a checkpoint. Programs that are compiled from here on are kept for the next run.

        Args:
          path: a directory (transformers' layouts, the authors' or Orbax of ours), or a model's name on the hub.
          dtype: of parameters and compute, such as "bfloat16"; None keeps the checkpoint's.
          mesh: devices to spread the model over (`make_mesh`).
          quantization: "int8" keeps the decoder's projections in int8 with a scale for each output channel: half the
            memory of bfloat16, at a small error. "w8a8" quantizes the inputs of prefill too, for devices that multiply
            int8 faster; its error is larger.
          verify: how a directory is checked against its manifest, if it has one: "full" hashes every tensor, in one
            more pass over the bytes; "fast" looks at files, names, shapes and dtypes; "off" at nothing.
          revision: a branch, tag or commit on the hub.
          token: for private models on the hub.
          download: `cache_dir`, `local_files_only` and the like of the hub's client.

        Raises:
          ValueError: no such checkpoint, tensors that do not fit its configuration (all are listed), or a
            generation_config.json that is not JSON.
        """
        if quantization not in (None, *get_args(Quantization)):
            raise ValueError(
                f"quantization: expected one of {', '.join(get_args(Quantization))}, or None; got {quantization!r}"
            )
        compilation_cache.enable()
        directory = find_model(path, Wanted.WEIGHTS, revision=revision, token=token, **download)
        generation_config = read_generation_config(directory)
        placement = None if mesh is None else lambda config: Placement(config, mesh).parameter
        config, parameters = load_checkpoint(
            directory, dtype, placement=placement, verify=verify, int8=quantization is not None
        )
        model = cls(config, parameters, generation_config, mesh=mesh, quantization=quantization)
        model.name_or_path, model.directory = os.fspath(path), directory
        return model

    @property
    def parameters(self) -> dict[str, jax.Array]:
        """Every parameter by its name."""
        return named_parameters(self.state)

    @property
    def generation_defaults(self) -> Mapping[str, Any]:
        """The options of the checkpoint's generation_config.json, under transformers' names; empty without one."""
        return self._generation_defaults

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of compute, and of caches that are not in int8."""
        return np.dtype(self.parameters["language_model.embed_tokens.weight"].dtype)

    @property
    def jax_device(self) -> jax.Device:
        """The device of the parameters; on a mesh, one of its devices."""
        return next(iter(self.parameters["language_model.embed_tokens.weight"].devices()))

    def on_devices(self, batch: Any) -> Any:
        """Shards arrays whose first axis is the batch over the devices; `batch` is one array or a tree of them."""
        if self.placement is None:
            return jax.device_put(batch)
        placement = self.placement
        return jax.tree.map(lambda x: put(x, placement.batch(len(x))), batch)

    def as_arguments(self, batch: Any) -> Any:
        """Returns arrays of the host as a compiled function takes them: on a mesh as `on_devices`, else as they are.

        The call itself brings them to the device, which takes a small part of the time of `jax.device_put`.
        """
        return batch if self.placement is None else self.on_devices(batch)

    def resolve_options(self, given: Mapping[str, Any]) -> GenerationOptions:
        """Returns generation options: what was given, then the checkpoint's, then transformers' defaults.

        Raises:
          TypeError: an unknown name.
          ValueError: a value of a wrong type or out of range.
        """
        return GenerationOptions.resolve(given, self.generation_defaults, self.model_config)

    # ── the phases ──

    def encode(
        self,
        ids: Ids,
        images: ArrayLike | None,
        videos: ArrayLike | None,
        video_pooling: SupportsIndex = 1,
    ) -> Features:
        """Computes the features of the media.

        Args:
          ids: int32 [B, T], with a placeholder token for each feature vector of the media.
          images: float32 [N, 3, S, S].
          videos: float32 [V, F, 3, S, S].
          video_pooling: side of the windows of patches whose features are averaged; 1 for none.

        Raises:
          ValueError: media that do not fit the ids.
        """
        images, videos, pooling = checked_media(self.model_config, ids, images, videos, video_pooling)
        return Features(
            None if images is None else compiled.encode_images(self.graph, self.state, _on_device(images)),
            None if videos is None else compiled.encode_videos(self.graph, self.state, _on_device(videos), pooling),
        )

    def sequence_logits(
        self,
        input_ids: ArrayLike,
        attention_mask: ArrayLike | None = None,
        pixel_values_images: ArrayLike | None = None,
        pixel_values_videos: ArrayLike | None = None,
        *,
        video_pooling: SupportsIndex = 1,
    ) -> tuple[jax.Array, Features]:
        """Computes the logits [B, T, V] of whole sequences, and the features of their media.

        Args:
          input_ids: int [B, T], a placeholder token for each feature vector of the media.
          attention_mask: int or bool [B, T], 0 on padding; None for no padding.
          pixel_values_images: float32 [N, 3, S, S].
          pixel_values_videos: float32 [V, F, 3, S, S].
          video_pooling: side of the windows of patches whose features are averaged; 1 for none.

        Raises:
          ValueError: text or media that do not fit together.
        """
        ids, mask = checked_text(self.model_config, input_ids, attention_mask)
        features = self.encode(ids, pixel_values_images, pixel_values_videos, video_pooling)
        return compiled.forward(self.graph, self.state, ids, mask, features.image, features.video), features

    def prefill(
        self,
        input_ids: ArrayLike,
        attention_mask: ArrayLike | None = None,
        pixel_values_images: ArrayLike | None = None,
        pixel_values_videos: ArrayLike | None = None,
        *,
        video_pooling: SupportsIndex = 1,
        embeddings: jax.Array | None = None,
        capacity: int,
    ) -> tuple[jax.Array, Cache]:
        """Computes the logits [B, V] after prompts, and the prompts' cache.

        Args:
          input_ids: int [B, T], padded on the left; this and the other arguments as in `sequence_logits`.
          embeddings: float [B, T, D] of the prompts; the ids then mark media alone. None looks the ids up.
          capacity: free positions of the cache, for what `extend` and `decode` append.

        Raises:
          ValueError: text or media that do not fit together, or a prompt that ends in padding.
        """
        ids, mask = checked_text(self.model_config, input_ids, attention_mask)
        require_tokens_at_the_end(mask)
        features = self.encode(ids, pixel_values_images, pixel_values_videos, video_pooling)
        T = ids.shape[1]
        ids, mask = pad_to_bucket(ids, mask)
        if embeddings is not None:
            embeddings = jnp.pad(embeddings, ((0, 0), (ids.shape[1] - T, 0), (0, 0)))
        filled: tuple[jax.Array, Cache] = compiled.prefill(
            self.graph, self.state, ids, mask, features.image, features.video, embeddings, capacity=capacity
        )
        return filled

    def extend(self, input_ids: ArrayLike, cache: Cache, *, capacity: int) -> tuple[jax.Array, Cache]:
        """Computes the logits [B, V] after more text for every row, and the longer cache.

        Args:
          input_ids: int [B, T], text alone.
          cache: donated; a full one is grown.
          capacity: free positions that the longer cache has at least.

        Raises:
          ValueError: ids that are not of the vocabulary, or placeholders of media among them.
        """
        ids, mask = checked_text(self.model_config, input_ids, None)
        checked_media(self.model_config, ids, None, None, 1)
        ids, mask = pad_to_bucket(ids, mask)
        needed = ids.shape[1] + capacity
        if needed > cache.free:
            cache = cache.grow(bucket(cache.tail.capacity - cache.free + needed, CACHE_GROWTH))
        logits, tail = compiled.extend(self.graph, self.state, ids, mask, cache.prefix, cache.tail)
        return logits, Cache(cache.prefix, tail)

    def decode(
        self,
        logits_BV: jax.Array,
        cache: Cache,
        keys_B: jax.Array,
        prompts: Sequence[Ids],
        options: GenerationOptions,
        *,
        tokenizer: Any = None,
        on_tokens: OnTokens | None = None,
        asked: Asked = NOTHING_ASKED,
    ) -> decoding.Decoded:
        """Decodes answers after what the cache holds; arguments, results and errors are those of `decoding.decode`."""
        return decoding.decode(
            self.graph,
            self.state,
            logits_BV,
            cache,
            keys_B,
            prompts,
            options,
            tokenizer=tokenizer,
            on_tokens=on_tokens,
            asked=asked,
        )


def _on_device(array: ArrayLike) -> jax.Array:
    """An array of any library, or lists, on the device. `jnp.asarray` would compile a program for each new shape."""
    placed: jax.Array = jax.device_put(array if isinstance(array, jax.Array) else np.asarray(array))
    return placed


def read_generation_config(directory: Path) -> dict[str, Any] | None:
    """Reads a checkpoint's generation_config.json; None without one."""
    file = directory / GENERATION_CONFIG
    return read_object(file) if file.exists() else None
