"""Ids and labels of training samples, against those of the authors' training code."""

from __future__ import annotations

import json
from contextlib import ExitStack

import pytest

from tests import authors
from tests.processing.llama_vocabulary import VocabularyUnavailable, real_llama_model, train_small_model
from tests.processing.test_presets import directory_of
from videollava_jax.processing.processor import VideoLlavaProcessor
from videollava_jax.training.data.authors import MOST_IDS
from videollava_jax.training.data.corpus import build_corpus
from videollava_jax.training.data.packing import RowShape
from videollava_jax.training.data.samples import read_samples, tokenise
from videollava_jax.training.data.skips import BadSample, SampleError, SkipCounter
from videollava_jax.training.run.inputs import batch_shape, read_corpus
from videollava_jax.training.run.recipe import read_recipe

SAMPLES = {sample["name"]: sample for sample in authors.samples()}
# What this package does otherwise, on purpose: these it names, or learns from.
OURS_DIFFER = {
    "an empty answer in the second turn",
    "text, longer than 2048 tokens",
    "a question with 'ASSISTANT: ' in it",
    "a question with '</s>' in it",
    "plain, image caption",
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A directory of the authors', with the real vocabulary."""
    try:
        vocabulary = real_llama_model()
    except VocabularyUnavailable as reason:
        pytest.skip(f"Llama's vocabulary is out of reach: {reason}")
    return directory_of(tmp_path_factory.mktemp("authors") / "model", vocabulary)


@pytest.fixture(scope="module")
def processor(directory):
    return VideoLlavaProcessor.from_pretrained(directory)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The same with a small vocabulary, trained here."""
    directory = tmp_path_factory.mktemp("small")
    return VideoLlavaProcessor.from_pretrained(directory_of(directory / "model", train_small_model(directory)))


def read(path, entry, **options):
    (path / "data.json").write_text(json.dumps([entry]))
    (sample,) = read_samples([path / "data.json"], **options)
    return sample


def placed(tokens):
    """Ids and labels with -200 for each image and each frame, whose labels are -100, as theirs have them."""
    ids, labels, at = [], [], 0
    for kind, (start, stop) in zip(tokens.kinds, tokens.spans, strict=True):
        count = 1 if kind == "image" else (stop - start) // 257
        ids += [*tokens.ids[at:start].tolist(), *[authors.PLACE] * count]
        labels += [*tokens.labels[at:start].tolist(), *[-100] * count]
        assert (tokens.labels[start:stop] == -100).all()
        at = stop
    return ids + tokens.ids[at:].tolist(), labels + tokens.labels[at:].tolist()


@pytest.mark.network
@pytest.mark.parametrize("name", SAMPLES)
def test_ids_and_labels_are_the_authors(processor, tmp_path, name):
    given = SAMPLES[name]
    sample = read(tmp_path, given["sample"], keep_empty=True)
    got = placed(tokenise(sample, processor, 10**6, version=given["version"]))
    assert got == (given["input_ids"], given["labels"])


@pytest.mark.network
@pytest.mark.parametrize("name", SAMPLES)
def test_a_run_as_paper_has_the_authors_ids_and_labels(directory, tmp_path, name):
    """From the recipe to the corpus; the rows, and with them the cut at 3072 positions, are the recipe's."""
    given = SAMPLES[name]
    (tmp_path / "data.json").write_text(json.dumps([given["sample"]]))
    more = ("--data.train", str(tmp_path / "data.json"), "--data.version", given["version"], "--data.workers", "0")
    recipe, _ = read_recipe(["--as", "paper", "--config", "finetune", *more])
    asked = VideoLlavaProcessor.from_pretrained(directory, preset=recipe.data.preset_changes)
    with ExitStack() as stack:
        skips = SkipCounter(max_rate=0.0)
        corpus = read_corpus(recipe.data.files, recipe, asked, batch_shape(recipe, 1), skips, stack)
        assert placed(corpus.tokens(0)) == (given["input_ids"], given["labels"])


@pytest.mark.network
@pytest.mark.parametrize("name", SAMPLES)
def test_with_their_preset_alone_only_odd_samples_differ(processor, tmp_path, name):
    given = SAMPLES[name]
    sample = read(tmp_path, given["sample"])
    if isinstance(sample, BadSample):
        assert name in OURS_DIFFER
        return
    got = placed(tokenise(sample, processor, 10**6))
    assert (got == (given["input_ids"], given["labels"])) == (name not in OURS_DIFFER)


def talk(*texts):
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


def test_a_masked_sample_stays_in_the_corpus(small, tmp_path):
    entries = [{"conversations": talk("A </s>?", "x")}, {"conversations": talk("Hi", "Hello.")}]
    (tmp_path / "data.json").write_text(json.dumps(entries))
    skips = SkipCounter(max_rate=0.0)
    row = RowShape(tokens=512, images=1, videos=1)
    corpus = build_corpus(read_samples([tmp_path / "data.json"], keep_empty=True), small, row, skips, version="v1")
    assert [(corpus.tokens(i).labels != -100).any() for i in range(2)] == [False, True]
    assert skips.skipped == 0


def test_ids_are_cut_where_the_authors_cut_them(small, tmp_path):
    sample = read(tmp_path, {"image": "a.png", "conversations": talk("<image>\nTell.", "word " * 4000)})
    tokens = tokenise(sample, small, 10**6, version="v1")
    assert len(placed(tokens)[0]) == MOST_IDS
    assert tokens.labels[-1] == tokens.ids[-1] != -100
    late = read(tmp_path, {"video": "a.mp4", "conversations": talk("word " * 4000 + "<video>", "x")})
    with pytest.raises(SampleError, match="a medium reaches over id 2048, where the authors' code cuts a sample"):
        tokenise(late, small, 10**6, version="v1")


def test_what_their_versions_do_not_take_is_refused(small, tmp_path):
    with pytest.raises(SampleError, match="version plain: expected a question with its media and one answer"):
        tokenise(read(tmp_path, {"conversations": talk("Hi", "Hello.")}), small, 512, version="plain")
    sample = read(tmp_path, {"image": "a.png", "conversations": talk("<image>", "A cat.")})
    plain = VideoLlavaProcessor(tokenizer=small.tokenizer)
    with pytest.raises(ValueError, match=r"data\.version=v1 needs the ids of the preset `original`.*expected 'anew'"):
        tokenise(sample, plain, 512, version="v1")
