"""Where arrays live: a mesh of data × tensor, and the one table of logical axis → mesh axis.

Meshes have explicit axis types: an array's type carries its sharding (`float32[64@data,32,4096]`), a product whose
sharding is ambiguous fails while it is traced, and nothing is replicated silently. `Placement` shards parameters and
inputs; model code names no axis, it says which of its operands' shardings a result keeps (`like`).

    data     rows of a batch, prefixes, frames of the towers
    tensor   heads, the width of the MLPs, the vocabulary; a contraction over it ends in one all-reduce
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from videollava_jax.config import ModelConfig

DATA, TENSOR = "data", "tensor"

RULES: dict[str, str] = {
    "batch": DATA,
    "heads": TENSOR,
    "mlp": TENSOR,
    "vocab": TENSOR,
}
"""The table: the mesh axis of every logical axis that is sharded. Other axes are whole on every device."""

_DECODER_AXES: dict[str, tuple[str | None, ...]] = {
    "embed_tokens.weight": ("vocab", None),
    "lm_head.weight": ("vocab", None),
    "q_proj.weight": ("heads", None),
    "k_proj.weight": ("heads", None),
    "v_proj.weight": ("heads", None),
    "o_proj.weight": (None, "heads"),
    "gate_proj.weight": ("mlp", None),
    "up_proj.weight": ("mlp", None),
    "down_proj.weight": (None, "mlp"),
}
"""Logical axes of the decoder's parameters, by the end of their names; biases and scales go with the first axis."""

STACKED = ".*."
"""Replaces the number in the name of a parameter whose first axis is the layers, as training scans over them:
`language_model.layers.*.mlp.up_proj.weight`."""

CACHE_AXES: tuple[str | None, ...] = ("batch", "heads", None, None)
"""Logical axes of keys and values [B, K, S, H]."""


def make_mesh(data: int = 1, tensor: int | None = None, *, devices: Sequence[Any] | None = None) -> Mesh:
    """Makes a mesh of `data` × `tensor` devices with explicit axes.

    Args:
      data: copies of the decoder; each takes one shard of the batch.
      tensor: devices that share one copy; None for all devices over `data`.
      devices: all of JAX's by default; those of a topology, to compile for machines that are not here.

    Raises:
      ValueError: the mesh needs more devices than there are.
    """
    found = list(jax.devices() if devices is None else devices)
    if data < 1 or (tensor is not None and tensor < 1):
        raise ValueError(f"mesh: expected at least 1 × 1 devices, got {data} × {tensor}")
    tensor = max(1, len(found) // data) if tensor is None else tensor
    if data * tensor > len(found):
        raise ValueError(f"mesh: {data} × {tensor} needs {data * tensor} devices, {len(found)} were found")
    grid = np.array(found[: data * tensor]).reshape(data, tensor)
    return Mesh(grid, (DATA, TENSOR), axis_types=(AxisType.Explicit,) * 2)


@dataclass(frozen=True)
class Placement:
    """The shardings of one model's parameters, inputs and caches on one mesh.

    An axis is split only into equal shards: `heads` by key-value heads, so that a device keeps the
    queries of its keys. What does not divide is whole on every device.
    """

    config: ModelConfig
    mesh: Mesh

    @property
    def data(self) -> int:
        """Shards that a batch is split into."""
        return int(self.mesh.shape[DATA])

    @property
    def tensor(self) -> int:
        """Devices that share a copy of the decoder."""
        return int(self.mesh.shape[TENSOR])

    def parameter(self, name: str, shape: tuple[int, ...]) -> NamedSharding:
        """Returns the sharding of a parameter, by its name."""
        return self._named(*self._axes(name, len(shape)))

    def stored(self, name: str, shape: tuple[int, ...]) -> NamedSharding:
        """Returns the sharding of a parameter in training, of its gradient and its moments: fully sharded (FSDP).

        Over `tensor` it is sharded as by `parameter`, over `data` along the longest axis that is whole and divides.
        """
        spec = list(self.parameter(name, shape).spec)
        spec += [None] * (len(shape) - len(spec))
        first = int(STACKED in name)
        whole_axes = [i for i in range(first, len(shape)) if spec[i] is None and shape[i] % self.data == 0]
        if whole_axes and len(shape) > first + 1:  # vectors are small, and every layer needs them in full
            spec[max(whole_axes, key=lambda i: shape[i])] = DATA
        return _named(self.mesh, *spec)

    @property
    def replicated(self) -> NamedSharding:
        """The sharding of an array that every device holds in full."""
        return self._named()

    def batch(self, rows: int, rank: int = 1) -> NamedSharding:
        """Returns the sharding of an array whose first axis is a batch of `rows`: split if the shards are equal."""
        first = "batch" if rows % self.data == 0 else None
        return self._named(first, *(None,) * (rank - 1))

    def cache(self, rows: int) -> NamedSharding:
        """Returns the sharding of keys or values [B, K, S, H]."""
        return self._named("batch" if rows % self.data == 0 else None, *CACHE_AXES[1:])

    def cache_scale(self, rows: int) -> NamedSharding:
        """Returns the sharding of the scales [B, K, S] of int8 keys or values."""
        return self._named("batch" if rows % self.data == 0 else None, *CACHE_AXES[1:3])

    def _axes(self, name: str, rank: int) -> tuple[str | None, ...]:
        if not name.startswith(("language_model.", "lm_head.")):
            return ()
        if STACKED in name:
            return (None, *self._axes(name.replace(STACKED, ".0."), rank - 1))
        *_, module, last = name.split(".")
        if module in ("lora_A", "lora_B"):  # [rank, in] and [out, rank] of a weight [out, in]
            out, into = (*_DECODER_AXES.get(f"{name.split('.')[-3]}.weight", ()), None, None)[:2]
            return (None, into) if module == "lora_A" else (out, None)
        axes = _DECODER_AXES.get(f"{module}.weight", ())
        return axes[:rank] if last == "weight" else axes[:1]

    def _named(self, *axes: str | None) -> NamedSharding:
        return _named(self.mesh, *(self._mesh_axis(axis) for axis in axes))

    def _mesh_axis(self, axis: str | None) -> str | None:
        text = self.config.text_config
        sizes = {
            "heads": math.gcd(text.num_attention_heads, text.num_key_value_heads),
            "mlp": text.intermediate_size,
            "vocab": text.vocab_size,
        }
        over = None if axis is None else RULES.get(axis)
        if axis is None or over is None:
            return None
        return over if sizes.get(axis, 0) % self.mesh.shape[over] == 0 else None


def put(x: Any, sharding: jax.sharding.Sharding) -> jax.Array:
    """Shards a host array that every process has in full. Each process fills its own devices."""
    if jax.process_count() == 1:
        moved: jax.Array = jax.device_put(x, sharding)
        return moved
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        keys: jax.Array = jax.random.wrap_key_data(put(np.asarray(jax.random.key_data(x)), sharding))
        return keys
    held = np.asarray(x)
    return jax.make_array_from_callback(held.shape, sharding, lambda part: held[part], dtype=held.dtype)


def spec_of(x: jax.Array) -> tuple[Any, ...]:
    """Returns the mesh axes of each axis of an array, from its type: None for an axis that is whole."""
    return tuple(jax.typeof(x).sharding.spec.partitions)


def like(x: jax.Array, *spec: Any, summed_over: Any = None) -> NamedSharding | None:
    """Returns a sharding on the mesh of `x`, for `out_sharding=`; None for an array that is on no mesh.

    Args:
      summed_over: mesh axes left unreduced: each device keeps a partial sum, and `resharded` does the all-reduce.
    """
    mesh = jax.typeof(x).sharding.mesh
    return None if mesh.empty else _named(mesh, *spec, unreduced=_axes(summed_over))


def reduced_over(x: jax.Array, summed_over: Any) -> jax.Array:
    """Marks `x` as reduced over `summed_over`, so it can multiply an array that is still unreduced.

    Args:
      summed_over: mesh axes over which each device of the other array holds a partial sum; None for none.
    """
    mesh = jax.typeof(x).sharding.mesh
    if mesh.empty or summed_over is None:
        return x
    return resharded(x, _named(mesh, *spec_of(x), reduced=_axes(summed_over)))


def _axes(names: Any) -> frozenset[str]:
    """Returns the mesh axes in an entry of a spec."""
    return frozenset(() if names is None else (names,) if isinstance(names, str) else names)


def whole(x: jax.Array, axis: int | None = None) -> jax.Array:
    """Gathers one axis of `x` onto every device, or all axes."""
    spec = [None if axis is None or i == axis % x.ndim else part for i, part in enumerate(spec_of(x))]
    return resharded(x, like(x, *spec))


def shard_over_mesh(x: jax.Array, unit: int = 1) -> jax.Array:
    """Shards axis 0 over every device of the mesh, in multiples of `unit`; unchanged if it does not divide evenly."""
    mesh = jax.typeof(x).sharding.mesh
    if mesh.empty or x.shape[0] % (unit * mesh.size):
        return x
    return resharded(x, like(x, tuple(mesh.axis_names)))


def resharded(x: jax.Array, sharding: NamedSharding | None) -> jax.Array:
    """Moves `x` to a sharding; None, for an array that is on no mesh, leaves it where it is."""
    return x if sharding is None else jax.sharding.reshard(x, sharding)  # type: ignore[no-untyped-call]


def _named(mesh: Any, *spec: Any, **sums: frozenset[str]) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec(*spec, **sums))  # type: ignore[no-untyped-call]
