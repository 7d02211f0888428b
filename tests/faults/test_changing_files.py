"""Files that change while they are read, and a temporary directory that is full."""

import importlib
import json
import os
import shutil
import tempfile

import pytest

from tests.faults.batch import FakeRunner, committed, write_job
from tests.faults.children import command, run
from tests.faults.disks import mount
from tests.faults.failing_trials import Export, Job, reported
from videollava_jax.assets import TINY
from videollava_jax.batch.runner import BatchOptions, run_batch
from videollava_jax.weights import WeightsError, export, verify_checkpoint

# ── the input of a job ──


class Meddler(FakeRunner):
    """A runner that changes the input after the first results."""

    def __init__(self, log, change):
        super().__init__(log, 0, 0.0)
        self._change = change

    def run(self, requests):
        for number, result in enumerate(super().run(requests)):
            if number == 3:
                self._change()
            yield result


def other_line(i):
    return json.dumps({"id": f"other{i}", "prompt": "Another?"}) + "\n"


CHANGES = {
    "longer": lambda source: source.write_text(source.read_text() + other_line(0)),
    "cut": lambda source: os.truncate(source, source.stat().st_size // 2),
    "empty": lambda source: os.truncate(source, 0),
    "of the same length": lambda source: source.write_text("".join(map(other_line, range(600)))),
    "gone": lambda source: source.unlink(),
}


@pytest.mark.parametrize("when", ["at once", "after some results"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_jobs_input_that_changes(tmp_path, change, when):
    """The run ends with an error, or as if nothing had changed; the next run with the old input ends as undisturbed."""
    (tmp_path / "whole").mkdir()
    write_job(tmp_path / "input.jsonl", 600)
    original = (tmp_path / "input.jsonl").read_bytes()
    options = BatchOptions(max_error_rate=1)
    whole, output = tmp_path / "whole" / "out.jsonl", tmp_path / "out.jsonl"
    run_batch(tmp_path / "input.jsonl", whole, lambda: FakeRunner(tmp_path / "asked", 0, 0.0), options)

    def meddle():
        CHANGES[change](tmp_path / "input.jsonl")

    def make_runner():
        if when == "at once":  # the job's identity is known, and no line has been given to the runner
            meddle()
            return FakeRunner(tmp_path / "asked", 0, 0.0)
        return Meddler(tmp_path / "asked", meddle)

    said = ""
    try:
        run_batch(tmp_path / "input.jsonl", output, make_runner, options)
    except (ValueError, OSError) as error:
        said = str(error)
    assert bool(said) == (when == "at once")
    assert "input.jsonl" in said or not said
    assert said or output.read_bytes() == whole.read_bytes()
    assert output.exists() == (not said)
    (tmp_path / "input.jsonl").write_bytes(original)
    run_batch(tmp_path / "input.jsonl", output, lambda: FakeRunner(tmp_path / "asked", 0, 0.0), options)
    assert output.read_bytes() == whole.read_bytes()
    assert committed(output) == set()


# ── the shards of a checkpoint ──


@pytest.mark.parametrize("change", ["cut", "gone", "other bytes"])
def test_a_checkpoint_that_changes_while_it_is_converted(tmp_path, monkeypatch, change):
    """No target appears that is not what the source's manifest says."""
    Export().make(tmp_path / "plain")
    export(tmp_path / "plain", tmp_path / "source", "hub")
    shard = tmp_path / "source" / "model.safetensors"
    module = importlib.import_module("videollava_jax.weights.convert")
    real = module.whole_directory

    def meddled(target):
        if change == "cut":
            os.truncate(shard, shard.stat().st_size // 2)
        elif change == "gone":
            shard.unlink()
        else:
            with open(shard, "r+b") as file:
                file.seek(-64, os.SEEK_END)
                file.write(b"\1" * 64)
        return real(target)

    monkeypatch.setattr(module, "whole_directory", meddled)
    try:
        export(tmp_path / "source", tmp_path / "target", "memory")
    except WeightsError:
        assert sorted(path.name for path in tmp_path.iterdir()) == ["plain", "source"]
    else:
        assert change == "gone"  # it was opened before, and an opened file stays
        assert verify_checkpoint(tmp_path / "target") == []


# ── a full /tmp ──


def convert_with_full_temporary_directory(place):
    mount(place / "tmp", "size=4096")
    (place / "tmp" / "full").write_bytes(bytes(4096))
    tempfile.tempdir = str(place / "tmp")
    with pytest.raises(OSError, match="No space left"):
        (place / "tmp" / "more").write_bytes(b"more")
    results = []
    for trial in (Job(), Export()):
        home = place / trial.name
        (home / "place" / "out").mkdir(parents=True)
        trial.make(home / "source")
        trial.prepare(home / "place" / "out")
        results.append(trial.run(home / "place"))
    shutil.rmtree(place / "export" / "place" / "out" / "other")
    return [*results, command("convert", str(place / "export" / "source"), str(place / "orbax"))]


def test_neither_jobs_nor_conversions_need_a_temporary_directory(tmp_path):
    (tmp_path / "tmp").mkdir()
    try:
        assert run(convert_with_full_temporary_directory, tmp_path) == [(0, "")] * 3
    except RuntimeError as error:
        if "PermissionError" not in str(error):
            raise
        pytest.skip("this user may not mount a tmpfs")


def store_samples(place, pages):
    """Tokenises samples into a temporary directory of some pages."""
    from videollava_jax.processing.processor import VideoLlavaProcessor
    from videollava_jax.training.data.corpus import build_corpus
    from videollava_jax.training.data.packing import RowShape
    from videollava_jax.training.data.samples import read_samples
    from videollava_jax.training.data.skips import SkipCounter

    mount(place / "tmp", f"size={4096 * pages}")
    row = RowShape(tokens=200, images=1, videos=1)
    samples, processor = read_samples([place / "data.json"]), VideoLlavaProcessor.from_pretrained(TINY)
    return reported(lambda: build_corpus(samples, processor, row, SkipCounter(), directory=place / "tmp"))


@pytest.mark.parametrize("pages", [1, 5, 9, 100])
def test_training_says_that_its_temporary_directory_is_full(tmp_path, pages):
    (tmp_path / "tmp").mkdir()
    turns = [{"from": "human", "value": "Up?"}, {"from": "gpt", "value": "Up."}]
    samples = [{"id": str(i), "conversations": turns} for i in range(3000)]
    (tmp_path / "data.json").write_text(json.dumps(samples))
    try:
        status, said = run(store_samples, tmp_path, pages)
    except RuntimeError as error:
        if "PermissionError" not in str(error):
            raise
        pytest.skip("this user may not mount a tmpfs")
    if pages == 100:
        assert (status, said) == (0, "")
    else:
        assert status == 1
        assert said.startswith(f"videollava: {tmp_path}/tmp/"), said
        assert "cannot be written (" in said
        assert "isk is full" in said or "No space left" in said
        assert said.count("\n") == 1
