"""Which implementation of attention is chosen, what each one refuses, and for which devices the kernels compile."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, NamedSharding, PartitionSpec

from tests.model.attention_case import Case
from tests.model.kernel_programs import ENVIRONMENT
from videollava_jax.model import kernels
from videollava_jax.model.attention import Implementation, KeysValues, attention, partial_attention
from videollava_jax.model.kernels import AttentionKernel, cudnn, decode_gpu, decode_tpu
from videollava_jax.model.sharding import make_mesh

# JAX 0.11 says so whenever the kernel for GPUs is lowered.
pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")
ON_GPU = jax.default_backend() == "gpu"


def on(platform: str, kind: str, *, T: int, S: int, dtype: str, lse: bool = False, order: str = "GSKH", **changed):
    """The kernel that is chosen for arrays on a mesh of chips that are only described."""
    mesh = AbstractMesh(
        (2, 4),
        ("data", "tensor"),
        axis_types=(AxisType.Explicit,) * 2,
        abstract_device=AbstractDevice(device_kind=kind, num_cores=None, platform=platform),
    )
    sizes = dict(
        B=(4, "data"), T=(T, None), N=(32, "tensor"), G=(4, "data"), S=(S, None), K=(32, "tensor"), H=(128, None)
    )
    chosen = []

    def array(axes: str, dtype: str) -> jax.ShapeDtypeStruct:
        shape, spec = zip(*(sizes[letter] for letter in axes), strict=True)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec(*spec)))

    def choose(q: jax.Array, k: jax.Array) -> None:
        operands = kernels.Operands(q, k, k, order=order, **changed)
        chosen.append(kernels.best(operands, lse=lse))

    jax.eval_shape(choose, array("BTNH", dtype), array(order, changed.pop("keys", dtype)))
    return chosen[0]


@pytest.fixture
def one_pass():
    """Products at default precision: with the highest, which all tests ask for, splash refuses bfloat16."""
    with jax.default_matmul_precision("default"):
        yield


def flash_attention(monkeypatch: pytest.MonkeyPatch, *, there: bool) -> None:
    """Lets the machine have GPUs that cuDNN's kernel compiles for, or none."""
    monkeypatch.setitem(kernels.KERNELS, "cudnn", dataclasses.replace(cudnn.KERNEL, runs_on=lambda kind: there))


@pytest.mark.usefixtures("one_pass")
def test_the_choice(monkeypatch):
    tpu, gpu = functools.partial(on, "tpu", "TPU v5 lite"), functools.partial(on, "gpu", "NVIDIA H100")
    flash_attention(monkeypatch, there=True)
    prefill = dict(T=2106, S=2106, causal_offset=0)
    assert tpu(**prefill, dtype="bfloat16") == tpu(**prefill, dtype="float32") == "splash"
    assert gpu(**prefill, dtype="bfloat16") == "cudnn"
    assert gpu(**prefill, dtype="float32") is None
    # The towers: too short for splash.
    assert gpu(T=257, S=257, dtype="bfloat16") == "cudnn"
    assert tpu(T=257, S=257, dtype="bfloat16") is None
    # Questions after a prefix.
    after = dict(T=640, S=2112, dtype="bfloat16", lse=True, order="GKSH")
    assert tpu(**after) == "splash"
    assert gpu(**after) == gpu(**after, keys="int8") == "extend_gpu"
    # Decode, and what no kernel takes.
    for chips in (tpu, gpu):
        assert chips(T=1, S=2112, dtype="bfloat16", lse=True, order="GKSH") is None
    assert tpu(**after, keys="int8") is None
    # A chip for which XLA would keep scores in high-bandwidth memory.
    v5p = functools.partial(on, "tpu", "TPU v5")
    step = dict(T=1, dtype="bfloat16", lse=True)
    assert v5p(**step, S=2112, order="GKSH") == v5p(**step, S=2112, order="GKSH", keys="int8") == "decode_tpu"
    assert v5p(**step, S=192, order="SGKH") == "tail_tpu"
    assert v5p(**step, S=192, order="SGKH", causal_offset=0) is None
    assert v5p(**after) == "splash"
    assert tpu(**step, S=192, order="SGKH") is on("tpu", "TPU v4", **step, S=192, order="SGKH") is None
    assert tpu(T=640, S=640, dtype="bfloat16", causal_offset=np.int32(0)) is None
    # A CPU: head by head from `by_head.FEWEST_QUERIES` on.
    assert on("cpu", "cpu", **prefill, dtype="float32") == on("cpu", "cpu", **after) == "by_head"
    assert on("cpu", "cpu", T=257, S=257, dtype="float32") is None


@pytest.mark.usefixtures("one_pass")
@pytest.mark.parametrize(
    ("platform", "kind", "fewest", "name"),
    [("gpu", "NVIDIA H100", 128, "cudnn"), ("tpu", "TPU v5 lite", 512, "splash"), ("cpu", "cpu", 513, "by_head")],
)
def test_from_how_many_queries_a_kernel_is_chosen(monkeypatch, platform: str, kind: str, fewest: int, name: str):
    flash_attention(monkeypatch, there=True)
    assert [on(platform, kind, T=T, S=640, dtype="bfloat16") for T in (fewest - 1, fewest)] == [None, name]


@pytest.mark.usefixtures("one_pass")
def test_the_choice_where_a_kernel_would_not_compile(monkeypatch):
    prefill = dict(T=2106, S=2106, dtype="bfloat16", causal_offset=0)
    flash_attention(monkeypatch, there=False)
    assert on("gpu", "NVIDIA V100", **prefill) is None
    with jax.default_matmul_precision("highest"):
        assert on("tpu", "TPU v5 lite", **prefill) is None
        assert on("tpu", "TPU v5 lite", **{**prefill, "dtype": "float32"}) == "splash"


@pytest.mark.parametrize(
    ("here", "kind", "chosen"),
    [
        ({"cpu": None}, "NVIDIA H200", "cudnn"),  # described, for a plan
        ({"NVIDIA H100": "9.0"}, "NVIDIA H100", "cudnn"),
        ({"Tesla V100-SXM2-16GB": "7.0"}, "Tesla V100-SXM2-16GB", None),
        ({"Tesla V100-SXM2-16GB": "7.0"}, "NVIDIA H200", "cudnn"),
        ({"AMD Instinct MI300X": "gfx942"}, "AMD Instinct MI300X", None),
        ({"NVIDIA H100": "9.0"}, "AMD Instinct MI300X", None),
    ],
)
def test_the_choice_goes_by_the_chip_that_the_program_is_for(
    monkeypatch, here: dict[str, str | None], kind: str, chosen: str | None
):
    """Whatever devices this machine has."""
    local = [SimpleNamespace(device_kind=name, compute_capability=of) for name, of in here.items()]
    monkeypatch.setattr(jax, "local_devices", lambda: local)
    assert on("gpu", kind, T=2106, S=2106, dtype="bfloat16", causal_offset=0) == chosen


REFUSED = {
    "splash, traced offset": ("splash", dict(causal=3, traced=True), "known when the program is compiled"),
    "splash, shared rows": ("splash", dict(causal=0, rows=2), "keys of its own for every row"),
    "splash, int8": ("splash", dict(int8=True), "keys in the dtype of the queries, float32, not int8"),
    "decode_tpu, order": ("decode_tpu", dict(order="GSKH"), 'keys in order "GKSH", not "GSKH"'),
    "decode_tpu, causal": ("decode_tpu", dict(causal=0), "has no causal rule"),
    "decode_tpu, many": ("decode_tpu", dict(T=300), "up to 256 queries on each key head, not 600"),
    "tail_tpu, order": ("tail_tpu", dict(T=1), 'keys in order "SGKH", not "GKSH"'),
    "tail_tpu, heads": ("tail_tpu", dict(T=1, order="SGKH"), "takes a multiple of 4 key heads on a device"),
    "tail_tpu, long": ("tail_tpu", dict(T=1, K=64, H=64, order="SGKH"), "up to 2 MiB at 128 positions"),
    "tail_tpu, several": ("tail_tpu", dict(order="SGKH"), "one query of each row, and keys of its own"),
    "tail_tpu, shared": ("tail_tpu", dict(T=1, rows=2, order="SGKH"), "one query of each row, and keys of its own"),
    "tail_tpu, int8": ("tail_tpu", dict(T=1, int8=True, order="SGKH"), "keys and values without scales"),
    "decode_gpu, many": ("decode_gpu", dict(T=40), "up to 64 queries on each key head, not 80"),
    "decode_gpu, heads": ("decode_gpu", dict(H=48), "heads of 16, 32, 64 or 128, not 48"),
}


@pytest.mark.parametrize(("implementation", "changed", "message"), REFUSED.values(), ids=REFUSED)
def test_what_a_kernel_does_not_take_is_refused(implementation: Implementation, changed: dict, message: str):
    plain = dict(G=2, rows=1, T=4, K=2, heads=2, S=20, H=64, order="GKSH", dtype="float32", int8=False, mask="all")
    case = Case(**{**plain, "causal": None, "traced": False, "seed": 0, **changed})
    q, kv, mask = case.arrays()

    def run(offset: jax.Array | int | None) -> jax.Array:
        return attention(q, kv, key_mask_GS=mask, causal_offset=offset, implementation=implementation)

    with pytest.raises(ValueError, match=f"{implementation}.*{message}"):
        jax.jit(run)(case.offset()) if case.traced else run(case.offset())


@pytest.mark.parametrize("spec", [(None, None, "tensor"), ()])
def test_arrays_split_unlike_each_other_are_refused(spec: tuple[str | None, ...]):
    mesh = make_mesh(2, 4)
    q, k = (jax.device_put(jnp.zeros((2, 4, 4, 64)), NamedSharding(mesh, PartitionSpec(*s))) for s in (("data",), spec))
    with pytest.raises(ValueError, match="'splash' needs rows and heads of all arrays split over the same explicit"):
        attention(q, KeysValues(k, k), implementation="splash")


def test_a_mesh_that_does_not_say_how_arrays_are_split_is_refused():
    mesh = jax.make_mesh((2, 4), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    q = jax.device_put(jnp.zeros((2, 4, 4, 64)), NamedSharding(mesh, PartitionSpec("data")))
    with pytest.raises(ValueError, match="'splash' needs rows and heads"):
        attention(q, KeysValues(q, q), implementation="splash")


@pytest.mark.skipif(ON_GPU, reason="there is a GPU")
def test_cudnn_without_a_gpu_is_refused():
    q = jnp.zeros((1, 4, 2, 64), jnp.bfloat16)
    with pytest.raises(ValueError, match="'cudnn' runs on gpu, and this program is for"):
        attention(q, KeysValues(q, q), implementation="cudnn")


def test_an_unknown_implementation_is_refused():
    q = jnp.zeros((1, 4, 2, 64))
    with pytest.raises(ValueError, match=r"expected one of reference, blocked, cudnn.*got 'flash'"):
        attention(q, KeysValues(q, q), implementation="flash")


def test_a_kernel_is_added_by_one_entry(monkeypatch):
    """It is chosen where it says so, runs where it is named, and refuses with its own reason."""
    calls = []

    def run(operands: kernels.Operands, *, lse: bool, interpret: bool) -> tuple[jax.Array, None]:
        calls.append((lse, interpret))
        return jnp.full_like(operands.q_BTNH, 7), None

    made_up = AttentionKernel(
        run=run,
        platforms=(jax.default_backend(),),
        chosen_from={jax.default_backend(): 4},
        gives_lse=False,
        own_refusal=lambda operands: "takes an even number of keys" if operands.size("S") % 2 else None,
    )
    monkeypatch.setitem(kernels.KERNELS, "made_up", made_up)
    even, odd, few = (jnp.ones((1, T, 2, 64)) for T in (4, 5, 2))
    interpreted = jax.default_backend() == "cpu"

    assert (attention(even, KeysValues(even, even)) == 7).all()  # chosen
    assert (attention(few, KeysValues(even, even), implementation="made_up") == 7).all()  # named
    assert calls == [(False, interpreted)] * 2
    for q, keys in ((few, even), (even, odd)):  # too few queries; what it refuses
        assert (attention(q, KeysValues(keys, keys)) == 1).all()
    with pytest.raises(ValueError, match="'made_up' takes an even number of keys; name another one"):
        attention(even, KeysValues(odd, odd), implementation="made_up")
    with pytest.raises(ValueError, match="'made_up' gives no log-sum-exp"):
        partial_attention(even, KeysValues(even, even), implementation="made_up")
    with pytest.raises(ValueError, match=r"expected one of .*, by_head, made_up, got 'flash'"):
        attention(even, KeysValues(even, even), implementation="flash")
    assert len(calls) == 2


def test_pallas_is_imported_by_the_kernel_that_runs():
    """In a process of its own: neither the table nor a choice imports it."""
    program = (
        "import sys, jax.numpy as jnp\n"
        "from videollava_jax.model.attention import KeysValues, attention\n"
        "x = jnp.ones((1, 600, 1, 16))\n"
        "attention(x, KeysValues(x, x))\n"
        "came = [name for name in sys.modules if name.startswith('jax.experimental.pallas')]\n"
        "assert not came, came\n"
        "few = x[:, :8]\n"
        "attention(few, KeysValues(few, few), implementation='splash')\n"
        "assert 'jax.experimental.pallas' in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2]
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("decode", "kind", "platform", "target"),
    [
        (decode_gpu.decode, "NVIDIA H100", "cuda", "__gpu$xla.gpu.triton"),
        (decode_tpu.decode, "TPU v5 lite", "tpu", "tpu_custom_call"),
    ],
    ids=["gpu", "tpu"],
)
def test_decode_kernels_lower_without_their_devices(
    decode, kind: str, platform: str, target: str, dtype: str, int8: bool
):
    """The model's own shapes: Pallas' own rules accept the kernel. What a compiler makes of it is tested elsewhere."""
    case = Case(1, 25, 1, 2, 1, 2112, 128, "GKSH", dtype, int8, "some", None, False, 0)
    q, kv, mask = case.arrays()
    operands = kernels.Operands(q, kv.keys, kv.values, kv.key_scale, kv.value_scale, mask, None, "GKSH")
    device = AbstractDevice(device_kind=kind, num_cores=None, platform="gpu" if platform == "cuda" else platform)
    with jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=device)):
        lowered = jax.jit(decode).trace(operands).lower(lowering_platforms=(platform,))
    assert lowered.as_text().count(target) == 1


@pytest.mark.tpu_compiler
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu, the TPU compiler (extra `tpu`)")
@pytest.mark.parametrize("topology", ["v5e:2x4", "v6e:2x4", "v5p:2x2x2"])
def test_kernels_compile_for_tpus(topology: str):
    """With the real compiler, 8 chips: one kernel, nothing gathered, and no scores in memory."""
    command = [sys.executable, "-m", "tests.model.kernel_programs", topology]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
        cwd=Path(__file__).parents[2],
        env=ENVIRONMENT,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    programs = {"prefill", "gradient", "questions", "heads_of_64", "decode", "decode_int8", "tails"}
    assert {row["program"] for row in rows} == programs
    for row in rows:
        assert row["kernels"] == (3 if row["program"] == "gradient" else 1), row
        assert not row["collectives"], row
        assert row["temporary_bytes"] < row["score_bytes"] / 2, row
