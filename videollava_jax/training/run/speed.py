"""Model FLOPs utilisation (MFU) of a run: padding and recomputation do not count as work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jax.sharding import Mesh

from videollava_jax.config import ModelConfig
from videollava_jax.costs.chips import chip_of
from videollava_jax.costs.work import tower_flops, train_flops
from videollava_jax.training.data.loader import HostBatch
from videollava_jax.training.update.options import Group, group_of, is_lora
from videollava_jax.training.update.parameters import Parameters


@dataclass(frozen=True)
class Work:
    """Counts the operations of a run.

    Attributes:
      config: of the model.
      trained: the groups that are trained.
      adapters: the number of parameters of low-rank adapters.
      peak: operations a second of all devices together, by their makers' figures; None where these are not known.
      towers: whether the towers run; they do not where features are read from disk.
    """

    config: ModelConfig
    trained: frozenset[Group]
    adapters: int
    peak: float | None
    towers: bool = True

    @classmethod
    def of(cls, config: ModelConfig, trained: Parameters, mesh: Mesh, *, towers: bool = True) -> Work:
        """Returns the counter for a run of a model on a mesh.

        Args:
          config: of the model.
          trained: the parameters that are trained.
          mesh: of the devices.
          towers: whether the towers run.
        """
        chip = chip_of(mesh.devices.flat[0].device_kind)
        adapters = sum(value.size for name, value in trained.items() if is_lora(name))
        groups = frozenset(group_of(name) for name in trained)
        peak = None if chip is None else chip.bf16_flops / chip.devices * mesh.size
        return cls(config, groups, adapters, peak, towers)

    def flops(self, batch: HostBatch) -> float:
        """Returns the operations that this process's rows of a micro-batch need."""
        config, arrays = self.config, batch.arrays
        lengths = sequence_lengths(arrays)
        is_media = arrays["media_index"] >= 0
        images, frames = (
            int((is_media & (arrays["input_ids"] == token)).sum()) // size
            for token, size in (
                (config.image_token_id, config.tokens_per_image),
                (config.video_token_id, config.tokens_per_frame),
            )
        )
        flops = train_flops(config, self.trained, lengths, images=images, frames=frames, adapters=self.adapters)
        if self.towers:
            return flops
        return flops - tower_flops(config, images, video=False) - tower_flops(config, frames, video=True)

    def utilisation(self, flops: float, seconds: float) -> float | None:
        """Returns the share of the peak, 0 to 1; None where the peak is not known."""
        return None if self.peak is None else flops / seconds / self.peak


def sequence_lengths(arrays: Mapping[str, np.ndarray]) -> list[int]:
    """Returns the number of tokens of every sequence in some rows."""
    found = [np.bincount(row)[1:] for row in arrays["segments"]]
    return [int(length) for row in found for length in row if length]
