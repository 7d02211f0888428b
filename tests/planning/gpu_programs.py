"""Small programs whose traffic is known, compiled by the real GPU compiler on a machine without a GPU.

python tests/planning/gpu_programs.py h200 loop            prints the program's text
python tests/planning/gpu_programs.py --short h200 loop    without what the reader does not read
"""

from __future__ import annotations

import re
import sys
from functools import partial
from typing import Any

B, D, M, S, HEADS, H = 64, 4096, 11008, 1024, 32, 128
DEVICES = {"sum": 8}
"""GPUs of the programs that have more than one."""


def shortened(text: str) -> str:
    """Returns the text without most of the backend configurations and metadata."""
    text = re.sub(r", sharding=\{[^}]*\}|, frontend_attributes=\{.*\}$", "", text, flags=re.MULTILINE)
    text = re.sub(r", metadata=\{[^}]*\}", "", text)
    text = re.sub(r', backend_config=(?!.*"mask_type").*', "", text)
    text = re.sub(r'backend_config=.*("mask_type": *"[A-Z]+").*', r"backend_config={\1}", text)
    text = re.sub(r"(?m)^(%\S+|ENTRY \S+) \(.*\) -> .* \{$", r"\1 {", text)
    head, _, rest = text.partition("\n")
    rest = rest[rest.index("\n%") :] if "\n%" in rest else rest[rest.index("\nENTRY") :]
    return re.sub(r", (frontend_attributes|entry_computation_layout)=\{.*", "", head) + "\n" + rest.rstrip()


def main(topology: str, program: str) -> str:
    from videollava_jax.costs.chips import topology as parsed
    from videollava_jax.planning.devices import devices_of, set_environment

    name = f"{topology}:{DEVICES.get(program, 1)}"
    set_environment(parsed(name)[0])
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import AxisType, Mesh, NamedSharding
    from jax.sharding import PartitionSpec as P

    mesh = Mesh(np.array(devices_of(name, *parsed(name))), ("tensor",), axis_types=(AxisType.Explicit,))

    def array(shape: tuple[int, ...], *axes: str | None, dtype: Any = jnp.bfloat16) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P(*axes)))

    def product(x: Any, w: Any) -> Any:
        return jax.nn.silu(jnp.einsum("bi,oi->bo", x, w))

    def summed(x: Any, w: Any) -> Any:
        return jnp.einsum("bi,oi->bo", x, w, out_sharding=P())

    def loop(cache: Any, q: Any, stop: Any) -> Any:
        """Writes one position [B, K, H] of a cache [S, B, K, H] in each step, and reads all of it."""

        def body(state: Any) -> Any:
            cache, q, index = state
            cache = jax.lax.dynamic_update_slice_in_dim(cache, q[None], index, 0)
            scores = jnp.einsum("bkh,sbkh->bks", q, cache, preferred_element_type=jnp.float32)
            out = jnp.einsum("bks,sbkh->bkh", jax.nn.softmax(scores).astype(q.dtype), cache)
            return cache, out, index + 1

        return jax.lax.while_loop(lambda state: state[2] < stop, body, (cache, q, jnp.int32(0)))

    heads, number = array((1, S, HEADS, H)), array((), dtype=jnp.int32)
    with jax.set_mesh(mesh):
        if program == "product":
            lowered = jax.jit(product).lower(array((B, D)), array((M, D)))
        elif program == "attention":
            causal = partial(jax.nn.dot_product_attention, is_causal=True, implementation="cudnn")
            lowered = jax.jit(causal).lower(heads, heads, heads)
        elif program == "sum":
            lowered = jax.jit(summed).lower(array((B, M), None, "tensor"), array((D, M), None, "tensor"))
        else:
            cache, q = array((S, B, HEADS, H)), array((B, HEADS, H))
            lowered = jax.jit(loop, donate_argnums=0).lower(cache, q, number)
        return lowered.compile().as_text()


if __name__ == "__main__":
    arguments = [argument for argument in sys.argv[1:] if argument != "--short"]
    text = main(*arguments)
    print(shortened(text) if "--short" in sys.argv else text)
