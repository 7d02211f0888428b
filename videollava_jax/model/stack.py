"""How layers are run: in a loop, each with arrays of its own, or by a scan over stacked ones.

    loop    layer 0, layer 1, …    inference
    scan    layers[i], i < L       training

Decode needs the loop: its cache is one donated array a layer, and a scan would copy the caches of all layers in every
step. Training needs the scan: a layer is gathered, run, and run again for its gradient, so that a device holds the
parameters of one layer in full at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeAlias

import jax
from flax import nnx

Step: TypeAlias = Callable[[Any, jax.Array, Any], tuple[jax.Array, Any]]
"""`step(layer, x, own)` returns the layer's output and whatever is kept of the layer."""


@dataclass(frozen=True)
class ScannedLayers:
    """Layers whose parameters are stacked, which a module holds in place of its list of layers.

    Attributes:
      parameters: a tree of arrays [L, ...], one slice for each layer.
      layer: builds a layer from its slice, inside the scan and again in its backward pass: here a training run gathers
        the parameters of the layer.
      policy: what the backward pass keeps of a layer, one of `jax.checkpoint_policies`.
    """

    parameters: Any
    layer: Callable[[Any], nnx.Module]
    policy: Any

    def run(self, step: Step, x: jax.Array, count: int | None) -> tuple[jax.Array, Any]:
        """Scans `step` over the first `count` layers; what it keeps is stacked."""

        def body(x: jax.Array, parameters: Any) -> tuple[jax.Array, Any]:
            return step(self.layer(parameters), x, None)

        remat = jax.checkpoint(body, policy=self.policy, prevent_cse=False)
        result: tuple[jax.Array, Any] = jax.lax.scan(remat, x, self.parameters, length=count)
        return result


def run_layers(
    layers: nnx.List[Any] | ScannedLayers,
    step: Step,
    x: jax.Array,
    *,
    each: Sequence[Any] | None = None,
    count: int | None = None,
) -> tuple[jax.Array, Any]:
    """Runs a stack of layers, the output of each one the input of the next.

    Args:
      layers: a list, or stacked layers that have exactly `count` of them.
      step: runs one layer.
      x: the input of the first layer.
      each: what `step` is given for each layer, as `own`; only for a list. None for nothing.
      count: runs the first `count` layers only; None for all.

    Returns:
      The last layer's output, and what `step` kept of each layer: a list, or stacked arrays.
    """
    if isinstance(layers, ScannedLayers):
        assert each is None, "a scan has no arrays of single layers"
        return layers.run(step, x, count)
    found = list(islice(layers, count))
    kept = []
    for layer, own in zip(found, [None] * len(found) if each is None else each, strict=True):
        x, of_layer = step(layer, x, own)
        kept.append(of_layer)
    return x, kept
