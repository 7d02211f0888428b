"""The programs in convert/ and the commands that do the same, as a user types them."""

import json
import runpy
import sys
from pathlib import Path

import pytest

from tests.small_models import random_parameters, small_config
from tests.weights.checkpoints import assert_same_bits, read_all, write_checkpoint
from videollava_jax.cli import main
from videollava_jax.weights import LAYOUTS, Layout

PROGRAMS = Path(__file__).parents[2] / "convert"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two checkpoints: transformers' (hub) and the authors' (pku)."""
    place = tmp_path_factory.mktemp("programs")
    text = {"max_position_embeddings": 256}
    write_checkpoint(place / "hub", small_config(text=text), random_parameters(small_config(), 0), "hub", shards=2)
    original = small_config("original")
    write_checkpoint(place / "pku", original, random_parameters(original, 1, "bfloat16"), "pku")
    return place


def run(monkeypatch, capsys, program, *arguments):
    """(exit status, what it printed)"""
    monkeypatch.setattr(sys, "argv", [program, *map(str, arguments)])
    status = 0
    try:
        runpy.run_path(str(PROGRAMS / program), run_name="__main__")
    except SystemExit as stopped:
        status = int(stopped.code or 0)
    return status, capsys.readouterr().out


def test_transformers_there_and_back(place, tmp_path, monkeypatch, capsys):
    status, said = run(monkeypatch, capsys, "hf_to_orbax.py", place / "hub", tmp_path / "orbax")
    assert status == 0
    assert "hub to orbax" in said
    assert "every bit is as it was read" in said
    status, said = run(monkeypatch, capsys, "orbax_to_hf.py", tmp_path / "orbax", tmp_path / "back")
    assert status == 0
    assert_same_bits(read_all(tmp_path / "back"), read_all(place / "hub"))
    status, said = run(monkeypatch, capsys, "verify.py", place / "hub", tmp_path / "back", "--logits")
    assert status == 0
    assert "0 are not" in said
    assert "differ by up to 0 " in said


def test_the_authors_there_and_back(place, tmp_path, monkeypatch, capsys):
    status, said = run(monkeypatch, capsys, "pku_to_orbax.py", place / "pku", tmp_path / "orbax")
    assert status == 0
    assert "22 of them attention over time" in said
    assert main(["export", str(tmp_path / "orbax"), str(tmp_path / "back"), "--layout", "pku"]) == 0
    assert_same_bits(read_all(tmp_path / "back"), read_all(place / "pku"))
    status, said = run(monkeypatch, capsys, "orbax_to_hf.py", tmp_path / "orbax", tmp_path / "hf", "--drop-temporal")
    assert status == 0
    assert said.count("only in the first") == 22


def test_a_towers_own_configuration(place, tmp_path, capsys):
    (tmp_path / "tower.json").write_text(
        json.dumps({"vision_config": {"num_attention_heads": 4, "hidden_act": "relu"}})
    )
    arguments = ["convert", str(place / "pku"), str(tmp_path / "orbax"), "--tower-config", str(tmp_path / "tower.json")]
    assert main(arguments) == 0
    vision = json.loads((tmp_path / "orbax" / "config.json").read_text())["vision_config"]
    assert (vision["num_attention_heads"], vision["hidden_act"]) == (4, "relu")


def test_verify_tells_what_differs(place, tmp_path, monkeypatch, capsys):
    arguments = ["convert", str(place / "hub"), str(tmp_path / "int8"), "--int8"]
    assert main(arguments) == 0
    capsys.readouterr()
    assert main(["verify", str(tmp_path / "int8")]) == 0
    assert "is what its manifest says" in capsys.readouterr().out
    assert main(["verify", str(place / "hub"), str(tmp_path / "int8"), "--logits", "--json"]) == 1
    captured = capsys.readouterr()
    record = json.loads(captured.out)
    assert len(record["differences"]) == 14
    assert record["logits"]["largest"] > 0
    assert "language_model.layers.0.mlp.up_proj.weight: values" in captured.err
    status, said = run(monkeypatch, capsys, "verify.py", place / "hub", tmp_path / "int8")
    assert status == 1
    assert "14 are not" in said
    config = tmp_path / "int8" / "config.json"
    config.write_text(config.read_text() + " ")
    assert main(["verify", str(tmp_path / "int8"), "--fast"]) == 1
    assert "config.json: expected" in capsys.readouterr().err


def test_verify_without_a_manifest_says_so(place, capsys):
    assert main(["verify", str(place / "hub")]) == 1
    assert "expected a manifest.json" in capsys.readouterr().err


def test_a_layout_is_one_row_of_the_table(place, tmp_path, monkeypatch, capsys):
    prefixes = (("eye.", "image_tower."), ("film.", "video_tower."), ("bridge.", "multi_modal_projector."))
    mine = Layout("mine", (*prefixes, ("head.", "lm_head."), ("llm.", "language_model.")))
    monkeypatch.setitem(LAYOUTS, "mine", mine)
    assert main(["export", str(place / "hub"), str(tmp_path / "mine"), "--layout", "mine"]) == 0
    assert "head.weight" in read_all(tmp_path / "mine")
    assert main(["export", str(tmp_path / "mine"), str(tmp_path / "back")]) == 0
    assert_same_bits(read_all(tmp_path / "back"), read_all(place / "hub"))


def test_an_unknown_layout_is_refused_with_those_that_there_are(place, tmp_path, capsys):
    assert main(["export", str(place / "hub"), str(tmp_path / "out"), "--layout", "hbu"]) == 1
    assert "layout: expected one of hub, hf5, memory, pku, got 'hbu'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
