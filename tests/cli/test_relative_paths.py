"""Every command with relative names, from a directory of the user's: models, media, questions, pictures, outputs."""

import io
import json
import shutil
import sys

import pytest
from PIL import Image

from videollava_jax.assets import MEDIA, TINY
from videollava_jax.cli import main

QUESTION = "Which way does it move?"


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """A directory with clips and the tiny model as `videollava convert` writes it, all by relative names."""
    place = tmp_path_factory.mktemp("work")
    (place / "clips" / "deep").mkdir(parents=True)
    shutil.copy(MEDIA / "rising-triangle.mp4", place / "clips" / "up.mp4")
    shutil.copy(MEDIA / "three-triangles.png", place / "clips" / "deep" / "three.png")
    shutil.copytree(TINY, place / "source")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert main(["convert", "source", "tiny-orbax"]) == 0
    return place


@pytest.fixture
def here(converted, monkeypatch, tmp_path):
    """A fresh directory below which nothing was written yet, with links to the model and the clips."""
    for name in ("tiny-orbax", "clips"):
        (tmp_path / name).symlink_to(converted / name, target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_the_lines_of_the_readme(converted, monkeypatch, capsys):
    """Convert, then ask the converted: this ended with "Checkpoint path should be absolute"."""
    monkeypatch.chdir(converted)
    assert main(["ask", "--model", "tiny-orbax", "clips/up.mp4", QUESTION]) == 0
    assert capsys.readouterr().out == "up\n"
    monkeypatch.chdir(converted / "clips" / "deep")
    assert main(["ask", "--model", "../../tiny-orbax", "../up.mp4", QUESTION, "-m", "three.png"]) == 0


@pytest.mark.parametrize("model", ["tiny-orbax", "./tiny-orbax", "tiny-orbax/", "~/tiny-orbax"])
def test_ask_draws_where_it_is_told(here, capsys, model):
    asked = ["ask", "--model", model, "clips/up.mp4", QUESTION, "--json", "--picture", "shown/answer.png"]
    assert main(asked) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["answer"], record["media"][0]["path"]) == ("up", "clips/up.mp4")
    with Image.open(here / "shown" / "answer.png") as picture:
        assert picture.width > 1000


def test_chat(here, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{QUESTION}\n"))
    assert main(["chat", "--model", "tiny-orbax", "clips/up.mp4"]) == 0
    assert capsys.readouterr().out == "up\n"


@pytest.mark.parametrize(
    ("root", "names"),
    [
        ([], ("clips/up.mp4", "clips/deep/three.png")),
        (["--media-root", "clips"], ("up.mp4", "deep/three.png")),
        (["--media-root", "~/clips"], ("up.mp4", "deep/three.png")),
    ],
)
def test_batch(here, capsys, root, names):
    questions = (QUESTION, "What colour are they?")
    lines = [{"id": i, "media": [name], "prompt": q} for i, (name, q) in enumerate(zip(names, questions, strict=True))]
    (here / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (here / "answers").mkdir()
    asked = ["batch", "in.jsonl", "answers/out.jsonl", "--model", "tiny-orbax", *root]
    assert main(asked) == 0
    assert [json.loads(line)["text"] for line in (here / "answers" / "out.jsonl").read_text().splitlines()] == [
        "up",
        "red",
    ]
    assert main(asked) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_demo(here, capsys):
    assert main(["demo", "--picture", "pictures/demo.png"]) == 0
    assert "pictures/demo.png" in capsys.readouterr().out
    assert (here / "pictures" / "demo.png").is_file()


@pytest.mark.parametrize("model", ["tiny-orbax", "~/tiny-orbax", "tiny"])
def test_plan(here, capsys, model):
    assert main(["plan", "--topology", "h100:1", "--model", model, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)
    assert main(["plan", "--topology", "h100:1", "--model", "tiny-orbacks"]) == 1
    assert "tiny-orbacks: no such directory" in capsys.readouterr().err


def test_there_and_back(here, capsys):
    assert main(["verify", "tiny-orbax"]) == 0
    assert main(["export", "tiny-orbax", "again", "--layout", "hub"]) == 0
    assert main(["verify", "tiny-orbax", "again"]) == 0
    capsys.readouterr()
    assert main(["ask", "--model", "again", "clips/up.mp4", QUESTION]) == 0
    assert capsys.readouterr().out == "up\n"
