"""The operands of a kernel: the arrays of one attention; each device has a shard of them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

from videollava_jax.model.sharding import spec_of

# Finite, as in the reference: a query that may see nothing then averages, where -inf would give NaN.
MASKED = -1e30


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Operands:
    """The arguments of `attention`, with keys and values as separate arrays.

    Attributes:
      q_BTNH: queries; N is a multiple of K, B of G.
      keys, values: four axes in `order`.
      key_scale, value_scale: float32, the first three of these axes, of int8 keys and values; None for floats.
      mask_GS: bool, which keys hold a token; None for all.
      segments_GS: int32, the sequence of each token in packed rows, T = S and B = G; None for one sequence in each row.
      order: of the axes of keys and values: "GSKH", "GKSH" or "SGKH".
      causal_offset: the key index that the first query stands at, an int or a traced scalar; None: no causal rule.
    """

    q_BTNH: jax.Array
    keys: jax.Array
    values: jax.Array
    key_scale: jax.Array | None = None
    value_scale: jax.Array | None = None
    mask_GS: jax.Array | None = None
    segments_GS: jax.Array | None = None
    order: str = field(default="GSKH", metadata={"static": True})
    causal_offset: Any = field(default=None, metadata={"static": True})

    def size(self, axis: str) -> int:
        """Returns the length of an axis of the keys, by its letter."""
        return self.keys.shape[self.order.index(axis)]

    @property
    def queries(self) -> int:
        """Q: queries that share their keys, rows × T."""
        return self.q_BTNH.shape[0] // self.size("G") * self.q_BTNH.shape[1]

    @property
    def key_heads_of_a_device(self) -> int:
        """K over the devices that heads are split over."""
        sharding = jax.typeof(self.keys).sharding
        axes = sharding.spec[self.order.index("K")]
        names = axes if isinstance(axes, tuple) else () if axes is None else (axes,)
        devices = math.prod(int(sharding.mesh.shape[name]) for name in names)
        return int(self.size("K")) // devices

    @property
    def split_alike(self) -> bool:
        """Whether each device has the keys of its queries: rows and heads sharded over the same axes, nothing else.

        Known only of explicit mesh axes, or inside a `shard_map` over all axes, where arrays are one device's already.
        """
        if any(kind == AxisType.Auto for kind in self.axis_types) or len(set(self.axis_types)) > 1:
            return False
        batch, T, heads, H = spec_of(self.q_BTNH)
        axes = {"G": batch, "K": heads, "S": None, "H": None}
        arrays = [(x, self.order) for x in (self.keys, self.values, self.key_scale, self.value_scale)]
        return (T, H) == (None, None) and all(
            x is None or spec_of(x) == tuple(axes[letter] for letter in order[: x.ndim])
            for x, order in [*arrays, (self.mask_GS, "GS"), (self.segments_GS, "GS")]
        )

    @property
    def axis_types(self) -> tuple[AxisType, ...]:
        """The axis types of the queries' mesh; empty where they are on none."""
        return tuple(jax.typeof(self.q_BTNH).sharding.mesh.axis_types)


def platform_of(x: jax.Array) -> str:
    """Returns the platform that a program with this array is compiled for: "cpu", "gpu" or "tpu".

    It is that of the mesh in the array's type, also for described chips that are not here, else JAX's default.
    """
    device = jax.typeof(x).sharding.mesh.abstract_device
    return jax.default_backend() if device is None else device.platform


def device_kind_of(x: jax.Array) -> str | None:
    """Returns JAX's name of the devices that a program with this array is compiled for; None without a mesh."""
    device = jax.typeof(x).sharding.mesh.abstract_device
    return None if device is None else device.device_kind


def has_split_memory(kind: str | None) -> bool:
    """Whether a chip of a kind, by JAX's name, is a v5p; None for the devices here.

    Its two cores have on-chip memory of their own and none that they share, as those of a v4 do. XLA keeps few results
    there, since each core would need them whole: products and the scores of attention go through high-bandwidth memory.
    """
    return (jax.local_devices()[0].device_kind if kind is None else kind) in ("TPU v5", "TPU v5p")


def per_device(
    kernel: Callable[[Operands], tuple[jax.Array, jax.Array | None]], operands: Operands
) -> tuple[jax.Array, jax.Array | None]:
    """Runs a kernel on each device's shard of rows and heads, or once where there is no mesh.

    XLA cannot partition a kernel by itself: it would gather every operand onto every device.

    Args:
      kernel: maps operands to [B, T, N, H], and [B, T, N] or None.
      operands: `split_alike`.
    """
    mesh = jax.typeof(operands.q_BTNH).sharding.mesh
    if mesh.empty or AxisType.Manual in operands.axis_types:
        return kernel(operands)
    batch, _, heads, _ = spec_of(operands.q_BTNH)
    # A traced offset is a static field of the operands: it has to enter the shard_map as an argument of its own.
    static = operands.causal_offset is None or isinstance(operands.causal_offset, int)
    plain = operands if static else dataclasses.replace(operands, causal_offset=None)
    offset = None if static else jnp.asarray(operands.causal_offset)

    def share(plain: Operands, offset: jax.Array | None) -> tuple[jax.Array, jax.Array | None]:
        return kernel(plain if static else dataclasses.replace(plain, causal_offset=offset))

    split = jax.shard_map(
        share,
        mesh=mesh,
        in_specs=jax.tree.map(lambda x: _spec(*spec_of(x)), (plain, offset)),
        out_specs=(_spec(batch, None, heads, None), _spec(batch, None, heads)),
        check_vma=False,  # a kernel's outputs do not say over which axes they vary
    )
    return split(plain, offset)


def queries_by_key_head(operands: Operands) -> jax.Array:
    """Groups the queries that read the same keys: [G, K, Q, H] with Q = rows × T × N / K."""
    q_BTNH, G, K = operands.q_BTNH, operands.size("G"), operands.size("K")
    B, T, N, H = q_BTNH.shape
    q_GTKnH = q_BTNH.reshape(G, B // G * T, K, N // K, H)
    return jnp.einsum("GTKnH->GKTnH", q_GTKnH).reshape(G, K, -1, H)


def rows_again(x_GKQ: jax.Array, q_BTNH: jax.Array) -> jax.Array:
    """Undoes `queries_by_key_head`: [G, K, Q, ...] to [B, T, N, ...]."""
    G, K, _, *rest = x_GKQ.shape
    B, T, N, _ = q_BTNH.shape
    x_GKTn = x_GKQ.reshape(G, K, B // G * T, N // K, *rest)
    return jnp.einsum("GKTn...->GTKn...", x_GKTn).reshape(B, T, N, *rest)


def _spec(*axes: Any) -> PartitionSpec:
    return PartitionSpec(*axes)  # type: ignore[no-untyped-call]
