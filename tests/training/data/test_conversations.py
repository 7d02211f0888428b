"""Samples in the keys of LLaVA, ShareGPT and LLaMA-Factory; what is not read is named, and no medium is lost."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from videollava_jax.processing.prompt import Turn
from videollava_jax.processing.segments import Media
from videollava_jax.training.data.conversations import turns_of
from videollava_jax.training.data.samples import Sample, read_samples, tokenise
from videollava_jax.training.data.skips import SampleError

ROOT = Path("/data")
IMAGE, VIDEO = Media("image", "/data/a.png"), Media("video", "/data/b.mp4")
TALK = (("human", "Which way?"), ("gpt", "up"))


def llava(*turns, **more):
    return {"conversations": [{"from": who, "value": text} for who, text in turns or TALK], **more}


def factory(*turns, **more):
    roles = {"human": "user", "gpt": "assistant", "system": "system"}
    return {"messages": [{"role": roles[who], "content": text} for who, text in turns or TALK], **more}


@pytest.mark.parametrize("form", [llava, factory])
@pytest.mark.parametrize("plural", ["", "s"])
def test_every_format_gives_the_same_turns(form, plural):
    answer = Turn("assistant", ("up",))
    medium = {f"video{plural}": ["b.mp4"]}
    assert turns_of(form(("human", "<video>\nWhich way?"), ("gpt", "up"), **medium), ROOT) == (
        Turn("user", (VIDEO, "\nWhich way?"), verbatim=True),
        answer,
    )
    both = {f"video{plural}": ["b.mp4"], f"image{plural}": ["a.png"], "images" if not plural else "image": []}
    for question, content in (
        ("<video>\n<image>\nSame?", (VIDEO, "\n", IMAGE, "\nSame?")),
        ("<image> <video>Same?", (IMAGE, " ", VIDEO, "Same?")),
    ):
        turn = turns_of(form(("human", question), ("gpt", "up"), **both), ROOT)[0]
        assert turn == Turn("user", content, verbatim=True)
    in_the_middle = form(("human", "Look at <image> well. How many?"), ("gpt", "up"), **{f"image{plural}": "a.png"})
    assert turns_of(in_the_middle, ROOT)[0].media == (IMAGE,)


def test_a_system_prompt_comes_before_the_turns(tmp_path, tiny_processor):
    turns = (Turn("system", ("Be brief.",)), Turn("user", ("Which way?",)), Turn("assistant", ("up",)))
    assert turns_of(llava(system="Be brief."), ROOT) == turns
    assert turns_of(llava(("system", "Be brief."), ("gpt", "Hello."), *TALK), ROOT) == turns
    assert turns_of(factory(("system", "Be brief."), *TALK, system="", tools="[]", images=None), ROOT) == turns
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(json.dumps(factory(system="Be brief.")).encode()))
    (sample,) = read_samples([tmp_path / "a.jsonl.gz"])
    tokens = tokenise(sample, tiny_processor, 100)
    text = tiny_processor.tokenizer.decode(tokens.ids)
    assert text.replace(" ", "").startswith("<s>Bebrief.USER:Whichway?ASSISTANT:")
    assert tiny_processor.tokenizer.decode(tokens.labels[tokens.labels >= 0]).replace(" ", "") == "up</s>"


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"instruction": "Hi", "input": "", "output": "Hello"}, "got an object with the keys 'instruction'"),
        (llava() | factory(), "expected turns under 'conversations' or 'messages', got both"),
        (llava(("human", "Hi"), ("function_call", "x")), "turn 1: expected 'human', 'gpt' or 'system'"),
        (llava(("Human", "Hi"), ("gpt", "x")), "got 'Human'"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "turn 0: expected 'user', 'assistant' or"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "string under 'content', got a list"),
        ({"messages": [{"role": "assistant", "content": "x", "weight": 0}]}, "'weight' are not learnt here"),
        (llava(tools=[{"name": "f"}]), "'tools' is not learnt here: expected it to be left out"),
        (factory(audios=["a.wav"]), "'audios' is not learnt here"),
        (llava(chosen={"from": "gpt", "value": "a"}), "'chosen' is not learnt here"),
        (llava(("system", "a"), *TALK, system="b"), "expected one system prompt at most"),
        (llava(system=3), "expected a string under 'system', got a int"),
        (llava(("human", "<video>Hi"), ("gpt", "x"), video="b.mp4", videos=["b.mp4"]), "'video' or 'videos', got"),
        (factory(videos=[["1.png", "2.png"]]), "expected a path under 'videos', or a list of them; got a list"),
        # Media under a key that is not read: such samples were learnt as text alone.
        (llava(video_path="b.mp4"), "'video_path' names 'b.mp4', and media are read from 'image', 'images'"),
        (llava(clip=["x/B.MOV"]), "'clip' names 'x/B.MOV'"),
        (llava(img="https://host/a.jpg?size=1"), "'img' names 'https://host/a.jpg?size=1'"),
        (factory(picture="data:image/png;base64,AAAA"), "'picture' names 'data:image/png;base64,AAAA'"),
    ],
)  # fmt: skip
def test_what_is_not_read_is_refused_by_name(entry, reason):
    with pytest.raises(SampleError) as refused:
        turns_of(entry, ROOT)
    assert reason in str(refused.value)
    assert len(str(refused.value)) < 300


def test_what_names_no_medium_is_no_hindrance():
    for more in (
        {"id": "a.png"},
        {"source": "coco"},
        {"url": "https://host/page"},
        {"n": 3, "tags": []},
        {"text": "a.b"},
    ):
        assert len(turns_of(llava(**more), ROOT)) == 2
    assert len(turns_of(llava(("human", "<image>Hi"), ("gpt", "x"), image="a.png", thumbnail="b.png"), ROOT)) == 2


def test_the_samples_that_lost_their_media_have_them(tmp_path):
    """As people bring them: the order of the prompt, and the plural keys."""
    entries = [
        {"id": "fine", "video": "b.mp4"} | llava(("human", "<video>\nWhich way does it move?"), ("gpt", "up")),
        {"id": "other key", "videos": ["b.mp4"]} | llava(("human", "Which way does it move?"), ("gpt", "up")),
        {"id": "in the middle", "images": ["a.png"]} | llava(("human", "Look at <image> well."), ("gpt", "three")),
        {"id": "order", "video": "b.mp4", "image": "a.png"}
        | llava(("human", "<video>\n<image>\nThe same?"), ("gpt", "yes")),
    ]
    (tmp_path / "samples.json").write_text(json.dumps(entries))
    fine, other, middle, order = read_samples([tmp_path / "samples.json"])
    assert str(other) == "sample 1 (other key): expected a <video> for each video, got 0 of them and 1 videos"
    assert all(isinstance(sample, Sample) for sample in (fine, middle, order))
    assert [[medium.kind for medium in sample.media] for sample in (fine, middle, order)] == [
        ["video"], ["image"], ["video", "image"],
    ]  # fmt: skip


def test_images_and_videos_may_have_roots_of_their_own(tmp_path):
    entry = llava(("human", "<image><video>Hi"), ("gpt", "x"), image="a.png", video="b.mp4")
    (tmp_path / "samples.json").write_text(json.dumps([entry]))

    def paths(**roots):
        (sample,) = read_samples([tmp_path / "samples.json"], **roots)
        return [medium.source for medium in sample.media]

    assert paths(image_root="/i", video_root="/v") == ["/i/a.png", "/v/b.mp4"]
    assert paths(media_root="/m", video_root="/v") == ["/m/a.png", "/v/b.mp4"]
    assert paths(image_root="/i") == ["/i/a.png", str(tmp_path / "b.mp4")]
