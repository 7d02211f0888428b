"""Draws random full-size models directly on the device: ours on JAX's, transformers' on torch's.

So the 15 GB of weights are never written, read or copied. Matrices are drawn from N(0, 0.02²), as transformers
initialises them; norms are 1, biases 0. The two sides draw different numbers, as only their rates are compared.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from questions import processor_for_224_pixels
from sides import CannotRun

from videollava_jax import VideoLlavaForConditionalGeneration
from videollava_jax.assets import TINY
from videollava_jax.config import ModelConfig, TextConfig, VisionConfig
from videollava_jax.costs.chips import CHIPS, Chip, chip_of
from videollava_jax.model.layers import quantize_rows
from videollava_jax.model.sharding import STACKED, resharded
from videollava_jax.model.video_llava import parameter_shapes
from videollava_jax.processing.processor import VideoLlavaProcessor
from videollava_jax.weights.quantize import SCALE, is_quantizable


def shape_of(*, small: bool) -> tuple[ModelConfig, VideoLlavaProcessor]:
    """Returns the configuration of the 7B model (with the bundled tokenizer) or of the bundled one, and a processor."""
    if small:
        return ModelConfig.from_hf(TINY), VideoLlavaProcessor.from_pretrained(TINY)
    processor = processor_for_224_pixels()
    ids = processor.encoder.media_ids
    config = dataclasses.replace(ModelConfig(), image_token_id=ids["image"], video_token_id=ids["video"])
    return config, processor


def middle_shape() -> tuple[ModelConfig, VideoLlavaProcessor]:
    """Returns a configuration of 157 M parameters, decoder 12 × 768, towers 6 × 384 at 224 pixels, and a processor."""
    processor = processor_for_224_pixels()
    ids = processor.encoder.media_ids
    vision = VisionConfig(hidden_size=384, intermediate_size=1536, num_hidden_layers=6, num_attention_heads=6)
    text = TextConfig(
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=12,
        head_dim=64,
    )
    config = ModelConfig(
        vision_config=vision, text_config=text, image_token_id=ids["image"], video_token_id=ids["video"]
    )
    return config, processor


def with_layers(config: ModelConfig, layers: int) -> ModelConfig:
    """Returns the same configuration with `layers` layers in the decoder."""
    return dataclasses.replace(config, text_config=dataclasses.replace(config.text_config, num_hidden_layers=layers))


@dataclass(frozen=True)
class Figures:
    """The rates of a device; None if they are unknown.

    Attributes:
      maker: the manufacturer's peak rates.
      limits: the rates that programs reached on such a chip, or else the manufacturer's.
    """

    maker: Chip | None
    limits: Chip | None

    @classmethod
    def of(cls, device_kind: str, named: str | None) -> Figures:
        """Returns the rates of a device by the name that JAX or torch gives it, or of the chip `named` in `CHIPS`."""
        chip = chip_of(device_kind) if named is None else CHIPS[named]
        return cls(chip, chip and CHIPS.get(f"{chip.name}-measured", chip))


# ── JAX ─────────────────────────────────────────────────────────────────────────────────────────────────────


def jax_device(*, small: bool) -> Any:
    """Returns JAX's first device.

    Raises:
      CannotRun: it is a CPU and the model is full-size.
    """
    device = jax.devices()[0]
    if device.platform == "cpu" and not small:
        raise CannotRun(
            "JAX found no accelerator here (pip install 'jax[cuda12]'?); --small tries the program on a CPU"
        )
    return device


def drawn(
    seed: int, name: str, shape: tuple[int, ...], dtype: Any, sharding: jax.sharding.Sharding | None = None
) -> jax.Array:
    """Draws a parameter on the device; `STACKED` in the name means that it has all layers stacked."""
    if len(shape) > 1 + (STACKED in name) or "class_embedding" in name:
        return _normal(seed, shape, jnp.dtype(dtype), sharding)
    return jnp.full(shape, 0 if name.endswith("bias") else 1, dtype, device=sharding)


@partial(jax.jit, static_argnums=(1, 2, 3))
def _normal(seed: int, shape: tuple[int, ...], dtype: Any, sharding: Any) -> jax.Array:
    # JAX's default, Threefry, would take as long as all other preparations together.
    values = 0.02 * jax.random.normal(jax.random.key(seed, impl="rbg"), shape, dtype)
    return resharded(values, sharding)


def our_model(config: ModelConfig, dtype: Any, *, int8: bool = False) -> VideoLlavaForConditionalGeneration:
    """Draws our model; with `int8`, each projection of the decoder is quantised as soon as it is drawn."""
    parameters: dict[str, jax.Array] = {}
    for seed, (name, shape) in enumerate(parameter_shapes(config).items()):
        parameters[name] = drawn(seed, name, shape, dtype)
        if int8 and is_quantizable(name):
            parameters[name], parameters[name + SCALE] = _quantized(parameters[name])
    return VideoLlavaForConditionalGeneration(config, parameters)


_quantized = jax.jit(quantize_rows)


# ── torch ───────────────────────────────────────────────────────────────────────────────────────────────────


def torch_device(*, small: bool) -> Any:
    """Returns the device for torch.

    Raises:
      CannotRun: torch or transformers is not installed, or there is no GPU and the model is full-size.
    """
    try:
        import torch
        import transformers  # noqa: F401
    except ImportError as error:
        raise CannotRun(f"transformers' side needs torch and transformers here: {error}") from error
    if torch.cuda.is_available():
        return torch.device("cuda")
    if small:
        return torch.device("cpu")
    raise CannotRun(f"torch {torch.__version__} finds no GPU here: expected a build with CUDA, and a GPU that it knows")


def their_model(config: ModelConfig, device: Any, dtype: Any) -> Any:
    """Makes the model of transformers with this configuration on the device, with its own random initialisation."""
    import torch
    import transformers

    with torch.device(device), _default_dtype(dtype):
        theirs = transformers.VideoLlavaConfig.from_dict(config.to_hf())
        return transformers.VideoLlavaForConditionalGeneration(theirs).eval()


@contextmanager
def _default_dtype(dtype: Any) -> Iterator[None]:
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def versions(*names: str) -> dict[str, str]:
    """Returns the versions of installed packages."""
    from importlib.metadata import version

    return {name: version(name) for name in names}
