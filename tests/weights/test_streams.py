"""Conversions as they pass: groups of tensors, memory that is used again, damage that is found on the way."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from tests.small_models import random_parameters, small_config
from tests.weights.checkpoints import assert_same_bits, read_all, write_checkpoint
from videollava_jax.assets import TINY
from videollava_jax.weights import Options, WeightsError, convert_to_orbax, export, load_checkpoint, open_checkpoint
from videollava_jax.weights import memory as memory_module
from videollava_jax.weights.files import PARAMETERS, StoredTensor
from videollava_jax.weights.memory import LEAST, empty, reused_memory
from videollava_jax.weights.orbax import open_orbax, restore_orbax, write_orbax
from videollava_jax.weights.stream import nonfinite

BYTES = np.dtype(np.uint8)


@pytest.fixture
def converted(tmp_path):
    """A checkpoint in the hub's layout, and an Orbax directory of it."""
    config = small_config(text={"vocab_size": 8192, "hidden_size": 64})
    write_checkpoint(tmp_path / "a", config, random_parameters(config, 0), "hub")
    convert_to_orbax(tmp_path / "a", tmp_path / "orbax")
    export(tmp_path / "a", tmp_path / "hub", "hub")
    return tmp_path


def damage(directory):
    """Another value in the embedding, in the middle of the largest file."""
    path = max((path for path in directory.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    with open(path, "r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"\x3f\x3e\x3d\x3c")


# ── memory ──────────────────────────────────────────────────────────────────────────────────────────────────


def address(array):
    return array.__array_interface__["data"][0]


def test_memory_is_used_again_when_the_last_view_is_gone():
    with reused_memory():
        first = empty((LEAST,), BYTES)
        first[:] = 7
        view, place = first[100:].view(np.uint16)[3:], address(first)
        del first
        second = empty((LEAST,), BYTES)
        assert address(second) != place
        second[:] = 9
        assert (view == 0x0707).all()
        del view
        third = empty((LEAST // 2, 2), BYTES)
        assert (address(third), third.shape) == (place, (LEAST // 2, 2))
    del second, third
    assert memory_module._blocks.free == []


def test_memory_is_not_kept_beyond_a_measure(monkeypatch):
    monkeypatch.setattr(memory_module, "FREE_BYTES", 3 * LEAST)
    with reused_memory():
        arrays = [empty((LEAST,), BYTES) for _ in range(8)]
        del arrays
        assert sum(map(len, memory_module._blocks.free)) == 3 * LEAST


# ── groups ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_conversion_in_many_groups(tmp_path, monkeypatch):
    config = small_config()
    expected = write_checkpoint(tmp_path / "a", config, random_parameters(config, 0, "bfloat16"), "hub")
    monkeypatch.setattr("videollava_jax.weights.stream.GROUP_BYTES", 2000)
    convert_to_orbax(tmp_path / "a", tmp_path / "orbax")
    export(tmp_path / "orbax", tmp_path / "b", "hub")
    assert_same_bits(read_all(tmp_path / "b"), expected)


@pytest.mark.parametrize("error", [OSError("no such disk"), WeightsError("ends inside"), RuntimeError("other")])
def test_what_the_source_raises_is_raised(tmp_path, error):
    array = np.ones((3, 5), np.float32)

    def groups():
        yield {"b": array}
        raise error

    stored = [StoredTensor(name, array.shape, array.dtype, tmp_path, lambda: array) for name in "ab"]
    with pytest.raises(type(error), match=str(error)):
        write_orbax(tmp_path, stored, groups())


def test_directories_with_odd_names(tmp_path):
    config = small_config()
    expected = write_checkpoint(tmp_path / "a", config, random_parameters(config, 0), "hub")
    odd = tmp_path / "50% of #1? é"
    convert_to_orbax(tmp_path / "a", odd)
    export(odd, tmp_path / "b", "hub")
    assert_same_bits(read_all(tmp_path / "b"), expected)


def test_directories_of_earlier_versions(tmp_path):
    """They were written by `ocp.partial.save`, group by group."""
    arrays = {f"layers.{i}": np.arange(12).reshape(3, 4).astype(ml_dtypes.bfloat16) + i for i in range(4)}
    for i in (0, 2):
        ocp.partial.save(tmp_path / PARAMETERS, {name: arrays[name] for name in list(arrays)[i : i + 2]})
    ocp.partial.finalize(tmp_path / PARAMETERS)
    assert_same_bits({name: tensor.read() for name, tensor in open_orbax(tmp_path).items()}, arrays)
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    targets = {n: jax.ShapeDtypeStruct(a.shape, jnp.bfloat16, sharding=sharding) for n, a in arrays.items()}
    assert_same_bits({n: np.asarray(a) for n, a in restore_orbax(tmp_path, targets).items()}, arrays)


# ── damage ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["orbax", "hub"])
@pytest.mark.parametrize(
    "options", [Options(), Options(dtype=np.dtype(np.float16))], ids=["passed on", "changed on the way"]
)
@pytest.mark.parametrize("there", [False, True], ids=["nothing there", "the same there"])
def test_what_is_damaged_is_not_handed_on(converted, kind, options, there):
    source, target = converted / kind, converted / "target"
    if there:
        export(source, target, "hf5", options)
    damage(source)
    with pytest.raises(WeightsError, match="1 things differ from its manifest"):
        export(source, target, "hf5", options)
    if not there:
        with pytest.raises(WeightsError, match="1 things differ from its manifest"):
            convert_to_orbax(source, target, options)
    assert target.exists() == there
    assert not list(converted.glob(".*"))


def test_damage_is_told_by_the_names_of_its_source(converted):
    damage(converted / "hub")
    with pytest.raises(WeightsError, match=r"hub: 1 things differ .*\n  tensor .*\.weight: its SHA-256 is not"):
        export(converted / "hub", converted / "target", "hf5")


# ── values ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
@pytest.mark.parametrize("place", [0, 2**17 - 1, 2**17, 300_000])
def test_a_single_nonfinite_value_is_found(dtype, place):
    values = np.full(300_001, np.finfo(np.float16).max, np.float32).astype(dtype)
    values[1:-1:2] = -1e-7
    assert nonfinite(values) == (0, 0)
    for value, counts in ((np.nan, (1, 0)), (-np.nan, (1, 0)), (np.inf, (0, 1)), (-np.inf, (0, 1))):
        kept = values[place].copy()
        values[place] = value
        assert nonfinite(values) == counts
        values[place] = kept


# ── configurations ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_directory_of_ours_is_opened_without_torch(converted):
    code = "import sys; from pathlib import Path; from videollava_jax.weights import open_checkpoint as o; "
    code += "o(Path(sys.argv[1])); assert not {'torch', 'transformers'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code, str(converted / "orbax")], check=True)


def test_the_bundled_model_loads():
    config, parameters = load_checkpoint(TINY)
    assert parameters.keys() == open_checkpoint(TINY).tensors.keys()
    assert config.text_config.num_hidden_layers > 0
