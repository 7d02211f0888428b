"""Features of frozen towers on disk: what is learnt from them is learnt from pixels, and nothing is encoded twice."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.parity.reference import assert_close
from tests.training.data_sets import write_data
from videollava_jax.assets import TINY
from videollava_jax.media import Uniform
from videollava_jax.model.sharding import make_mesh
from videollava_jax.processing.media_processor import DEFAULT_LIMITS
from videollava_jax.training.data.corpus import Corpus, build_corpus
from videollava_jax.training.data.features import FACTS, FeatureStore
from videollava_jax.training.data.loader import HostBatch, PixelReader, loader
from videollava_jax.training.data.packing import BatchShape, RowShape, make_plan
from videollava_jax.training.data.samples import read_samples
from videollava_jax.training.data.skips import BadSample, SkipCounter
from videollava_jax.training.run import encoding
from videollava_jax.training.run.base_model import Loaded, load
from videollava_jax.training.run.encoding import Encoded, Encoder, open_features
from videollava_jax.training.run.inputs import on_devices
from videollava_jax.training.run.metrics import read_metrics
from videollava_jax.training.run.recipe import Compute, Data, Recipe
from videollava_jax.training.run.speed import Work
from videollava_jax.training.update.optimizer import build_optimizer
from videollava_jax.training.update.options import Lora, Optimizer, Rates
from videollava_jax.training.update.parameters import Parameters
from videollava_jax.training.update.step import Trainer

SAME = 1e-6
"""float32, from features and from pixels: absolute, on losses, gradients of a mean loss and features near 1."""
MEDIA = 13
"""Of the data set: each of its samples has one."""
SHAPE = BatchShape(batch=MEDIA, rows=4, row=RowShape(tokens=400, images=2, videos=2, samples=4))
WITH_LORA, ALL_BUT_TOWERS = Rates(lora=1.0, projector=1.0), Rates(projector=1.0, decoder=1.0)
LORA = ("--rates.lora", "1e-2", "--rates.projector", "1e-3", "--lora.rank", "4")


def recipe_of(rates: Rates, dtype: Literal["bfloat16", "float32"] = "float32", features: str | None = None) -> Recipe:
    return Recipe(
        model="tiny",
        output="",
        rates=rates,
        data=Data(train="-", features=features),
        lora=None if rates.lora is None else Lora(rank=4, dropout=0.0),
        compute=Compute(dtype=dtype),
    )


def loaded_on(mesh: tuple[int, int], processor: Any, recipe: Recipe, directory: Path = TINY) -> Loaded:
    return load(directory, recipe, make_mesh(*mesh), processor)


@pytest.fixture(scope="module")
def tiny(tiny_processor) -> Loaded:
    """The tiny model on one device, with LoRA in its decoder."""
    return loaded_on((1, 1), tiny_processor, recipe_of(WITH_LORA))


def corpus_of(file: Path, processor: Any, frames: int = 8) -> Corpus:
    return build_corpus(read_samples([file]), processor, SHAPE.row, SkipCounter(), frame_sampling=Uniform(frames))


@pytest.fixture(scope="module")
def corpus(data, tiny_processor) -> Corpus:
    return corpus_of(data, tiny_processor)


@dataclasses.dataclass(frozen=True)
class Start:
    """The preparation of a run before its first step."""

    processor: Any
    loaded: Loaded
    dtype: Literal["bfloat16", "float32"] = "float32"

    def store(self, root: Path, corpus: Corpus, checkpoint: Path = TINY) -> FeatureStore:
        return open_features(root, checkpoint, self.loaded.config, self.reader(corpus), self.dtype)

    def reader(self, corpus: Corpus) -> PixelReader:
        return PixelReader.of(self.processor, corpus.media, DEFAULT_LIMITS)

    def encode(self, store: FeatureStore, corpus: Corpus, workers: int = 0) -> Encoded:
        encoder = Encoder(store, self.reader(corpus), self.loaded.model, workers, 1, lambda _: None)
        return encoder(self.loaded.frozen, [corpus, corpus])  # media that two of them have in common count once


@pytest.fixture(scope="module")
def start(tiny_processor, tiny) -> Start:
    return Start(tiny_processor, tiny)


@pytest.fixture(autouse=True)
def _few_frames(monkeypatch):
    """Encodes one video at a time: with few media, larger batches would be mostly empty."""
    monkeypatch.setattr(encoding, "FRAMES", 8)


@pytest.fixture
def read(monkeypatch) -> list[str]:
    """The names of the files whose pixels are read, in order."""
    names: list[str] = []
    reading = PixelReader.__call__

    def noted(self: PixelReader, medium: Any) -> Any:
        names.append(Path(medium.source).name)
        return reading(self, medium)

    monkeypatch.setattr(PixelReader, "__call__", noted)
    return names


def batches(corpus: Corpus, processor: Any, store: FeatureStore | None, workers: int = 0) -> list[HostBatch]:
    """The micro-batches of a step with all samples of the data set."""
    plan = make_plan(corpus.sizes, SHAPE, steps=1, seed=0)
    return list(loader(plan, corpus, processor, features=store, workers=workers))


def gradients(loaded: Loaded, rates: Rates, batch: HostBatch) -> tuple[float, Parameters]:
    """The mean loss of a micro-batch, and its gradients."""
    trainer = Trainer(loaded.model, build_optimizer(Optimizer(), rates, 10))
    placement = loaded.model.placement
    assert placement is not None
    rows = on_devices(batch, placement, SHAPE.rows)
    sums = trainer.no_sums(loaded.trained)
    sums = trainer.accumulate(sums, loaded.trained, loaded.frozen, rows, jnp.int32(0), jnp.int32(0))
    return float(sums.loss.loss / sums.loss.tokens), {
        name: value / sums.loss.tokens for name, value in sums.gradients.items()
    }


# ── what is learnt ──


def of_pixels_and_of_features(
    loaded: Loaded, rates: Rates, corpus: Corpus, processor: Any, root: Path, checkpoint: Path = TINY
) -> tuple[HostBatch, HostBatch]:
    """Returns a micro-batch of pixels and one of features, and checks that their losses and gradients are equal."""
    start = Start(processor, loaded)
    store = start.store(root / "features", corpus, checkpoint)
    assert start.encode(store, corpus) == Encoded(MEDIA, 0)
    pixels, features = (batches(corpus, processor, found)[0] for found in (None, store))
    loss, expected = gradients(loaded, rates, pixels)
    # The towers are not there, and not missed.
    found, mine = gradients(loaded.without_towers(), rates, features)
    assert_close(found, loss, SAME)
    assert max(float(jnp.abs(value).max()) for value in expected.values()) > 100 * SAME
    for name, value in expected.items():
        assert_close(mine[name], value, SAME)
    return pixels, features


@pytest.mark.parametrize(("mesh", "rates"), [((1, 1), WITH_LORA), ((4, 2), ALL_BUT_TOWERS)])
def test_losses_and_gradients_are_those_of_pixels(corpus, tiny_processor, tmp_path, mesh, rates):
    loaded = loaded_on(mesh, tiny_processor, recipe_of(rates))
    pixels, features = of_pixels_and_of_features(loaded, rates, corpus, tiny_processor, tmp_path)
    assert pixels.arrays["videos"].shape == (4, 2, 8, 56, 56, 3)
    assert features.arrays["videos"].shape == (4, 2, 8 * 17, 64)
    assert features.arrays["images"].shape == (4, 2, 16, 64)
    assert features.arrays["images"].any()
    assert features.arrays["videos"].any()
    for name in features.arrays.keys() - {"images", "videos"}:
        np.testing.assert_array_equal(features.arrays[name], pixels.arrays[name], err_msg=name)


def test_attention_over_time_is_in_the_features(corpus, tiny_original, tiny_processor, tmp_path):
    tiny_original.save_pretrained(tmp_path / "model")
    loaded = loaded_on((1, 1), tiny_processor, recipe_of(WITH_LORA), tmp_path / "model")
    assert any("temporal" in name for name in loaded.frozen)
    of_pixels_and_of_features(loaded, WITH_LORA, corpus, tiny_processor, tmp_path, tmp_path / "model")


def test_bfloat16_goes_through_files_and_workers(corpus, tiny_processor, tmp_path):
    loaded = loaded_on((1, 1), tiny_processor, recipe_of(ALL_BUT_TOWERS, "bfloat16"))
    start = Start(tiny_processor, loaded, "bfloat16")
    store = start.store(tmp_path, corpus)
    assert start.encode(store, corpus, workers=1) == Encoded(MEDIA, 0)
    alone, together = (batches(corpus, tiny_processor, store, workers) for workers in (0, 1))
    for one, other in zip(alone, together, strict=True):
        for name, array in one.arrays.items():
            assert array.dtype == other.arrays[name].dtype
            np.testing.assert_array_equal(array, other.arrays[name], err_msg=name)
        assert one.arrays["videos"].dtype == ml_dtypes.bfloat16
    # What the files hold is what the towers say, to the bit.
    for sample, kind in ((0, "video"), (1, "image")):
        (medium,) = corpus.media_of(sample)
        assert medium.kind == kind
        pixels = np.repeat(start.reader(corpus)(medium)[None], 8 if kind == "image" else 1, axis=0)
        expected = jax.jit(loaded.model.encoded, static_argnums=0)(kind, loaded.frozen, jnp.asarray(pixels))
        np.testing.assert_array_equal(store.read(medium), expected[0])


def test_whole_runs(fine_tune, data, tmp_path, capfd, monkeypatch):
    """Runs of LoRA on int8 weights, of pixels and of features; and one that goes on with the features of another."""
    counted, flops = [], Work.flops

    def noted(self: Work, batch: HostBatch) -> float:
        counted.append(self.towers)
        return flops(self, batch)

    monkeypatch.setattr(Work, "flops", noted)
    recipe = (*LORA, "--lora.dropout", "0.0", "--compute.int8", "true", "--data.held_out", str(data))
    features = ("--data.features", str(tmp_path / "features"))
    assert fine_tune(tmp_path / "pixels", *recipe, steps=2) == 0
    assert all(counted)
    assert "features" not in capfd.readouterr().err
    counted.clear()
    assert fine_tune(tmp_path / "kept", *recipe, *features, steps=2) == 0
    assert not any(counted)
    assert f"features: {MEDIA} media encoded; in {tmp_path / 'features'}" in capfd.readouterr().err
    expected, lines = (read_metrics(tmp_path / name) for name in ("pixels", "kept"))
    assert len(expected) == len(lines) == 3
    for wanted, line in zip(expected, lines, strict=True):
        assert line.get("samples") == wanted.get("samples")
        for name in {"loss", "held_out_loss", "held_out_exact"} & wanted.keys():
            assert_close(line[name], wanted[name], SAME)
    assert fine_tune(tmp_path / "pixels", *recipe, *features, steps=2) == 0
    assert "features: 0 media encoded; in" in capfd.readouterr().err


# ── what is encoded ──


def test_what_a_killed_run_has_encoded_is_not_encoded_again(start, corpus, tmp_path, read, monkeypatch):
    store, writing = start.store(tmp_path, corpus), FeatureStore.write
    with monkeypatch.context() as patch:

        def killed(self: FeatureStore, file: Path, features: Any) -> None:
            if len(read) == 7:  # four images, two videos, and a third that was read
                raise KeyboardInterrupt
            writing(self, file, features)

        patch.setattr(FeatureStore, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            start.encode(store, corpus)
    before = list(read)
    read.clear()
    assert start.encode(store, corpus) == Encoded(MEDIA - 6, 0)
    assert len(read) == MEDIA - 6
    assert set(before) & set(read) == {before[-1]}
    read.clear()
    assert start.encode(store, corpus) == Encoded(0, 0)
    batches(corpus, start.processor, store)
    assert read == []
    assert {path.suffix for path in store.directory.rglob("*") if path.is_file()} == {".bin", ".json"}


def test_a_file_appears_whole_or_not_at_all(start, corpus, tmp_path):
    store = start.store(tmp_path, corpus)
    (medium,) = corpus.media_of(0)
    file = store.file(medium)
    assert file is not None

    class FullDisk(np.ndarray):
        def tofile(self, path: Any, *_: Any) -> None:
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        store.write(file, np.zeros((136, 64), np.float32).view(FullDisk))
    assert [path.name for path in store.directory.rglob("*") if path.is_file()] == [FACTS]


def test_a_medium_that_changes_and_a_file_that_is_torn_are_encoded_anew(start, tmp_path, read):
    corpus = corpus_of(write_data(tmp_path / "data", 4), start.processor)
    store = start.store(tmp_path / "features", corpus)
    assert start.encode(store, corpus) == Encoded(4, 0)
    read.clear()
    os.utime(tmp_path / "data" / "1.png", ns=(1, 1))
    (torn,) = corpus.media_of(3)
    file = store.file(torn)
    assert file is not None
    whole = file.read_bytes()
    file.write_bytes(whole[:1000])
    assert store.read(torn) is None
    assert start.encode(store, corpus) == Encoded(2, 0)
    assert sorted(read) == ["1.png", "3.mp4"]
    assert_close(np.frombuffer(file.read_bytes(), np.float32), np.frombuffer(whole, np.float32), SAME)


def test_what_decides_features_decides_where_they_are(start, corpus, data, tiny_processor, tmp_path):
    home = start.store(tmp_path, corpus).directory
    changed = [
        start.store(tmp_path, corpus_of(data, tiny_processor, frames=4)).directory,
        Start(tiny_processor, start.loaded, "bfloat16").store(tmp_path, corpus).directory,
    ]
    weights = load_file(TINY / "model.safetensors")
    for name, is_another in ("video_tower", True), ("multi_modal_projector", False):
        copy = shutil.copytree(TINY, tmp_path / name)
        one = next(key for key in weights if name in key)
        save_file(weights | {one: weights[one] + weights[one].dtype.type(1)}, copy / "model.safetensors")
        found = start.store(tmp_path, corpus, copy).directory
        if is_another:
            changed.append(found)
        else:
            assert found == home
    assert len({home, *changed}) == 4


# ── what is refused, and what is left out ──


def test_media_that_cannot_be_read_are_named_as_ever(start, tmp_path):
    file = write_data(tmp_path, 6)
    corpus = corpus_of(file, start.processor)
    (tmp_path / "0.mp4").write_bytes(b"no video")
    (tmp_path / "1.png").unlink()
    store = start.store(tmp_path / "features", corpus)
    assert start.encode(store, corpus) == Encoded(4, 2)

    def left_out(store: FeatureStore | None) -> set[BadSample]:
        return {bad for batch in batches(corpus, start.processor, store) for bad in batch.bad}

    unread = left_out(None)
    assert {bad.id for bad in unread} == {"s0", "s1"}
    assert left_out(store) == unread
    os.utime(tmp_path / "2.mp4", ns=(1, 1))
    (changed,) = left_out(store) - unread
    assert changed.id == "s2"
    assert "2.mp4: it can be read, and has no features in " in changed.reason


@pytest.mark.parametrize("tower", ["image_tower", "video_tower"])
def test_towers_that_are_trained_are_refused(tower):
    rates = Rates(projector=1.0, **{tower: 1.0})
    assert recipe_of(rates).rates == rates
    with pytest.raises(ValueError, match=r"data\.features: a tower that is trained gives other features after each"):
        recipe_of(rates, features="somewhere")


def test_a_directory_that_hosts_do_not_share_is_refused(start, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with pytest.raises(
        ValueError, match="made by the first process, not seen by this one; expected one that all hosts"
    ):
        start.store(tmp_path, corpus)
