"""A directory of ours restores onto any mesh, without a rewrite and with each device holding its shard alone."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from tests.weights.checkpoints import random_parameters, small_config, write_checkpoint
from videollava_jax.weights import Options, convert_to_orbax, load_checkpoint


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
    _, loaded = load_checkpoint(directory / layout, placement=split(mesh), verify="full")
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
    _, loaded = load_checkpoint(directory / "int8", placement=split(mesh))
    for name, value in loaded.items():
        np.testing.assert_array_equal(np.asarray(value), np.asarray(alone[name]))
