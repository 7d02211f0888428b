"""LLaVA's JSON to samples and tokens: what is learnt, what is cut, what is bad and why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from videollava_jax.media import Fps, Indices, Linspace
from videollava_jax.processing.prompt import Turn
from videollava_jax.processing.segments import IGNORED_LABEL, Media
from videollava_jax.training.data import entries as module
from videollava_jax.training.data.samples import MediaTokens, Sample, read_samples, tokenise
from videollava_jax.training.data.skips import BadSample, SampleError, SkipCounter, TooManyBadSamples

IMAGE, VIDEO = 16, 8 * 17  # tokens, of the tiny model


def turns(*texts: str) -> list[dict[str, str]]:
    """Questions and answers in alternation."""
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


def read(tmp_path: Path, *entries: Any) -> list[Sample | BadSample]:
    path = tmp_path / "data.json"
    path.write_text(json.dumps(entries), encoding="utf-8")
    return list(read_samples([path]))


def read_one(tmp_path: Path, **entry: Any) -> Sample:
    (sample,) = read(tmp_path, entry)
    assert isinstance(sample, Sample), sample
    return sample


# ── JSON to samples ──


def test_images_videos_and_text(tmp_path):
    text, image, mixed = read(
        tmp_path,
        {"id": "t", "conversations": turns("Hi <image> there", " Hello.")},
        {"id": 7, "image": "a.png", "conversations": turns("<image>\nWhat?", "A cat.", "And?", "A hat.")},
        {
            "video": ["v/1.mp4"],
            "image": ["1.png", "/2.png"],
            "conversations": turns("Compare <video> and\n<image>", "Same.", "<image>", "Other."),
        },
    )
    assert text == Sample(0, "t", (Turn("user", ("Hi <image> there",)), Turn("assistant", (" Hello.",))))
    first = Media("image", str(tmp_path / "a.png"))
    assert image == Sample(
        1,
        "7",
        (
            Turn("user", (first, "\nWhat?"), verbatim=True),
            Turn("assistant", ("A cat.",)),
            Turn("user", ("And?",)),
            Turn("assistant", ("A hat.",)),
        ),
    )
    assert mixed.id == ""
    video, picture = Media("video", str(tmp_path / "v" / "1.mp4")), Media("image", str(tmp_path / "1.png"))
    assert mixed.turns[0] == Turn("user", ("Compare ", video, " and\n", picture), verbatim=True)
    assert mixed.turns[2] == Turn("user", (Media("image", "/2.png"),), verbatim=True)
    assert [medium.source for medium in mixed.media][-1] == "/2.png"


def test_media_are_relative_to_the_root_that_is_given(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({"image": "a.png", "conversations": turns("<image>", "Yes")}))
    (sample,) = read_samples([path], media_root="/elsewhere")
    assert sample.media == (Media("image", "/elsewhere/a.png"),)


def test_an_answer_before_the_first_question_is_dropped(tmp_path):
    sample = read_one(tmp_path, conversations=[{"from": "gpt", "value": "I am here."}, *turns("Hi", "Hello")])
    assert [turn.role for turn in sample.turns] == ["user", "assistant"]


GOOD = turns("Hi", "Hello")


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (3, "expected an object, got a int"),
        ({}, "expected a list of turns under 'conversations' or 'messages', got an object with the keys 'id'"),
        ({"conversations": []}, "expected a list of turns under 'conversations' or 'messages', got an empty one"),
        ({"conversations": {"from": "human"}}, "turns under 'conversations' or 'messages', got a dict"),
        ({"conversations": ["Hi"]}, "turn 0: expected an object with 'from' and 'value', got a str"),
        (
            {"conversations": [*GOOD, {"from": "system", "value": "x"}]},
            "expected one system prompt at most",
        ),
        ({"conversations": [{"from": ["human"], "value": "x"}]}, "turn 0: expected 'human', 'gpt' or 'system' under"),
        ({"conversations": [{"from": "human", "value": None}]}, "turn 0: expected a string under 'value', got None"),
        ({"conversations": [*GOOD, *GOOD[1:]]}, "two turns of one of them in a row"),
        ({"conversations": GOOD[:1]}, "there is no answer to learn"),
        ({"conversations": GOOD[1:]}, "there is no answer to learn"),
        ({"conversations": turns("Hi", " \n")}, "turn 1 of the conversation is empty"),
        ({"conversations": turns(" ", "Hello")}, "turn 0 of the conversation is empty"),
        ({"conversations": turns("Hi \ud83d", "Hello")}, "turn 0: the text is not Unicode"),
        ({"image": 3, "conversations": GOOD}, "expected a path under 'image', or a list of them; got a int"),
        ({"video": ["a.mp4", ""], "conversations": GOOD}, "expected a path under 'video', or a list of them"),
        ({"image": "a\ud83d.png", "conversations": turns("<image>", "x")}, "a path under 'image' is not Unicode"),
        ({"image": "a.png", "conversations": GOOD}, "expected a <image> for each image, got 0 of them and 1 images"),
        ({"image": "a.png", "conversations": turns("<image>", "x", "<image>", "y")}, "got 2 of them and 1 images"),
        ({"image": "a.png", "conversations": turns("<image>\n<video>", "x")}, "there is no path under 'video'"),
        ({"conversations": turns("<image>\nWhat?", "x")}, "a question has a <image>, and there is no path under"),
        ({"video": [], "conversations": turns("What?\n<video> ", "x")}, "a question has a <video>, and there is no"),
    ],
)
def test_a_bad_sample_is_named_and_the_next_one_read(tmp_path, entry, reason):
    if isinstance(entry, dict):
        entry = {"id": "me", **entry}
    bad, good = read(tmp_path, entry, {"id": "next", "conversations": GOOD})
    assert isinstance(bad, BadSample)
    assert bad.index == 0
    assert reason in bad.reason
    assert str(bad) == f"sample 0{' (me)' if isinstance(entry, dict) else ''}: {bad.reason}"
    assert (good.index, good.id) == (1, "next")


def test_an_id_is_shown_on_one_line_and_short(tmp_path):
    sample = read_one(tmp_path, id="a\nb" + "c" * 1000, conversations=GOOD)
    assert sample.id == "a\N{REPLACEMENT CHARACTER}b" + "c" * 197


# ── files ──


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


ONE = json.dumps({"id": 1, "conversations": GOOD})


@pytest.mark.parametrize("chunk", [1, 7, 2**22])
def test_a_list_is_read_piece_by_piece(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(module, "_CHUNK", chunk)
    entries = [{"id": f"é{i}", "conversations": turns("Hi" * i, "Hello")} for i in range(1, 6)]
    for text in (json.dumps(entries), json.dumps(entries, indent=1, ensure_ascii=False) + "\n", "\ufeff[ ]", "[]"):
        found = list(read_samples([write(tmp_path / "a.json", text)]))
        assert [sample.id for sample in found] == ([entry["id"] for entry in entries] if "id" in text else [])
    numbers = list(read_samples([write(tmp_path / "a.json", "[123, 45 , 6]")]))
    assert [bad.reason for bad in numbers] == ["expected an object, got a int"] * 3


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (f"[{ONE}", "after 1 elements: expected , or ], or the end"),
        (f"[{ONE}, ]", "after 1 elements: Expecting value"),
        (f"[{ONE} {ONE}]", "after 1 elements: expected , or ], or the end"),
        (f"[{ONE}, {{nonsense}}]", "after 1 elements: Expecting property name"),
        (f"[{ONE}] 3", "after 1 elements: expected , or ], or the end"),
        ("[", "after 0 elements"),
        ("[" * 200_000, "after 0 elements"),
    ],
)
def test_a_list_that_is_not_json_is_refused(tmp_path, text, error):
    path = write(tmp_path / "a.json", text)
    with pytest.raises(ValueError, match=error) as raised:
        list(read_samples([path]))
    assert str(raised.value).startswith(f"{path}: expected a JSON list, or a JSON object a line")


def test_lines_and_lists_in_several_files_are_counted_through(tmp_path):
    lines = write(tmp_path / "a.jsonl", f"\ufeff{ONE}\n\n  {ONE}\r\n{{\n{ONE}")
    whole = write(tmp_path / "b.json", f"[{ONE}]")
    found = list(read_samples([lines, str(whole)]))
    assert [sample.index for sample in found] == [0, 1, 2, 3, 4]
    assert [sample.index for sample in found if isinstance(sample, BadSample)] == [2]
    assert found[2].reason.startswith("line 4 is not JSON")


@pytest.mark.parametrize("form", ["[%s, %s]", "%s\n%s"])
def test_bytes_that_are_not_utf8_spoil_their_own_sample_alone(tmp_path, form):
    broken = ONE.encode().replace(b"Hello", b"H\xe9llo")
    path = write(tmp_path / "a.json", form.encode() % (broken, ONE.encode()))
    bad, good = read_samples([path])
    assert bad == BadSample(0, "1", "turn 1: the text is not Unicode")
    assert isinstance(good, Sample)


# ── counting ──


def test_the_run_stops_above_the_rate_and_says_which_samples(tmp_path):
    counter = SkipCounter(max_rate=0.1, least=20)
    bad = [BadSample(i, "", f"reason {i}") for i in range(7)]
    counter.add(10, bad[:2])  # above the rate, and of too few
    counter.add(9)
    with pytest.raises(TooManyBadSamples, match=r"3 of 20 .* over the rate of 10\.00%") as error:
        counter.add(1, bad[2:3])
    assert "sample 2: reason 2" in str(error.value)
    with pytest.raises(TooManyBadSamples, match="and 2 more"):
        counter.add(4, bad[3:])
    assert (counter.seen, counter.skipped, counter.bad) == (24, 7, bad)


def test_the_rate_itself_is_allowed_and_counting_goes_on_where_a_run_stopped():
    counter = SkipCounter(max_rate=0.5, least=1, seen=3, skipped=1)
    counter.add(1, [BadSample(0, "", "x")])
    assert (counter.seen, counter.skipped) == (4, 2)
    with pytest.raises(TooManyBadSamples, match="3 of 5 samples"):
        counter.add(1, [BadSample(1, "", "y")])
    with pytest.raises(ValueError, match="max_rate: expected a share from 0 to 1, got 2"):
        SkipCounter(max_rate=2)


# ── tokens ──


def reference(tokenizer: Any, parts: list[tuple[str, bool]], lengths: list[int]) -> tuple[list[int], list[int]]:
    """Returns ids and labels from transformers' offsets in the whole prompt; placeholders are repeated afterwards."""
    prompt = "".join(text for text, _ in parts)
    learnt = np.concatenate([np.full(len(text), answer) for text, answer in parts])
    encoded = tokenizer(prompt, return_offsets_mapping=True)
    media = tokenizer.convert_tokens_to_ids(["<image>", "<video>"])
    left, ids, labels = iter(lengths), [], []
    for token, (start, stop) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
        count = next(left) if token in media else 1
        ids += [token] * count
        labels += [token if learnt[start:stop].any() else IGNORED_LABEL] * count
    return ids, labels


CASES = {
    "text": ({}, ("What?", "A red circle.", "Where?", "Left."), ""),
    "image": ({"image": "a"}, ("<image>\nWhat shape is it?", "A circle.", "And the colour?", "Red."), "<image>\n"),
    "video": ({"video": "a"}, ("What moves?\n<video>", "A square.", "Where to?", "Up."), "<video>\n"),
    "both": ({"video": "a", "image": "b"}, ("<video><image>\nWhich?", "Both.", "Why?", "So."), "<video>\n<image>\n"),
}


@pytest.mark.parametrize("case", CASES)
def test_labels_are_those_of_transformers_offsets(tmp_path, tiny_processor, case):
    keys, texts, placeholders = CASES[case]
    tokens = tokenise(read_one(tmp_path, **keys, conversations=turns(*texts)), tiny_processor, 400)
    question = texts[0].replace("<image>", "").replace("<video>", "").strip()
    parts = [(f"USER: {placeholders}{question} ASSISTANT:", False), (f" {texts[1]}</s>", True)]
    parts += [(f"USER: {texts[2]} ASSISTANT:", False), (f" {texts[3]}</s>", True)]
    lengths = [{"<image>": IMAGE, "<video>": VIDEO}[name] for name in placeholders.split()]
    ids, labels = reference(tiny_processor.tokenizer, parts, lengths)
    np.testing.assert_array_equal(tokens.ids, ids)
    np.testing.assert_array_equal(tokens.labels, labels)
    assert tokens.ids.dtype == tokens.labels.dtype == np.int32
    # What is learnt, in words: the answers and their ends, and nothing of media, questions or template.
    learnt = tokens.labels[tokens.labels != IGNORED_LABEL]
    assert tiny_processor.tokenizer.decode(learnt).replace(" ", "") == f"{texts[1]}</s>{texts[3]}</s>".replace(" ", "")
    assert [stop - start for start, stop in tokens.spans] == lengths
    media_ids = {"image": tiny_processor.image_token_id, "video": tiny_processor.video_token_id}
    for kind, (start, stop) in zip(tokens.kinds, tokens.spans, strict=True):
        assert set(tokens.ids[start:stop].tolist()) == {media_ids[kind]}
    assert not tokens.truncated


def test_special_tokens_that_a_user_types_are_text(tmp_path, tiny_processor):
    tokens = tokenise(read_one(tmp_path, conversations=turns("A </s> and <image> here", "Fine")), tiny_processor, 400)
    assert (tokens.ids == tiny_processor.tokenizer.eos_token_id).sum() == 1
    assert tiny_processor.image_token_id not in tokens.ids


def test_the_template_is_the_processors_unless_another_is_named(tmp_path, tiny_processor):
    sample = read_one(tmp_path, conversations=turns("What?", "A circle."))
    eos = tiny_processor.tokenizer.eos_token_id
    assert eos in tokenise(sample, tiny_processor, 400).labels
    assert eos not in tokenise(sample, tiny_processor, 400, template="hf").ids
    assert len(tokenise(sample, tiny_processor, 400, template="vicuna_v1").ids) > 60


def test_long_samples_are_cut_on_the_right(tmp_path, tiny_processor):
    sample = read_one(tmp_path, image="a", conversations=turns("<image>\nWhat?", "A red circle.", "Where?", "Left."))
    whole = tokenise(sample, tiny_processor, 400)
    first_answer = int(np.flatnonzero(whole.labels != IGNORED_LABEL)[0])
    assert not tokenise(sample, tiny_processor, len(whole.ids)).truncated
    for limit in range(first_answer + 1, len(whole.ids)):
        cut = tokenise(sample, tiny_processor, limit)
        np.testing.assert_array_equal(cut.ids, whole.ids[:limit])
        np.testing.assert_array_equal(cut.labels, whole.labels[:limit])
        assert cut.truncated
        assert cut.spans == whole.spans
    with pytest.raises(SampleError, match=f"no answer begins within the first {first_answer} of its"):
        tokenise(sample, tiny_processor, first_answer)
    (span,) = whole.spans
    with pytest.raises(SampleError, match=f"its media reach to token {span[1]}, over the {span[1] - 1} tokens"):
        tokenise(sample, tiny_processor, span[1] - 1)


def test_a_video_has_as_many_tokens_as_its_sampling_has_frames(tmp_path, tiny_processor):
    sample = read_one(tmp_path, video="a", conversations=turns("<video>\nWhat?", "A circle."))
    for frame_sampling, frames in ((Linspace(4), 4), (Indices((0, 3)), 2)):
        ((start, stop),) = tokenise(sample, tiny_processor, 400, frame_sampling=frame_sampling).spans
        assert stop - start == 17 * frames
        assert MediaTokens.of(tiny_processor, frame_sampling).frames == frames
    with pytest.raises(ValueError, match="frame_sampling: expected the same number of frames of every video, got Fps"):
        tokenise(sample, tiny_processor, 400, frame_sampling=Fps(1.0))
