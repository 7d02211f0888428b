"""Small programs whose traffic is known, compiled by the real TPU compiler on a machine without a TPU.

python tests/planning/tpu_programs.py v5e:2x4 decode            prints the program's text
python tests/planning/tpu_programs.py --short v5e:2x4 decode    without what the reader does not read
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

# Without a TPU several processes may load libtpu at once.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}

# A decoder in the shape of the 7B model, of LAYERS layers, whose weights and caches are too large for on-chip memory.
D, M, HEADS, H, LAYERS = 4096, 11008, 32, 128, 16
PREFIXES, ROWS, PREFIX, TAIL = 16, 4, 1024, 128
TENSOR = 4


def compiled_text(topology: str, program: str, **options: int) -> str:
    """Compiles a program in a separate process, as a process loads libtpu for one topology only; returns its text."""
    command = [sys.executable, str(Path(__file__)), topology, program, *(f"{k}={v}" for k, v in options.items())]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-3000:]}")
    return done.stdout


def shortened(text: str) -> str:
    """Returns the text without backend configurations, shardings, the table of source lines, and most metadata."""
    head, _, rest = text.partition("\n")
    rest = rest[rest.index("\n%") :] if "\n%" in rest else rest[rest.index("\nENTRY") :]
    rest = re.sub(r", backend_config=\{.*", "", rest)
    rest = re.sub(r", (sharding|frontend_attributes)=\{[^}]*\}", "", rest)
    rest = re.sub(r" stack_frame_id=\d+", "", rest)
    rest = re.sub(r"(?m)^((?!.* (?:copy|all-reduce)\().*), metadata=\{[^}]*\}", r"\1", rest)
    rest = re.sub(r"(?m)^(%\S+|ENTRY \S+) \(.*\) -> .* \{$", r"\1 {", rest)
    return re.sub(r", (frontend_attributes|entry_computation_layout)=\{.*", "", head) + "\n" + rest


def main(topology: str, program: str, *options: str) -> str:
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.experimental import topologies
    from jax.sharding import AxisType, Mesh, NamedSharding
    from jax.sharding import PartitionSpec as P

    devices = np.array(topologies.get_topology_desc(topology, platform="tpu").devices)
    mesh = Mesh(devices.reshape(-1, TENSOR), ("data", "tensor"), axis_types=(AxisType.Explicit,) * 2)

    def array(shape: tuple[int, ...], *axes: str | None, dtype: Any = jnp.bfloat16) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P(*axes)))

    index = array((), dtype=jnp.int32)
    with jax.set_mesh(mesh):
        if program == "product":
            function: Any = lambda x, w: jax.nn.silu(x @ w)  # noqa: E731
            lowered = jax.jit(function).lower(array((64, D)), array((D, 4 * M), None, "tensor"))
        elif program in ("update", "update_copied"):
            function = partial(jax.lax.dynamic_update_slice_in_dim, axis=0)
            cache, new = (
                array((2048, 64, HEADS, H), None, "data", "tensor"),
                array((1, 64, HEADS, H), None, "data", "tensor"),
            )
            lowered = jax.jit(function, donate_argnums=(0,) if program == "update" else ()).lower(cache, new, index)
        elif program == "transpose":
            lowered = jax.jit(lambda w: jnp.transpose(w, (1, 0))).lower(array((D, 16384), None, "tensor"))
        elif program == "convert":
            lowered = jax.jit(lambda w: w.astype(jnp.bfloat16)).lower(array((D, 16384), None, "tensor", dtype=jnp.int8))
        elif program in ("loop", "loop_heads_first"):
            lowered = _loop(array, heads_first=program == "loop_heads_first")
        else:
            lowered = _decode(array, **{key: int(value) for key, value in (option.split("=") for option in options)})
        return lowered.compile().as_text()


def _attend(q: Any, k: Any, v: Any, order: str, seen: Any = None) -> tuple[Any, Any, Any]:
    """Computes attention [G, R, K, H] before division, with the largest scores and the sums, [G, R, K]."""
    import jax.numpy as jnp

    scores = jnp.einsum(f"GRKH,{order}->GKRS", q, k, preferred_element_type=jnp.float32) * H**-0.5
    scores = scores if seen is None else jnp.where(seen, scores, -1e30)
    top = scores.max(-1, keepdims=True)
    e = jnp.exp(scores - top)
    out = jnp.einsum(f"GKRS,{order}->GRKH", e.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return out, *(jnp.swapaxes(x[..., 0], 1, 2) for x in (top, e.sum(-1, keepdims=True)))


def _loop(array: Any, *, heads_first: bool) -> Any:
    """A loop that writes one position of a donated cache, [S, B, K, H] or [B, K, S, H], and attends to all of it."""
    import jax
    import jax.numpy as jnp

    B, axis = PREFIXES * ROWS, 2 if heads_first else 0
    spec = ("data", "tensor") if heads_first else (None, "data", "tensor")
    cache = array((B, HEADS, 2304, H) if heads_first else (2304, B, HEADS, H), *spec)

    def run(cache: Any, q: Any, stop: Any) -> Any:
        def body(state: Any) -> Any:
            cache, q, index = state
            cache = jax.lax.dynamic_update_slice_in_dim(cache, jnp.expand_dims(q[:, 0], axis), index, axis)
            out, _, total = _attend(q, cache, cache, "GKSH" if heads_first else "SGKH")
            return cache, (out / total[..., None]).astype(q.dtype), index + 1

        return jax.lax.while_loop(lambda state: state[2] < stop, body, (cache, q, jnp.int32(0)))

    q = array((B, 1, HEADS, H), "data", None, "tensor")
    return jax.jit(run, donate_argnums=0).lower(cache, q, array((), dtype=jnp.int32))


def _decode(array: Any, *, layers: int = LAYERS) -> Any:
    """Returns a loop of decode steps over prefixes [G, K, S, H] and tails [S, B, K, H]."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import PartitionSpec as P
    from jax.sharding import reshard

    B, f32 = PREFIXES * ROWS, jnp.float32
    heads = P("data", None, "tensor", None)
    tails = [[array((TAIL, B, HEADS, H), None, "data", "tensor") for _ in "kv"] for _ in range(layers)]
    prefixes = [[array((PREFIXES, HEADS, PREFIX, H), "data", "tensor") for _ in "kv"] for _ in range(layers)]
    out, into = ("tensor", None), (None, "tensor")
    shapes = dict.fromkeys("qkv", ((HEADS * H, D), out)) | {"o": ((D, HEADS * H), into)}
    shapes |= {"gate": ((M, D), out), "up": ((M, D), out), "down": ((D, M), into)}
    weights = [{n: array(shape, *axes) for n, (shape, axes) in shapes.items()} for _ in range(layers)]

    def project(x: Any, w: Any, *axes: str | None) -> Any:
        return jnp.einsum("bd,od->bo", x, w, out_sharding=P(*axes))

    def layer(x: Any, w: Any, shared: Any, own: Any, index: Any) -> tuple[Any, Any]:
        mean = jnp.mean(jnp.square(x.astype(f32)), -1, keepdims=True)
        norm = (x * jax.lax.rsqrt(mean + 1e-5)).astype(x.dtype)
        q, k, v = (
            jnp.reshape(project(norm, w[n], "data", "tensor"), (B, 1, HEADS, H), out_sharding=heads) for n in "qkv"
        )
        new = (jnp.swapaxes(k, 0, 1), jnp.swapaxes(v, 0, 1))
        own = [jax.lax.dynamic_update_slice_in_dim(c, n, index, 0) for c, n in zip(own, new, strict=True)]
        grouped = jnp.reshape(q, (PREFIXES, ROWS, HEADS, H), out_sharding=heads)
        rows = P("data", None, "tensor")
        one = [jnp.reshape(y, (B, 1, *y.shape[2:]), out_sharding=rows) for y in _attend(grouped, *shared, "GKSH")]
        parts = [one, _attend(q, *own, "SGKH", jnp.arange(TAIL) <= index)]
        top = jnp.stack([t for _, t, _ in parts]).max(0)
        total = sum(jnp.exp(t - top) * z for _, t, z in parts)
        mixed = sum(o * jnp.exp(t - top)[..., None] for o, t, _ in parts) / total[..., None]
        mixed = jnp.reshape(mixed.astype(x.dtype), (B, HEADS * H), out_sharding=P("data", "tensor"))
        x = x + project(mixed, w["o"], "data", None)
        gated = jax.nn.silu(project(x, w["gate"], "data", "tensor")) * project(x, w["up"], "data", "tensor")
        return x + project(gated, w["down"], "data", None), own

    def run(weights: Any, prefixes: Any, tails: Any, x: Any, index: Any, stop: Any) -> Any:
        def body(state: Any) -> Any:
            x, tails, index = state
            new = []
            for w, shared, own in zip(weights, prefixes, tails, strict=True):
                x, own = layer(x, w, shared, own, index)
                new.append(own)
            return reshard(x, P("data", None)), new, index + 1

        return jax.lax.while_loop(lambda state: state[2] < stop, body, (x, tails, index))

    number = array((), dtype=jnp.int32)
    return jax.jit(run, donate_argnums=(2, 3)).lower(weights, prefixes, tails, array((B, D), "data"), number, number)


if __name__ == "__main__":
    os.environ.update(ENVIRONMENT)  # before JAX is imported
    arguments = [argument for argument in sys.argv[1:] if argument != "--short"]
    text = main(*arguments)
    print(shortened(text) if "--short" in sys.argv else text)
