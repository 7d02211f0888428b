"""The tiny model: its configuration, its initial values, and its functions of named parameters."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tiny_data import GRID, PREPROCESS, SIDE, answer_start

from videollava_jax.config import ModelConfig, TextConfig, VisionConfig
from videollava_jax.model.video_llava import VideoLlava, with_parameters
from videollava_jax.processing.processor import VideoLlavaProcessor

Parameters = dict[str, Any]


def make_config(processor: VideoLlavaProcessor) -> ModelConfig:
    """Returns a configuration of 1.1 million parameters in the shape of the 7B model."""
    return ModelConfig(
        vision_config=VisionConfig(
            hidden_size=64,
            intermediate_size=256,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=SIDE,
            patch_size=SIDE // GRID,
        ),
        text_config=TextConfig(
            vocab_size=len(processor.tokenizer),
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=4,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=64,
            max_position_embeddings=512,
            pad_token_id=processor.tokenizer.pad_token_id,
        ),
        image_token_id=processor.image_token_id,
        video_token_id=processor.video_token_id,
    )


def scaled(parameters: Parameters) -> Parameters:
    """Scales initial values for narrow layers: matrices to a standard deviation of 0.7 / √inputs, embeddings to 0.1.

    The model's own 0.02 suits a width of 4096; at 128 it would train ten times more slowly.
    """

    def rescale(name: str, value: jax.Array) -> jax.Array:
        if value.ndim < 2 or "position_embedding" in name:
            return value
        std = 0.1 if "embed_tokens" in name else 0.7 * np.prod(value.shape[1:]) ** -0.5
        return value * (std / jnp.std(value))

    return {name: rescale(name, value) for name, value in parameters.items()}


class Tiny:
    """The model as functions of its named parameters."""

    def __init__(self, config: ModelConfig, seed: int):
        self.graph, self.state = nnx.split(VideoLlava(config, rngs=nnx.Rngs(seed)))
        self.predict = jax.jit(lambda *args: self.answer_logits(*args).argmax(-1))

    def module(self, parameters: Parameters) -> VideoLlava:
        """Returns the model with these parameters."""
        return nnx.merge(self.graph, with_parameters(self.state, parameters))

    def normalise(self, frames: jax.Array) -> jax.Array:
        """Normalises frames, 0-255, with the mean and standard deviation of the processor."""
        return (frames.astype(jnp.float32) / 255 - jnp.asarray(PREPROCESS.mean)) / jnp.asarray(PREPROCESS.std)

    def hidden(self, parameters: Parameters, tower: str, frames: jax.Array) -> jax.Array:
        """Returns the selected hidden state of a tower [B, patches + 1, D], from uint8 frames [B, S, S, 3]."""
        model = self.module(parameters)
        return getattr(model, tower)(self.normalise(frames), model.config.feature_layers)

    def features(self, model: VideoLlava, frames: jax.Array) -> jax.Array:
        """Returns the decoder's inputs [B, tokens, D] for frames, or hidden states, of `Media`."""
        is_image = frames.shape[1] == 1
        if frames.ndim == 4:
            B, _, _, D = frames.shape
            return model.multi_modal_projector(frames[:, 0, 1:] if is_image else frames.reshape(B, -1, D))
        pixels = self.normalise(frames)
        return model.encode_images(pixels[:, 0]) if is_image else model.encode_videos(pixels)

    def answer_logits(self, parameters: Parameters, frames: jax.Array, ids: jax.Array) -> jax.Array:
        """Returns the logits after the medium, [B, T - start, V], with `start = answer_start(frames)`."""
        model = self.module(parameters)
        features = self.features(model, frames)
        if frames.shape[1] == 1:
            x = model.embed(ids, image_features=features)
        else:
            x = model.embed(ids, video_features=features)
        x = model.language_model(x, jnp.ones(ids.shape, bool))
        return model.logits(x[:, answer_start(frames) :])

    def answer_loss(self, parameters: Parameters, frames: jax.Array, ids: jax.Array, labels: jax.Array) -> jax.Array:
        """Returns the mean cross-entropy of the answers' tokens."""
        labels = labels[:, answer_start(frames) :]
        losses = cross_entropy(self.answer_logits(parameters, frames, ids), jnp.maximum(labels, 0))
        return (losses * (labels >= 0)).sum() / (labels >= 0).sum()


def video_tower_of(parameters: Parameters) -> Parameters:
    """Returns the image tower's parameters under the video tower's names."""
    return {
        name.replace("image_tower", "video_tower"): value
        for name, value in parameters.items()
        if name.startswith("image_tower")
    }


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the cross-entropy of each label, an index into the last axis of the logits."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
