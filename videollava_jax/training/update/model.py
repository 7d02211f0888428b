"""The model as functions of its parameters by name: layers scanned and computed again for the gradient.

It is the `VideoLlava` of inference, merged anew in each compiled function from parameters in the form of training:

    stored    [L, out/tensor, in/data]   in the dtype of the optimiser, sharded over all devices (FSDP)
    used      [out/tensor, in]           one layer at a time, cast to the dtype of compute and gathered over `data`
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from videollava_jax.config import ModelConfig
from videollava_jax.media import Preprocessor
from videollava_jax.model.layers import Embedding, Quantization, embedded
from videollava_jax.model.pixels import normalised
from videollava_jax.model.sharding import STACKED, Placement, like, resharded, shard_over_mesh, spec_of
from videollava_jax.model.stack import ScannedLayers
from videollava_jax.model.video_llava import VideoLlava, abstract_model, by_row, named_parameters, with_parameters
from videollava_jax.processing.segments import MediaKind
from videollava_jax.training.update.lora import adapt, set_dropout
from videollava_jax.training.update.loss import LossSums, cross_entropy_sums
from videollava_jax.training.update.options import Lora, Remat
from videollava_jax.training.update.parameters import Parameters, stacked_names

_POLICIES: dict[Remat, Any] = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "none": jax.checkpoint_policies.everything_saveable,
}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch:
    """R rows of T tokens, each with sequences packed one after the other, and their media.

        segments     1 1 1 1 1 1 2 2 2 2 2 0 0      0 is padding
        positions    0 1 2 3 4 5 0 1 2 3 4 0 0
        input_ids    U ▒ ▒ : a z U : b c z . .      ▒ a media token, z the end of an answer
        media_index  - 0 1 - - - - - - - - - -      -1 for text
        targets      - - - a z - - b c z - - -      the next token where it is learnt; -100 elsewhere

    Attributes:
      input_ids, positions, segments, targets, media_index: int32 [R, T]. `media_index` counts through the feature
        vectors of the row: those of its image slots, one after the other, then those of its video slots.
      images: [R, image slots, S, S, 3], RGB, 0-255, uint8 or float32; the content of an empty slot is never read. Or
        precomputed features of the images, `TrainingModel.encoded`: floats [R, image slots, tokens, width].
      videos: [R, video slots, F, S, S, 3]; or features, [R, video slots, tokens, width].
      weights: float32 [R, T], of each target in the loss; None where all weigh 1.
    """

    input_ids: jax.Array
    positions: jax.Array
    segments: jax.Array
    targets: jax.Array
    media_index: jax.Array
    images: jax.Array
    videos: jax.Array
    weights: jax.Array | None = None


class TrainingModel:
    """The loss and logits of packed rows, as functions of parameters by name with layers stacked.

    Args:
      config: of the model.
      preprocess: the preprocessor of each kind of media: its mean and std normalise pixels.
      placement: the mesh and its table; None for one device.
      dtype: of compute. Parameters may have another dtype, and are cast when they are used; norms, softmax and the loss
        are always float32.
      lora: the low-rank adapters of the decoder's projections; None for none.
      quantization: the decoder's projections are int8 with scales, and not trained.
      remat: what the backward pass keeps of each layer: "full" computes all of it again, "dots" keeps the products
        with weights, "none" keeps everything.
      loss_chunk: tokens of each row whose logits are held at a time.
      loss_vocabulary: rows of the head, from 0, that have a share in the loss's softmax; None for all.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        preprocess: Mapping[MediaKind, Preprocessor],
        placement: Placement | None = None,
        dtype: DTypeLike = jnp.float32,
        lora: Lora | None = None,
        quantization: Quantization | None = None,
        remat: Remat = "full",
        loss_chunk: int = 512,
        loss_vocabulary: int | None = None,
    ):
        model = abstract_model(config, dtype=dtype, quantization=quantization)
        if lora is not None:
            for layer in model.language_model.layers:
                adapt(layer, lora)
        self.config, self.placement, self.dtype = config, placement, jnp.dtype(dtype)
        self.lora, self.quantization, self.remat, self.loss_chunk = lora, quantization, remat, loss_chunk
        self._loss_vocabulary = loss_vocabulary
        self.preprocess = dict(preprocess)
        shapes = {name: tuple(value.shape) for name, value in named_parameters(nnx.state(model)).items()}
        self.shapes: dict[str, tuple[int, ...]] = {
            name: (len(layers), *shapes[layers[0]]) if STACKED in name else shapes[layers[0]]
            for name, layers in stacked_names(shapes).items()
        }
        model.language_model.embed_tokens = _EmbeddingSummedInFloat32(model.language_model.embed_tokens)
        # One layer of each stack, and the model without them.
        self._layers = {}
        for path, owner in _stacks(model).items():
            self._layers[path] = nnx.split(owner.layers[0])
            owner.layers = nnx.data(None)
        self._graph, self._state = nnx.split(model)

    # ── what is computed ──

    def loss(self, parameters: Parameters, batch: Batch, key: jax.Array | None = None) -> LossSums:
        """Sums the cross-entropy of the targets, and counts them.

        Args:
          parameters: by name, `shapes`. Those of a tower are not needed where the batch has its features.
          key: random key of the dropout; None for no dropout.
        """
        model = self._merged(parameters, key)
        hidden_BTD = self._hidden(model, batch)
        return cross_entropy_sums(
            hidden_BTD,
            model.head_VD,
            batch.targets,
            batch.weights,
            chunk=self.loss_chunk,
            vocabulary=self._loss_vocabulary,
        )

    def logits(self, parameters: Parameters, batch: Batch) -> jax.Array:
        """Returns all logits at once, float32 [R, T, V]: for evaluation and tests."""
        model = self._merged(parameters)
        return model.logits(self._hidden(model, batch), jnp.float32)

    def features(self, parameters: Parameters, images: jax.Array, videos: jax.Array) -> jax.Array | None:
        """Encodes the media of each row: features [R, vectors, D], images first; None where no row has any.

        Args:
          images, videos: of a `Batch`.
        """
        return self._features(self._merged(parameters), images, videos)

    def encoded(self, kind: MediaKind, parameters: Parameters, pixels: jax.Array) -> jax.Array:
        """Computes the tower features that a `Batch` accepts instead of pixels: [n, tokens, width], in `dtype`.

        Args:
          pixels: [n, S, S, 3] of images, [n, F, S, S, 3] of videos.
        """
        return by_row(self._selected(self._merged(parameters), kind, pixels[:, None]), pixels)

    def _hidden(self, model: VideoLlava, batch: Batch) -> jax.Array:
        """Returns the decoder's last hidden states [R, T, D]."""
        features_BMD = self._features(model, batch.images, batch.videos)
        return model.packed(batch.input_ids, batch.positions, batch.segments, batch.media_index, features_BMD)

    def _features(self, model: VideoLlava, images: jax.Array, videos: jax.Array) -> jax.Array | None:
        media: tuple[tuple[MediaKind, jax.Array], ...] = (("image", images), ("video", videos))
        hidden = [self._selected(model, kind, slots) for kind, slots in media if slots.shape[1]]
        features = [by_row(model.multi_modal_projector(x_NPD), images) for x_NPD in hidden]
        return jnp.concatenate(features, axis=1) if features else None

    def _selected(self, model: VideoLlava, kind: MediaKind, slots: jax.Array) -> jax.Array:
        """Returns the projector's input for all frames of all slots: [frames, positions, width], over all devices."""
        rows = like(slots, *spec_of(slots)[:1])
        if slots.ndim == 4:
            positions = self.config.tokens_per_image if kind == "image" else self.config.tokens_per_frame
            return shard_over_mesh(slots.reshape(-1, positions, slots.shape[-1], out_sharding=rows))
        unit, S = self.config.frame_window if kind == "video" else 1, slots.shape[-2]
        # Pixels move between devices before they are normalised: as uint8, most are smaller than floats.
        frames = shard_over_mesh(slots.reshape(-1, S, S, 3, out_sharding=rows), unit)
        statistics = self.preprocess[kind]
        return model.selected(kind, normalised(frames, statistics.mean, statistics.std, self.dtype))

    # ── parameters ──

    def _merged(self, parameters: Parameters, key: jax.Array | None = None) -> VideoLlava:
        """Builds the model with these parameters, its layers run by scans.

        Args:
          parameters: by name; modules without their parameters must not be called.
          key: random key of the dropout; None for no dropout.
        """
        used = {name: self._used(name, value) for name, value in parameters.items() if STACKED not in name}
        model: VideoLlava = nnx.merge(self._graph, with_parameters(self._state, named_parameters(self._state) | used))
        for path, owner in _stacks(model).items():
            decoder = path == "language_model"
            count = self.config.text_config.num_hidden_layers if decoder else max(self.config.feature_layers)
            owner.layers = self._scanned(path, parameters, count, key if decoder else None)
        return model

    def _scanned(self, path: str, parameters: Parameters, count: int, key: jax.Array | None) -> ScannedLayers:
        """Builds the first `count` layers of a stack."""
        prefix = f"{path}.layers{STACKED}"
        # Cast before the scan, not in it: the gradients that the scan stacks then have the dtype of compute too.
        own = {name: value for name, value in parameters.items() if name.startswith(prefix)}
        stacked = {name: self._cast(name, value[:count]) for name, value in own.items()}

        def layer(one: tuple[Parameters, jax.Array | None]) -> Any:
            graph, state = self._layers[path]
            used = {name.removeprefix(prefix): self._used(name, value) for name, value in one[0].items()}
            module = nnx.merge(graph, with_parameters(state, used))
            if one[1] is not None:
                set_dropout(module, one[1])
            return module

        keys = None if key is None else jax.random.split(key, count)
        return ScannedLayers((stacked, keys), layer, _POLICIES[self.remat])

    def _used(self, name: str, value: jax.Array) -> jax.Array:
        """Casts a parameter, or one layer's of a stack, to the dtype of compute and gathers it over `data`."""
        value = self._cast(name, value)
        if self.placement is None:
            return value
        single = name.replace(STACKED, ".0.")
        return resharded(value, self.placement.parameter(single, value.shape))

    def used_dtype(self, name: str, value: jax.Array) -> jnp.dtype:
        """Returns the dtype that a parameter is used in: that of compute; int8 weights and their scales keep theirs."""
        keeps = name.endswith(".weight_scale") or value.dtype == jnp.int8
        found: jnp.dtype = value.dtype if keeps else self.dtype
        return found

    def _cast(self, name: str, value: jax.Array) -> jax.Array:
        """Casts a parameter to the dtype that it is used in."""
        return value.astype(self.used_dtype(name, value))


def _stacks(model: VideoLlava) -> dict[str, Any]:
    """Returns the modules that hold `layers`, by their names in the model."""
    return {
        "image_tower.encoder": model.image_tower.encoder,
        "video_tower.encoder": model.video_tower.encoder,
        "language_model": model.language_model,
    }


class _EmbeddingSummedInFloat32(Embedding):
    """An embedding whose gradient is summed in float32, however many times a token occurs in a micro-batch."""

    def __init__(self, base: Embedding):
        self.weight = base.weight

    def __call__(self, ids: jax.Array) -> jax.Array:
        weight = self.weight[...]
        return embedded(weight.astype(jnp.float32), ids).astype(weight.dtype)
