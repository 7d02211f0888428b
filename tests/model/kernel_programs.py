"""Attention by its kernels, compiled by the real TPU compiler for 8 chips of a machine without a TPU.

python -m tests.model.kernel_programs v5e:2x4           prints what each program needs, one JSON object a line
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator

from tests.planning.tpu_programs import ENVIRONMENT as TPU_COMPILER

ENVIRONMENT = {**os.environ, **TPU_COMPILER}
COLLECTIVES = r" (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("


def main(topology: str) -> Iterator[dict[str, object]]:
    """Compiles each program, a decoder's attention with 4 of 32 heads a chip."""
    import jax
    import jax.numpy as jnp
    from jax.experimental import topologies
    from jax.sharding import NamedSharding, PartitionSpec

    from videollava_jax.model.attention import KeysValues, attention, partial_attention
    from videollava_jax.model.sharding import make_mesh

    mesh = make_mesh(1, 8, devices=topologies.get_topology_desc(topology, platform="tpu").devices)
    axes = {"B": "data", "N": "tensor", "G": "data", "K": "tensor"}

    def array(names: str, *shape: int, dtype: str = "bfloat16") -> jax.ShapeDtypeStruct:
        spec = PartitionSpec(*(axes.get(name) for name in names))
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    def prefix(G: int, dtype: str = "bfloat16") -> KeysValues:
        keys, scale = array("GKSH", G, 32, 2112, 128, dtype=dtype), array("GKS", G, 32, 2112, dtype="float32")
        return KeysValues(keys, keys, *((scale, scale) if dtype == "int8" else (None, None)), order="GKSH")

    def causal(q: jax.Array, kv: KeysValues, mask: jax.Array) -> jax.Array:
        return attention(q, kv, key_mask_GS=mask, causal_offset=0)  # splash is what is chosen

    def gradient(q: jax.Array, kv: KeysValues, mask: jax.Array) -> tuple[jax.Array, KeysValues]:
        return jax.grad(lambda q, kv: causal(q, kv, mask).astype(jnp.float32).sum(), (0, 1))(q, kv)

    def after(q: jax.Array, kv: KeysValues, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
        return partial_attention(q, kv, key_mask_GS=mask)

    def decode(q: jax.Array, kv: KeysValues, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
        return partial_attention(q, kv, key_mask_GS=mask, implementation="decode_tpu")

    def of_tails(q: jax.Array, kv: KeysValues, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
        return partial_attention(q, kv, key_mask_GS=mask, implementation="tail_tpu")

    tails = array("SGKH", 2048, 256, 32, 128)
    video = array("BTNH", 8, 2106, 32, 128)
    programs = {
        "prefill": (causal, video, KeysValues(video, video)),
        "gradient": (gradient, video, KeysValues(video, video)),
        "questions": (after, array("BTNH", 200, 50, 32, 128), prefix(8)),
        "decode": (decode, array("BTNH", 512, 1, 32, 128), prefix(64)),
        "decode_int8": (decode, array("BTNH", 512, 1, 32, 128), prefix(64, "int8")),
        "tails": (of_tails, array("BTNH", 256, 1, 32, 128), KeysValues(tails, tails, order="SGKH")),
        "heads_of_64": (causal, array("BTNH", 8, 2056, 16, 64), KeysValues(*(array("GSKH", 8, 2056, 16, 64),) * 2)),
    }
    for name, (function, q, kv) in programs.items():
        mask = array("GS", kv.rows, kv.capacity, dtype="bool")
        compiled = jax.jit(function).lower(q, kv, mask).compile()
        text = compiled.as_text()
        B, T, N, _ = q.shape
        yield {
            "program": name,
            "kernels": text.count('custom_call_target="tpu_custom_call"'),
            "collectives": sorted(set(re.findall(COLLECTIVES, text))),
            "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
            "score_bytes": 4 * B * T * N // 8 * kv.capacity,  # a chip's share
        }


if __name__ == "__main__":
    os.environ.update(TPU_COMPILER)
    for row in main(sys.argv[1]):
        print(json.dumps(row), flush=True)
