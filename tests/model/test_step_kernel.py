"""The kernel for a step of decoding on GPUs, in Pallas' interpreter, against the reference and the tails' update."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from tests.tolerances import BFLOAT16_ATTENTION, SELF
from videollava_jax.model import layers
from videollava_jax.model.attention import KeysValues, merged, partial_attention, step_attention
from videollava_jax.model.cache import written
from videollava_jax.model.layers import Linear, in_one_product
from videollava_jax.model.sharding import make_mesh

# JAX 0.11 says so whenever the kernel is lowered.
pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")
CASES = {
    "one row": dict(G=3, rows=1, K=1, heads=3, S=64, tail=5, H=64),
    "rows and heads": dict(G=1, rows=8, K=2, heads=2, S=130, tail=70, H=32),
    "25 rows": dict(G=2, rows=25, K=2, heads=1, S=200, tail=192, H=128),
    "short": dict(G=2, rows=3, K=2, heads=1, S=17, tail=1, H=16),
}


def arrays(
    G: int, rows: int, K: int, heads: int, S: int, tail: int, H: int, *, dtype: Any, int8: bool
) -> tuple[Any, ...]:
    """Returns queries, prefix, tail, new keys and values, the position of the new ones, and two masks."""
    random, B = np.random.default_rng(hash((G, rows, S, int8)) % 2**32), G * rows

    def drawn(*shape: int) -> jax.Array:
        return jnp.asarray(random.normal(size=shape), dtype)

    order = "GKSH"
    if int8:
        keys, values = (jnp.asarray(random.integers(-127, 128, (G, K, S, H)), jnp.int8) for _ in "kv")
        scales = [jnp.asarray(random.uniform(0.001, 0.02, (G, K, S)), jnp.float32) for _ in "kv"]
        prefix = KeysValues(keys, values, *scales, order)
    else:
        prefix = KeysValues(drawn(G, K, S, H), drawn(G, K, S, H), order=order)
    own = KeysValues(drawn(tail, B, K, H), drawn(tail, B, K, H), order="SGKH")
    new = KeysValues(drawn(B, 1, K, H), drawn(B, 1, K, H))
    at = int(random.integers(0, tail))
    prefix_mask = jnp.asarray(random.random((G, S)) < 0.7)
    # Row 0 has ended: not even its new token counts. The last one has no other token than that.
    tail_mask = jnp.asarray(random.random((B, tail)) < 0.6).at[:, at].set(True).at[-1].set(jnp.arange(tail) == at)
    tail_mask = tail_mask.at[0, at].set(B == 1)
    return drawn(B, 1, K * heads, H), prefix, own, new, jnp.int32(at), prefix_mask, tail_mask


def by_kernel(q: Any, prefix: Any, own: Any, new: Any, at: Any, prefix_mask: Any, tail_mask: Any) -> Any:
    masks = dict(prefix_mask_GS=prefix_mask, tail_mask_BS=tail_mask)
    return step_attention(q, prefix, own, new, at, **masks, implementation="step_gpu")


def by_reference(q: Any, prefix: Any, own: Any, new: Any, at: Any, prefix_mask: Any, tail_mask: Any) -> Any:
    own, plain = written(own, new, at), dict(implementation="reference")
    parts = (
        partial_attention(q, prefix, key_mask_GS=prefix_mask, **plain),
        partial_attention(q, own, key_mask_GS=tail_mask, **plain),
    )
    return merged(*parts), own


def check(found: Any, expected: Any, tolerance: float, live: Any = slice(None)) -> None:
    out, own = found
    np.testing.assert_allclose(
        np.asarray(out, np.float32)[live], np.asarray(expected[0], np.float32)[live], rtol=tolerance, atol=tolerance
    )
    for name in ("keys", "values"):
        np.testing.assert_array_equal(np.asarray(getattr(own, name)), np.asarray(getattr(expected[1], name)))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize(("dtype", "int8"), [("float32", False), ("float32", True), ("bfloat16", False)])
def test_a_step_is_that_of_the_reference(case: dict[str, int], dtype: str, int8: bool):
    given = arrays(**case, dtype=jnp.dtype(dtype), int8=int8)
    tolerance = SELF if dtype == "float32" else BFLOAT16_ATTENTION
    *_, at, _, tail_mask = given
    live = np.asarray(tail_mask)[:, int(at)]  # nobody wants what ended rows get
    check(jax.jit(by_kernel)(*given), jax.jit(by_reference)(*given), tolerance, live)


def test_what_holds_no_token_is_not_read():
    """Free positions, and all of a row that has ended, are NaN here; a number times that would be NaN too."""
    q, prefix, own, new, at, prefix_mask, tail_mask = arrays(
        **CASES["rows and heads"], dtype=jnp.dtype("float32"), int8=False
    )
    unread = jnp.where(tail_mask[:, at, None], ~tail_mask, True).T[:, :, None, None]
    spoilt = jax.tree.map(lambda x: jnp.where(unread, jnp.nan, x), own)
    masks = prefix_mask, tail_mask
    found, expected = by_kernel(q, prefix, spoilt, new, at, *masks), by_reference(q, prefix, own, new, at, *masks)
    live = np.asarray(tail_mask[:, at])
    assert not live[0]
    assert np.isfinite(np.asarray(found[0])).all()
    np.testing.assert_allclose(np.asarray(found[0])[live], np.asarray(expected[0])[live], rtol=SELF, atol=SELF)


def test_each_device_has_its_own_rows_and_heads():
    q, prefix, own, new, at, *masks = arrays(
        G=2, rows=3, K=4, heads=2, S=40, tail=9, H=16, dtype=jnp.dtype("float32"), int8=True
    )
    expected = by_reference(q, prefix, own, new, at, *masks)
    mesh = make_mesh(2, 4)

    def on(x: jax.Array, *spec: str | None) -> jax.Array:
        return jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))

    def like(kv: KeysValues, order: str) -> KeysValues:
        axes = {"G": "data", "K": "tensor"}
        return jax.tree.map(lambda x: on(x, *(axes.get(letter) for letter in order[: x.ndim])), kv)

    found = jax.jit(by_kernel)(
        on(q, "data", None, "tensor", None),
        like(prefix, "GKSH"),
        like(own, "SGKH"),
        like(new, "GSKH"),
        on(at),
        *(on(mask, "data", None) for mask in masks),
    )
    check(found, expected, SELF, np.asarray(masks[1])[:, int(at)])


def test_nothing_is_chosen_on_a_cpu_and_what_does_not_fit_is_refused():
    q, *rest = arrays(G=1, rows=2, K=1, heads=1, S=40, tail=9, H=16, dtype=jnp.dtype("float32"), int8=False)
    *others, prefix_mask, tail_mask = rest
    masks = dict(prefix_mask_GS=prefix_mask, tail_mask_BS=tail_mask)
    assert step_attention(q, *others, **masks, implementation=None) is None
    given = arrays(G=1, rows=2, K=1, heads=1, S=40, tail=9, H=48, dtype=jnp.dtype("float32"), int8=False)
    with pytest.raises(ValueError, match=r"step_gpu.*heads of 16, 32, 64 or 128, not 48"):
        by_kernel(*given)
    given = arrays(G=1, rows=80, K=1, heads=1, S=40, tail=9, H=16, dtype=jnp.dtype("float32"), int8=False)
    with pytest.raises(ValueError, match=r"step_gpu.*up to 64 queries"):
        by_kernel(*given)


@pytest.mark.parametrize("mesh", [None, (2, 4)])
@pytest.mark.parametrize("int8", [False, True])
def test_two_projections_in_one_product_are_the_two(monkeypatch: pytest.MonkeyPatch, mesh: Any, int8: bool):
    from flax import nnx

    monkeypatch.setattr(layers, "JOINED", 2)
    random = np.random.default_rng(0)
    first, second = (
        Linear(16, 24, bias=False, dtype=jnp.float32, rngs=nnx.Rngs(i), quantization="int8" if int8 else None)
        for i in range(2)
    )
    x = jnp.asarray(random.normal(size=(4, 1, 16)), jnp.float32)
    for linear in (first, second):
        if int8:
            linear.weight[...] = jnp.asarray(random.integers(-127, 128, (24, 16)), jnp.int8)
            assert linear.weight_scale is not None
            linear.weight_scale[...] = jnp.asarray(random.uniform(0.001, 0.01, 24), jnp.float32)
    expected = first(x), second(x)
    if mesh is not None:
        made = make_mesh(*mesh)
        x = jax.device_put(x, NamedSharding(made, PartitionSpec("data", None, None)))
        for linear in (first, second):
            for parameter in filter(None, (linear.weight, linear.weight_scale)):
                spec = PartitionSpec("tensor", *(None,) * (parameter[...].ndim - 1))
                parameter.set_value(jax.device_put(parameter[...], NamedSharding(made, spec)))
    found = in_one_product(x, first, second)
    assert found is not None
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=SELF, atol=SELF)
    monkeypatch.setattr(layers, "JOINED", 5)
    assert in_one_product(x, first, second) is None
