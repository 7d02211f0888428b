"""Paths as users type them, in commands and in Python; and how often an operation opens what lies there."""

import json
import os
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.small_models import random_parameters, small_config
from tests.weights.adapters_helper import Q_PROJ, draw, write_adapter
from tests.weights.checkpoints import write_checkpoint
from videollava_jax import VideoLlavaForConditionalGeneration, VideoLlavaProcessor
from videollava_jax.assets import MEDIA, TINY
from videollava_jax.cli import main
from videollava_jax.weights import (
    convert_to_orbax,
    export,
    load_checkpoint,
    open_adapter,
    open_checkpoint,
    verify_checkpoint,
    write_peft,
)

CLIP, QUESTION = str(MEDIA / "rising-triangle.mp4"), "Which way does it move?"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The bundled model as an Orbax directory."""
    target = tmp_path_factory.mktemp("made") / "tiny orbax"
    convert_to_orbax(TINY, target)
    return target


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    """A fresh working directory, the home directory too: `below/` and links to a small checkpoint and to `made`."""
    config = small_config()
    write_checkpoint(tmp_path / "below" / "hub", config, random_parameters(config, 0), "hub")
    (tmp_path / "desk").mkdir()
    for name in ("hub", "my hub"):
        (tmp_path / "desk" / name).symlink_to(tmp_path / "below" / "hub", target_is_directory=True)
    (tmp_path / "desk" / "orbax").symlink_to(made, target_is_directory=True)
    (tmp_path / "tiny orbax").symlink_to(made, target_is_directory=True)
    monkeypatch.chdir(tmp_path / "desk")
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


# Sources are in these places, targets appear in them.
SOURCES = ["hub", "./hub", "../below/hub", "hub/", "my hub", "~/below/hub"]
TARGETS = ["out", "./out", "../below/out", "out/", "my out", "~/out"]
PLACES = list(zip(SOURCES, TARGETS, strict=True))


@pytest.mark.parametrize(("source", "target"), PLACES)
def test_commands_from_one_layout_to_another_and_back(here, capsys, source, target):
    """In the README's manner: each line's target is the next one's source."""
    assert main(["convert", source, target]) == 0
    assert main(["verify", target]) == 0
    assert main(["verify", target, source]) == 0
    assert main(["export", target, f"{target.rstrip('/')}-hf", "--layout", "hub"]) == 0
    place = os.path.expanduser(target)
    assert Path(place, "manifest.json").is_file()
    assert Path(place.rstrip("/") + "-hf", "model.safetensors").is_file()
    assert main(["convert", source, target]) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert not list(here.rglob(".*partial"))


@pytest.mark.parametrize(("source", "target"), PLACES)
def test_python_from_one_layout_to_another_and_back(here, source, target):
    convert_to_orbax(source, target)
    assert verify_checkpoint(target) == []
    export(target, f"{target.rstrip('/')}-hf", "hub")
    assert open_checkpoint(target).directory.is_absolute()
    assert load_checkpoint(target)[0] == load_checkpoint(f"{target.rstrip('/')}-hf")[0]
    assert load_checkpoint(Path(target))[1].keys() == load_checkpoint(source)[1].keys()


@pytest.mark.parametrize("name", ["orbax", "./orbax", "../desk/orbax", "orbax/", "~/tiny orbax"])
def test_questions_to_a_model_of_ours(here, capsys, monkeypatch, name):
    """These ended with "Checkpoint path should be absolute"."""
    assert main(["ask", CLIP, QUESTION, "--model", name]) == 0
    assert "up" in capsys.readouterr().out


def test_chat_and_batch_with_a_model_of_ours(here, capsys, monkeypatch):
    lines = iter([QUESTION])
    monkeypatch.setattr("builtins.input", lambda _: next(lines, "/quit"))
    assert main(["chat", CLIP, "--model", "orbax"]) == 0
    assert "up" in capsys.readouterr().out
    Path("questions.jsonl").write_text(json.dumps({"id": "a", "video": CLIP, "prompt": QUESTION}) + "\n")
    assert main(["batch", "questions.jsonl", "./answers.jsonl", "--model", "./orbax", "--workers", "1"]) == 0
    assert "up" in Path("answers.jsonl").read_text()


def test_the_model_of_transformers_users(here, tiny_model):
    model = VideoLlavaForConditionalGeneration.from_pretrained("orbax")
    assert model.parameters.keys() == tiny_model.parameters.keys()
    model.save_pretrained("../saved")
    assert verify_checkpoint("../saved") == []
    model.save_pretrained("~/saved too", layout="orbax")
    assert (here / "saved too" / "params").is_dir()
    VideoLlavaProcessor.from_pretrained("~/tiny orbax").save_pretrained("~/saved too")
    assert (here / "saved too" / "tokenizer.json").is_file()


def test_adapters(here):
    write_adapter(here / "desk" / "lora", draw(small_config(), [Q_PROJ]), "hub")
    assert main(["export", "lora", "./peft", "--layout", "memory"]) == 0
    assert main(["convert", "~/desk/peft", "merged", "--base", "../below/hub"]) == 0
    assert main(["export", "hub", "merged-too", "--adapter", "./lora"]) == 0
    assert main(["verify", "merged", "./merged-too/"]) == 0
    write_peft(open_adapter("../desk/lora"), "~/again", "memory")
    assert verify_checkpoint(here / "again") == []


# ── how often what lies there is opened ─────────────────────────────────────────────────────────────────────

_counted: Counter[str] = Counter()
_watched: list[str] = []


def _count(event: str, arguments: tuple[object, ...]) -> None:
    if _watched and event in ("open", "os.listdir", "os.scandir"):
        path = arguments[0]
        if isinstance(path, (str, bytes, os.PathLike)):
            path = os.path.abspath(os.fsdecode(path))
            if path == _watched[0]:
                _counted["listed"] += event != "open"
            elif os.path.dirname(path) == _watched[0] and event == "open":
                _counted[os.path.basename(path)] += 1


@pytest.fixture(scope="module")
def _audited():
    sys.addaudithook(_count)  # which cannot be taken back: it watches nothing after these tests


@pytest.fixture
def opened(_audited):
    """How often the directory that is watched, and the files in it, are opened."""
    _counted.clear()
    yield lambda directory: _watched.append(str(directory)) or _counted
    _watched.clear()


@pytest.fixture(scope="module")
def with_manifests(tmp_path_factory):
    """A checkpoint as Orbax and as safetensors, and an adapter, each with its manifest."""
    place = tmp_path_factory.mktemp("manifests")
    config = small_config()
    write_checkpoint(place / "hub", config, random_parameters(config, 0), "hub")
    convert_to_orbax(place / "hub", place / "orbax")
    export(place / "hub", place / "safetensors", "hub")
    write_adapter(place / "lora", draw(config, [Q_PROJ]), "hub")
    write_peft(open_adapter(place / "lora"), place / "peft", "memory")
    return place


OPERATIONS = {
    "open": lambda source, place: open_checkpoint(source),
    "verify": lambda source, place: verify_checkpoint(source),
    "load": lambda source, place: load_checkpoint(source, verify="full"),
    "convert": lambda source, place: convert_to_orbax(source, place / "out"),
    "export": lambda source, place: export(source, place / "out", "hf5"),
    "merge": lambda source, place: export(source, place / "out", "hf5", adapter=source.parent / "peft"),
}


@pytest.mark.parametrize("kind", ["orbax", "safetensors"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_checkpoint_is_opened_once(with_manifests, tmp_path, opened, operation, kind):
    counted = opened(with_manifests / kind)
    OPERATIONS[operation](with_manifests / kind, tmp_path)
    assert counted["listed"] == 1
    assert counted["manifest.json"] == (operation != "open")
    # The manifest has a hash of config.json, which is read for itself as well.
    assert counted["config.json"] <= 2


def test_an_adapter_is_opened_once(with_manifests, tmp_path, opened):
    counted = opened(with_manifests / "peft")
    convert_to_orbax(with_manifests / "peft", tmp_path / "out", base=with_manifests / "hub")
    assert counted["listed"] == 1
    assert counted["adapter_config.json"] <= 2


def test_a_target_that_is_there_is_opened_once(with_manifests, opened):
    counted = opened(with_manifests / "orbax")
    assert convert_to_orbax(with_manifests / "hub", with_manifests / "orbax").already_there
    assert (counted["listed"], counted["manifest.json"]) == (1, 1)
