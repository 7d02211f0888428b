"""The structure of a module that remembers its hash is the one that flax makes, and compiles as that does."""

import jax
from flax import nnx

from videollava_jax.model.structure import HashedGraph
from videollava_jax.model.video_llava import abstract_model, structure


def test_a_structure_is_equal_to_flax_s_own_and_hashes_alike(tiny_model):
    config = tiny_model.model_config
    own, _ = structure(config)
    fresh, _ = nnx.split(abstract_model(config))
    assert isinstance(own, HashedGraph)
    assert own == fresh
    assert fresh == own
    assert hash(own) == hash(fresh)
    other, _ = nnx.split(abstract_model(config, quantization="int8"))
    assert own != other
    assert own != "graph"


def test_equal_structures_share_what_is_compiled(tiny_model):
    """And a module is made of one as of flax's own."""
    config, traced = tiny_model.model_config, []

    def count(graph, state):
        traced.append(type(nnx.merge(graph, state)).__name__)
        return 0

    compiled = jax.jit(count, static_argnums=0)
    state = jax.eval_shape(lambda: tiny_model.state)
    fresh, _ = nnx.split(abstract_model(config))
    for graph in (HashedGraph.of(fresh), structure(config)[0], HashedGraph.of(fresh)):
        compiled.trace(graph, state)
    assert traced == ["VideoLlava"]


def test_its_hash_is_not_computed_again(tiny_model, monkeypatch):
    own, _ = structure(tiny_model.model_config)
    monkeypatch.setattr(nnx.GraphDef, "__hash__", lambda self: 1 / 0)
    assert hash(own) == hash(own)
