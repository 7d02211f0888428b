"""Times every implementation of attention that this device runs, at the real model's shapes.

    python benchmarks/attention.py                  # a table; * marks what is chosen by default
    python benchmarks/attention.py --only decode    # only the rows with this in their name
    python benchmarks/attention.py --json           # one JSON object a row
    python benchmarks/attention.py --shrink 8       # everything smaller, to try the program on a CPU

A call is timed inside a loop on the device, over more keys than its caches hold, and the queries of each call are the
result of the last one: nothing is reused, moved out of the loop or overlapped. The error is the largest difference from
the reference in float32, over a first call. Kernels that would be interpreted are left out.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from videollava_jax.model import kernels
from videollava_jax.model.attention import QUERY_BLOCK, KeysValues, attention, implementations, partial_attention

KEYS_BYTES = 256 << 20
"""Bytes of keys and values that one pass reads: more than any cache of a GPU or the VMEM of a TPU."""


@dataclass(frozen=True)
class Shape:
    """One attention of the model: G rows of S keys, each seen by `rows` × T queries."""

    name: str
    G: int
    rows: int
    T: int
    heads: int
    S: int
    H: int
    order: str = "GSKH"
    causal: bool = False
    padding: int = 0  # masked keys on the left; 0: no mask at all
    part: bool = False  # with its log-sum-exp, to be merged
    int8: bool = False

    def shrunk(self, by: int) -> Shape:
        """Returns the shape with fewer heads and tokens."""
        few = max(1, self.heads // by)
        return dataclasses.replace(self, heads=few, T=-(-self.T // by), S=-(-self.S // by), padding=self.padding // by)

    @property
    def flops(self) -> float:
        """Operations of the two products; half of them with the causal rule."""
        return 4 * self.G * self.rows * self.T * self.heads * self.S * self.H / (2 if self.causal else 1)

    def key_bytes(self, itemsize: int) -> int:
        """Returns the bytes of keys and values, with their scales."""
        each = self.H + 4 if self.int8 else self.H * itemsize
        return 2 * self.G * self.heads * self.S * each


SHAPES = (
    Shape("tower", 8, 1, 257, 16, 257, 64),
    Shape("tower, 8 videos", 64, 1, 257, 16, 257, 64),
    Shape("prefill", 1, 1, 2106, 32, 2106, 128, causal=True),
    Shape("prefill, padded", 1, 1, 2106, 32, 2106, 128, causal=True, padding=50),
    Shape("prefill, 8 padded", 8, 1, 2106, 32, 2106, 128, causal=True, padding=50),
    Shape("25 questions", 1, 25, 50, 32, 2112, 128, "GKSH", padding=6, part=True),
    Shape("decode 1", 1, 1, 1, 32, 2112, 128, "GKSH", padding=6, part=True),
    Shape("decode 64", 64, 1, 1, 32, 2112, 128, "GKSH", padding=6, part=True),
    Shape("decode 8 x 8", 8, 8, 1, 32, 2112, 128, "GKSH", padding=6, part=True),
    Shape("decode 8 x 25", 8, 25, 1, 32, 2112, 128, "GKSH", padding=6, part=True),
    Shape("decode 1, int8", 1, 1, 1, 32, 2112, 128, "GKSH", padding=6, part=True, int8=True),
    Shape("decode 64, int8", 64, 1, 1, 32, 2112, 128, "GKSH", padding=6, part=True, int8=True),
    Shape("decode 8 x 25, int8", 8, 25, 1, 32, 2112, 128, "GKSH", padding=6, part=True, int8=True),
    Shape("decode 64, no part", 64, 1, 1, 32, 2112, 128, padding=6),
)


@dataclass(frozen=True)
class Row:
    """One line of the table: microseconds a call, the largest error, and what the device achieved."""

    shape: str
    implementation: str
    chosen: bool
    median_us: float
    low_us: float
    high_us: float
    error: float
    tflops: float
    key_gb_s: float


def main() -> None:
    """Parses the command line, and prints a row for each shape and implementation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="bfloat16", help="of queries, and of keys that are not int8; %(default)s")
    parser.add_argument("--only", default="", help="shapes with this in their name")
    parser.add_argument("--repeat", type=int, default=20, help="timings of each; the middle 80%% are the spread")
    parser.add_argument("--shrink", type=int, default=1, help="divides the numbers of heads and tokens")
    parser.add_argument("--json", action="store_true", help="one JSON object a row instead of a table")
    arguments = parser.parse_args()
    device = jax.devices()[0]
    if not arguments.json:
        print(f"{device.device_kind}, jax {jax.__version__}, {arguments.dtype}\n")
        print(f"{'':22}{'':13}{'median us':>12}{'10% .. 90%':>22}{'error':>10}{'TFLOP/s':>9}{'keys GB/s':>11}")
    for shape in SHAPES:
        if arguments.only not in shape.name:
            continue
        for row in race(shape.shrunk(arguments.shrink), arguments.dtype, arguments.repeat):
            print(json.dumps(dataclasses.asdict(row)) if arguments.json else line(row), flush=True)


def line(row: Row) -> str:
    """Formats a row of the table."""
    spread = f"{row.low_us:.1f} .. {row.high_us:.1f}"
    return (
        f"{row.shape:22}{row.implementation + ' *' * row.chosen:13}{row.median_us:12.1f}{spread:>22}{row.error:10.1e}"
        f"{row.tflops:9.1f}{row.key_gb_s:11.0f}"
    )


def race(shape: Shape, dtype: str, repeat: int) -> Iterator[Row]:
    """Checks and times every implementation that runs this shape on this device."""
    q, layers, mask = drawn(shape, dtype)
    offset = 0 if shape.causal else None
    first = layers[0]
    operands = kernels.Operands(
        q, first.keys, first.values, first.key_scale, first.value_scale, mask, first.order, offset
    )
    chosen = kernels.best(operands, lse=shape.part) or ("blocked" if shape.T > QUERY_BLOCK else "reference")
    expected = jax.jit(called(shape, "reference"))(
        q.astype(jnp.float32), jax.tree.map(lambda x: x if shape.int8 else x.astype(jnp.float32), first), mask
    )
    for name in implementations():
        kernel = name in kernels.KERNELS
        interpreted = kernel and name != "cudnn" and jax.default_backend() == "cpu"
        one_block = name == "blocked" and shape.T <= QUERY_BLOCK  # which is the reference
        if interpreted or one_block or (kernel and kernels.refusal(name, operands, lse=shape.part)):
            continue
        call = called(shape, name)
        got = jax.jit(call)(q, first, mask).astype(jnp.float32)
        # Queries before the first key see nothing, and their results are unused.
        seen = slice(shape.padding if shape.causal else 0, None)
        times = [seconds * 1e6 for seconds in timed(call, q, layers, mask, repeat)]
        middle = statistics.median(times)
        tenths = statistics.quantiles(times, n=10, method="inclusive")
        yield Row(
            shape=shape.name,
            implementation=name,
            chosen=name == chosen,
            median_us=middle,
            low_us=tenths[0],
            high_us=tenths[-1],
            error=float(jnp.abs(got - expected)[:, seen].max()),
            tflops=shape.flops / middle / 1e6,
            key_gb_s=shape.key_bytes(jnp.dtype(dtype).itemsize) / middle / 1e3,
        )


def called(shape: Shape, name: str) -> Callable[[jax.Array, KeysValues, jax.Array | None], jax.Array]:
    """Returns the attention of a shape by one implementation; its result has the shape and dtype of the queries."""

    def call(q: jax.Array, kv: KeysValues, mask: jax.Array | None) -> jax.Array:
        offset = 0 if shape.causal else None
        if not shape.part:
            return attention(q, kv, key_mask_GS=mask, causal_offset=offset, implementation=name)
        part = partial_attention(q, kv, key_mask_GS=mask, implementation=name)
        # A little of the log-sum-exp is added, so that it is computed too.
        return (part.out_BTNH + 1e-9 * part.lse_BTN[..., None]).astype(q.dtype)

    return call


def drawn(shape: Shape, dtype: str) -> tuple[jax.Array, list[KeysValues], jax.Array | None]:
    """Draws queries, keys and values of as many layers as fill `KEYS_BYTES`, and the mask."""
    rng = jax.random.key(0)
    sizes = dict(G=shape.G, S=shape.S, K=shape.heads, H=shape.H)
    dims = tuple(sizes[axis] for axis in shape.order)
    layers = []
    for i in range(max(1, min(32, KEYS_BYTES // shape.key_bytes(jnp.dtype(dtype).itemsize)))):
        k, v = jax.random.split(jax.random.fold_in(rng, i))
        if shape.int8:
            ints = [jax.random.randint(key, dims, -127, 128, jnp.int8) for key in (k, v)]
            scales = [jax.random.uniform(key, dims[:-1], minval=0.005, maxval=0.015) for key in (k, v)]
            layers.append(KeysValues(*ints, *scales, order=shape.order))
        else:
            layers.append(KeysValues(*(jax.random.normal(key, dims, dtype) for key in (k, v)), order=shape.order))
    q = jax.random.normal(jax.random.fold_in(rng, 1000), (shape.G * shape.rows, shape.T, shape.heads, shape.H), dtype)
    mask = jnp.broadcast_to(jnp.arange(shape.S) >= shape.padding, (shape.G, shape.S)) if shape.padding else None
    return q, layers, mask


def timed(
    call: Callable[[jax.Array, KeysValues, jax.Array | None], jax.Array],
    q: jax.Array,
    layers: list[KeysValues],
    mask: jax.Array | None,
    repeat: int,
) -> list[float]:
    """Measures seconds a call, `repeat` times: each is the mean over a loop of a tenth of a second or more."""

    @jax.jit
    def loop(times: int, q: jax.Array, layers: list[KeysValues], mask: jax.Array | None) -> jax.Array:
        def once(_: int, q: jax.Array) -> jax.Array:
            # The barrier makes the keys look new in every iteration: nothing of them is computed before the loop.
            q, fresh = jax.lax.optimization_barrier((q, layers))
            for kv in fresh:
                q = call(q, kv, mask)
            return q

        return jax.lax.fori_loop(0, times, once, q)

    def seconds(times: int) -> float:
        start = time.perf_counter()
        jax.block_until_ready(loop(times, q, layers, mask))
        return time.perf_counter() - start

    seconds(1)
    times = 1
    while seconds(times) < 0.1:
        times *= 2
    return [seconds(times) / times / len(layers) for _ in range(repeat)]


if __name__ == "__main__":
    main()
