"""The parts of a job on a Ray cluster, tested without a cluster: blocks, replicas, options, refusals."""

import pickle
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.batch.ray_requests import Fails, asks
from videollava_jax.batch.media.spool import FrameFile
from videollava_jax.batch.ray import blocks as blocks_module
from videollava_jax.batch.ray import cluster
from videollava_jax.batch.ray.blocks import blocks, unpacked
from videollava_jax.batch.ray.cluster import RayOptions
from videollava_jax.batch.ray.execution import AnswerBlock
from videollava_jax.batch.ray.replica import AnswerLines, Replica
from videollava_jax.batch.runner import BatchOptions
from videollava_jax.cli import main
from videollava_jax.cli.batch import _resources
from videollava_jax.engine import Result


def sizes(found):
    return [len(block.requests) for block in found]


def test_blocks_are_cut_where_media_change(tmp_path):
    of_three = [asks(i, f"{i // 3}.mp4") for i in range(12)]
    assert sizes(blocks(of_three, 4, tmp_path)) == [6, 6]
    assert sizes(blocks([asks(i, "a.mp4") for i in range(20)], 4, tmp_path)) == [8, 8, 4]
    assert sizes(blocks([asks(i) for i in range(10)], 4, tmp_path)) == [4, 4, 2]
    assert sizes(blocks([], 4, tmp_path)) == []


def test_blocks_carry_what_only_the_driver_has(tmp_path, monkeypatch):
    spool = tmp_path / "spool"
    spool.mkdir()
    (spool / "a").write_bytes(b"picture")
    (spool / "b").write_bytes(b"frames")
    picture, frames = str(spool / "a"), str(spool / "b")
    requests = [asks(0, picture, "shared.mp4"), asks(1, picture, "shared.mp4"), asks(2, FrameFile(frames))]
    monkeypatch.chdir(tmp_path)
    (block,) = blocks(requests, 4, spool)
    assert block.files == {picture: b"picture", frames: b"frames"}
    with unpacked(block) as here:
        media = [part["video"] for r in here.requests for part in r.conversation[0]["content"] if "video" in part]
        assert media[1] == media[3] == str(tmp_path / "shared.mp4")
        assert media[0] == media[2] != picture
        assert isinstance(media[4], FrameFile)
        assert [Path(path).read_bytes() for path in (media[0], media[4])] == [b"picture", b"frames"]
        error = Result(id="0", finish_reason="error", error=f"{media[0]} and {media[1]}: bad")
        assert here.with_driver_paths(error).error == f"{picture} and shared.mp4: bad"
    assert not Path(media[0]).exists()
    monkeypatch.setattr(blocks_module, "MOST_BYTES", 6)
    assert sizes(blocks(requests, 4, spool)) == [2, 1]


def test_an_exception_is_the_end_of_one_request():
    results = list(Replica(lambda: Fails(KeyError("a bug"))).run(asks(i) for i in range(10)))
    assert sorted(int(result.id) for result in results) == list(range(10))
    assert {result.id for result in results if result.error} == {"2", "5", "8"}
    assert {result.cause for result in results if result.error} == {"engine_failed"}


@pytest.mark.parametrize("error", [MemoryError("full"), RuntimeError("the device is gone")])
def test_what_no_request_is_to_blame_for_is_raised(error):
    with pytest.raises(type(error)):
        list(Replica(lambda: Fails(error)).run(asks(i) for i in range(3)))


def test_what_the_source_of_requests_raises_is_no_error_of_the_engine():
    def broken():
        yield asks(0)
        raise ValueError("the source")

    runner = Fails(KeyError("a bug"))
    with pytest.raises(ValueError, match="the source"):
        list(Replica(lambda: runner).run(broken()))
    assert runner.runs == 1


def test_what_answer_lines_refuses():
    with pytest.raises(ValueError, match="as tables are not lines; got csv"):
        AnswerLines(lambda: None, BatchOptions(form="csv"))
    with pytest.raises(ValueError, match="a column 'text', got prompt"):
        AnswerLines(lambda: None)({"prompt": np.array(["?"])})


@pytest.mark.parametrize("name", ["replicas", "devices", "block", "attempts"])
def test_options_that_make_no_sense(name):
    with pytest.raises(ValueError, match=f"{name}: expected 1 or more, got 0"):
        RayOptions(**{name: 0})


def test_a_machine_with_another_version_ends_the_run():
    pytest.importorskip("ray", reason="several machines need Ray (extra `ray`)")
    pyarrow = pytest.importorskip("pyarrow", reason="which Ray brings")
    answered = AnswerBlock(lambda: None, None, 1, "0.0")({"block": pyarrow.array([3])})
    assert answered["block"] == [3]
    assert "is installed, and the job was started with 0.0 (on " in pickle.loads(answered["results"][0])


def test_what_the_command_refuses(tmp_path, monkeypatch, capsys):
    source = tmp_path / "in.jsonl"
    source.write_text('{"id": 1, "prompt": "?"}\n')
    assert main(["batch", str(source), str(tmp_path / "out"), "--replicas", "2"]) == 1
    assert "used: expected --ray" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["batch", str(source), str(tmp_path / "out"), "--ray"]) == 1
    assert "pip install -e '.[ray]'" in capsys.readouterr().err
    for flag, value in (("--replicas", "0"), ("--replica-resources", "TPU"), ("--replica-resources", "TPU=-1")):
        with pytest.raises(SystemExit):
            main(["batch", str(source), str(tmp_path / "out"), "--ray", flag, value])
        assert "expected" in capsys.readouterr().err


def test_ray_that_does_not_start_is_said_in_a_line():
    def init(**_):
        raise Exception("The current node\ntimed out during startup.")

    utils = SimpleNamespace(set_sigterm_handler=None)
    ray = SimpleNamespace(init=init, _private=SimpleNamespace(utils=utils))
    with pytest.raises(OSError, match=r"^Ray does not start here: The current node timed out during startup\.$"):
        cluster._connect(ray)
    assert utils.set_sigterm_handler is None


def test_resources_of_a_replica():
    assert _resources("TPU=4,CPU=0.5") == {"TPU": 4.0, "CPU": 0.5}
