"""The engine on meshes of 8 virtual devices: the answers are those of one device, token for token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from tests.engine.jobs import clip, generated, mixed_job, question
from tests.small_models import on_mesh, random_model
from tests.tolerances import SELF
from videollava_jax import VideoLlavaForConditionalGeneration
from videollava_jax.assets import TINY
from videollava_jax.engine import Engine
from videollava_jax.generation.steps import encode_videos
from videollava_jax.model.layers import Linear
from videollava_jax.model.sharding import make_mesh
from videollava_jax.weights.quantize import quantize

JOB = [request for request in mixed_job() if not request.images]
MODELS = {
    "grouped heads": {"heads": 8, "kv_heads": 4},
    "original": {"variant": "original"},
    "tied": {"tie_word_embeddings": True},
}


@pytest.fixture(scope="module")
def model(tiny_model):
    return random_model(tiny_model)


@pytest.fixture(scope="module")
def expected(model, tiny_processor):
    return {request.id: generated(model, tiny_processor, request) for request in JOB}


@pytest.mark.parametrize("shape", [(1, 1), (2, 4), (8, 1), (1, 8)])
def test_answers_are_those_of_one_device(model, expected, tiny_processor, shape):
    spread = on_mesh(model, make_mesh(*shape))
    results = {result.id: result for result in Engine(spread, tiny_processor, max_rows=16).run(JOB)}
    assert {name: result.token_ids for name, result in results.items()} == expected


@pytest.mark.parametrize("name", MODELS)
def test_other_models_on_a_mesh(tiny_model, tiny_processor, name):
    """4 key-value heads over 4 devices; attention over time; a head that is the embedding."""
    alone = random_model(tiny_model, **MODELS[name])
    spread = on_mesh(alone, make_mesh(2, 4))
    job = JOB[:4]
    results = {result.id: result.token_ids for result in Engine(spread, tiny_processor, max_rows=8).run(job)}
    assert results == {request.id: generated(alone, tiny_processor, request) for request in job}


@pytest.mark.parametrize("shape", [(1, 1), (2, 4), (8, 1)])
def test_one_clip_a_shard_is_attended_over_time_on_a_mesh(tiny_model, shape):
    """One clip for each batch shard: its frames stay on the shard's devices."""
    alone = random_model(tiny_model, variant="original")
    spread = on_mesh(alone, make_mesh(*shape))
    clips = np.random.default_rng(0).standard_normal((shape[0], 8, 3, 56, 56)).astype(np.float32)
    features, expected = (encode_videos(m.graph, m.state, m.on_devices(clips)) for m in (spread, alone))
    np.testing.assert_allclose(features, expected, rtol=0, atol=SELF)


@pytest.mark.parametrize("quantization", ["int8", "w8a8"])
def test_int8_weights_on_a_mesh(quantization):
    """Devices that hold partial sums scale them before these are added."""
    ids = np.random.default_rng(0).integers(3, 60, (2, 24))

    def logits(mesh):
        model = VideoLlavaForConditionalGeneration.from_pretrained(TINY, mesh=mesh, quantization=quantization)
        return np.asarray(model(model.on_devices(ids)).logits)

    expected = logits(None)
    assert np.abs(expected).max() > 1
    for shape in ((1, 1), (2, 4), (1, 8)):
        np.testing.assert_allclose(logits(make_mesh(*shape)), expected, rtol=0, atol=SELF * np.abs(expected).max())


def test_scores_on_a_mesh(model, tiny_processor):
    import dataclasses

    job = [dataclasses.replace(request, choices=["red", "a blue square"]) for request in JOB[:3]]
    one = list(Engine(model, tiny_processor).score(job))
    spread = list(Engine(on_mesh(model, make_mesh(1, 8)), tiny_processor).score(job))
    for a, b in zip(one, spread, strict=True):
        np.testing.assert_allclose(a.log_likelihoods, b.log_likelihoods, rtol=1e-4)


def test_parameters_and_caches_are_split(tiny_model):
    """Heads, MLP and vocabulary over the tensor axis: nothing of these is held whole by every device."""
    from videollava_jax.engine import grid
    from videollava_jax.engine.sizes import PLAIN, GridShape

    model = on_mesh(random_model(tiny_model), make_mesh(2, 4))
    for name, value in model.parameters.items():
        layer = name.startswith("language_model.layers.") and name.endswith("_proj.weight")
        if layer or name in ("lm_head.weight", "language_model.embed_tokens.weight"):
            assert value.addressable_shards[0].data.size * 4 == value.size, name
    shape = GridShape(shards=2, slots=3, rows=4, prefix=64, question=32, answer=32)
    text = model.model_config.text_config
    made = grid.new_grid(text, shape, "float32", model.placement, int8=True, branches=PLAIN)
    for cache in (made.prefix.layers[0].keys, made.prefix.layers[0].key_scale, made.tail.layers[0].values):
        assert cache.addressable_shards[0].data.size * 8 == cache.size


def test_a_mesh_that_does_not_fit_the_devices_is_refused():
    with pytest.raises(ValueError, match="3 × 4 needs 12 devices, 8 were found"):
        make_mesh(3, 4)
    with pytest.raises(ValueError, match="at least 1 × 1"):
        make_mesh(0)


@pytest.mark.parametrize("split", [("tensor", None), (None, "tensor"), None])
def test_gradients_through_int8_weights_are_those_of_what_they_stand_for(split):
    """Split over outputs, as the first projections are, or over inputs, as the last ones; and on no mesh."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 6, 16)).astype(np.float32), rng.standard_normal((2, 6, 32)).astype(np.float32)
    weight, scale = quantize(rng.standard_normal((32, 16)).astype(np.float32))
    linear = Linear(16, 32, bias=False, dtype=jnp.float32, rngs=nnx.Rngs(0), quantization="int8")
    graph, state = nnx.split(linear)
    place = lambda value, *spec: jnp.asarray(value)  # noqa: E731
    if split is not None:
        mesh = make_mesh(2, 4)
        place = lambda value, *spec: jax.device_put(value, NamedSharding(mesh, PartitionSpec(*spec)))  # noqa: E731
    outputs, inputs = split or (None, None)
    state["weight"].set_value(place(weight, outputs, inputs))
    state["weight_scale"].set_value(place(scale, outputs))

    def product(x):
        return (nnx.merge(graph, state)(x) * place(y, "data", None, outputs)).sum()

    found, gradient = jax.jit(jax.value_and_grad(product))(place(x, "data", None, inputs))
    exact = weight.astype(np.float32) * scale[:, None]
    np.testing.assert_allclose(found, (x @ exact.T * y).sum(), rtol=SELF)
    np.testing.assert_allclose(gradient, y @ exact, rtol=0, atol=SELF * np.abs(y @ exact).max())


def test_a_session_on_a_mesh_answers_scores_and_pins_as_on_one_device(model, tiny_processor):
    """With log-probabilities and penalties; nothing is compiled for them."""
    asked = {"max_new_tokens": 9, "logprobs": 3, "options": {"frequency_penalty": 1.0, "logit_bias": {9: 2.0}}}
    job = [question(f"{i}", "what colour is it?", videos=[clip(i % 3)], **asked) for i in range(5)]
    scored = [question(f"s{i}", "what?", videos=[clip(i)], choices=["red", "blue square", "a"]) for i in range(2)]
    alone = {result.id: result for result in Engine(model, tiny_processor).run(job)}
    likelihoods = [each.log_likelihoods for each in Engine(model, tiny_processor).score(scored)]
    engine = Engine(on_mesh(model, make_mesh(2, 4)), tiny_processor, max_rows=8)
    with engine.session(rows=2, longest_question=64, longest_answer=32) as session:
        session.warm_up()
        assert session.pin(scored[0]).result(100).tokens > 100
        tickets = [session.submit(request) for request in job]
        scores = [session.score(request) for request in scored]
        for ticket in tickets:
            result = ticket.result(100)
            assert result.error is None
            expected = alone[result.id]
            assert result.token_ids == expected.token_ids
            for ours, theirs in zip(result.logprobs, expected.logprobs, strict=True):
                assert abs(ours.logprob - theirs.logprob) < 1e-4
        for ticket, expected in zip(scores, likelihoods, strict=True):
            np.testing.assert_allclose(ticket.result(100).log_likelihoods, expected, rtol=1e-4)
        assert session.usage.compiled == 0
