"""Layers in a loop and layers in a scan: the same outputs, the same kept values, and the count that is asked for."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videollava_jax.model.stack import ScannedLayers, run_layers


class Scale(nnx.Module):
    def __init__(self, by: Any):
        self.by = nnx.Param(jnp.asarray(by, jnp.float32))


FACTORS = (2.0, 3.0, 5.0)
LIST = nnx.List([Scale(by) for by in FACTORS])


def stacked(count: int) -> ScannedLayers:
    return ScannedLayers(jnp.asarray(FACTORS[:count]), Scale, jax.checkpoint_policies.nothing_saveable)


def step(layer: Scale, x: jax.Array, own: Any) -> tuple[jax.Array, jax.Array]:
    return layer.by[...] * x + (0 if own is None else own), x


@pytest.mark.parametrize(("count", "output", "kept"), [(0, 1, []), (2, 6, [1, 2]), (3, 30, [1, 2, 6])])
def test_a_loop_and_a_scan_agree(count, output, kept):
    for layers in (LIST, stacked(count)):
        x, found = run_layers(layers, step, jnp.float32(1), count=count)
        assert float(x) == output
        np.testing.assert_array_equal(np.asarray(found), np.asarray(kept, np.float32))


def test_all_layers_run_without_a_count():
    assert [float(run_layers(layers, step, jnp.float32(1))[0]) for layers in (LIST, stacked(3))] == [30, 30]


def test_a_loop_gives_each_layer_its_own():
    assert float(run_layers(LIST, step, jnp.float32(1), each=[1, 0, 1])[0]) == 46
