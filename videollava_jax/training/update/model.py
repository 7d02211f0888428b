"""The model as functions of its parameters by name: layers scanned and computed again for the gradient.

The same layers as everywhere, in the form that training wants:

    stored    [L, out/tensor, in/data]   in the dtype of the optimiser, in equal parts on all devices (FSDP)
    used      [out/tensor, in]           one layer at a time, cast to the dtype of compute and gathered over `data`
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from videollava_jax.config import VideoLlavaConfig
from videollava_jax.media.preprocess import FramePreprocessor
from videollava_jax.model.decoder import Context, LlamaLayer
from videollava_jax.model.layers import Quantization
from videollava_jax.model.pixels import normalised
from videollava_jax.model.sharding import STACKED, Placement, like, resharded, shard_over_mesh, spec_of
from videollava_jax.model.video_llava import abstract_model, named_parameters, with_parameters
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
        input_ids    U ▒ ▒ : a z U : b c z . .      ▒ a medium's token, z the end of an answer
        media_index  - 0 1 - - - - - - - - - -      -1 for text
        targets      - - - a z - - b c z - - -      what is to be predicted after each token; -100 where nothing is

    Attributes:
      input_ids, positions, segments, targets, media_index: int32 [R, T]. `media_index` counts through the feature
        vectors of the row: those of its image slots, one after the other, then those of its video slots.
      images: uint8 [R, image slots, S, S, 3], RGB; what an empty slot holds is never read. Or what the frozen tower
        made of them before: floats [R, image slots, tokens, width].
      videos: uint8 [R, video slots, F, S, S, 3]; or floats [R, video slots, tokens, width].
    """

    input_ids: jax.Array
    positions: jax.Array
    segments: jax.Array
    targets: jax.Array
    media_index: jax.Array
    images: jax.Array
    videos: jax.Array


class TrainingModel:
    """Loss and logits of packed rows, as functions of parameters by name with layers stacked.

    Args:
      config: of the model.
      preprocess: of images and of videos, whose mean and std normalise the pixels of each kind.
      placement: the mesh and its table; None for one device.
      dtype: of compute. Parameters may have another, and are cast when they are used; norms, softmax and the loss are
        float32 anyway.
      lora: projections of the decoder that have narrow ones beside them.
      quantization: the decoder's projections are int8 with scales, and not trained.
      remat: what the backward pass keeps of each layer: "full" computes all of it again, "dots" keeps the products
        with weights, "none" keeps everything.
      loss_chunk: tokens of a row whose logits are there at the same time.
    """

    def __init__(
        self,
        config: VideoLlavaConfig,
        *,
        preprocess: Mapping[MediaKind, FramePreprocessor],
        placement: Placement | None = None,
        dtype: DTypeLike = jnp.float32,
        lora: Lora | None = None,
        quantization: Quantization | None = None,
        remat: Remat = "full",
        loss_chunk: int = 512,
    ):
        model = abstract_model(config, dtype=dtype, quantization=quantization)
        if lora is not None:
            for layer in model.language_model.layers:
                adapt(layer, lora)
        self.config, self.placement, self.dtype = config, placement, jnp.dtype(dtype)
        self.lora, self.quantization, self.remat, self.loss_chunk = lora, quantization, remat, loss_chunk
        self._preprocess = dict(preprocess)
        shapes = {name: tuple(value.shape) for name, value in named_parameters(nnx.state(model)).items()}
        self.shapes: dict[str, tuple[int, ...]] = {
            name: (len(layers), *shapes[layers[0]]) if STACKED in name else shapes[layers[0]]
            for name, layers in stacked_names(shapes).items()
        }
        towers = {name: getattr(model, name) for name in ("image_tower", "video_tower")}
        self._graphs: dict[str, tuple[Any, Any]] = {
            name: nnx.split(module)
            for name, module in (
                *((f"{name}.embeddings", tower.embeddings) for name, tower in towers.items()),
                *((f"{name}.pre_layrnorm", tower.pre_layrnorm) for name, tower in towers.items()),
                *((f"{name}.encoder.layers.*", tower.encoder.layers[0]) for name, tower in towers.items()),
                ("multi_modal_projector", model.multi_modal_projector),
                ("language_model.embed_tokens", model.language_model.embed_tokens),
                ("language_model.layers.*", model.language_model.layers[0]),
                ("language_model.norm", model.language_model.norm),
            )
        }

    # ── what is computed ──

    def loss(self, parameters: Parameters, batch: Batch, key: jax.Array | None = None) -> LossSums:
        """Cross-entropy of the targets, summed, and how many there are.

        Args:
          parameters: by name, `shapes`.
          key: of the dropout; None for none.
        """
        hidden_BTD = self.hidden(parameters, batch, key)
        return cross_entropy_sums(hidden_BTD, self._head(parameters), batch.targets, chunk=self.loss_chunk)

    def logits(self, parameters: Parameters, batch: Batch) -> jax.Array:
        """float32 [R, T, V], all at once: for evaluation and tests."""
        hidden_BTD, head_VD = self.hidden(parameters, batch), self._head(parameters)
        out = like(hidden_BTD, *spec_of(hidden_BTD)[:-1], spec_of(head_VD)[0])
        return jnp.einsum("BTD,VD->BTV", hidden_BTD, head_VD, preferred_element_type=jnp.float32, out_sharding=out)

    def hidden(self, parameters: Parameters, batch: Batch, key: jax.Array | None = None) -> jax.Array:
        """The decoder's last hidden states [R, T, D]."""
        x_BTD = self._embedded(parameters, batch.input_ids)
        features_BMD = self.features(parameters, batch.images, batch.videos)
        if features_BMD is not None:
            index_BT = jnp.maximum(batch.media_index, 0)[..., None]
            placed_BTD = jnp.take_along_axis(features_BMD, index_BT, axis=1, mode="clip")
            x_BTD = jnp.where(batch.media_index[..., None] >= 0, placed_BTD.astype(x_BTD.dtype), x_BTD)

        def layer(x_BTD: jax.Array, module: LlamaLayer, key: jax.Array | None) -> jax.Array:
            if key is not None:
                set_dropout(module, key)
            return module(x_BTD, batch.positions, Context(segments_BT=batch.segments))[0]

        layers = self.config.text_config.num_hidden_layers
        keys = None if key is None else jax.random.split(key, layers)
        x_BTD, _ = self._scan("language_model.layers", parameters, x_BTD, layer, layers, keys)
        normed: jax.Array = self._part("language_model.norm", parameters)(x_BTD)
        return normed

    def features(self, parameters: Parameters, images: jax.Array, videos: jax.Array) -> jax.Array | None:
        """What the decoder sees of the media of each row [R, vectors, D], images first; None where there are none.

        Args:
          parameters: those of a tower are not needed where its features are given.
          images, videos: of a `Batch`.
        """
        media: tuple[tuple[MediaKind, jax.Array], ...] = (("image", images), ("video", videos))
        found = [self._selected(kind, parameters, slots) for kind, slots in media if slots.shape[1]]
        project = self._part("multi_modal_projector", parameters)
        return jnp.concatenate([_by_row(project(hidden), images) for hidden in found], axis=1) if found else None

    def encoded(self, kind: MediaKind, parameters: Parameters, pixels: jax.Array) -> jax.Array:
        """What a `Batch` takes in the place of pixels: [n, tokens, width], in the dtype of compute.

        Args:
          pixels: uint8 [n, S, S, 3] of images, [n, F, S, S, 3] of videos.
        """
        return _by_row(self._selected(kind, parameters, pixels[:, None]), pixels)

    def _selected(self, kind: MediaKind, parameters: Parameters, slots: jax.Array) -> jax.Array:
        """What the projector takes of all frames of all slots [frames, positions, width], spread over all devices."""
        if slots.dtype != jnp.uint8:
            positions = self.config.tokens_per_image if kind == "image" else self.config.tokens_per_frame
            rows = like(slots, *spec_of(slots)[:1])
            return shard_over_mesh(slots.reshape(-1, positions, slots.shape[-1], out_sharding=rows))
        hidden = self._tower(kind, parameters, slots)
        drops_class = kind == "image" and self.config.vision_feature_select_strategy == "default"
        return hidden[:, 1:] if drops_class else hidden

    def _tower(self, kind: MediaKind, parameters: Parameters, pixels: jax.Array) -> jax.Array:
        """The selected hidden states of all frames of all slots [frames, positions, width], spread over all devices."""
        name, unit = f"{kind}_tower", self.config.frame_window if kind == "video" else 1
        rows, S = like(pixels, *spec_of(pixels)[:1]), pixels.shape[-2]
        frames = shard_over_mesh(pixels.reshape(-1, S, S, 3, out_sharding=rows), unit)
        statistics = self._preprocess[kind]
        scaled = normalised(frames, statistics.mean, statistics.std, self.dtype)
        embedded = self._part(f"{name}.embeddings", parameters)(scaled)
        x_NPD = self._part(f"{name}.pre_layrnorm", parameters)(embedded)
        wanted = self.config.feature_layers
        last, hidden = self._scan(
            f"{name}.encoder.layers",
            parameters,
            x_NPD,
            lambda x, module, _: module(x),
            max(wanted),
            keep=len(wanted) > 1,
        )
        if hidden is None:
            return last
        return jnp.concatenate([x_NPD if i == 0 else hidden[i - 1] for i in wanted], axis=-1)

    # ── parameters ──

    def _scan(
        self,
        name: str,
        parameters: Parameters,
        x: jax.Array,
        layer: Callable[[jax.Array, Any, jax.Array | None], jax.Array],
        layers: int,
        keys: jax.Array | None = None,
        *,
        keep: bool = False,
    ) -> tuple[jax.Array, jax.Array | None]:
        """The first `layers` layers, one after the other; with `keep`, what each of them gives too."""
        prefix = name + STACKED
        # Cast here and not in the loop: the gradients that it stacks are then as narrow as what is computed.
        stacked = {k: self._cast(k, value[:layers]) for k, value in parameters.items() if k.startswith(prefix)}

        def step(x: jax.Array, one: tuple[Parameters, jax.Array | None]) -> tuple[jax.Array, jax.Array | None]:
            y = layer(x, self._module(prefix.removesuffix("."), one[0]), one[1])
            return y, y if keep else None

        kept = jax.checkpoint(step, policy=_POLICIES[self.remat], prevent_cse=False)
        return cast("tuple[jax.Array, jax.Array | None]", jax.lax.scan(kept, x, (stacked, keys), length=layers))

    def _part(self, name: str, parameters: Parameters) -> Any:
        """A module that is no layer, with its parameters."""
        return self._module(name, {key: value for key, value in parameters.items() if key.startswith(f"{name}.")})

    def _module(self, name: str, parameters: Parameters) -> Any:
        """A module with its parameters cast and gathered; for layers the parameters of one of them."""
        graph, state = self._graphs[name]
        used = {key.removeprefix(f"{name}."): self._used(key, value) for key, value in parameters.items()}
        return nnx.merge(graph, with_parameters(state, used))

    def _embedded(self, parameters: Parameters, ids: jax.Array) -> jax.Array:
        """Tokens' embeddings; from a float32 table, so that the gradients of a token's many places are summed in it."""
        name = "language_model.embed_tokens"
        graph, state = self._graphs[name]
        table = self._used(f"{name}.weight", parameters[f"{name}.weight"]).astype(jnp.float32)
        embedded: jax.Array = nnx.merge(graph, with_parameters(state, {"weight": table}))(ids)
        return embedded.astype(self.dtype)

    def _head(self, parameters: Parameters) -> jax.Array:
        """The head's weight [V, D], gathered."""
        tied = "language_model.embed_tokens.weight"
        name = tied if self.config.tie_word_embeddings else "lm_head.weight"
        return self._used(name, parameters[name])

    def _used(self, name: str, value: jax.Array) -> jax.Array:
        """A parameter as it is computed with: in the dtype of compute, whole over `data`."""
        value = self._cast(name, value)
        if self.placement is None:
            return value
        single = name.replace(STACKED, ".0.")
        return resharded(value, self.placement.parameter(single, value.shape))

    def _cast(self, name: str, value: jax.Array) -> jax.Array:
        """A parameter in the dtype of compute; int8 weights and their scales keep theirs."""
        keeps = name.endswith(".weight_scale") or value.dtype == jnp.int8
        return value if keeps else value.astype(self.dtype)


def _by_row(x: jax.Array, rows: jax.Array) -> jax.Array:
    """[R, vectors, width] of [frames, positions, width]: those of each row together, split as an array of R rows is."""
    split = like(rows, *spec_of(rows)[:1])
    return resharded(x, split).reshape(rows.shape[0], -1, x.shape[-1], out_sharding=split)
