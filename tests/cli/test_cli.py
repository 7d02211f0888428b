"""The `videollava` command as a user types it: answers, JSON, pictures, errors of one line, exit status."""

import json
import subprocess
import sys

import pytest
from PIL import Image

from videollava_jax.assets import MEDIA, TINY
from videollava_jax.cli import main
from videollava_jax.cli.demo import QUESTIONS

CLIP = str(MEDIA / "rising-triangle.mp4")
IMAGE = str(MEDIA / "three-triangles.png")
ANSWERS = {
    "Which way does it move?": "up",
    "What shape is it?": "triangle",
    "Does it change colour?": "yes",
    "Which shape comes first?": "circle",
    "Which colour comes last?": "blue",
    "What colour are they?": "red",
}


def records(output):
    return [json.loads(line) for line in output.splitlines()]


def test_the_demo_converts_asks_and_draws(tmp_path, capsys):
    picture = tmp_path / "new" / "demo.png"
    assert main(["demo", "--picture", str(picture)]) == 0
    printed = capsys.readouterr().out
    assert "layout hf5) to Orbax" in printed
    for name, questions in QUESTIONS.items():
        assert name in printed
        for question in questions:
            line = next(line for line in printed.splitlines() if question in line)
            assert line.endswith(" s")
            if question in ANSWERS:
                assert ANSWERS[question] in line
    with Image.open(picture) as image:
        assert image.width > 1000  # eight frames beside each other
        assert len(image.getcolors(2**24)) > 1000


def test_ask_prints_the_answer_alone(capsys):
    assert main(["ask", CLIP, "Which way does it move?"]) == 0
    assert capsys.readouterr().out == "up\n"


def test_ask_as_json_with_a_picture(tmp_path, capsys):
    picture = tmp_path / "answers.jpg"
    arguments = ["ask", CLIP, "Which way does it move?", "What shape is it?", "--json", "--picture", str(picture)]
    assert main(arguments) == 0
    first, second = records(capsys.readouterr().out)
    assert (first["question"], first["answer"]) == ("Which way does it move?", "up")
    assert second["answer"] == "triangle"
    times = [i / 4 for i in range(8)]
    assert first["media"] == [
        {"path": CLIP, "kind": "video", "frames": [*range(0, 16, 2)], "times": times, "total_frames": 16}
    ]
    assert first["cached_tokens"] == 0 < second["cached_tokens"] < second["prompt_tokens"]
    assert first["seconds"] > 0
    with Image.open(picture) as image:
        assert image.format == "JPEG"


@pytest.mark.parametrize(
    ("options", "frames"),
    [
        ([], [0, 2, 4, 6, 8, 10, 12, 14]),
        (["--linspace"], [0, 2, 4, 6, 8, 10, 12, 15]),
        (["--frames", "4"], [0, 4, 8, 12]),
        (["--fps", "2"], [0, 4, 8, 12]),
        (["--indices", "1,3,5"], [1, 3, 5]),
    ],
)
def test_frames_are_chosen_by_every_rule(capsys, options, frames):
    assert main(["ask", CLIP, "What shape is it?", "--json", *options]) == 0
    assert records(capsys.readouterr().out)[0]["media"][0]["frames"] == frames


def test_seeds_decide_what_is_drawn(capsys):
    def said(seed):
        options = ["--temperature", "5", "--seed", str(seed), "--max-new-tokens", "6"]
        assert main(["ask", IMAGE, "Where is it?", "--json", *options]) == 0
        return records(capsys.readouterr().out)[0]["token_ids"]

    assert said(1) == said(1)
    assert len({tuple(said(seed)) for seed in range(4)}) > 1


def test_chat_reads_questions_from_standard_input(capsys, monkeypatch):
    import io

    lines = "What shape is it?\n\nWhich way does it move?\n/new\nDoes it change colour?\n/quit\nnever asked\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    assert main(["chat", CLIP, "--json"]) == 0
    turns = records(capsys.readouterr().out)
    assert [turn["answer"] for turn in turns] == ["triangle", "up", "yes"]
    assert turns[1]["cached_tokens"] >= turns[0]["prompt_tokens"]  # the conversation goes on
    assert turns[2]["cached_tokens"] < turns[0]["prompt_tokens"]  # a new one, about the same media
    monkeypatch.setattr(sys, "stdin", io.StringIO("What shape is it?\n"))
    assert main(["chat", CLIP]) == 0
    assert capsys.readouterr().out == "triangle\n"


def test_convert_then_ask_the_converted(tmp_path, capsys):
    target = tmp_path / "orbax"
    assert main(["convert", str(TINY), str(target), "--json"]) == 0
    summary = records(capsys.readouterr().out)[0]
    card = json.loads((TINY / "card.json").read_text())
    assert (summary["from"], summary["variant"], summary["parameters"]) == ("hf5", "hf", card["parameters"])
    assert summary["bytes"] == 4 * summary["parameters"]
    assert main(["ask", "--model", str(target), CLIP, "Which way does it move?"]) == 0
    assert capsys.readouterr().out == "up\n"
    assert main(["convert", str(TINY), str(target), "--json"]) == 0
    assert records(capsys.readouterr().out)[0]["already_there"]
    assert main(["convert", str(TINY), str(target), "--dtype", "bfloat16"]) == 1
    assert f"{target} exists and holds something else" in capsys.readouterr().err
    assert main(["convert", str(TINY), str(tmp_path / "half"), "--dtype", "bfloat16", "--json"]) == 0
    assert records(capsys.readouterr().out)[0]["bytes"] == 2 * summary["parameters"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["half", "orbax"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ask", "none.mp4", "What?"], "none.mp4: no such file"),
        (["ask", __file__, "What?"], "test_cli.py: expected a video"),
        (["ask", CLIP, "What?", "--model", "./none"], "none"),
        (["ask", CLIP, "What?", "--indices", "3,99"], "has 16 frames"),
        (["ask", CLIP, "What?", "--picture", "answers.txt"], "expected the name of a picture"),
        (["ask", CLIP, "What?", "--frames", "40"], "fewer frames"),
        (["ask", CLIP, "What?", "--max-new-tokens", "0"], "max_new_tokens"),
        (["convert", "none", "target"], "none: no such directory"),
    ],
)
def test_what_went_wrong_is_one_line(arguments, message, capsys):
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("videollava: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [[], ["ask"], ["ask", CLIP], ["ask", CLIP, "?", "--indices", "a"], ["ask", CLIP, "?", "--frames", "0"], ["fly"]],
)
def test_wrong_arguments_are_told_with_the_usage(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "usage: videollava" in capsys.readouterr().err


def test_numbers_that_make_no_sense_are_the_errors_of_their_lines(tmp_path, capsys):
    wrong = {"seed": 2**70, "temperature": float("nan"), "max_new_tokens": 3.5, "top_k": 10**30, "stop_strings": [""]}
    wrong |= {"top_p": True, "repetition_penalty": float("inf"), "frames": 0, "pool": 2**40, "suppress_tokens": [1]}
    lines = [{"id": name, "video": CLIP, "prompt": "Which way?", "options": {name: v}} for name, v in wrong.items()]
    lines.append({"id": "good", "video": CLIP, "prompt": "Which way does it move?", "options": {"seed": -(2**63)}})
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["batch", str(source), str(output), "--json"]) == 0
    *refused, good = records(output.read_text())
    assert good["text"] == "up"
    for record in refused:
        assert record["error"].startswith(f"{record['id']}: "), record
        assert record["cause"] == "invalid_request"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--temperature", "nan"], "temperature: expected 0 or a number from 1e-06 to 1000000, got nan"),
        (["--top-p", "0"], "top_p: expected a number above 0, at most 1, got 0.0"),
        (["--seed", str(2**64)], "seed: expected a whole number"),
        (["--suppress-tokens", "9999"], "suppress_tokens: expected ids below"),
    ],
)
@pytest.mark.parametrize("command", ["ask", "batch"])
def test_flags_out_of_range_end_the_command(tmp_path, capsys, command, flags, message):
    (tmp_path / "in.jsonl").write_text(json.dumps({"id": "a", "video": CLIP, "prompt": "?"}))
    asked = [CLIP, "?"] if command == "ask" else [str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl")]
    assert main([command, *asked, *flags]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("videollava: ")
    assert message in said
    assert not (tmp_path / "out.jsonl").exists()


def test_every_option_of_generation_is_a_flag(capsys):
    drawn = ["--temperature", "5", "--top-k", "5", "--max-new-tokens", "6", "--json"]
    assert main(["ask", IMAGE, "Where is it?", *drawn, "--suppress-tokens", "2"]) == 0
    tokens = records(capsys.readouterr().out)[0]["token_ids"]
    assert len(tokens) == 6  # without an end
    ends = ["--suppress-tokens", "2", "--eos-token-id", f"2,{tokens[2]}"]
    assert main(["ask", IMAGE, "Where is it?", *drawn, *ends]) == 0
    assert records(capsys.readouterr().out)[0]["token_ids"] == tokens[: tokens.index(tokens[2]) + 1]
    assert main(["ask", IMAGE, "How many shapes are there?", "--stop-strings", "re", "--stop-strings", "hr"]) == 0
    assert capsys.readouterr().out.strip() == "three"


COMMANDS = [
    "demo",
    "ask",
    "chat",
    "batch",
    "convert",
    "export",
    "assemble",
    "verify",
    "plan",
    "finetune",
    "train-export",
]
HELPS = """
import contextlib, io, json, sys
from videollava_jax.cli import main
shown, slow = {}, {"numpy", "jax", "transformers", "PIL", "av"}
for words in (["--help"], *([command, "--help"] for command in sys.argv[1:])):
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.suppress(SystemExit):
        main(words)
    shown[words[0]] = said.getvalue()
    came = slow & sys.modules.keys() - (set() if words == ["--help"] else {"numpy"})
    assert not came, (words, came)
print(json.dumps(shown))
"""
ASKS = """
import json, sys
from videollava_jax.cli import main
status = main(sys.argv[1:])
print(json.dumps([status, sorted(sys.modules)]), file=sys.stderr)
"""


@pytest.fixture(scope="module")
def helps():
    """What `--help` prints, of each command too, in a process where none of them loads JAX."""
    done = subprocess.run([sys.executable, "-c", HELPS, *COMMANDS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_the_list_of_commands_imports_nothing(helps):
    for command in COMMANDS:
        assert f"    {command}" in helps["--help"]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches_without_loading_jax(helps, command):
    assert f"usage: videollava {command}" in helps[command]
    assert f"  videollava {command} " in helps[command] or command == "demo"  # an example
    assert len(helps[command].splitlines()) > 8


def test_ask_imports_what_it_needs_and_no_more():
    """`python -X importtime` says what these take: together more than all else that `ask` imports."""
    done = subprocess.run(
        [sys.executable, "-c", ASKS, "ask", CLIP, "Which way does it move?"],
        capture_output=True,
        text=True,
        check=False,
    )
    status, modules = json.loads(done.stderr.splitlines()[-1])
    assert (status, done.stdout) == (0, "up\n")
    unwanted = {"transformers", "torch", "huggingface_hub", "orbax", "tensorstore", "sentencepiece", "grain", "ray"}
    unwanted |= {"pandas", "pyarrow", "matplotlib", "scipy", "jinja2", "videollava_jax.cli.batch"}
    unwanted |= {"videollava_jax.cli.picture", "videollava_jax.engine", "videollava_jax.training"}
    assert not unwanted & set(modules), sorted(unwanted & set(modules))
