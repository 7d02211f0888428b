"""How much of the arithmetic a run uses: model FLOPs utilisation (MFU), without padding and recomputation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jax.sharding import Mesh

from videollava_jax.config import VideoLlavaConfig
from videollava_jax.costs.chips import chip_of
from videollava_jax.costs.work import tower_flops, train_flops
from videollava_jax.training.data.loader import HostBatch
from videollava_jax.training.update.options import Group, group_of, is_lora
from videollava_jax.training.update.parameters import Parameters


@dataclass(frozen=True)
class Work:
    """What a token costs in a run.

    Attributes:
      config: of the model.
      trained: the groups that are trained.
      adapters: parameters of low-rank projections.
      peak: operations a second of all devices together, by their makers' figures; None where there are none.
      towers: whether they run; not where their features are read from disk.
    """

    config: VideoLlavaConfig
    trained: frozenset[Group]
    adapters: int
    peak: float | None
    towers: bool = True

    @classmethod
    def of(cls, config: VideoLlavaConfig, trained: Parameters, mesh: Mesh, *, towers: bool = True) -> Work:
        """Of these trained parameters on the devices of a mesh."""
        chip = chip_of(mesh.devices.flat[0].device_kind)
        adapters = sum(value.size for name, value in trained.items() if is_lora(name))
        groups = frozenset(group_of(name) for name in trained)
        peak = None if chip is None else chip.bf16_flops / chip.devices * mesh.size
        return cls(config, groups, adapters, peak, towers)

    def flops(self, batch: HostBatch) -> float:
        """Operations that a micro-batch cannot do without, of this process's rows."""
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
        """The share of the peak, 0 to 1, that so many operations in so many seconds are."""
        return None if self.peak is None else flops / seconds / self.peak


def sequence_lengths(arrays: Mapping[str, np.ndarray]) -> list[int]:
    """Tokens of every sequence of some rows."""
    found = [np.bincount(row)[1:] for row in arrays["segments"]]
    return [int(length) for row in found for length in row if length]
