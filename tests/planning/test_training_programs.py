"""Training steps compiled without their chips: training's own arguments, and the requirements of the 7B model's step.

python -m pytest -m slow tests/planning/test_training_programs.py    the whole model on three topologies, compiled
"""

from __future__ import annotations

import importlib.util
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.planning.training_programs import (
    CASES,
    CONFIG,
    GIB,
    MIB,
    RECIPES,
    ROW,
    WHOLE_TOPOLOGY,
    Case,
    What,
    collectives,
    compiled,
    layer_bytes,
    layers,
)
from tests.small_models import SMALL
from tests.training.rows import FRAMES, UNCHANGED, drawn, packed
from videollava_jax.assets import TINY
from videollava_jax.model.sharding import Placement, make_mesh
from videollava_jax.planning.training_programs import (
    StepProgram,
    abstract_batch,
    abstract_parameters,
    abstract_state,
    abstract_sums,
    compile_step,
)
from videollava_jax.training.data.packing import RowShape
from videollava_jax.training.run.base_model import load
from videollava_jax.training.run.recipe import Compute, Data, Recipe
from videollava_jax.training.update.model import TrainingModel
from videollava_jax.training.update.optimizer import build_optimizer
from videollava_jax.training.update.options import Lora, Optimizer, Rates
from videollava_jax.training.update.step import Trainer


def small_model(what: What, mesh: tuple[int, int] | None, dtype: Any = jnp.float32) -> TrainingModel:
    return TrainingModel(
        SMALL,
        preprocess=UNCHANGED,
        placement=None if mesh is None else Placement(SMALL, make_mesh(*mesh)),
        dtype=dtype,
        lora=what.lora and Lora(rank=8),
        quantization=what.quantization,
    )


def described(tree: Any) -> list[tuple[Any, ...]]:
    """Returns the shape, the dtype and the shape of one device's shard of every array."""
    return [(x.shape, x.dtype, tuple(x.sharding.shard_shape(x.shape))) for x in jax.tree.leaves(tree)]


# ── the arguments are those of training ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("mesh", [(8, 1), (2, 4)])
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_state_is_the_one_that_training_begins_with(recipe: str, mesh: tuple[int, int]):
    what = RECIPES[recipe]
    model = small_model(what, mesh)
    assert model.placement is not None
    trainer = Trainer(model, build_optimizer(Optimizer(), what.rates, 10))
    abstract = abstract_parameters(model, what.rates, trained=jnp.float32, frozen=jnp.bfloat16)
    made = {name: jnp.zeros(x.shape, x.dtype, device=x.sharding) for name, x in abstract.items()}
    assert {str(x.dtype) for name, x in made.items() if not what.rates.trains(name)} == (
        {"bfloat16", "int8", "float32"} if what.quantization else {"bfloat16"}
    )
    trained = {name: x for name, x in made.items() if what.rates.trains(name)}
    shapes = {name: x for name, x in abstract.items() if what.rates.trains(name)}
    for real, expected in (
        (trainer.begin(trained), abstract_state(trainer, model.placement, shapes)),
        (trainer.no_sums(trained), abstract_sums(model.placement, shapes)),
    ):
        assert jax.tree.structure(expected) == jax.tree.structure(real)
        assert described(expected) == described(real)


def test_parameters_have_the_dtypes_that_a_run_keeps(tiny_processor):
    """int8 weights have float32 scales; adapters have the trained dtype, the rest the compute dtype."""
    recipe = Recipe(
        model="tiny",
        output="",
        rates=Rates(lora=1.0),
        lora=Lora(rank=4),
        data=Data(train="-"),
        compute=Compute(dtype="bfloat16", trained_dtype="bfloat16", int8=True),
    )
    loaded = load(TINY, recipe, make_mesh(1, 1), tiny_processor)
    planned = abstract_parameters(loaded.model, recipe.rates, trained=jnp.bfloat16, frozen=jnp.bfloat16)
    found = {name: (x.shape, x.dtype) for name, x in (loaded.trained | loaded.frozen).items()}
    assert found == {name: (x.shape, x.dtype) for name, x in planned.items()}
    assert {str(x.dtype) for x in loaded.trained.values()} == {"bfloat16"}
    assert {str(x.dtype) for x in loaded.frozen.values()} == {"bfloat16", "int8", "float32"}


def test_the_micro_batch_is_the_one_that_is_loaded():
    model = small_model(RECIPES["full"], (4, 2))
    assert model.placement is not None
    rows = [[drawn(SMALL, np.random.default_rng(row), "iv")] for row in range(4)]
    real = packed(SMALL, rows, 48, images=3, videos=2, placement=model.placement)
    expected = abstract_batch(model, model.placement, RowShape(tokens=48, images=3, videos=2), 4, FRAMES)
    assert described(expected) == described(real)


@pytest.mark.parametrize("recipe", ["full", "LoRA"])
def test_both_programs_are_compiled_for_the_mesh(recipe: str):
    """Compiled for the CPU, both programs' sizes are counted, and their loops run once for each layer."""
    what = RECIPES[recipe]
    model = small_model(what, (4, 2))
    row = RowShape(tokens=64, images=2, videos=1)
    found = {
        program: compile_step(cast(StepProgram, program), model, what.rates, row, rows=4, frames=FRAMES)
        for program in ("accumulate", "update")
    }
    held = found["accumulate"].resident
    assert held == found["update"].resident
    # A step counter, two moments of trained parameters, and float32 of both.
    assert 2 * held["trained"] < held["optimizer"] < 2 * held["trained"] + 64
    assert held["gradients"] == held["trained"]
    assert (found["accumulate"].batch > 0, found["update"].batch) == (True, 0)
    for step in found.values():
        assert step.total == sum(step.resident.values()) + step.batch + step.temporaries + step.code
        assert (step.kernels, step.flops > 0) == (0, True)
    text = found["accumulate"].text
    times = [text.iterations[name] for name in text.loops]
    assert times.count(SMALL.text_config.num_hidden_layers) >= 2
    # Forward and backward gather every matrix that is split: both times all layers.
    whole = layer_bytes(model, what.rates)["all"] * SMALL.text_config.num_hidden_layers
    assert collectives(text.total)["all-gather"]["bytes"] >= 2 * whole
    assert found["update"].text.loops == {}


def test_a_step_is_compiled_for_a_mesh():
    model = small_model(RECIPES["full"], None)
    with pytest.raises(ValueError, match="expected a model with a placement"):
        compile_step("update", model, RECIPES["full"].rates, RowShape(tokens=64), rows=4)


def test_gradients_of_a_token_in_many_places_are_summed_in_float32():
    """In bfloat16 a sum of many equal numbers would stop growing, as 256 + 1 is 256."""
    what = What(rates=Rates(decoder=1.0))
    rng = np.random.default_rng(0)
    values = {
        name: jnp.asarray(rng.normal(0, 0.05, shape), jnp.bfloat16).astype(jnp.float32)
        for name, shape in small_model(what, None).shapes.items()
    }
    name, tokens = "language_model.embed_tokens.weight", 512
    shape = jax.eval_shape(lambda: packed(SMALL, [[]] * 2, tokens, images=0, videos=0))
    batch = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shape)
    batch = type(batch)(
        input_ids=jnp.full((2, tokens), 7),
        positions=jnp.broadcast_to(jnp.arange(tokens), (2, tokens)),
        segments=jnp.ones((2, tokens), jnp.int32),
        targets=jnp.full((2, tokens), 9),
        media_index=jnp.full((2, tokens), -1),
        images=batch.images,
        videos=batch.videos,
    )
    found = []
    for dtype in (jnp.float32, jnp.bfloat16):
        model = small_model(what, None, dtype)
        gradient = jax.jit(jax.grad(lambda table, model=model: model.loss(values | {name: table}, batch).loss))
        found.append(np.asarray(gradient(values[name]))[7])
    error = np.linalg.norm(found[1] - found[0]) / np.linalg.norm(found[0])
    assert error < 0.01, error


# ── the 7B model ────────────────────────────────────────────────────────────────────────────────────────────

TEMPORARIES = {"v5p:2x2x4": 5.0, "v5e:16x16": 2.0, "v6e:4x4": 5.0}
"""GiB per chip: hidden states before each layer, a second set of gradients, the vocabulary's gradients in float32."""
HIDDEN = ROW.tokens * CONFIG.text_config.hidden_size * 2
"""The bytes that tensor parallelism all-reduces: the hidden states of a row, in bfloat16."""
PADDING = 4.75 * MIB
"""How much tile padding adds to a layer's matrices if their shards are narrow."""
TOWER_LAYERS = max(CONFIG.feature_layers)


@pytest.mark.slow
@pytest.mark.tpu_compiler
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu, the TPU compiler (extra `tpu`)")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_7b_step(case: Case):
    one = compiled(case)
    accumulate, update = (one["programs"][name] for name in ("accumulate", "update"))
    assert max(accumulate["total"], update["total"]) < one["available"]
    assert accumulate["temporaries"] < TEMPORARIES[case.topology] * GIB
    assert update["temporaries"] < 16 * MIB
    # Attention: forward, forward again, and two of its gradients.
    assert accumulate["kernels"] == 4

    forward, backward = (part["collectives"] for part in layers(one))
    # A layer is gathered when it is used, forward and backward, and not kept in between.
    for part in (forward, backward):
        assert 0 <= part["all-gather"]["bytes"] - one["layer"]["all"] < PADDING
    # Its gradients are scattered as they are summed; hidden states alone are summed whole, or with what is narrow.
    assert "reduce-scatter" not in forward
    assert forward["all-reduce"]["bytes"] < 2.1 * HIDDEN
    if case.recipe == "full":
        assert backward["reduce-scatter"]["bytes"] == pytest.approx(one["layer"]["trained"], rel=0.02)
        assert backward["all-reduce"]["bytes"] == pytest.approx(3 * HIDDEN, rel=0.02)
    else:
        assert backward["all-reduce"]["bytes"] < 6.5 * HIDDEN

    # The frozen towers' layers are gathered once, and the vocabulary's matrices outside all loops.
    towers = [part["collectives"] for part in accumulate["parts"] if part["times"] == TOWER_LAYERS]
    width = CONFIG.vision_config.hidden_size
    assert [part["all-gather"]["bytes"] for part in towers] == [pytest.approx(12 * width**2 * 2, rel=0.02)] * 2
    vocabulary = 2 * CONFIG.text_config.vocab_size * CONFIG.text_config.hidden_size * 2 / case.tensor
    assert accumulate["parts"][0]["collectives"]["all-gather"]["bytes"] < vocabulary + 0.25 * GIB


@pytest.mark.slow
@pytest.mark.tpu_compiler
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu, the TPU compiler (extra `tpu`)")
def test_over_a_whole_topology_gradients_are_summed_whole():
    """The reason for the choice of meshes. If a later compiler scatters here too, docs/training.md must change."""
    one = compiled(WHOLE_TOPOLOGY)
    backward = layers(one)[-1]["collectives"]
    assert "reduce-scatter" not in backward
    assert backward["all-reduce"]["bytes"] == pytest.approx(one["layer"]["trained"], rel=0.02)
