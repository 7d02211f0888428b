"""The corpus and the loader: rows hold what their samples say, whoever loads them and wherever a run goes on."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from videollava_jax.assets import TINY
from videollava_jax.assets.world import encode_mp4, sample_clip, sample_image
from videollava_jax.media import FramePreprocessor, Uniform, read_image, read_video
from videollava_jax.processing.processor import VideoLlavaProcessor
from videollava_jax.processing.segments import IGNORED_LABEL
from videollava_jax.training.data import corpus as module
from videollava_jax.training.data.corpus import Corpus, build_corpus
from videollava_jax.training.data.loader import HostBatch, Loader, loader
from videollava_jax.training.data.packing import BatchShape, PackingPlan, RowShape, make_plan
from videollava_jax.training.data.samples import Sample, read_samples, tokenise
from videollava_jax.training.data.skips import SkipCounter, TooManyBadSamples

IMAGE, VIDEO = 16, 8 * 17  # tokens, of the tiny model
ROW = RowShape(tokens=340, images=3, videos=2, samples=4)
PACKED = BatchShape(batch=7, rows=2, row=ROW)
PADDED = BatchShape(batch=7, rows=2, row=ROW, buckets=(60, 200, 340))
MISSING = 9, 12
"""Samples whose media are not there, or not media."""


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Fifteen samples of every kind."""
    root = tmp_path_factory.mktemp("data")
    for seed in range(3):
        (root / f"{seed}.mp4").write_bytes(encode_mp4(sample_clip(seed).frames))
        Image.fromarray(sample_image(seed).frames[0]).save(root / f"{seed}.png")
    (root / "broken.mp4").write_bytes(b"no video")
    kinds: list[dict[str, Any]] = [
        {},
        {"image": "0.png"},
        {"video": "0.mp4"},
        {"image": ["1.png", "2.png"]},
        {"video": "1.mp4", "image": "1.png"},
    ]
    entries = []
    for i in range(15):
        keys = dict(kinds[i % 5])
        if i == MISSING[0]:
            keys["image"] = "missing.png"
        if i == MISSING[1]:
            keys["video"] = "broken.mp4"
        count = len(keys["image"]) if isinstance(keys.get("image"), list) else int("image" in keys)
        placeholders = "<video>" * ("video" in keys) + "<image>" * count
        values = [f"{placeholders}\nWhat is number {i}?", f"It is {'very ' * (i % 4)}red.", "Sure?", f"Yes, {i}."]
        turns = [{"from": ("human", "gpt")[j % 2], "value": value.strip()} for j, value in enumerate(values)]
        entries.append({"id": f"s{i}", "conversations": turns, **keys})
    path = root / "data.json"
    path.write_text(json.dumps(entries))
    return path


@pytest.fixture(scope="module")
def samples(data) -> list[Sample]:
    found = list(read_samples([data]))
    assert all(isinstance(sample, Sample) for sample in found)
    return found  # type: ignore[return-value]


@pytest.fixture(scope="module")
def corpus(samples, tiny_processor, tmp_path_factory) -> Corpus:
    return build_corpus(samples, tiny_processor, ROW, SkipCounter(), directory=tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def plan(corpus) -> PackingPlan:
    return make_plan(corpus.sizes, PACKED, steps=4, seed=3)


def assert_equal(one: HostBatch, other: HostBatch) -> None:
    assert (one.number, one.step, one.last, one.bad) == (other.number, other.step, other.last, other.bad)
    assert one.arrays.keys() == other.arrays.keys()
    for name, array in one.arrays.items():
        np.testing.assert_array_equal(array, other.arrays[name], err_msg=name)
        assert array.dtype == other.arrays[name].dtype
        assert type(array) is np.ndarray


# ── the corpus ──


def test_a_corpus_gives_back_what_was_tokenised(samples, corpus, tiny_processor):
    assert len(corpus) == len(samples)
    sizes = corpus.sizes
    for i, sample in enumerate(samples):
        expected, found = tokenise(sample, tiny_processor, ROW.tokens), corpus.tokens(i)
        np.testing.assert_array_equal(found.ids, expected.ids)
        np.testing.assert_array_equal(found.labels, expected.labels)
        assert found.ids.dtype == found.labels.dtype == np.int32
        assert (found.kinds, found.spans, found.truncated) == (expected.kinds, expected.spans, expected.truncated)
        assert corpus.media_of(i) == sample.media
        assert sizes.tokens[i] == len(expected.ids)
        assert (sizes.images[i], sizes.videos[i]) == (expected.kinds.count("image"), expected.kinds.count("video"))
    assert str(corpus.bad(4, "why")) == "sample 4 (s4): why"


def test_workers_are_handed_files_and_not_what_is_in_them(samples, corpus, tiny_processor):
    in_memory = build_corpus(samples, tiny_processor, ROW, SkipCounter())
    assert in_memory.digest == corpus.digest
    sent = pickle.dumps(corpus)
    assert len(sent) < 2000 < len(pickle.dumps(in_memory))
    for again in (pickle.loads(sent), pickle.loads(pickle.dumps(in_memory))):
        assert again.digest == corpus.digest
        for i in range(len(corpus)):
            np.testing.assert_array_equal(again.tokens(i).ids, corpus.tokens(i).ids)
            assert again.media_of(i) == corpus.media_of(i)


def test_text_alone_makes_a_corpus_too(samples, tiny_processor, tmp_path):
    text = [sample for sample in samples if not sample.media]
    corpus = build_corpus(text, tiny_processor, ROW, SkipCounter(), directory=tmp_path / "new" / "corpus")
    assert len(pickle.loads(pickle.dumps(corpus))) == len(text)
    assert not corpus.sizes.images.any()
    assert corpus.bad(1, "why").index == text[1].index


def test_bad_samples_are_counted_named_and_left_out(data, tiny_processor, tmp_path):
    entries = json.loads(data.read_text())
    entries[2]["conversations"][0]["from"] = "nobody"
    entries[5]["conversations"][0]["value"] = "word " * 1000
    path = tmp_path / "data.json"
    path.write_text(json.dumps(entries))
    skips = SkipCounter(max_rate=0.5)
    row = RowShape(tokens=340, images=1, videos=1)
    corpus = build_corpus(read_samples([path], media_root=data.parent), tiny_processor, row, skips, max_tokens=175)
    assert (skips.seen, skips.skipped) == (15, 5)
    assert [bad.index for bad in skips.bad] == [2, 3, 5, 8, 13]
    assert "expected 'human', 'gpt' or 'system'" in skips.bad[0].reason
    assert skips.bad[1].reason == "it has 2 images, and a row has room for 1"
    assert "no answer begins within the first 175" in skips.bad[2].reason
    assert corpus.truncated == sum(corpus.tokens(i).truncated for i in range(len(corpus))) > 0
    assert corpus.bad(2, "").index == 4
    with pytest.raises(TooManyBadSamples, match="5 of 15 samples"):
        build_corpus(read_samples([path]), tiny_processor, row, SkipCounter(max_rate=0.3, least=1000), max_tokens=175)


def test_workers_tokenise_the_same(data, samples, tiny_processor, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK", 2)
    row = RowShape(tokens=340, images=1, videos=1)
    counters = [SkipCounter(max_rate=0.5), SkipCounter(max_rate=0.5)]
    alone, together = (
        build_corpus(read_samples([data]), tiny_processor, row, counter, workers=workers, template="vicuna_v1")
        for workers, counter in zip((0, 2), counters, strict=True)
    )
    assert alone.digest == together.digest
    assert counters[0].bad == counters[1].bad
    assert len(counters[0].bad) == 3


def test_what_no_corpus_can_be_made_of_is_refused(samples, tiny_processor):
    with pytest.raises(ValueError, match="there is nothing to learn from: 0 samples, and 0 of them are bad"):
        build_corpus([], tiny_processor, ROW, SkipCounter())
    with pytest.raises(ValueError, match=r"1 to 340 \(a row has 340 tokens, the model 512 positions\), got 341"):
        build_corpus(samples, tiny_processor, ROW, SkipCounter(), max_tokens=341)
    with pytest.raises(ValueError, match=r"max_tokens: expected 1 to 340 .*, got 0"):
        build_corpus(samples, tiny_processor, ROW, SkipCounter(), max_tokens=0)
    long_row = RowShape(tokens=2000, images=3, videos=2)
    with pytest.raises(ValueError, match=r"1 to 512 \(a row has 2000 tokens, the model 512 positions\), got 513"):
        build_corpus(samples, tiny_processor, long_row, SkipCounter(), max_tokens=513)
    assert len(build_corpus(samples, tiny_processor, long_row, SkipCounter())) == len(samples)


def test_other_samples_have_another_digest(samples, corpus, tiny_processor):
    digests = {corpus.digest}
    for changed in (samples[1:], samples[::-1], [samples[0], *samples[:1], *samples[2:]]):
        digests.add(build_corpus(changed, tiny_processor, ROW, SkipCounter()).digest)
    assert len(digests) == 4


def test_media_may_move_between_two_parts_of_a_run(data, corpus, tiny_processor):
    elsewhere = build_corpus(read_samples([data], media_root="/moved"), tiny_processor, ROW, SkipCounter())
    assert elsewhere.digest == corpus.digest
    assert elsewhere.media_of(1)[0].source == "/moved/0.png"


# ── rows ──


@pytest.mark.parametrize("shape", [PACKED, PADDED])
def test_rows_hold_their_samples_and_nothing_else(samples, corpus, tiny_processor, shape):
    plan = make_plan(corpus.sizes, shape, steps=4, seed=3)
    slots = {"image": ROW.images, "video": ROW.videos}
    base = {"image": 0, "video": ROW.images * IMAGE}
    length = {"image": IMAGE, "video": VIDEO}
    met = 0
    for batch in loader(plan, corpus, tiny_processor):
        micro_batch = plan.micro_batch(batch.number)
        assert (batch.step, batch.last) == (micro_batch.step, micro_batch.last)
        assert batch.seen == sum(len(row) for row in micro_batch.rows)
        assert batch.arrays["input_ids"].shape == (shape.rows, micro_batch.tokens)
        reasons = {bad.index: bad.reason for bad in batch.bad}
        for r, members in enumerate(micro_batch.rows):
            row = {name: array[r] for name, array in batch.arrays.items()}
            assert row["samples"].tolist() == [*members, *[-1] * (shape.samples_per_row - len(members))]
            used = np.zeros(micro_batch.tokens, bool)
            filled = {"image": 0, "video": 0}
            for k, number in enumerate(members):
                met += 1
                here = row["segments"] == k + 1
                used |= here
                assert row["skipped"][k] == (number in MISSING)
                if row["skipped"][k]:
                    assert not here.any()
                    assert reasons[number]
                    continue
                tokens = tokenise(samples[number], tiny_processor, ROW.tokens)
                np.testing.assert_array_equal(row["input_ids"][here], tokens.ids)
                np.testing.assert_array_equal(row["targets"][here], [*tokens.labels[1:], IGNORED_LABEL])
                np.testing.assert_array_equal(row["positions"][here], np.arange(len(tokens.ids)))
                expected = np.full(len(tokens.ids), -1)
                for medium, (start, stop) in zip(samples[number].media, tokens.spans, strict=True):
                    slot = filled[medium.kind]
                    filled[medium.kind] += 1
                    expected[start:stop] = base[medium.kind] + slot * length[medium.kind] + np.arange(stop - start)
                    pixels = tiny_processor.read_medium(medium)
                    np.testing.assert_array_equal(
                        row[f"{medium.kind}s"][slot], pixels[0] if medium.kind == "image" else pixels
                    )
                np.testing.assert_array_equal(row["media_index"][here], expected)
            np.testing.assert_array_equal(row["segments"] > 0, used)
            assert (row["input_ids"][~used] == tiny_processor.tokenizer.pad_token_id).all()
            assert (row["targets"][~used] == IGNORED_LABEL).all()
            assert (row["media_index"][~used] == -1).all()
            assert not row["skipped"][len(members) :].any()
            for kind, slot in filled.items():
                assert not row[f"{kind}s"][slot:].any()
                assert len(row[f"{kind}s"]) == slots[kind]
    assert met == 4 * shape.batch


@pytest.mark.parametrize(
    ("image", "video"),
    [
        (
            FramePreprocessor(size=56, crop_size=56),
            FramePreprocessor(size=70, crop_size=56, resample=2, mean=(0, 0, 0)),
        ),
        (
            FramePreprocessor(size=64, crop_size=56, resample=0, std=(1, 1, 1)),
            FramePreprocessor(size=56, crop_size=56, resample=1),
        ),
    ],
)
def test_pixels_are_those_that_inference_answers_from(image, video, tmp_path):
    """Each kind of medium has its own size, crop, filter and statistics, in training as in inference."""
    for file in TINY.iterdir():
        if not file.name.startswith("model"):
            shutil.copy(file, tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(image.to_json()))
    (tmp_path / "video_preprocessor_config.json").write_text(json.dumps(video.to_json()))
    processor = VideoLlavaProcessor.from_pretrained(tmp_path)
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (75, 90, 3), dtype=np.uint8)).save(tmp_path / "0.png")
    (tmp_path / "0.mp4").write_bytes(encode_mp4(rng.integers(0, 256, (16, 80, 96, 3), dtype=np.uint8)))
    turns = [{"from": "human", "value": "<image><video>\nWhat?"}, {"from": "gpt", "value": "Noise."}]
    (tmp_path / "data.json").write_text(json.dumps([{"image": "0.png", "video": "0.mp4", "conversations": turns}]))

    corpus = build_corpus(read_samples([tmp_path / "data.json"]), processor, ROW, SkipCounter())
    plan = make_plan(corpus.sizes, BatchShape(batch=1, rows=1, row=ROW), steps=1, seed=0)
    (batch,) = loader(plan, corpus, processor)
    learnt_from = {"image": batch.arrays["images"][0, :1], "video": batch.arrays["videos"][0, 0]}
    prompt = "USER: <image><video>\nWhat? ASSISTANT:"
    inputs = processor(prompt, images=str(tmp_path / "0.png"), videos=str(tmp_path / "0.mp4"))
    answered_from = {"image": inputs["pixel_values_images"], "video": inputs["pixel_values_videos"][0]}
    for kind, own, other in ("image", image, video), ("video", video, image):
        expected = np.moveaxis(answered_from[kind], -3, -1)
        np.testing.assert_array_equal(own.normalize(learnt_from[kind]), expected)
        assert np.abs(other.normalize(learnt_from[kind]) - expected).max() > 0.1
        file = str(tmp_path / ("0.png" if kind == "image" else "0.mp4"))
        read = read_image(file)[None] if kind == "image" else read_video(file, Uniform(8)).frames
        assert not np.array_equal(other(read), learnt_from[kind])


def test_media_that_cannot_be_read_are_named_by_the_data(corpus, plan, tiny_processor):
    bad = [bad for batch in loader(plan, corpus, tiny_processor) for bad in batch.bad]
    assert {sample.id for sample in bad} == {"s9", "s12"}
    for sample in bad:
        assert ("missing.png: no such file" if sample.id == "s9" else "broken.mp4: ") in sample.reason


def test_a_run_over_unreadable_media_stops(corpus, plan, tiny_processor):
    skips = SkipCounter(max_rate=0.05, least=15)

    def run() -> None:
        for batch in loader(plan, corpus, tiny_processor):
            skips.add(batch.seen, batch.bad)

    with pytest.raises(TooManyBadSamples, match=r"3 of 19 samples.*\n  sample 9 \(s9\): "):
        run()
    assert skips.seen < 4 * PACKED.batch


def test_a_mistake_of_ours_is_no_bad_sample(corpus, plan, tiny_processor, monkeypatch):
    def broken(*_: Any) -> None:
        raise RuntimeError("ours")

    monkeypatch.setattr("videollava_jax.training.data.loader.image_pixels", broken)
    with pytest.raises(RuntimeError, match="ours"):
        list(loader(plan, corpus, tiny_processor))


# ── loading ──


def test_processes_have_parts_that_make_the_whole(corpus, plan, tiny_processor):
    parts = [loader(plan, corpus, tiny_processor, process_index=p, process_count=2) for p in range(2)]
    for whole, *own in zip(loader(plan, corpus, tiny_processor), *parts, strict=True):
        arrays = {name: np.concatenate([part.arrays[name] for part in own]) for name in whole.arrays}
        bad = tuple(bad for part in own for bad in part.bad)
        assert_equal(whole, HostBatch(own[0].number, own[1].step, own[0].last, arrays, bad))
    with pytest.raises(ValueError, match="processes that divides the 2 rows of a micro-batch, got process 0 of 3"):
        loader(plan, corpus, tiny_processor, process_count=3)
    with pytest.raises(ValueError, match="got process 2 of 2"):
        loader(plan, corpus, tiny_processor, process_index=2, process_count=2)


def goes_on(own: Loader, expected: list[HostBatch]) -> None:
    """Reads to the end of the plan, and compares."""
    for batch, other in zip(own, expected, strict=True):
        assert_equal(batch, other)


def test_a_run_goes_on_exactly_wherever_it_stopped(corpus, plan, tiny_processor):
    expected = list(loader(plan, corpus, tiny_processor))
    assert len(expected) == len(plan) > plan.steps
    reading = loader(plan, corpus, tiny_processor)
    states = [reading.state(), *(reading.state() for _ in reading)]
    own = loader(plan, corpus, tiny_processor)
    for position, state in enumerate(states):
        own.restore(json.loads(json.dumps(state)))
        assert own.position == position
        goes_on(own, expected[position:])


def test_workers_change_nothing_and_a_run_goes_on_with_or_without_them(corpus, plan, tiny_processor):
    expected = list(loader(plan, corpus, tiny_processor))
    with_workers = loader(plan, corpus, tiny_processor, workers=2)
    before = [next(with_workers) for _ in range(3)]
    goes_on(iter(before), expected[:3])  # type: ignore[arg-type]
    without = loader(plan, corpus, tiny_processor)
    without.restore(with_workers.state())
    goes_on(without, expected[3:])
    with_workers.restore(with_workers.state() | {"position": 1})  # while workers have read ahead
    goes_on(with_workers, expected[1:])


def test_a_state_of_another_run_is_refused(samples, corpus, plan, tiny_processor):
    own = loader(plan, corpus, tiny_processor)
    other_plan = loader(make_plan(corpus.sizes, PACKED, steps=4, seed=4), corpus, tiny_processor)
    with pytest.raises(ValueError, match="plan: this state belongs to another run"):
        own.restore(other_plan.state())
    other = build_corpus(samples[::-1], tiny_processor, ROW, SkipCounter())
    with pytest.raises(ValueError, match="corpus: this state belongs to another run"):
        own.restore(own.state() | {"corpus": other.digest})
