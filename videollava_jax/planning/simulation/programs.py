"""Seconds that the engine's programs take on a grid: by arithmetic, or as compiled and scaled to other grids."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

from videollava_jax.config import ModelConfig
from videollava_jax.costs.chips import Chip, roofline
from videollava_jax.costs.work import (
    Job,
    Storage,
    all_reduced_bytes,
    decode_step,
    decoder_flops,
    encode_flops,
    kv_bytes,
    weight_bytes,
)
from videollava_jax.engine.packing import packed_length
from videollava_jax.engine.parts import begins_several, slots_at_once
from videollava_jax.engine.sizes import GridShape

MOST_ROWS = 64
"""Of a slot, for which GPUs have a kernel that reads only what tails hold (`kernels.step_gpu`)."""


@dataclass(frozen=True, kw_only=True)
class ProgramTimes:
    """The seconds of each program: its roofline for the tokens that it computes, padding included.

    Attributes:
      config: the model.
      job: its frames and pooling count.
      chip: one device.
      tensor: devices that share a copy of the weights.
      storage: dtypes of weights and caches.
      factors: of a program by name, by which it takes longer than its roofline; 1 where there is none.
    """

    config: ModelConfig
    job: Job
    chip: Chip
    tensor: int
    storage: Storage = field(default_factory=Storage)
    factors: Mapping[str, float] = field(default_factory=dict)

    def encode(self) -> float:
        """Returns the seconds of a call, which encodes a video in each shard."""
        return self._scaled("encode", encode_flops(self.config, frames=self.job.frames), 0.0, 0.0)

    def prefill(self, shape: GridShape) -> float:
        """Returns the seconds of a call, which computes a prefix in each shard."""
        return self._decoder("prefill", decoder_flops(self.config, shape.prefix, logits=0), shape.prefix)

    def begin(self, shape: GridShape, tokens: int, slots: int = 1) -> float:
        """Returns the seconds of a call.

        Args:
          tokens: in all, of the questions in a slot in each shard.
          slots: of each shard in which questions begin; the prefixes of several are copied.
        """
        each = tokens / shape.rows
        products = decoder_flops(self.config, tokens, shape.prefix, logits=shape.rows)
        # Of its own question a token sees half; `decoder_flops` would let it see all others before it.
        pairs = tokens * (tokens + 1) / 2 - shape.rows * each * (each + 1) / 2
        text = self.config.text_config
        unseen = 4.0 * text.num_hidden_layers * text.num_attention_heads * text.head_dim * pairs
        copied = 2 * kv_bytes(self.config, slots * shape.prefix, self.storage) if slots > 1 else 0
        return self._decoder("begin", slots * (products - unseen), slots * tokens, copied)

    def slots_at_once(self, shape: GridShape, tokens: int) -> int:
        """Returns in how many slots of each shard one call begins questions of some tokens a slot."""
        several = begins_several(self.chip.kind, split_memory=self.chip.name == "v5p")
        return slots_at_once(tokens, shape.slots) if several else 1

    def begin_one(self, shape: GridShape, tokens: int) -> float:
        """Returns the seconds for a slot in each shard if the questions of all slots begin, several by one call."""
        slots = self.slots_at_once(shape, tokens)
        return self.begin(shape, tokens, slots) / slots

    def reads_tokens_alone(self, shape: GridShape) -> bool:
        """Returns whether a step reads of the tails only what rows that are being answered hold, as `step_gpu` does."""
        return self.chip.kind == "gpu" and shape.rows <= MOST_ROWS

    def decode(self, shape: GridShape, held: float | None = None) -> float:
        """Returns the seconds of a step.

        Args:
          held: tokens that the tails of each shard hold for rows that are being answered; None for full tails.
        """
        rows, tail = shape.slots * shape.rows, float(shape.question + shape.answer)
        if held is not None and self.reads_tokens_alone(shape):
            tail = held / rows
        least = decode_step(
            self.config,
            self.chip,
            self.tensor,
            prefixes=shape.slots,
            rows=rows,
            prefix=shape.prefix,
            tail=tail,
            storage=self.storage,
        )
        return self.factors.get("decode", 1.0) * least.seconds

    def copy(self, shape: GridShape) -> float:
        """Returns the seconds in which the prefixes of a grid of this shape are copied."""
        size = kv_bytes(self.config, shape.slots * shape.prefix, self.storage)
        return roofline(0.0, 2 * size, self.chip, self.tensor).seconds

    def on_full_grid(self, shape: GridShape) -> dict[str, float]:
        """Returns the seconds of each program on a grid whose rows all have questions of the job's mean length."""
        return {
            "encode": self.encode(),
            "prefill": self.prefill(shape),
            "begin": self.begin_one(shape, packed_length(shape.rows * self.job.question_tokens)),
            "decode": self.decode(shape, shape.slots * shape.rows * self.job.held_tokens),
        }

    def as_compiled(self, seconds: Mapping[str, float], shape: GridShape, begun: int) -> ProgramTimes:
        """Returns times that are those of compiled programs on their grid, and scaled by arithmetic on other grids.

        Args:
          seconds: of each program by name; of decode, for one step; of begin, for a slot in each shard.
          shape: the grid that they were compiled for.
          begun: the tokens that begin in a slot.
        """
        plain = dataclasses.replace(self, factors={})
        least = {
            "encode": plain.encode(),
            "prefill": plain.prefill(shape),
            "begin": plain.begin_one(shape, begun),
            "decode": plain.decode(shape),
        }
        return dataclasses.replace(self, factors={name: seconds[name] / least[name] for name in least})

    def _decoder(self, name: str, flops: float, tokens: int, more: float = 0.0) -> float:
        sent = all_reduced_bytes(self.config, tokens, self.tensor)
        return self._scaled(name, flops, weight_bytes(self.config, self.storage) + more, sent)

    def _scaled(self, name: str, flops: float, read: float, sent: float) -> float:
        return self.factors.get(name, 1.0) * roofline(flops, read, self.chip, self.tensor, sent_bytes=sent).seconds
