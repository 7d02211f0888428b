"""Which words of `ask` are media and which are questions, standard input, and options that change nothing."""

import argparse
import io
import json
import os
import sys

import numpy as np
import pytest
from PIL import Image

from videollava_jax.assets import MEDIA
from videollava_jax.cli import main
from videollava_jax.cli.asked import Asked, lines_of_standard_input, require_text, tell_apart, without_effect
from videollava_jax.cli.errors import UsageError
from videollava_jax.media import Medium

CLIP = str(MEDIA / "rising-triangle.mp4")
IMAGE = str(MEDIA / "three-triangles.png")
QUESTION = "Which way does it move?"


@pytest.mark.parametrize(
    ("words", "given", "media", "questions"),
    [
        (["a.mp4", "What?"], [], ("a.mp4",), ("What?",)),
        (["a.mp4", "b.JPG", "What?", "Why?"], [], ("a.mp4", "b.JPG"), ("What?", "Why?")),
        (["clip", "there", "What?"], [], ("clip", "there"), ("What?",)),  # `there` is a file here
        (["a.mp4", "What is in there?"], [], ("a.mp4",), ("What is in there?",)),
        (["a.mp4", "Is it b.png?"], [], ("a.mp4",), ("Is it b.png?",)),
        (["a.mp4", "there"], ["there"], ("a.mp4", "there"), ("there",)),
        (["-", "What?"], [], ("-",), ("What?",)),
        (["a.mp4", "-", "What?"], [], ("a.mp4", "-"), ("What?",)),
        (["a.mp4", "-"], [], ("a.mp4",), ("-",)),
        (["-"], ["What?"], ("-",), ("What?",)),
    ],
)
def test_media_come_first(tmp_path, monkeypatch, words, given, media, questions):
    (tmp_path / "there").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    assert tell_apart(words, given) == Asked(media, questions)


def test_an_option_may_have_named_the_media():
    assert tell_apart(["What?"], [], without_media=True) == Asked((), ("What?",))
    assert tell_apart(["-"], [], without_media=True) == Asked((), ("-",))
    assert tell_apart(["a.png", "What?"], [], without_media=True) == Asked(("a.png",), ("What?",))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "expected a medium and a question, got neither"),
        (["a.mp4"], r"expected a question after the media \(a.mp4\), got none"),
        (["a.mp4", "b.mp4"], r"expected a question after the media \(a.mp4, b.mp4\)"),
        (["-"], "expected a question after the media"),
        (["-", "-"], "standard input, which can hold one medium or the questions"),
        (["a.mp4", "What?", "--tempreture=a b"], "unrecognized arguments: --tempreture=a b"),
        (["a.mp4", "What?", "b.mp4"], "b.mp4: a file after a question"),
    ],
)
def test_lines_that_ask_nothing(words, said):
    with pytest.raises(UsageError, match=said):
        tell_apart(words, [])


def test_a_question_is_text():
    assert require_text("é") == "é"
    with pytest.raises(ValueError, match=r"expected text in UTF-8, got the bytes b'caf\\xe9'"):
        require_text(os.fsdecode(b"caf\xe9"))
    with pytest.raises(ValueError, match="an empty one"):
        require_text("  ")


def test_questions_of_standard_input(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("One?\n\n  Two?  \n"))
    assert lines_of_standard_input() == ["One?", "Two?"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    with pytest.raises(ValueError, match="expected questions, one on each line"):
        lines_of_standard_input()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9?\n"), "utf-8"))
    with pytest.raises(ValueError, match=r"b'caf\\xe9\?'"):
        lines_of_standard_input()


def record(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_two_media_between_options_and_a_medium_of_standard_input(capsys, monkeypatch):
    """An option may stand between the words; a clip comes through a pipe."""
    with open(CLIP, "rb") as clip:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(clip, "utf-8"))
        assert main(["ask", "-", "--json", IMAGE, QUESTION]) == 0
    (turn,) = record(capsys)
    clip, image = turn["media"]
    assert (turn["question"], clip["path"], image["path"]) == (QUESTION, "<standard input>", IMAGE)
    assert clip["times"] == [0.25 * i for i in range(8)]
    assert image["times"] == [0.0]


def test_media_are_read_in_a_worker_where_that_is_asked_for(tmp_path, capsys, monkeypatch):
    """A file that crashes its reader is an error there; frames and answers are the same."""
    code = """
import os, signal, sys
import videollava_jax.media.medium as medium
real = medium.read_image
def read(source, *limits):
    if not isinstance(source, bytes) and os.path.basename(source) == "crash.png":
        signal.raise_signal(11)
    return real(source, *limits)
medium.read_image = read
"""
    (tmp_path / "sitecustomize.py").write_text(code)
    (tmp_path / "crash.png").write_bytes((MEDIA / "three-triangles.png").read_bytes())
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    records = []
    for isolate in ([], ["--isolate", "--limit-seconds", "100"]):
        assert main(["ask", CLIP, IMAGE, QUESTION, "--json", *isolate]) == 0
        records.append(json.loads(capsys.readouterr().out))
        records[-1].pop("seconds")
    assert records[0] == records[1]
    assert main(["ask", str(tmp_path / "crash.png"), QUESTION, "--isolate"]) == 1
    assert capsys.readouterr().err == (
        f"videollava: {tmp_path / 'crash.png'}: its worker died (signal 11), 2 times of 2\n"
    )


def test_a_file_that_takes_too_long_says_which_flag_to_raise(capsys):
    assert main(["ask", CLIP, QUESTION, "--limit-seconds", "0.000001"]) == 1
    said = capsys.readouterr().err
    advice = "raise MediaLimits.seconds (--limit-seconds) if it is meant"
    assert said == f"videollava: {CLIP}: reading it took over 1e-06 s; {advice}\n"


def test_image_files_as_one_video(tmp_path, capsys, monkeypatch):
    for i in range(10):
        Image.new("RGB", (56, 56), (20 * i, 0, 0)).save(tmp_path / f"{i}.png")
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{QUESTION}\n"))
    assert main(["ask", "--frames-from", str(tmp_path), "-", "--json"]) == 0
    (turn,) = record(capsys)
    assert turn["question"] == QUESTION
    assert turn["media"][0]["times"] == [None] * 8
    names = [str(tmp_path / f"{i}.png") for i in (3, 1, 2, 5)]
    timed = ["--as-video", "--frame-rate", "2", "--fps", "1", "--json"]
    assert main(["ask", *names, QUESTION, *timed]) == 0
    (turn,) = record(capsys)
    assert (turn["media"][0]["frames"], turn["media"][0]["times"]) == ([0, 2], [0.0, 1.0])
    assert main(["ask", str(tmp_path), QUESTION]) == 1
    assert "--frames-from" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["chat", "-"], "a chat reads its questions from standard input"),
        (["batch", "-", "out.jsonl"], "expected names of files"),
        (["batch", "in.jsonl"], "expected an input and an output"),
        (["batch", "-i", "in.jsonl", "out.jsonl", "more"], "expected an input and an output"),
        (["ask", CLIP, QUESTION, "--pool", "-1"], "--pool: expected a whole number from 1"),
        (["ask", CLIP, QUESTION, "--indices", "-1,2.5"], "expected frame numbers"),
        (["ask", CLIP, QUESTION, "--fps", "nan"], "--fps: expected a number above 0"),
        (["ask", CLIP, QUESTION, "--wat"], "unrecognized arguments: --wat"),
        (["plan", "--topology", "v5e:2x4", "--questions", "-3"], "--questions: expected a whole number from 1"),
        (["train-export", "run", "out", "--step", "-1"], "--step: expected a whole number from 0"),
        (["verify", "a", "--logits"], "--logits and --dtype: expected two checkpoints"),
        (["verify", "a", "b", "--fast"], "--fast: expected one checkpoint"),
        (["verify", "a", "b", "--dtype", "float32"], "--dtype: expected --logits"),
        (["plan", "--topology", "v5e:2x4", "--job", "caption", "--questions", "3"], "--questions: expected --job qa"),
    ],
)
def test_a_line_that_makes_no_sense_is_answered_with_the_usage(arguments, said, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    printed = capsys.readouterr().err
    assert said in printed
    assert printed.startswith("usage: videollava")


def medium(kind):
    return Medium(kind, "a", np.zeros((1, 2, 2, 3), np.uint8), np.zeros(1, np.int64), np.zeros(1), 1)


NOTHING = {
    **dict.fromkeys(
        ("top_k", "top_p", "seed", "temperature", "do_sample", "indices", "frames", "fps", "pool", "sampling")
    ),
    **dict.fromkeys(("frame_rate", "frames_from")),
    **dict.fromkeys(("linspace", "as_video"), False),
}


@pytest.mark.parametrize(
    ("given", "kind", "draws", "said"),
    [
        ({}, "image", False, []),
        ({"top_p": 0.5}, "video", True, []),
        ({"top_p": 0.5, "seed": 3}, "video", False, ["--top-p and --seed: no effect, as tokens are drawn only"]),
        ({"temperature": 0.7, "do_sample": False}, "video", False, ["--temperature: no effect with --no-do-sample"]),
        ({"frames": 4, "indices": (1,)}, "video", False, ["--frames: no effect with --indices"]),
        ({"fps": 1.0, "pool": 2}, "image", False, ["--fps and --pool: no effect, as there is no video"]),
        ({"fps": 1.0, "sampling": "uniform"}, "video", False, ["--sampling: no effect with --fps"]),
        ({"sampling": "linspace"}, "image", False, ["--sampling: no effect, as there is no video"]),
        ({"frame_rate": 2.0}, "video", False, ["--frame-rate: no effect without"]),
        ({"frame_rate": 2.0, "as_video": True}, "video", False, []),
    ],
)
def test_options_without_effect_are_said(given, kind, draws, said):
    found = without_effect(argparse.Namespace(**{**NOTHING, **given}), [medium(kind)], draws)
    assert len(found) == len(said)
    assert all(sentence.startswith(start) for sentence, start in zip(found, said, strict=True))
