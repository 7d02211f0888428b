"""Loss and gradients against transformers, PEFT and PyTorch's autograd; the same whatever the layout, chunk or mesh."""

from __future__ import annotations

import dataclasses
import functools
import math
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.parity.reference import Batch, assert_close, logits
from tests.small_models import hf_config, sharp_hf_model, weights_of, with_weights
from tests.tolerances import SELF
from tests.training.rows import FRAMES, UNCHANGED, Drawn, drawn, packed
from videollava_jax.config import ModelConfig
from videollava_jax.model.sharding import Placement, make_mesh
from videollava_jax.model.video_llava import parameter_shapes
from videollava_jax.training.update.lora import initial_lora
from videollava_jax.training.update.loss import cross_entropy_sums
from videollava_jax.training.update.model import Batch as TrainingBatch
from videollava_jax.training.update.model import TrainingModel
from videollava_jax.training.update.optimizer import build_optimizer
from videollava_jax.training.update.options import Lora, Optimizer, Rates, is_lora
from videollava_jax.training.update.parameters import Parameters, placed, stack, unstack
from videollava_jax.training.update.step import Trainer

GRADIENT = 1e-6
"""float32: absolute, on gradients of a mean loss, whose largest are near 1."""
MEDIA = ["v", "iv", "i", "", "vi", "ii"]
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "one key head, biases, tied": dict(
        text={"num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
        tie_word_embeddings=True,
    ),
    "two feature layers, full": dict(vision_feature_layer=[-2, 1], vision_feature_select_strategy="full"),
}
EVERYTHING = Rates(projector=1.0, decoder=1.0, image_tower=1.0, video_tower=1.0)


def model_of(config: ModelConfig, **changes: Any) -> TrainingModel:
    return TrainingModel(config, preprocess=UNCHANGED, **{"loss_chunk": 24, **changes})


@functools.cache
def trainer_of(config: ModelConfig, rates: Rates, **changes: Any) -> Trainer:
    """One for each model and what is trained of it: a trainer keeps its compiled functions, and compiling is what takes
    time here."""
    return Trainer(model_of(config, **changes), build_optimizer(Optimizer(), rates, 10))


def batch_of(config: ModelConfig, *rows: list[Drawn]) -> TrainingBatch:
    """A micro-batch with as many rows as there are samples, some of them empty, so that one program serves however few
    rows the samples are packed in."""
    return packed(config, [*rows, *[[]] * (len(MEDIA) - len(rows))], 80)


def gradients(trainer: Trainer, parameters: Parameters, rates: Rates, *batches: Any) -> tuple[float, Parameters]:
    """The mean loss of micro-batches together, and its gradients by the model's names."""
    trained = {name: value for name, value in parameters.items() if rates.trains(name)}
    frozen = {name: value for name, value in parameters.items() if name not in trained}
    sums = trainer.no_sums(trained)
    for i, batch in enumerate(batches):
        sums = trainer.accumulate(sums, trained, frozen, batch, jnp.int32(0), jnp.int32(i))
    tokens = sums.loss.tokens
    return float(sums.loss.loss / tokens), unstack({name: value / tokens for name, value in sums.gradients.items()})


@pytest.fixture(scope="module")
def whole():
    """A random model's configuration and weights, in which every part matters as in `sharp_hf_model`; and samples."""
    config = ModelConfig.from_hf(hf_config())
    rng = np.random.default_rng(0)
    weights = {}
    for name, shape in parameter_shapes(config).items():
        if len(shape) > 1:
            weights[name] = rng.normal(0, math.prod(shape[1:]) ** -0.5, shape)
        else:
            weights[name] = rng.normal("norm" in name and name.endswith("weight"), 0.1, shape)
    weights = {name: value.astype(np.float32) for name, value in weights.items()}
    return config, weights, [drawn(config, rng, media) for media in MEDIA]


def parameters_of(weights: dict[str, np.ndarray], placement: Placement | None = None) -> Parameters:
    return stack({name: jnp.asarray(value) for name, value in weights.items()}, placement)


def torch_loss(torch: Any, model: Any, samples: list[Any]) -> Any:
    """The mean over all targets of all samples, each run alone: transformers' loss of a batch without padding."""
    counts = [int((sample.labels[1:] != -100).sum()) for sample in samples]
    losses = [model(**sample.for_torch(torch)).loss * count for sample, count in zip(samples, counts, strict=True)]
    return torch.stack(losses).sum() / sum(counts)


def torch_gradients(model: Any) -> dict[str, np.ndarray]:
    return {
        name.removeprefix("model."): value.grad.numpy()
        for name, value in model.named_parameters()
        if value.grad is not None
    }


def test_the_mean_of_micro_batch_means_is_torchs_however_rows_are_packed(torch):
    """The authors' loss: the mean over devices of each one's mean over its targets."""
    model = sharp_hf_model(torch, hf_config())
    config, rng = ModelConfig.from_hf(model.config), np.random.default_rng(1)
    samples = [drawn(config, rng, media) for media in MEDIA]
    groups = [samples[:2], samples[2:4]]
    expected = torch.stack([torch_loss(torch, model, group) for group in groups]).mean()
    expected.backward()
    theirs = torch_gradients(model)
    counts = [sum(int((sample.labels[1:] != -100).sum()) for sample in group) for group in groups]
    assert counts[0] != counts[1]

    def weighted(*rows):
        batch = batch_of(config, *rows)
        weights = np.zeros(batch.targets.shape, np.float32)
        for r, row in enumerate(rows):
            for segment, sample in enumerate(row, 1):
                group = next(g for g, members in enumerate(groups) if any(sample is one for one in members))
                weights[r][np.asarray(batch.segments)[r] == segment] = sum(counts) / len(groups) / counts[group]
        return dataclasses.replace(batch, weights=jnp.asarray(weights))

    trainer, parameters = trainer_of(config, EVERYTHING), parameters_of(weights_of(model))
    by_token, _ = gradients(trainer, parameters, EVERYTHING, batch_of(config, *groups))
    for batches in (
        [weighted(samples[:3], samples[3:4])],
        [weighted(samples[:1]), weighted(samples[3:4], samples[1:3])],
    ):
        loss, mine = gradients(trainer, parameters, EVERYTHING, *batches)
        assert_close(loss, expected.item(), GRADIENT)
        assert abs(loss - by_token) > 100 * GRADIENT
        for key, value in mine.items():
            assert_close(value, theirs.get(key, np.zeros_like(value)), GRADIENT)


@pytest.mark.parametrize("vocabulary", [13, None])
def test_the_loss_of_the_first_rows_of_the_head_is_torchs_over_them_alone(torch, vocabulary):
    rng = np.random.default_rng(2)
    hidden, head = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 9, 8), (17, 8)))
    targets = rng.integers(0, 13, (2, 9)).astype(np.int32)
    targets[0, :3] = -100

    def summed(hidden, head):
        return cross_entropy_sums(hidden, head, jnp.asarray(targets), chunk=4, vocabulary=vocabulary).loss

    loss, mine = jax.value_and_grad(summed, argnums=(0, 1))(jnp.asarray(hidden), jnp.asarray(head))
    given = [torch.tensor(array, requires_grad=True) for array in (hidden, head)]
    logits = (given[0] @ given[1][:vocabulary].T).flatten(0, 1)
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor(targets).flatten().long(), reduction="sum")
    expected.backward()
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-6)
    for value, tensor in zip(mine, given, strict=True):
        np.testing.assert_allclose(value, tensor.grad, rtol=0, atol=10 * GRADIENT)  # of a sum, not a mean
    assert np.any(mine[1][13:]) == (vocabulary is None)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_loss_and_every_gradient_are_transformers(torch, name):
    model = sharp_hf_model(torch, hf_config(**CONFIGURATIONS[name]))
    config = ModelConfig.from_hf(model.config)
    rng = np.random.default_rng(1)
    samples = [drawn(config, rng, media) for media in MEDIA]
    expected = torch_loss(torch, model, samples)
    expected.backward()
    theirs = torch_gradients(model)

    batch = batch_of(config, samples[:2], samples[2:])
    loss, mine = gradients(trainer_of(config, EVERYTHING), parameters_of(weights_of(model)), EVERYTHING, batch)
    assert_close(loss, expected.item(), GRADIENT)
    for key, value in mine.items():
        # What no token passes through (the layers behind the selected one) has no gradient there and zeros here.
        assert_close(value, theirs.get(key, np.zeros_like(value)), GRADIENT)
    assert theirs.keys() <= mine.keys()
    assert {key for key, value in mine.items() if np.any(value)} == {key for key, v in theirs.items() if np.any(v)}


def test_a_trained_part_has_the_gradients_it_has_among_all(whole):
    config, weights, samples = whole
    batch, parameters = batch_of(config, samples[:3], samples[3:]), parameters_of(weights)
    everything = gradients(trainer_of(config, EVERYTHING), parameters, EVERYTHING, batch)[1]
    for group in ("projector", "decoder", "video_tower"):
        rates = Rates(**{group: 1.0})
        mine = gradients(trainer_of(config, rates), parameters, rates, batch)[1]
        assert mine.keys() == {name for name in everything if rates.trains(name)}
        for name, value in mine.items():
            assert_close(value, everything[name], GRADIENT)


def learnt_lora(shapes: dict[str, tuple[int, ...]]) -> Parameters:
    """Narrow projections with nonzero second ones."""
    narrow = initial_lora(shapes, jax.random.key(0))
    for name in narrow:
        if ".lora_B." in name:
            narrow[name] = jax.random.normal(jax.random.key(len(name)), narrow[name].shape) / 10
    return narrow


def test_lora_is_pefts(torch, whole):
    peft = pytest.importorskip("peft", reason="the comparison with live PEFT needs peft (extra `test`, Python 3.11)")
    config, _, samples = whole
    lora = Lora(rank=3, alpha=5, dropout=0.0)
    base = sharp_hf_model(torch, hf_config())
    weights = weights_of(base)
    settings = peft.LoraConfig(r=3, lora_alpha=5, lora_dropout=0.0, target_modules=list(lora.targets), bias="none")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of transformers' own names
        adapted = peft.get_peft_model(base.model.language_model, settings)
    training = model_of(config, lora=lora)
    shapes = {name: shape for name, shape in training.shapes.items() if is_lora(name)}
    narrow = learnt_lora(shapes)
    theirs = {
        f"language_model.{name.removeprefix('base_model.model.')}".replace(".default", ""): value
        for name, value in adapted.named_parameters()
        if "lora_" in name
    }
    assert theirs.keys() == unstack(dict(narrow)).keys()
    with torch.no_grad():
        for name, value in unstack(dict(narrow)).items():
            theirs[name].copy_(torch.tensor(np.asarray(value)))
    expected = torch_loss(torch, base, samples)
    expected.backward()

    parameters, rates = parameters_of(weights) | narrow, Rates(lora=1.0)
    batch = batch_of(config, samples[:3], samples[3:])
    loss, mine = gradients(trainer_of(config, rates, lora=lora), parameters, rates, batch)
    assert_close(loss, expected.item(), GRADIENT)
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        assert_close(value, theirs[name].grad.numpy(), GRADIENT)


def test_lora_begins_as_peft_begins():
    shapes = {"a.lora_A.weight": (2, 16, 400), "a.lora_B.weight": (2, 400, 16)}
    values = initial_lora(shapes, jax.random.key(0))
    assert not np.any(values["a.lora_B.weight"])
    a = np.asarray(values["a.lora_A.weight"])
    assert np.abs(a).max() <= 1 / 20
    np.testing.assert_allclose(a.std(), 1 / 20 / np.sqrt(3), rtol=0.02)
    assert not np.array_equal(a[0], a[1])


def test_dropout_is_of_the_narrow_path_alone_and_by_its_key(whole):
    config, weights, samples = whole
    batch = packed(config, [samples[:3], samples[3:]], 80)
    training = model_of(config, lora=Lora(rank=4, alpha=4, dropout=0.5))
    narrow = initial_lora({name: s for name, s in training.shapes.items() if is_lora(name)}, jax.random.key(0))
    parameters = parameters_of(weights) | narrow
    loss = jax.jit(training.loss)
    keys = [None, jax.random.key(1), jax.random.key(1), jax.random.key(2)]
    # B is zero at first: whatever is dropped before it changes nothing.
    assert len({float(loss(parameters, batch, key).loss) for key in keys}) == 1
    learnt = parameters | {name: value + 0.1 for name, value in narrow.items() if ".lora_B." in name}
    without, one, again, other = (float(loss(learnt, batch, key).loss) for key in keys)
    assert one == again
    assert len({without, one, other}) == 3


@pytest.mark.parametrize(("remat", "loss_chunk"), [("full", 7), ("dots", 20), ("none", 80)])
def test_what_is_kept_for_the_gradient_changes_nothing(whole, remat, loss_chunk):
    """Layers computed again or kept, and the loss in chunks that divide a row, that do not, and in one."""
    config, weights, samples = whole
    batch, parameters = batch_of(config, samples[:3], samples[3:]), parameters_of(weights)
    expected = gradients(trainer_of(config, EVERYTHING), parameters, EVERYTHING, batch)
    trainer = trainer_of(config, EVERYTHING, remat=remat, loss_chunk=loss_chunk)
    loss, mine = gradients(trainer, parameters, EVERYTHING, batch)
    assert_close(loss, expected[0], GRADIENT)
    for name, value in mine.items():
        assert_close(value, expected[1][name], GRADIENT)


def test_packed_padded_and_accumulated_are_one(whole):
    """Rows of several samples, rows of one, and micro-batches with other numbers of targets: one gradient."""
    config, weights, samples = whole
    trainer, parameters = trainer_of(config, EVERYTHING), parameters_of(weights)
    layouts = {
        "packed": [batch_of(config, samples[:3], samples[3:])],
        "padded": [batch_of(config, *([sample] for sample in samples))],
        "accumulated": [batch_of(config, [sample]) for sample in samples],
        "accumulated, packed": [batch_of(config, samples[:1]), batch_of(config, samples[1:4], samples[4:])],
    }
    results = [gradients(trainer, parameters, EVERYTHING, *batches) for batches in layouts.values()]
    for loss, mine in results:
        assert_close(loss, results[0][0], GRADIENT)
        for name, value in mine.items():
            assert_close(value, results[0][1][name], GRADIENT)


def splittable(config, weights):
    """The same model with as many heads as split over 4 devices; what has another shape then is drawn."""
    config = dataclasses.replace(config, text_config=dataclasses.replace(config.text_config, num_key_value_heads=4))
    rng = np.random.default_rng(3)
    shapes = parameter_shapes(config)
    return config, {name: weights.get(name) for name in shapes} | {
        name: rng.normal(0, 0.1, shape) for name, shape in shapes.items() if weights[name].shape != shape
    }


@pytest.mark.parametrize("lora", [False, True])
def test_meshes_agree(whole, lora):
    config, weights, samples = whole
    config, weights = splittable(config, weights)
    rows = [[sample] for sample in samples] + [samples[:2], samples[3:5]]
    rates = Rates(lora=1.0, projector=1.0) if lora else EVERYTHING
    adapter = Lora(rank=8, alpha=8, dropout=0.0) if lora else None
    found = []
    meshes = (make_mesh(*shape) for shape in ((1, 1), (8, 1), (2, 4)))
    for placement in (None, *(Placement(config, mesh) for mesh in meshes)):
        trainer = trainer_of(config, rates, placement=placement, lora=adapter)
        parameters = parameters_of(weights, placement)
        if lora:
            shapes = {name: shape for name, shape in trainer.model.shapes.items() if is_lora(name)}
            parameters |= placed(learnt_lora(shapes), placement)
        found.append(gradients(trainer, parameters, rates, packed(config, rows, 80, placement=placement)))
    for loss, mine in found:
        assert_close(loss, found[0][0], GRADIENT)
        for name, value in mine.items():
            assert_close(value, found[0][1][name], GRADIENT)


def test_steps_leave_everything_where_it_was(whole):
    """Moments and sums keep the shardings of their parameters in every step, and nothing compiles twice."""
    config, weights, samples = whole
    config, weights = splittable(config, weights)
    placement = Placement(config, make_mesh(2, 4))
    trainer = trainer_of(config, EVERYTHING, placement=placement)
    trained = parameters_of(weights, placement)
    state, sums = trainer.begin(trained), trainer.no_sums(trained)
    where = {name: value.sharding for name, value in trained.items()}
    assert not all(sharding.is_fully_replicated for sharding in where.values())
    batch = packed(config, [[sample] for sample in samples[:2]], 80, placement=placement)
    for step in range(3):
        sums = trainer.accumulate(sums, state.trained, {}, batch, state.step, jnp.int32(0))
        state, sums, _ = trainer.update(state, sums)
        moments = next(part for part in state.optimizer if isinstance(part, optax.ScaleByAdamState))
        for found in (state.trained, moments.mu, moments.nu, sums.gradients):
            assert {name: value.sharding for name, value in found.items()} == where, step
    assert trainer.accumulate._cache_size() == trainer.update._cache_size() == 1


def test_logits_are_the_models_own(whole):
    """Stacked and scanned layers are the layers that answer."""
    config, weights, samples = whole
    batch, model = packed(config, [[sample] for sample in samples], 48), with_weights(config, weights)
    got = jax.jit(model_of(config).logits)(parameters_of(weights), batch)
    for row, sample in enumerate(samples):
        images, videos = (np.moveaxis(x, -1, -3) / np.float32(255) for x in (sample.images, sample.videos))
        alone = Batch(
            ids=sample.ids[None],
            mask=np.ones_like(sample.ids)[None],
            images=images if len(images) else None,
            videos=videos if len(videos) else None,
        )
        assert_close(got[row, : len(sample.ids)], logits(model, alone)[0], SELF)


def test_attention_over_time_is_in_it(whole):
    """The original video tower: clips of 2 frames are what it attends over, slot by slot."""
    config, weights, _ = whole
    config = dataclasses.replace(config, variant="original", temporal_frames=FRAMES)
    rng = np.random.default_rng(7)
    weights = {
        name: weights[name] if name in weights else rng.normal(0, 0.2, shape).astype(np.float32)
        for name, shape in parameter_shapes(config).items()
    }
    samples = [drawn(config, rng, media) for media in ("v", "vv")]
    got = jax.jit(model_of(config).logits)(parameters_of(weights), packed(config, [samples], 80, videos=3))
    start = 0
    for sample in samples:
        videos = np.moveaxis(sample.videos, -1, -3) / np.float32(255)
        alone = Batch(ids=sample.ids[None], mask=np.ones_like(sample.ids)[None], images=None, videos=videos)
        expected = logits(with_weights(config, weights), alone)[0]
        assert_close(got[0, start : start + len(sample.ids)], expected, SELF)
        start += len(sample.ids)


def test_twenty_steps_follow_torch(torch, whole):
    """AdamW, its warm-up and cosine, clipping and rates by group, as transformers' Trainer has them."""
    transformers = pytest.importorskip("transformers")
    config, _, samples = whole
    model = sharp_hf_model(torch, hf_config())
    weights = {name: value.copy() for name, value in weights_of(model).items()}  # from torch's memory
    rates, steps = Rates(projector=2e-3, decoder=1e-3), 20
    chosen = Optimizer(clip=1.0, weight_decay=0.01, warmup=0.12)
    groups: dict[tuple[float, float], list[Any]] = {}
    for name, value in model.named_parameters():
        peak = 2e-3 if "projector" in name else 1e-3 if "tower" not in name else None
        value.requires_grad_(peak is not None)
        if peak is not None:
            groups.setdefault((peak, 0.01 if value.ndim > 1 else 0.0), []).append(value)
    adamw = torch.optim.AdamW(
        [{"params": found, "lr": peak, "weight_decay": decay} for (peak, decay), found in groups.items()]
    )
    schedule = transformers.get_cosine_schedule_with_warmup(adamw, 3, steps)

    training, parameters = model_of(config), parameters_of(weights)
    trainer = Trainer(training, build_optimizer(chosen, rates, steps))
    trained = {name: value for name, value in parameters.items() if rates.trains(name)}
    frozen = {name: value for name, value in parameters.items() if name not in trained}
    state, sums = trainer.begin(trained), trainer.no_sums(trained)
    for step in range(steps):
        batch = [samples[(step + i) % len(samples)] for i in range(3)]
        loss = torch_loss(torch, model, batch)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_([p for found in groups.values() for p in found], 1.0)
        adamw.step()
        schedule.step()
        adamw.zero_grad()
        rows = packed(config, [batch[:2], batch[2:]], 80)
        sums = trainer.accumulate(sums, state.trained, frozen, rows, state.step, jnp.int32(0))
        state, sums, report = trainer.update(state, sums)
        np.testing.assert_allclose(report.loss, loss.item(), rtol=1e-5)
        np.testing.assert_allclose(report.gradient_norm, norm.item(), rtol=1e-4)
    theirs = weights_of(model)
    moved = 0.0
    for name, value in unstack(state.trained).items():
        assert_close(value, theirs[name], 1e-5)
        moved = max(moved, float(np.abs(theirs[name] - weights[name]).max()))
    assert moved > 1e-2
    assert int(state.step) == steps


def test_gradients_that_are_not_finite_change_nothing(whole):
    config, weights, samples = whole
    rates = Rates(projector=1e-3)
    parameters = parameters_of(weights)
    trainer = Trainer(model_of(config), build_optimizer(Optimizer(warmup=0.0), rates, 10))
    trained = {name: value for name, value in parameters.items() if rates.trains(name)}
    frozen = {name: value for name, value in parameters.items() if name not in trained}
    before = {name: np.asarray(value) for name, value in trained.items()}
    state, sums = trainer.begin(trained), trainer.no_sums(trained)
    batch = packed(config, [samples[:3], samples[3:]], 80)
    broken = frozen | {"language_model.norm.weight": frozen["language_model.norm.weight"] * np.nan}
    sums = trainer.accumulate(sums, state.trained, broken, batch, state.step, jnp.int32(0))
    state, sums, report = trainer.update(state, sums)
    assert not report.finite
    assert (int(state.step), int(state.skipped)) == (1, 1)
    for name, value in state.trained.items():
        np.testing.assert_array_equal(value, before[name])
    # And the sums are clean again.
    sums = trainer.accumulate(sums, state.trained, frozen, batch, state.step, jnp.int32(0))
    state, _, report = trainer.update(state, sums)
    assert report.finite
    assert int(state.skipped) == 1
    assert any(np.any(np.asarray(value) != before[name]) for name, value in state.trained.items())
