"""What a manifest detects, outputs that exist already, and a little of `python -m tests.faults.checkpoints`."""

import time
from pathlib import Path

import numpy as np
import pytest

from tests.faults.disks import fill, forbid
from tests.faults.edits import change, change_json
from tests.faults.flips import flip
from tests.faults.fuzzing import fuzz
from tests.faults.interruptions import kill, meet
from tests.faults.tables import Tally, table
from tests.small_models import random_parameters, small_config
from tests.weights.checkpoints import write_checkpoint
from videollava_jax.weights import (
    WeightsError,
    convert_to_orbax,
    export,
    open_checkpoint,
    verify_checkpoint,
)
from videollava_jax.weights.manifest import tensor_hash
from videollava_jax.weights.orbax_errors import ignore_logged_errors

# ── what a manifest adds ────────────────────────────────────────────────────────────────────────────────────


def test_tensors_that_changed_places_are_told_by_the_manifest(tmp_path):
    config = small_config()
    write_checkpoint(tmp_path / "a", config, random_parameters(config, 0), "hub")
    export(tmp_path / "a", tmp_path / "b", "hub")
    q, k = (f"image_tower.vision_model.encoder.layers.0.self_attn.{part}_proj.weight" for part in "qk")

    def changed(tensors):
        tensors[q], tensors[k] = tensors[k], tensors[q]

    change(tmp_path / "b", changed)
    problems = verify_checkpoint(tmp_path / "b")
    assert {f"tensor {name}: its SHA-256 is not the manifest's" for name in (q, k)} <= set(problems)


@pytest.mark.parametrize("layout", ["orbax", "hub"])
def test_hashes_and_counts_are_waited_for(tmp_path, monkeypatch, layout):
    """They are taken in another thread than the writer's, which may be done first."""

    def slowly(array):
        time.sleep(0.003)
        return tensor_hash(array)

    monkeypatch.setattr("videollava_jax.weights.stream.tensor_hash", slowly)
    config = small_config()
    parameters = random_parameters(config, 0)
    for name in ("a", "b"):
        write_checkpoint(tmp_path / name, config, parameters, "hub")
        parameters["lm_head.weight"][-1, -1] = np.nan

    def convert(source):
        if layout == "orbax":
            return convert_to_orbax(tmp_path / source, tmp_path / f"{source}-{layout}")
        return export(tmp_path / source, tmp_path / f"{source}-{layout}", layout)

    convert("a")
    assert verify_checkpoint(tmp_path / f"a-{layout}") == []
    with pytest.raises(WeightsError, match="1 NaN"):
        convert("b")


def test_damaged_orbax_metadata_are_told_with_their_cause(tmp_path, capfd, caplog):
    """Also in a process that has trained, which keeps Orbax's records from being logged."""
    ignore_logged_errors()
    config = small_config()
    write_checkpoint(tmp_path / "a", config, random_parameters(config, 0), "hub")
    convert_to_orbax(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b" / "params" / "state" / "_METADATA").write_text("{")
    with pytest.raises(WeightsError, match=r"params: Orbax cannot read it \(Expecting property name"):
        open_checkpoint(tmp_path / "b")
    assert capfd.readouterr().err == ""
    assert caplog.records == []


# ── damaged sources, and targets that exist ──────────────────────────────────────────────────────────────


def damaged(place: Path) -> Path:
    """An Orbax directory with another value in a tensor than was written, in a file that is not hashed whole."""
    config = small_config(text={"vocab_size": 8192, "hidden_size": 64})
    write_checkpoint(place / "a", config, random_parameters(config, 0), "hub")
    convert_to_orbax(place / "a", place / "orbax")
    path = max((place / "orbax").rglob("*"), key=lambda path: path.stat().st_size)
    with open(path, "r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"\x3f\x3e\x3d\x3c")
    assert verify_checkpoint(place / "orbax") != []
    return place / "orbax"


def test_flipped_bits_are_found_in_safetensors():
    assert_nothing_wrong(flip(8, 1, kinds=("safetensors",)))


def test_what_is_damaged_is_not_exported(tmp_path):
    orbax = damaged(tmp_path)
    with pytest.raises(WeightsError):
        export(orbax, tmp_path / "b", "hub")


def test_a_damaged_target_is_not_the_same(tmp_path):
    orbax = damaged(tmp_path)
    with pytest.raises(WeightsError):
        convert_to_orbax(tmp_path / "a", orbax)


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_a_target_with_another_configuration_is_not_the_same(tmp_path, file):
    config = small_config()
    write_checkpoint(tmp_path / "a", config, random_parameters(config, 0), "hub")
    (tmp_path / "a" / "tokenizer_config.json").write_text("{}")
    convert_to_orbax(tmp_path / "a", tmp_path / "b")
    change_json(tmp_path / "a" / file, lambda raw: raw.update(projector_hidden_act="relu"))
    with pytest.raises(WeightsError):
        convert_to_orbax(tmp_path / "a", tmp_path / "b")


def test_targets_that_cannot_be(tmp_path):
    config = small_config()
    write_checkpoint(tmp_path / "a", config, random_parameters(config, 0), "hub")
    with pytest.raises(WeightsError):
        convert_to_orbax(tmp_path / "a", tmp_path / ("x" * 300))


# ── a little of the program ─────────────────────────────────────────────────────────────────────────────────


def assert_nothing_wrong(tallies: list[Tally]) -> None:
    violations = [violation for tally in tallies for violation in tally.violations]
    assert not violations, "\n".join([table(tallies), *violations])


def test_flipped_bits_are_found():
    assert_nothing_wrong(flip(8, 1, kinds=("Orbax", "Orbax in int8")))


def test_mutations_are_refused_or_say_nothing():
    assert_nothing_wrong(fuzz(400, 1))


def test_killed_runs_leave_nothing_in_the_way():
    assert_nothing_wrong(kill(6, 1))


def test_full_disks():
    assert_nothing_wrong(fill(2, 1))


@pytest.fixture(scope="module")
def closed_places():
    return forbid(("convert",))


def test_closed_places(closed_places):
    assert_nothing_wrong(closed_places[:1])


def test_closed_places_raise_one_kind_of_error(closed_places):
    assert_nothing_wrong(closed_places[1:])


def test_two_runs_on_one_target():
    assert_nothing_wrong(meet(1, 1))
