"""An Orbax directory restores onto any mesh, without a rewrite and with only its own shard on each device."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from tests.small_models import random_parameters, small_config
from tests.weights.checkpoints import write_checkpoint
from videollava_jax.weights import Options, convert_to_orbax, load_checkpoint
from videollava_jax.weights.quantize import is_quantizable


@pytest.fixture(scope="module")
def parameters():
    return random_parameters(small_config(), 0, "bfloat16")


@pytest.fixture(scope="module")
def directory(parameters, tmp_path_factory):
    place = tmp_path_factory.mktemp("mesh")
    write_checkpoint(place / "hub", small_config(), parameters, "hub")
    convert_to_orbax(place / "hub", place / "orbax")
    convert_to_orbax(place / "hub", place / "int8", Options(int8=True))
    return place


def split(mesh):
    """Matrices over both axes of the mesh where they divide, everything else on every device."""
    names = mesh.axis_names

    def place(name, shape):
        fits = len(shape) == 2 and all(n % mesh.shape[axis] == 0 for n, axis in zip(shape, names, strict=True))
        return NamedSharding(mesh, P(*names) if fits else P())

    return place


@pytest.mark.parametrize("shape", [(1, 1), (2, 4), (8, 1), (1, 8)])
@pytest.mark.parametrize("layout", ["orbax", "hub"])
def test_every_mesh_gets_the_same_parameters(directory, parameters, shape, layout):
    mesh = jax.make_mesh(shape, ("data", "tensor"), axis_types=(jax.sharding.AxisType.Explicit,) * 2)
    _, loaded = load_checkpoint(directory / layout, placement=lambda config: split(mesh), verify="full")
    divided = 0
    for name, expected in parameters.items():
        assert loaded[name].sharding == split(mesh)(name, expected.shape)
        assert np.asarray(loaded[name]).tobytes() == expected.tobytes()
        if loaded[name].sharding.spec != P():
            divided += 1
            shards = loaded[name].addressable_shards
            assert len(shards) == mesh.size
            assert all(shard.data.size * mesh.size == expected.size for shard in shards)
    assert divided > 20


def test_int8_weights_restore_onto_a_mesh(directory):
    mesh = jax.make_mesh((2, 4), ("data", "tensor"), axis_types=(jax.sharding.AxisType.Explicit,) * 2)
    _, alone = load_checkpoint(directory / "int8")
    _, loaded = load_checkpoint(directory / "int8", placement=lambda config: split(mesh))
    for name, value in loaded.items():
        np.testing.assert_array_equal(np.asarray(value), np.asarray(alone[name]))


@pytest.mark.parametrize("layout", ["orbax", "hub", "int8"])
def test_projections_can_be_kept_in_int8(directory, parameters, layout):
    """From any layout, int8 weights are off by at most half a step; weights that are int8 already stay unchanged."""
    config, loaded = load_checkpoint(directory / layout, "float32", int8=True)
    _, stored = load_checkpoint(directory / "int8", "float32", int8=True)
    assert sorted(loaded) == sorted([*parameters, *(n + "_scale" for n in parameters if is_quantizable(n))])
    for name, exact in parameters.items():
        value, exact = np.asarray(loaded[name], np.float32), exact.astype(np.float32)
        if not is_quantizable(name):
            np.testing.assert_array_equal(value, exact)
            continue
        assert loaded[name].dtype == np.int8
        scale = np.asarray(loaded[name + "_scale"])[:, None]
        assert (np.abs(value * scale - exact) <= 0.5001 * scale).all()
        if layout != "orbax":  # quantized on the host, as the converter does it
            np.testing.assert_array_equal(value, np.asarray(stored[name], np.float32))
    assert sum(is_quantizable(name) for name in parameters) == 7 * config.text_config.num_hidden_layers
