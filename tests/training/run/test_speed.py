"""What a micro-batch costs, counted from its arrays."""

from __future__ import annotations

import numpy as np
import pytest

from videollava_jax.config import ModelConfig
from videollava_jax.costs.chips import CHIPS, chip_of
from videollava_jax.costs.work import tower_flops, train_flops
from videollava_jax.training.data.loader import HostBatch
from videollava_jax.training.run.speed import Work, sequence_lengths


def test_sequences_and_media_of_packed_rows():
    config = ModelConfig()
    segments = np.zeros((2, 3000), np.int32)
    segments[0, :2100], segments[0, 2100:2400], segments[1, :40] = 1, 3, 1  # the second sample of a row was left out
    ids = np.full((2, 3000), 5, np.int32)
    ids[0, 3 : 3 + 2056], ids[0, 2110 : 2110 + 256] = config.video_token_id, config.image_token_id
    ids[1, 3] = config.video_token_id  # text that happens to have this id is no medium
    index = np.full((2, 3000), -1, np.int32)
    index[0, 3 : 3 + 2056] = index[0, 2110 : 2110 + 256] = 0
    arrays = {"segments": segments, "input_ids": ids, "media_index": index, "samples": np.zeros((2, 3), np.int32)}
    assert sequence_lengths(arrays) == [2100, 300, 40]
    work = Work(config, frozenset({"projector", "decoder"}), 0, peak=1e15)
    flops = work.flops(HostBatch(0, 0, True, arrays, ()))
    assert flops == train_flops(config, {"projector", "decoder"}, [2100, 300, 40], images=1, frames=8)
    # Six operations a parameter and token, and a little for attention and media.
    assert 1 < flops / (6 * 6.6e9 * 2440) < 1.1
    assert work.utilisation(5e14, 1.0) == 0.5
    assert Work(config, frozenset(), 0, None).utilisation(5e14, 1.0) is None
    # Towers whose features are on disk do not run; the projector does.
    without = Work(config, work.trained, 0, None, towers=False).flops(HostBatch(0, 0, True, arrays, ()))
    assert flops - without == tower_flops(config, 1, video=False) + tower_flops(config, 8, video=True)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("TPU v4", "v4"),
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("TPU7x", "v7x"),
        ("NVIDIA A100-SXM4-40GB", "a100-40"),
        ("NVIDIA A100 80GB PCIe", "a100-80"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA A10G", "a10g"),
    ],
)
def test_chips_by_what_jax_calls_them(kind, name):
    assert chip_of(kind) is CHIPS[name]


def test_a_cpu_is_no_chip():
    assert chip_of("cpu") is None
