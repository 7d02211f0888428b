"""Every implementation of attention against the reference."""

from __future__ import annotations

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from tests.model.attention_case import Case
from tests.tolerances import BFLOAT16_ATTENTION, SELF
from videollava_jax.model import kernels
from videollava_jax.model.attention import (
    Implementation,
    KeysValues,
    Part,
    attention,
    implementations,
    merged,
    partial_attention,
)
from videollava_jax.model.kernels import cudnn, decode_gpu, decode_tpu, tail_tpu
from videollava_jax.model.sharding import make_mesh

ON_GPU = jax.default_backend() == "gpu"
IMPLEMENTATIONS = [
    pytest.param(name, marks=pytest.mark.skipif(name == "cudnn" and not ON_GPU, reason="cuDNN needs an NVIDIA GPU"))
    for name in implementations()
]


# JAX 0.11 says so whenever the kernel for GPUs is lowered.
pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")


@st.composite
def cases(draw: st.DrawFn, implementation: str) -> Case:
    """Attentions that an implementation takes; those of the others are in `REFUSED`."""
    few, many = implementation.startswith(("decode", "extend")), implementation in ("splash", "cudnn")
    causal = None if few else draw(st.sampled_from([None, 0, 3]))
    alone = implementation == "splash" and causal is not None
    orders = ["GKSH"] if few else ["GSKH"] if implementation == "cudnn" else ["GSKH", "GKSH", "SGKH"]
    if implementation == "tail_tpu":
        few, many, alone, causal, orders = True, True, True, None, ["SGKH"]
    return Case(
        G=draw(st.integers(1, 20 if implementation == "tail_tpu" else 3)),
        rows=1 if alone else draw(st.sampled_from([1, 3])),
        T=1 if implementation == "tail_tpu" else draw(st.integers(1, 5 if few else 140)),
        K=draw(st.sampled_from([4, 8]) if implementation == "tail_tpu" else st.integers(1, 2)),
        heads=draw(st.sampled_from([1, 2, 3])),
        S=draw(st.integers(1, 300)),
        H=draw(st.sampled_from([16, 64, 128])),
        order=draw(st.sampled_from(orders)),
        # The plain ones in bfloat16 are those of tests/parity/test_bfloat16.py.
        dtype="bfloat16"
        if implementation == "cudnn"
        else draw(st.sampled_from(["float32", "bfloat16"][: 1 + (few or many)])),
        int8=False if many else draw(st.booleans()),
        mask=draw(st.sampled_from(["all", "some", "left", "nothing"])),
        causal=causal,
        traced=False if implementation == "splash" else draw(st.booleans()),
        seed=draw(st.integers(0, 2**32 - 1)),
    )


def truth(q: jax.Array, kv: KeysValues, mask: jax.Array | None, offset: int | jax.Array | None) -> Part:
    """The reference in float32, of the same numbers."""
    kv = jax.tree.map(lambda x: x if x.dtype == jnp.int8 else x.astype(jnp.float32), kv)
    run = jax.jit(functools.partial(partial_attention, implementation="reference"))
    return run(q.astype(jnp.float32), kv, key_mask_GS=mask, causal_offset=offset)


def check(case: Case, out_BTNH: jax.Array, expected: Part, lse_BTN: jax.Array | None = None) -> None:
    """Equal where a query sees something; elsewhere finite, and without weight."""
    tolerance = SELF if case.dtype == "float32" else BFLOAT16_ATTENTION
    sees = np.asarray(expected.lse_BTN) > -1e20
    assert np.isfinite(np.asarray(out_BTNH, np.float32)).all()
    np.testing.assert_allclose(
        np.asarray(out_BTNH, np.float32)[sees], np.asarray(expected.out_BTNH)[sees], rtol=tolerance, atol=tolerance
    )
    if lse_BTN is not None:
        assert lse_BTN.dtype == jnp.float32
        lse, scores = np.asarray(lse_BTN), np.asarray(expected.lse_BTN)
        np.testing.assert_allclose(lse[sees], scores[sees], rtol=tolerance, atol=tolerance)
        assert (lse[~sees] < -1e20).all()
        assert np.isfinite(lse).all()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_every_implementation_is_the_reference(implementation: Implementation, data: st.DataObject):
    case = data.draw(cases(implementation))
    q, kv, mask = case.arrays()

    @jax.jit
    def run(q: jax.Array, kv: KeysValues, mask: jax.Array | None) -> tuple[jax.Array, Part | None]:
        named = dict(key_mask_GS=mask, causal_offset=case.offset(), implementation=implementation)
        # cuDNN gives no part.
        return attention(q, kv, **named), None if implementation == "cudnn" else partial_attention(q, kv, **named)

    expected = truth(q, kv, mask, case.offset())
    out_BTNH, part = run(q, kv, mask)
    assert (out_BTNH.shape, out_BTNH.dtype) == (q.shape, q.dtype)
    check(case, out_BTNH, expected)
    if part is not None:
        assert part.out_BTNH.dtype == jnp.float32
        check(case, part.out_BTNH, expected, part.lse_BTN)


@settings(max_examples=12, deadline=None)
@given(case=cases("cudnn"))
def test_cudnn_is_asked_for_what_the_reference_gives(case: Case):
    """Everything but the kernel itself: JAX answers the same call by other means where there is no GPU."""
    case = dataclasses.replace(case, dtype="float32")
    q, kv, mask = case.arrays()
    operands = kernels.Operands(q, kv.keys, kv.values, None, None, mask, None, "GSKH", case.offset())
    with pytest.MonkeyPatch.context() as patch:
        asked = functools.partial(_without_cudnn, jax.nn.dot_product_attention)
        patch.setattr(jax.nn, "dot_product_attention", asked)
        attend = jax.jit(lambda q: cudnn.attend(dataclasses.replace(operands, q_BTNH=q)))
        check(case, attend(q), truth(q, kv, mask, case.offset()))


def _without_cudnn(attend, q, k, v, *, mask, is_causal, implementation):  # type: ignore[no-untyped-def]
    assert implementation == "cudnn"
    assert mask is None or (mask.shape[-2:] == (q.shape[1], k.shape[1]) and not (q.shape[1] % 2 or k.shape[1] % 2))
    return attend(q, k, v, mask=mask, is_causal=is_causal, implementation="xla")


@pytest.mark.parametrize(
    "decode",
    [
        functools.partial(decode_tpu.decode, block=128),
        functools.partial(decode_gpu.decode, splits=1),
        functools.partial(decode_gpu.decode, splits=3),
    ],
    ids=["tpu, blocks of 128", "gpu, one split", "gpu, three splits"],
)
@settings(max_examples=6, deadline=None)
@given(case=cases("decode_gpu"))
def test_decode_in_several_blocks(decode, case: Case):
    """Slots that do not fill the last block, and blocks in which nothing is seen."""
    q, kv, mask = case.arrays()
    operands = kernels.Operands(q, kv.keys, kv.values, kv.key_scale, kv.value_scale, mask, None, "GKSH")
    run = jax.jit(lambda q: decode(dataclasses.replace(operands, q_BTNH=q), interpret=True))
    out_BTNH, lse_BTN = run(q)
    check(case, out_BTNH, truth(q, kv, mask, None), lse_BTN)


@settings(max_examples=8, deadline=None)
@given(case=cases("tail_tpu"))
def test_tails_in_several_blocks(case: Case):
    """Positions that do not fill the last block, and rows that do not fill the last one."""
    q, kv, mask = case.arrays()
    operands = kernels.Operands(q, kv.keys, kv.values, None, None, mask, None, "SGKH")
    run = jax.jit(lambda q: tail_tpu.attend(dataclasses.replace(operands, q_BTNH=q), interpret=True, block=128))
    out_BTNH, lse_BTN = run(q)
    check(case, out_BTNH, truth(q, kv, mask, None), lse_BTN)


@pytest.mark.parametrize("implementation", ["splash", "by_head"])
@pytest.mark.parametrize("causal", [None, 0, 200])
def test_in_several_blocks(implementation: Implementation, causal: int | None):
    case = Case(1, 1, 1100, 1, 2, 1300, 64, "GSKH", "float32", False, "left", causal, False, 4)
    q, kv, mask = case.arrays()
    named = dict(key_mask_GS=mask, causal_offset=causal)
    part = jax.jit(lambda q: partial_attention(q, kv, **named, implementation=implementation))(q)
    check(case, part.out_BTNH, truth(q, kv, mask, causal), part.lse_BTN)


@pytest.mark.parametrize("prefix", ["reference", "splash", "decode_tpu", "decode_gpu"])
def test_a_prefix_and_a_tail_together(prefix: Implementation):
    """Two parts, one by a kernel, are the attention over all keys; a prefix whose keys are all masked has no weight."""
    rng = np.random.default_rng(1)
    q = jnp.asarray(rng.normal(size=(4, 1, 4, 64)), jnp.float32)
    prefixes, tails = (
        KeysValues(*(jnp.asarray(rng.normal(size=(G, 2, S, 64)), jnp.float32) for _ in "kv"), order="GKSH")
        for G, S in ((2, 40), (4, 5))
    )
    mask = jnp.asarray(rng.random((2, 40)) < 0.7).at[1].set(False)
    ours = merged(partial_attention(q, prefixes, key_mask_GS=mask, implementation=prefix), partial_attention(q, tails))
    both = KeysValues(
        *(jnp.concatenate([jnp.repeat(a, 2, 0), b], 2) for a, b in zip(*map(vars_of, (prefixes, tails)), strict=True)),
        order="GKSH",
    )
    whole = attention(q, both, key_mask_GS=jnp.pad(jnp.repeat(mask, 2, 0), ((0, 0), (0, 5)), constant_values=True))
    np.testing.assert_allclose(ours, whole, rtol=SELF, atol=SELF)


def vars_of(kv: KeysValues) -> tuple[jax.Array, jax.Array]:
    return kv.keys, kv.values


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("implementation", ["blocked", "splash", "by_head"])
def test_gradients_are_those_of_the_reference(implementation: Implementation, packed: bool):
    rng = np.random.default_rng(2)
    q, k, v, out = (jnp.asarray(rng.normal(size=(2, 150, n, 64)), jnp.float32) for n in (4, 2, 2, 4))
    mask = jnp.arange(150) >= jnp.asarray([[0], [23]])
    seen = dict(segments_GS=segments(2, 150)) if packed else dict(key_mask_GS=mask)

    def loss(implementation: Implementation, *qkv: jax.Array) -> jax.Array:
        got = attention(qkv[0], KeysValues(*qkv[1:]), **seen, causal_offset=0, implementation=implementation)
        return jnp.where(mask[..., None, None], got * out, 0).sum()

    ours, theirs = (
        jax.grad(functools.partial(loss, name), (0, 1, 2))(q, k, v) for name in (implementation, "reference")
    )
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=SELF, atol=SELF)


def segments(rows: int, tokens: int) -> jax.Array:
    """Three sequences a row and padding behind them, cut at other places in every row."""
    cuts = np.sort(np.random.default_rng(5).integers(1, tokens, (rows, 3)), axis=1)
    found = (np.arange(tokens) >= cuts[:, :, None]).sum(1) + 1
    return jnp.asarray(np.where(found > 3, 0, found), jnp.int32)


@pytest.mark.parametrize("causal", [None, 0])
@pytest.mark.parametrize("implementation", ["reference", "blocked", "splash", "by_head", "cudnn"])
def test_packed_sequences_do_not_see_each_other(implementation: Implementation, causal: int | None, monkeypatch):
    """Each sequence of a row of 600 tokens has the output that it has alone."""
    rng = np.random.default_rng(6)
    q, k, v = (jnp.asarray(rng.normal(size=(2, 600, n, 64)), jnp.float32) for n in (4, 2, 2))
    found, packed = np.asarray(segments(2, 600)), segments(2, 600)
    if implementation == "cudnn":  # everything but the kernel itself
        monkeypatch.setattr(
            jax.nn, "dot_product_attention", functools.partial(_without_cudnn, jax.nn.dot_product_attention)
        )
        got = cudnn.attend(kernels.Operands(q, k, v, None, None, None, packed, "GSKH", causal))
    else:
        run = functools.partial(attention, causal_offset=causal, implementation=implementation)
        got = jax.jit(lambda q: run(q, KeysValues(k, v), segments_GS=packed))(q)
    assert np.isfinite(got).all()
    for row, segment in itertools.product(range(2), (1, 2, 3)):
        (here,) = np.nonzero(found[row] == segment)
        q1, k1, v1 = (x[row : row + 1, here] for x in (q, k, v))
        alone = attention(q1, KeysValues(k1, v1), causal_offset=causal, implementation="reference")
        np.testing.assert_allclose(got[row, here], alone[0], rtol=SELF, atol=SELF)


def test_segments_with_a_mask_or_of_another_shape_are_refused():
    q = jnp.zeros((2, 4, 2, 64))
    for changed in (dict(key_mask_GS=jnp.ones((2, 4), bool)), dict(segments_GS=jnp.ones((2, 5), jnp.int32))):
        with pytest.raises(ValueError, match=r"segments: expected \[2, 4\]"):
            attention(q, KeysValues(q, q), **{"segments_GS": jnp.ones((2, 4), jnp.int32), **changed})


@pytest.mark.parametrize("implementation", ["splash", "decode_tpu", "decode_gpu", "by_head", "tail_tpu"])
@pytest.mark.parametrize("jit", [False, True])
def test_each_device_attends_to_its_rows_and_heads(implementation: Implementation, jit: bool):
    int8, tails = implementation not in ("splash", "tail_tpu"), implementation == "tail_tpu"
    rows, T, K, order = (1, 1, 16, "SGKH") if tails else (3, 4, 4, "GKSH")
    case = Case(2, rows, T, K, 2, 70, 64, order, "float32", int8, "some", None, False, 3)
    q, kv, mask = case.arrays()
    expected = truth(q, kv, mask, None)
    mesh = make_mesh(2, 4)

    def put(x: jax.Array, *spec: str | None) -> jax.Array:
        return jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))

    q, mask = put(q, "data", None, "tensor"), put(mask, "data")
    kv = jax.tree.map(lambda x: put(x, *((None, "data", "tensor") if tails else ("data", "tensor"))), kv)

    def run(q: jax.Array, kv: KeysValues, mask: jax.Array) -> Part:
        return partial_attention(q, kv, key_mask_GS=mask, implementation=implementation)

    part = (jax.jit(run) if jit else run)(q, kv, mask)
    check(case, part.out_BTNH, expected, part.lse_BTN)
    assert part.out_BTNH.sharding.spec == PartitionSpec("data", None, "tensor", None)
    if jit:
        text = jax.jit(run).lower(q, kv, mask).compile().as_text()
        assert not [name for name in ("all-gather", "all-reduce", "all-to-all", "collective-permute") if name in text]
