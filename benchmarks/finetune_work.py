"""What both sides of the programs that measure fine-tuning do: kinds of training, rows, and how many layers fit."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from questions import FRAMES, TEXT_IDS
from random_models import Figures, middle_shape, shape_of, with_layers
from sides import CannotRun, Measured

from videollava_jax.config import ModelConfig
from videollava_jax.costs.work import parameters, train_flops
from videollava_jax.processing.processor import VideoLlavaProcessor
from videollava_jax.training.update.options import GROUPS, Rates

MEMORY_SHARE = 0.9
"""The share of the device's memory that weights, gradients and activations may take together."""
WARM_UP = 2
IGNORED = -100


@dataclass(frozen=True, kw_only=True)
class Work:
    """The sizes of the work.

    Attributes:
      small: whether the model has the shape of the bundled one instead of the 7B's.
      cpu: whether it has the middle size, and both sides compute in float32 on all cores.
      chip: the chip whose rates and memory are used for MFU, limits and layers; None for the device's own.
      rounds: steps that count.
      row_tokens: tokens of a row, including those of its video.
      rows: rows of a micro-batch.
      micro_batches: micro-batches of a step.
      rank: of the adapters.
      layers: of the decoder; None for as many as fit.
    """

    small: bool = False
    cpu: bool = False
    chip: str | None = None
    rounds: int = 3
    row_tokens: int = 3072
    rows: int = 2
    micro_batches: int = 4
    rank: int = 128
    layers: int | None = None

    @property
    def compute(self) -> str:
        """The dtype that both sides compute in, unless parameters are wider."""
        return "float32" if self.cpu else "bfloat16"

    def shape(self) -> tuple[ModelConfig, VideoLlavaProcessor]:
        """Returns the configuration of the model, and a processor."""
        return middle_shape() if self.cpu else shape_of(small=self.small)

    @property
    def tokens(self) -> int:
        """Tokens of a step."""
        return self.row_tokens * self.rows * self.micro_batches


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of training.

    Attributes:
      name: in the table.
      rates: the trained groups, with the authors' learning rates.
      kept: dtype of trained parameters and of their moments.
    """

    name: str
    rates: Rates
    kept: str = "float32"

    @property
    def bytes_each(self) -> int:
        """Bytes of a trained parameter.

        They are the parameter, two moments, the sum of gradients in float32, the gradient of a micro-batch, and the
        parameter cast to bfloat16.
        """
        return 4 + 8 + 4 + 4 + 2 if self.kept == "float32" else 2 + 4 + 4 + 2


KINDS: Mapping[str, Kind] = {
    "lora": Kind(name="LoRA", rates=Rates(projector=2e-5, lora=2e-4)),
    "full": Kind(name="full", rates=Rates(projector=2e-5, decoder=2e-5)),
    "bf16": Kind(name="full, kept in bfloat16", rates=Rates(projector=2e-5, decoder=2e-5), kept="bfloat16"),
}


def trained_groups(kind: Kind) -> list[str]:
    """Returns the groups that have a learning rate."""
    return [group for group in GROUPS if kind.rates.of(group) is not None]


def adapter_parameters(config: ModelConfig, rank: int) -> int:
    """Counts the parameters of LoRA adapters of all the decoder's projections."""
    text = config.text_config
    D, M = text.hidden_size, text.intermediate_size
    query, key = text.num_attention_heads * text.head_dim, text.num_key_value_heads * text.head_dim
    return rank * text.num_hidden_layers * (2 * (D + query) + 2 * (D + key) + 3 * (D + M))


def needed_bytes(config: ModelConfig, kind: Kind, work: Work) -> int:
    """Returns an upper bound of the bytes that a step takes on either side."""
    counted = parameters(config)
    decoder = counted.decoder + counted.head
    if kind.rates.lora is None:
        trained, frozen = counted.projector + decoder, counted.image_tower + counted.video_tower
    else:
        trained = counted.projector + adapter_parameters(config, work.rank)
        frozen = counted.image_tower + counted.video_tower + decoder
    text, tokens = config.text_config, work.rows * work.row_tokens
    # Hidden states before each layer, those inside one layer, and transformers' logits, in bfloat16 and in float32,
    # with their gradients.
    layers = 2 * tokens * text.hidden_size * text.num_hidden_layers
    inside = 4 * tokens * 4 * (text.intermediate_size + 2 * text.hidden_size)
    return kind.bytes_each * trained + 2 * frozen + layers + inside + 12 * tokens * text.vocab_size


def fitting_layers(config: ModelConfig, kind: Kind, work: Work, memory: float | None) -> int:
    """Returns how many layers of the decoder fit.

    Args:
      config: of the whole model.
      kind: of training.
      work: its sizes.
      memory: bytes of the device; None if unknown, in which case all layers count as fitting.

    Raises:
      CannotRun: not even one layer fits.
    """
    layers = config.text_config.num_hidden_layers
    if work.layers is not None or memory is None:
        return layers if work.layers is None else work.layers
    for number in range(layers, 0, -1):
        if needed_bytes(with_layers(config, number), kind, work) <= MEMORY_SHARE * memory:
            return number
    raise CannotRun(f"{kind.name}: not one layer of the decoder fits {memory / 1e9:.0f} GB")


@dataclass(frozen=True)
class Rows:
    """A micro-batch on the host.

    Attributes:
      ids, labels: int [R, T]; a label is -100 if the token is not learnt.
      frames: uint8 [R, F, S, S, 3].
    """

    ids: np.ndarray
    labels: np.ndarray
    frames: np.ndarray


def drawn_rows(config: ModelConfig, work: Work, rng: np.random.Generator) -> Rows:
    """Draws rows of a video and text each; the second half of the text is learnt."""
    R, T, S = work.rows, work.row_tokens, config.vision_config.image_size
    media = FRAMES * config.tokens_per_frame
    ids = rng.integers(*TEXT_IDS, (R, T))
    ids[:, 0], ids[:, 1 : 1 + media] = 1, config.video_token_id
    labels = np.where(np.arange(T) >= (T + 1 + media) // 2, ids, IGNORED)
    return Rows(ids, labels, rng.integers(0, 256, (R, FRAMES, S, S, 3), dtype=np.uint8))


@dataclass(frozen=True)
class Sized:
    """A kind of training with as many layers as fit.

    Attributes:
      kind: of training.
      config: with these layers.
      layers: their number, as part of a row's name; "" if the decoder has all its layers.
      figures: of the device.
    """

    kind: Kind
    config: ModelConfig
    layers: str
    figures: Figures

    @classmethod
    def of(cls, section: str, config: ModelConfig, work: Work, device_kind: str) -> Sized:
        """Takes as many layers as the work says, or as fit on a device of this kind."""
        kind, figures = KINDS[section], Figures.of(device_kind, work.chip)
        layers = fitting_layers(config, kind, work, figures.maker and figures.maker.hbm_bytes)
        whole = config.text_config.num_hidden_layers
        name = "" if layers == whole else f", {layers} of {whole} layers"
        return cls(kind, with_layers(config, layers), name, figures)

    def measured(self, way: str, seconds: list[float], work: Work) -> Measured:
        """Computes rates, MFU and the limit from the seconds of steps."""
        flops = train_flops(
            self.config,
            trained_groups(self.kind),
            [work.row_tokens] * work.rows * work.micro_batches,
            frames=FRAMES * work.rows * work.micro_batches,
            adapters=adapter_parameters(self.config, work.rank) if self.kind.rates.lora else 0,
        )
        maker, chip = self.figures.maker, self.figures.limits
        rates = tuple(work.tokens / taken for taken in seconds)
        mfu = None if maker is None else flops / maker.bf16_flops / float(np.median(seconds))
        return Measured(
            work=f"{self.kind.name}{self.layers}, tokens/s",
            way=way,
            rates=rates,
            limit=None if chip is None else work.tokens * chip.bf16_flops / flops,
            note="" if mfu is None else f"MFU {mfu:.1%}",
        )


def timed_steps(step: Callable[[], float], work: Work) -> list[float]:
    """Runs steps and returns the seconds of those that count.

    Args:
      step: returns the loss, and so only when the device is done.
      work: says how many steps count.

    Raises:
      RuntimeError: a loss is not finite.
    """
    seconds = []
    for _ in range(WARM_UP + work.rounds):
        started = time.perf_counter()
        if not math.isfinite(loss := step()):
            raise RuntimeError(f"the loss is {loss}")
        seconds.append(time.perf_counter() - started)
    return seconds[WARM_UP:]
