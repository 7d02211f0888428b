"""What `finetune_gpu.py` measures, the same for both sides: kinds of training, rows, and how many layers fit."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from questions import FRAMES, TEXT_IDS
from random_models import Figures, with_layers
from sides import CannotRun, Measured

from videollava_jax.config import VideoLlavaConfig
from videollava_jax.costs.work import parameters, train_flops
from videollava_jax.training.update.options import GROUPS, Rates

MEMORY_SHARE = 0.9
"""Of the device's memory, that weights, gradients and activations may take together."""
WARM_UP = 2
IGNORED = -100


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is measured.

    Attributes:
      small: the shape of the bundled model in the place of the 7B's.
      chip: by whose figures MFU, limits and what fits are reckoned; None for the device's.
      rounds: steps that count.
      row_tokens: of a row, with those of its video.
      rows: of a micro-batch.
      micro_batches: of a step.
      rank: of the adapters.
      layers: of the decoder; None for all, or as many as fit.
    """

    small: bool = False
    chip: str | None = None
    rounds: int = 3
    row_tokens: int = 3072
    rows: int = 2
    micro_batches: int = 4
    rank: int = 128
    layers: int | None = None

    @property
    def tokens(self) -> int:
        """Of a step."""
        return self.row_tokens * self.rows * self.micro_batches


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What is trained, and how it is kept.

    Attributes:
      name: in the table.
      rates: the groups that are trained, at the authors' rates.
      kept: dtype of what is trained and of its moments.
    """

    name: str
    rates: Rates
    kept: str = "float32"

    @property
    def bytes_each(self) -> int:
        """Of a trained parameter: itself, two moments, the gradients' sum in float32, a micro-batch's gradients, and
        what it is cast to."""
        return 4 + 8 + 4 + 4 + 2 if self.kept == "float32" else 2 + 4 + 4 + 2


KINDS: Mapping[str, Kind] = {
    "lora": Kind(name="LoRA", rates=Rates(projector=2e-5, lora=2e-4)),
    "full": Kind(name="full", rates=Rates(projector=2e-5, decoder=2e-5)),
    "bf16": Kind(name="full, kept in bfloat16", rates=Rates(projector=2e-5, decoder=2e-5), kept="bfloat16"),
}


def trained_groups(kind: Kind) -> list[str]:
    """The groups that have a rate."""
    return [group for group in GROUPS if kind.rates.of(group) is not None]


def adapter_parameters(config: VideoLlavaConfig, rank: int) -> int:
    """Of narrow projections beside all of the decoder's."""
    text = config.text_config
    D, M = text.hidden_size, text.intermediate_size
    query, key = text.num_attention_heads * text.head_dim, text.num_key_value_heads * text.head_dim
    return rank * text.num_hidden_layers * (2 * (D + query) + 2 * (D + key) + 3 * (D + M))


def needed_bytes(config: VideoLlavaConfig, kind: Kind, work: Work) -> int:
    """What a step takes on either side, reckoned from above."""
    counted = parameters(config)
    decoder = counted.decoder + counted.head
    if kind.rates.lora is None:
        trained, frozen = counted.projector + decoder, counted.image_tower + counted.video_tower
    else:
        trained = counted.projector + adapter_parameters(config, work.rank)
        frozen = counted.image_tower + counted.video_tower + decoder
    text, tokens = config.text_config, work.rows * work.row_tokens
    # Hidden states before each layer, one layer's own, and transformers' logits: in bfloat16, in float32, and their
    # gradients in both.
    layers = 2 * tokens * text.hidden_size * text.num_hidden_layers
    inside = 4 * tokens * 4 * (text.intermediate_size + 2 * text.hidden_size)
    return kind.bytes_each * trained + 2 * frozen + layers + inside + 12 * tokens * text.vocab_size


def fitting_layers(config: VideoLlavaConfig, kind: Kind, work: Work, memory: float | None) -> int:
    """How many of the decoder's layers a step fits with.

    Args:
      memory: of the device, in bytes; None for one that has no figures.

    Raises:
      CannotRun: not even one does.
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
    """A micro-batch, on the host: ids and labels int [R, T], -100 where nothing is learnt; frames uint8
    [R, F, S, S, 3]."""

    ids: np.ndarray
    labels: np.ndarray
    frames: np.ndarray


def drawn_rows(config: VideoLlavaConfig, work: Work, rng: np.random.Generator) -> Rows:
    """Each row a video and text, of which the second half is learnt."""
    R, T, S = work.rows, work.row_tokens, config.vision_config.image_size
    media = FRAMES * config.tokens_per_frame
    ids = rng.integers(*TEXT_IDS, (R, T))
    ids[:, 0], ids[:, 1 : 1 + media] = 1, config.video_token_id
    labels = np.where(np.arange(T) >= (T + 1 + media) // 2, ids, IGNORED)
    return Rows(ids, labels, rng.integers(0, 256, (R, FRAMES, S, S, 3), dtype=np.uint8))


@dataclass(frozen=True)
class Sized:
    """A kind with the layers that it is measured with.

    Attributes:
      layers: what the name of a row says of them: "" where the decoder has all of its own.
      figures: of the device.
    """

    kind: Kind
    config: VideoLlavaConfig
    layers: str
    figures: Figures

    @classmethod
    def of(cls, section: str, config: VideoLlavaConfig, work: Work, device_kind: str) -> Sized:
        """As many layers as the work says, or as fit a device of this kind."""
        kind, figures = KINDS[section], Figures.of(device_kind, work.chip)
        layers = fitting_layers(config, kind, work, figures.maker and figures.maker.hbm_bytes)
        whole = config.text_config.num_hidden_layers
        name = "" if layers == whole else f", {layers} of {whole} layers"
        return cls(kind, with_layers(config, layers), name, figures)

    def measured(self, way: str, seconds: list[float], work: Work) -> Measured:
        """Rates of steps, MFU, and the limit."""
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
    """Seconds of the steps that count.

    Args:
      step: gives the loss, and so returns when the device is done.

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
