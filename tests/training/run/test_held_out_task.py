"""A task that is scored while training: as `videollava eval` scores the checkpoint of that step, through stops, on
meshes, and refused before the run begins where it cannot be scored."""

from __future__ import annotations

import json
import os
import shutil
import signal

import pytest

from tests.training.data_sets import write_data
from videollava_jax.cli import main as videollava
from videollava_jax.engine import Engine
from videollava_jax.training.run import guards, held_out_task, loop
from videollava_jax.training.run.metrics import read_metrics

# High rates: what the tiny model answers changes within a step or two.
RECIPES = {
    "projector": ("--rates.projector", "3e-2"),
    "lora": ("--rates.lora", "3e-2", "--rates.projector", "1e-3", "--lora.rank", "4", "--lora.dropout", "0.1"),
    "full": ("--rates.projector", "1e-2", "--rates.decoder", "1e-2"),
}


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("train"), 6, media="c")


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """Data of MSVD-QA's form."""
    place = tmp_path_factory.mktemp("shapes")
    assert videollava(["eval", "world", "msvd_qa", "--data", str(place), "--media", "3"]) == 0
    return place


@pytest.fixture
def run(fine_tune, train, shapes):
    """Runs two steps with an evaluation after each: (output, recipe, *more) to the exit status."""

    def of(output, recipe, *more, steps=2):
        asked = ("--data.evaluate", "msvd_qa", "--data.evaluate_data", str(shapes), "--keeping.evaluate_every", "1")
        given = (*RECIPES[recipe], "--data.train", str(train), "--data.images_per_row", "0", *asked, *more)
        return fine_tune(output, *given, "--keeping.save_every", "1", "--keeping.keep", "3", steps=steps)

    return of


@pytest.fixture(scope="module")
def undisturbed(fine_tune, train, shapes, tmp_path_factory):
    """A finished run of LoRA."""
    output = tmp_path_factory.mktemp("undisturbed") / "run"
    asked = ("--data.evaluate", "msvd_qa", "--data.evaluate_data", str(shapes), "--keeping.evaluate_every", "1")
    given = (*RECIPES["lora"], "--data.train", str(train), "--data.images_per_row", "0", *asked)
    assert fine_tune(output, *given, "--keeping.save_every", "1", "--keeping.keep", "3", steps=2) == 0
    return output


def scores(output):
    """The lines of scores."""
    return [
        {name: value for name, value in line.items() if name == "step" or name.startswith("evaluate/")}
        for line in read_metrics(output)
        if "evaluate/msvd_qa/exact" in line
    ]


def of_the_checkpoint(output, shapes, step, place):
    """What `videollava eval` makes of the checkpoint of a step."""
    line = ["train-export", str(output), str(place / "model"), "--step", str(step)]
    assert videollava(line) == 0
    asked = ["msvd_qa", "--data", str(shapes)]
    assert videollava(["eval", "answer", *asked, "-o", str(place / "out"), "--model", str(place / "model"),
                       "--as", "model"]) == 0  # fmt: skip
    assert videollava(["eval", "score", *asked, "--answers", str(place / "out"), "--no-page"]) == 0
    return place / "out"


def require_equal(output, shapes, step, place):
    expected = of_the_checkpoint(output, shapes, step, place)
    found = output / "evaluations" / "msvd_qa" / str(step)
    for name in ("records.jsonl", "questions.jsonl", "answers.jsonl"):
        assert (found / name).read_text() == (expected / name).read_text(), name
    report, wanted = (json.loads((at / "report.json").read_text()) for at in (found, expected))
    assert report["metrics"] == wanted["metrics"]
    line = next(line for line in scores(output) if line["step"] == step)
    values = {name: one["value"] for name, one in wanted["metrics"].items()}
    assert line == {"step": step, **{f"evaluate/msvd_qa/{name}": value for name, value in values.items()}}
    return report


def test_lora_is_scored_as_its_checkpoint(undisturbed, shapes, tmp_path):
    assert [line["step"] for line in scores(undisturbed)] == [0, 1, 2]
    assert scores(undisturbed)[0]["evaluate/msvd_qa/exact"] == 100
    assert scores(undisturbed)[2]["evaluate/msvd_qa/exact"] < 100  # the rates are high
    require_equal(undisturbed, shapes, 2, tmp_path)
    board = {path.name for path in (undisturbed / "tensorboard").iterdir()}
    assert board


@pytest.mark.parametrize("recipe", ["projector", "full"])
def test_other_recipes_are_scored_as_their_checkpoints(run, shapes, tmp_path, recipe):
    more = ("--keeping.evaluate_every", "0", "--compute.data", "2", "--compute.tensor", "2")
    assert run(tmp_path / "run", recipe, *more) == 0
    report = require_equal(tmp_path / "run", shapes, 2, tmp_path)
    assert report["score"] < 100
    assert [line["step"] for line in scores(tmp_path / "run")] == [2]


def test_int8_weights_with_features_on_disk(run, shapes, tmp_path):
    """The adapters are added to the int8 weights, and the towers stay for the evaluation."""
    more = ("--compute.int8", "true", "--data.features", str(tmp_path / "features"), "--keeping.evaluate_every", "0")
    assert run(tmp_path / "run", "lora", *more, steps=1) == 0
    assert [line["step"] for line in scores(tmp_path / "run")] == [1]


def test_a_run_that_is_stopped_in_an_evaluation_goes_on_there(run, undisturbed, tmp_path, monkeypatch, capsys):
    alive = guards.Watchdog.alive

    def stop(self, what):
        alive(self, what)
        if what == "evaluating msvd_qa after step 1":
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(guards.Watchdog, "alive", stop)
        assert run(tmp_path / "run", "lora") == 128 + signal.SIGTERM
    assert "stopped at step 1 of 2, which is saved" in capsys.readouterr().err
    assert [line["step"] for line in scores(tmp_path / "run")] == [0]
    assert not (tmp_path / "run" / "evaluations" / "msvd_qa" / "1").exists()
    assert run(tmp_path / "run", "lora") == 0
    assert scores(tmp_path / "run") == scores(undisturbed)
    # A run that is done has its scores.
    assert run(tmp_path / "run", "lora") == 0
    assert scores(tmp_path / "run") == scores(undisturbed)


def test_asked_as_the_paper_about_the_first_videos_with_one_that_cannot_be_read(
    run, shapes, tmp_path, monkeypatch, capsys
):
    shutil.copytree(shapes, tmp_path / "shapes")
    (tmp_path / "shapes" / "videos" / "clip0.mp4").write_bytes(b"no video")
    used, alike = [], []
    agree = loop.require_agreement
    monkeypatch.setattr(loop, "require_agreement", lambda facts: alike.append(facts) or agree(facts))
    monkeypatch.setattr(held_out_task, "Engine", lambda model, *a, **k: used.append(model) or Engine(model, *a, **k))
    more = ("--data.evaluate_data", str(tmp_path / "shapes"), "--keeping.evaluate_every", "0")
    more += ("--data.evaluate_as", "paper", "--data.evaluate_limit", "2")
    assert run(tmp_path / "run", "projector", *more, steps=1) == 0
    report = json.loads((tmp_path / "run" / "evaluations" / "msvd_qa" / "1" / "report.json").read_text())
    assert report["settings"]["asked"] == {"as": "paper", "limit": 2}
    assert report["counts"]["clusters"] == 2
    # Processes that are asked different things would wait for each other for ever.
    assert alike[0]["data.evaluate"]["asked"] == {"as": "paper", "limit": 2}
    assert 0 < report["counts"]["failed"] < report["counts"]["questions"]
    assert "questions have no answer and count as wrong; the first error: " in capsys.readouterr().err
    # Copies of the layers are deleted with the end of the evaluation; what was not copied stays.
    (model,) = used
    deleted = {name for name, value in model.parameters.items() if value.is_deleted()}
    assert {name for name in model.parameters if ".layers." in name} <= deleted
    assert "language_model.embed_tokens.weight" not in deleted


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--data.evaluate", "msvd"), "data.evaluate: expected one of msvd_qa"),
        (("--data.evaluate_data", "null"), "data.evaluate and data.evaluate_data: expected both or neither"),
        (("--data.evaluate_data", "none"), "no such directory; expected the data of MSVD-QA"),
        (("--data.evaluate_limit", "0"), "data.evaluate_limit: expected a whole number from 1"),
        (("--data.evaluate_as", "me"), "evaluate_as"),
    ],
)
def test_what_makes_no_sense_is_refused(run, tmp_path, monkeypatch, capsys, more, message):
    monkeypatch.chdir(tmp_path)
    assert message in refused(run, capsys, tmp_path / "run", *more)


def test_what_cannot_be_scored_is_refused_at_the_start(run, shapes, tmp_path, capsys):
    shutil.copytree(shapes, tmp_path / "shapes")
    (tmp_path / "shapes" / "videos" / "clip0.mp4").unlink()
    said = refused(run, capsys, tmp_path / "run", "--data.evaluate_data", str(tmp_path / "shapes"))
    assert "more than data.evaluate_max_missing 0 allows, such as videos/clip0.mp4" in said
    assert videollava(["eval", "world", "vqav2", "--data", str(tmp_path / "vqav2"), "--media", "1"]) == 0
    more = ("--data.evaluate", "vqav2", "--data.evaluate_data", str(tmp_path / "vqav2"))
    said = refused(run, capsys, tmp_path / "run", *more)
    assert "the answers of VQAv2" in said
    assert "such as vqav2_val" in said


def refused(run, capsys, output, *more):
    """What is said of a recipe; nothing is written."""
    with pytest.raises((SystemExit, ValueError)) as ended:
        run(output, "projector", *more)
    assert not output.exists()
    return f"{ended.value} {capsys.readouterr().err}"
