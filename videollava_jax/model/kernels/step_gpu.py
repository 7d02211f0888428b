"""A GPU kernel for one step of decoding: attention to shared prefixes and to each row's tail, and the tail's update.

The programs of a prefix and a key head share its work, and their results are merged by their log-sum-exp:

    prefix   [ split 0 ][ split 1 ]       all rows of the prefix at once, as in `decode_gpu`
    tails    [ row 0 ] [ row 1 ] ...      one row each; it also writes the new key and value into that row's tail

Of a tail only the positions that hold a token are read, and none of a row without a new token: its answer has ended.

XLA takes ten kernels for the same. It is written for Pallas' Triton backend, which JAX 0.11 still has but calls
deprecated.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

from videollava_jax.model.kernels.decode_gpu import BLOCK, MOST_QUERIES, PROGRAMS, QUERY_TILE, attended
from videollava_jax.model.kernels.operands import MASKED, Operands
from videollava_jax.model.sharding import spec_of

NAME = "step_gpu"
FEWEST_BLOCKS = 8
"""Of a split: the results of more splits would be a tenth of what is read, and the tails keep a GPU busy too."""
MOST_HEADS = 8
"""Query heads of a key head: a program for a tail works on them one after the other."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Step:
    """The arguments of a step for one layer.

    Attributes:
      prefix: queries [B, 1, N, H] in both directions over keys in order "GKSH", and their mask.
      keys, values: [S, B, K, H], the tails, which are updated in place if they are donated.
      new_keys, new_values: [B, 1, K, H].
      mask_BS: bool, the positions of the tails that hold a token, that of the new one included.
      write_at: int32 scalar, the position of the new one.
    """

    prefix: Operands
    keys: jax.Array
    values: jax.Array
    new_keys: jax.Array
    new_values: jax.Array
    mask_BS: jax.Array
    write_at: jax.Array


def step(operands: Step, *, interpret: bool) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Computes one step on one device.

    Args:
      interpret: run in Pallas' interpreter, on any device and slowly, to check the numbers.

    Returns:
      float32 [B, 1, N, H], which is any number in rows whose new token is none, and the tails' keys and values with the
      new ones in them.
    """
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton as plgpu

    prefix, q_BTNH = operands.prefix, operands.prefix.q_BTNH
    (B, _, N, H), G, K, S = q_BTNH.shape, prefix.size("G"), prefix.size("K"), prefix.size("S")
    R, n, S_tail = B // G, N // K, operands.keys.shape[0]
    # Queries, new keys and new values in one array: XLA makes all of them in one kernel.
    new_BTCH = jnp.concatenate([q_BTNH, operands.new_keys, operands.new_values], axis=2)
    new_GRCH = new_BTCH.reshape(G, R, N + 2 * K, H)
    blocks = pl.cdiv(S, BLOCK)
    blocks_each = min(blocks, max(FEWEST_BLOCKS, pl.cdiv(blocks * G * K, PROGRAMS)))
    splits = pl.cdiv(blocks, blocks_each)
    shaped: Any = jax.ShapeDtypeStruct
    float32 = functools.partial(shaped, dtype=jnp.float32)

    def row(p: Any) -> Any:
        return jnp.maximum(p - splits, 0)

    def split(p: Any) -> Any:
        return jnp.minimum(p, splits - 1)

    of_prefix = pl.BlockSpec((None, None, S, H), lambda g, k, p: (g, k, 0, 0))
    of_tail = pl.BlockSpec((S_tail, None, None, None, H), lambda g, k, p: (0, g, row(p), k, 0))
    scale = pl.BlockSpec((None, None, S), lambda g, k, p: (g, k, 0))
    new_key = pl.BlockSpec((None, None, None, H), lambda g, k, p: (g, row(p), N + k, 0))
    new_value = pl.BlockSpec((None, None, None, H), lambda g, k, p: (g, row(p), N + K + k, 0))
    tails = [x.reshape(S_tail, G, R, K, H) for x in (operands.keys, operands.values)]
    inputs: list[tuple[jax.Array | None, pl.BlockSpec | None]] = [
        (new_GRCH, pl.BlockSpec((None, R, n, H), lambda g, k, p: (g, 0, k, 0))),
        (prefix.keys, of_prefix),
        (prefix.values, of_prefix),
        *((None, None) if x is None else (x, scale) for x in (prefix.key_scale, prefix.value_scale)),
        (None, None)
        if prefix.mask_GS is None
        else (prefix.mask_GS.astype(jnp.int8), pl.BlockSpec((None, S), lambda g, k, p: (g, 0))),
        (new_GRCH, new_key),
        (new_GRCH, new_value),
        (
            operands.mask_BS.astype(jnp.int8).reshape(G, R, S_tail),
            pl.BlockSpec((None, None, S_tail), lambda g, k, p: (g, row(p), 0)),
        ),
        (operands.write_at.astype(jnp.int32).reshape(1), pl.BlockSpec((1,), lambda g, k, p: (0,))),
        *((x, of_tail) for x in tails),
    ]
    present = [x for x, _ in inputs if x is not None]
    out_P, lse_P, out_tail, lse_tail, keys, values = pl.pallas_call(
        functools.partial(_kernel, splits=splits, blocks_each=blocks_each, heads=n),
        grid=(G, K, splits + R),
        in_specs=[spec for _, spec in inputs],
        out_specs=[
            pl.BlockSpec((None, None, R, None, n, H), lambda g, k, p: (split(p), g, 0, k, 0, 0)),
            pl.BlockSpec((None, None, R, None, n), lambda g, k, p: (split(p), g, 0, k, 0)),
            pl.BlockSpec((None, None, None, n, H), lambda g, k, p: (g, row(p), k, 0, 0)),
            pl.BlockSpec((None, None, None, n), lambda g, k, p: (g, row(p), k, 0)),
            of_tail,
            of_tail,
        ],
        out_shape=[
            float32((splits, G, R, K, n, H)),
            float32((splits, G, R, K, n)),
            float32((G, R, K, n, H)),
            float32((G, R, K, n)),
            *(shaped(x.shape, x.dtype) for x in tails),
        ],
        input_output_aliases={len(present) - 2: 4, len(present) - 1: 5},
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=3),
        interpret=interpret,
        name="decode_step",
    )(*(x for x, _ in inputs))
    out_GRKnH = _merged([*zip(out_P, lse_P, strict=True), (out_tail, lse_tail)])
    return out_GRKnH.reshape(q_BTNH.shape), keys.reshape(operands.keys.shape), values.reshape(operands.values.shape)


def _merged(parts: list[tuple[jax.Array, jax.Array]]) -> jax.Array:
    """Merges parts by the rule of `attention.merged`; part by part, so that XLA fuses it into one kernel."""
    top = functools.reduce(jnp.maximum, (lse for _, lse in parts))
    shares = [jnp.exp(lse - top) for _, lse in parts]
    weighted = [share[..., None] * out for share, (out, _) in zip(shares, parts, strict=True)]
    return functools.reduce(jnp.add, weighted) / functools.reduce(jnp.add, shares)[..., None]


def _kernel(*refs: Any, splits: int, blocks_each: int, heads: int) -> None:
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton as plgpu

    inputs, outputs = refs[:12], refs[12:]
    q_ref, k_ref, v_ref, k_scale_ref, v_scale_ref, mask_ref = inputs[:6]
    out_ref, lse_ref, *of_tail = outputs
    part = pl.program_id(2)

    @pl.when(part < splits)
    def _() -> None:
        (R, _, H), (rows, tile_heads) = q_ref.shape, _tile(*q_ref.shape[:2])
        # Powers of two: behind the rows and heads that there are, nothing is read or written.
        start = 0 * part
        at = pl.ds(start, rows), pl.ds(start, tile_heads)
        there = (jnp.arange(rows) < R)[:, None] & (jnp.arange(tile_heads) < heads)[None, :]
        there_H = jnp.broadcast_to(there[:, :, None], (rows, tile_heads, H))
        q = plgpu.load(q_ref.at[*at, :], mask=there_H, other=0).reshape(-1, H)
        prefix = k_ref, v_ref, k_scale_ref, v_scale_ref, mask_ref
        out, lse = attended(q, *prefix, first=part * blocks_each, blocks=blocks_each, block=BLOCK)
        plgpu.store(out_ref.at[*at, :], out.reshape(rows, tile_heads, H), mask=there_H)
        plgpu.store(lse_ref.at[at], lse.reshape(rows, tile_heads), mask=there)

    @pl.when(part >= splits)
    def _() -> None:
        _tail(part - splits, q_ref, *inputs[6:], *of_tail, heads=heads)


def _tail(
    row: Any,
    q_ref: Any,
    new_k_ref: Any,
    new_v_ref: Any,
    mask_ref: Any,
    write_at_ref: Any,
    k_ref: Any,
    v_ref: Any,
    out_ref: Any,
    lse_ref: Any,
    k_out_ref: Any,
    v_out_ref: Any,
    *,
    heads: int,
) -> None:
    """Attends to the tail of one row, and writes the new key and value into it. The new ones are not read back.

    Loads that are masked do not touch memory: a tail has room for the longest question and answer, and most are short.
    """
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton as plgpu

    length, H = k_ref.shape
    scale, masked = H**-0.5 * math.log2(math.e), MASKED * math.log2(math.e)
    write_at = write_at_ref[0]
    new_k, new_v = new_k_ref[...], new_v_ref[...]
    is_token = mask_ref[write_at] != 0
    queries = [q_ref[row, head, :].astype(jnp.float32) for head in range(heads)]

    def score(q: Any, keys: Any) -> Any:
        return (keys.astype(jnp.float32) * q).sum(axis=-1) * scale

    def body(i: Any, states: tuple[Any, ...]) -> tuple[Any, ...]:
        at, position = pl.ds(i * BLOCK, BLOCK), i * BLOCK + jnp.arange(BLOCK)
        seen = (plgpu.load(mask_ref.at[at], mask=position < length, other=0) != 0) & (position != write_at) & is_token
        keys = plgpu.load(k_ref.at[at, :], mask=seen[:, None], other=0)
        values = plgpu.load(v_ref.at[at, :], mask=seen[:, None], other=0).astype(jnp.float32)
        found = []
        for q, (top, total, acc) in zip(queries, states, strict=True):
            scores = jnp.where(seen, score(q[None, :], keys), masked)
            higher = jnp.maximum(top, scores.max())
            weights, shrunk = jnp.exp2(scores - higher), jnp.exp2(top - higher)
            found.append(
                (higher, shrunk * total + weights.sum(), shrunk * acc + (weights[:, None] * values).sum(axis=0))
            )
        return tuple(found)

    start = tuple(
        (jnp.where(is_token, score(q, new_k), masked), jnp.float32(1), new_v.astype(jnp.float32)) for q in queries
    )
    states = jax.lax.fori_loop(0, pl.cdiv(length, BLOCK), body, start)
    for head, (top, total, acc) in enumerate(states):
        out_ref[head, :] = acc / total
        lse_ref[head] = top * math.log(2) + jnp.log(total)
    k_out_ref[write_at, :] = new_k
    v_out_ref[write_at, :] = new_v


def _tile(rows: int, heads: int) -> tuple[int, int]:
    """Returns rows and heads of a tile of queries: powers of two, and together as many as a product needs."""
    tile_heads = 1 << (heads - 1).bit_length()
    return max(1 << (rows - 1).bit_length(), QUERY_TILE // tile_heads), tile_heads


def refusal(operands: Step) -> str | None:
    """Says why the kernel cannot run these operands; None where it can."""
    prefix = operands.prefix
    (B, T, N, H), G, K = prefix.q_BTNH.shape, prefix.size("G"), prefix.size("K")
    rows, heads = _tile(B // G, N // K)
    if T != 1 or prefix.order != "GKSH" or operands.keys.dtype != operands.new_keys.dtype:
        return "takes one query of each row, prefixes in order GKSH, and tails in the dtype of the new keys"
    if H < 16 or H > 128 or H & (H - 1):
        return f"takes heads of 16, 32, 64 or 128, not {H}"
    if rows * heads > MOST_QUERIES or N // K > MOST_HEADS:
        return f"takes up to {MOST_QUERIES} queries and {MOST_HEADS} heads on each key head"
    batch, _, split_heads, _ = spec_of(prefix.q_BTNH)
    alike = all(spec_of(x) == (None, batch, split_heads, None) for x in (operands.keys, operands.values))
    alike &= all(spec_of(x) == (batch, None, split_heads, None) for x in (operands.new_keys, operands.new_values))
    if not (prefix.split_alike and alike and spec_of(operands.mask_BS) == (batch, None)):
        return "needs rows and heads of all arrays split over the same explicit axes of a mesh, and nothing else split"
    return None


def run(operands: Step, *, interpret: bool) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Runs `step` on each device's rows and heads, or once where there is no mesh."""
    q_BTNH = operands.prefix.q_BTNH
    mesh = jax.typeof(q_BTNH).sharding.mesh
    if mesh.empty or AxisType.Manual in operands.prefix.axis_types:
        return step(operands, interpret=interpret)
    split = jax.shard_map(
        functools.partial(step, interpret=interpret),
        mesh=mesh,
        in_specs=(jax.tree.map(_spec, operands),),
        out_specs=(_spec(q_BTNH), _spec(operands.keys), _spec(operands.values)),
        check_vma=False,  # a kernel's outputs do not say over which axes they vary
    )
    return split(operands)


def _spec(x: jax.Array) -> PartitionSpec:
    return PartitionSpec(*spec_of(x))  # type: ignore[no-untyped-call]
