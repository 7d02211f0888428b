"""Hostile media among good ones, with the tiny model: `python -m tests.faults.media_job` on a small scale."""

import json
import os

import pytest

from tests.faults.hostile_media import BAD, Medium
from tests.faults.media_job import Done, Seen, judge, run
from videollava_jax import Engine
from videollava_jax.assets import MEDIA
from videollava_jax.batch.media.isolation import IsolatedReader
from videollava_jax.batch.runner import BatchOptions, run_batch
from videollava_jax.processing.segments import Media


@pytest.fixture
def reader_of_others(tiny_processor):
    """Another reader of this process, with an idle worker: a server's, say."""
    reader = IsolatedReader(tiny_processor)
    reader(Media("image", next(MEDIA.glob("*.png"))), None)
    yield reader
    reader.close()


@pytest.mark.usefixtures("reader_of_others")
def test_hostile_media_among_good_ones(tiny_model, tiny_processor):
    """Good media are answered as in a job without bad ones, bad ones have one error each, and no worker is left."""
    tallies = {tally.name: tally for tally in run(20, len(BAD), 0, 3, tiny_model, tiny_processor)}
    assert [violation for tally in tallies.values() for violation in tally.violations] == []
    assert len(tallies) == len(BAD) + 4
    assert tallies["good: clips"].outcomes == {"answered as alone": 10}
    for kind, causes in {
        "hostile: image bombs": {"too_large": 1},
        "hostile: video bombs": {"too_large": 1},
        "hostile: takes all memory": {"too_large": 1},
        "hostile: hangs its reader": {"worker_timeout": 1},
        "hostile: crashes its reader": {"worker_crashed": 1},
        "hostile: out of the root": {"forbidden_source": 1},
    }.items():
        assert tallies[kind].outcomes == causes


GOOD = {"id": "a.mp4", "text": "red", "finish_reason": "stop", "error": None}
BOMB = {"id": "b.png", "text": "", "finish_reason": "error", "error": "b.png: too large", "cause": "too_large"}


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([GOOD, BOMB], ""),
        ([GOOD | {"text": "blue"}, BOMB], "'text': 'blue'"),
        ([GOOD | {"finish_reason": "error", "error": "a.mp4: no"}, BOMB], "alone"),
        ([GOOD], "1 records of 2 lines"),
        ([GOOD, BOMB, BOMB], "3 records of 2 lines, 2 of them different"),
        ([BOMB, GOOD], "2 records of 2 lines"),
        ([GOOD, GOOD | {"id": "b.png"}], "answered, or without a record"),
        ([GOOD, BOMB | {"cause": None}], "without its cause or its name"),
        ([GOOD, BOMB | {"error": "/media/b.png: too large"}], "without its cause or its name"),
    ],
)
def test_what_must_not_be_is_noticed(records, message):
    media = [Medium("a.mp4", "good", "video", "answer"), Medium("b.png", "bomb", "image", "error")]
    tallies = judge(media, Done(records, Seen(), [], 1), Done([GOOD], Seen(), [], 1))
    told = "\n".join(violation for tally in tallies for violation in tally.violations)
    assert bool(told) == bool(message)
    assert message in told


def test_each_error_names_the_file_of_its_own_line(tmp_path, tiny_model, tiny_processor):
    """Files of equal content are read once."""
    names = ("a.mp4", "b.mp4", "c.mp4")
    for name in names:
        (tmp_path / name).write_bytes(b"no video" * 99)
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps({"id": name, "video": name, "prompt": "?"}) + "\n" for name in names))
    read = []

    def reader(medium, frame_sampling):
        read.append(os.path.basename(medium.source))
        return tiny_processor.read_medium(medium, frame_sampling)

    engine = Engine(tiny_model, tiny_processor, reader=reader)
    run_batch(source, output, lambda: engine, BatchOptions(media_root=tmp_path))
    records = [json.loads(line) for line in output.read_text().splitlines()]
    assert read == ["a.mp4"]
    assert [record["error"].split(":")[0] for record in records] == list(names)
    assert {record["cause"] for record in records} == {"not_media"}
