"""Jobs on a real Ray cluster of three nodes on this machine, whose nodes, drivers and replicas are killed."""

import hashlib
import json
import os
import signal
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from tests.batch.ray_requests import Fails, asks
from tests.compiling import ENVIRONMENT
from tests.faults.batch import committed, write_job
from tests.faults.children import Child, run
from tests.faults.commands import MARK, await_no_process, start_command, write_model_job
from videollava_jax.assets import MEDIA
from videollava_jax.batch.job_files import Paths
from videollava_jax.batch.ray.cluster import RayOptions, RayRunner
from videollava_jax.batch.ray.replica import AnswerLines
from videollava_jax.batch.runner import BatchOptions, run_batch
from videollava_jax.cli import main
from videollava_jax.engine import Result

# Ray's helpers are forked and become another program at once; where earlier tests have started JAX in this process, JAX
# warns of forks that go on as copies of it.
pytestmark = pytest.mark.filterwarnings(r"ignore:os\.fork\(\) was called:RuntimeWarning")

ROOT = Path(__file__).parents[2]

STORE = 80 * 2**20  # bytes of shared memory for each node: the least that Ray takes is 75 MiB


# ── a runner without a model ──


class Reads:
    """Answers with a hash of the question and of its media's bytes, and writes down what it begins, and where.

    Some questions are special: "raise" raises, "die" ends the process, "device" fails as a device does, and what ends
    with "1?" is an error.
    """

    def __init__(self, place, pause=0.0):
        self._place, self._pause = place, pause

    def run(self, requests):
        for request in requests:
            text = request.conversation[0]["content"][-1]["text"]
            with open(self._place / "begun", "a") as log:
                log.write(f"{request.id} {_node()} {os.getpid()}\n")
            time.sleep(self._pause)
            if "raise" in text:
                raise KeyError("a bug")
            if "die" in text:
                os.kill(os.getpid(), signal.SIGKILL)
            if "device" in text:
                raise RuntimeError("the device is gone")
            yield self._answer(request)

    def _answer(self, request):
        content = request.conversation[0]["content"]
        paths = [part[part["type"]] for part in content if part["type"] != "text"]
        if content[-1]["text"].endswith("1?"):
            error = f"no answer about {', '.join(map(os.fspath, paths)) or 'nothing'}"
            return Result(id=request.id, finish_reason="error", error=error, cause="decode_failed")
        digest = hashlib.sha256(content[-1]["text"].encode())
        for path in paths:
            digest.update(Path(path).read_bytes())
        return Result(id=request.id, text=digest.hexdigest(), token_ids=(7, 8), finish_reason="stop", prompt_tokens=5)


def _node():
    """Returns the Ray node of this process."""
    import ray

    return ray.get_runtime_context().get_node_id() if ray.is_initialized() else "here"


def begun(place):
    """Returns (request, node, process) for every request that was begun."""
    log = place / "begun"
    return [tuple(line.split()) for line in log.read_text().splitlines()] if log.exists() else []


def run_on_cluster(address, place, pause, **options):
    """Runs the job of a directory on the cluster, with this process as the driver."""
    os.environ["RAY_ADDRESS"] = address
    output = place / "output.jsonl"
    made = []

    def make_runner():
        runner = RayRunner(partial(Reads, place, pause), RayOptions(**options), spool=Paths(output).media, lines=120)
        made.append(runner)
        return runner

    try:
        wanted = BatchOptions(media_root=place, max_error_rate=1, on_stop=lambda: [runner.stop() for runner in made])
        return str(run_batch(place / "input.jsonl", output, make_runner, wanted))
    finally:
        for runner in made:
            runner.close()
        names = [thread.name for thread in threading.enumerate()]
        left = [name for name in names if name.startswith(("ray-answers", "StreamingExecutor"))]
        assert not left, "a thread that calls Ray now would end this process, or connect it again"


def run_here(place):
    """Runs the job of a directory without Ray."""
    wanted = BatchOptions(media_root=place, max_error_rate=1)
    run_batch(place / "input.jsonl", place / "output.jsonl", lambda: Reads(place), wanted)
    return (place / "output.jsonl").read_bytes()


def new_job(place, lines=90):
    """Makes a directory with an input of good and bad lines, data: URLs and files."""
    place.mkdir()
    write_job(place / "input.jsonl", lines)
    (place / "clip.mp4").write_bytes(b"clip")
    (place / "frames.jpg").write_bytes(b"frame")
    more = [
        {"id": f"file-{i}", "video": ["clip.mp4", "data:video/jpeg;base64,/9j/,/9k="][i % 2], "prompt": f"{i // 3}?"}
        for i in range(30)
    ]
    with open(place / "input.jsonl", "a") as file:
        file.writelines(json.dumps(line) + "\n" for line in more)
    return place


# ── the cluster ──


@pytest.fixture(scope="module")
def cluster():
    """A cluster of a head and two nodes of one CPU each; all its processes are gone afterwards."""
    cluster_utils = pytest.importorskip(
        "ray.cluster_utils", reason="several machines need Ray (extra `ray`), which has no wheel for this Python"
    )
    run(len, "")  # starts the fork server before Ray
    mark = f"ray-{os.getpid()}"
    before = dict(os.environ)
    os.environ |= ENVIRONMENT | {
        MARK: mark,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), before.get("PYTHONPATH")])),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    # A lost node is noticed within two seconds instead of a minute.
    soon = {
        "health_check_initial_delay_ms": 0,
        "health_check_period_ms": 500,
        "health_check_timeout_ms": 5000,  # for a node that is only slow
        "health_check_failure_threshold": 3,
    }
    head = {"num_cpus": 1, "object_store_memory": STORE, "include_dashboard": False, "_system_config": soon}
    started = cluster_utils.Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(2):
            started.add_node(num_cpus=1, object_store_memory=STORE)
        yield started
    finally:
        started.shutdown()
        os.environ.clear()
        os.environ.update(before)
        assert await_no_process(mark, 20)


def await_that(condition, seconds=60):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return found


def test_a_node_is_killed_midway(cluster, tmp_path):
    """Each line has one record, equal to that of an undisturbed run on one machine."""
    expected = run_here(new_job(tmp_path / "here"))
    place = new_job(tmp_path / "there")
    child = Child(partial(run_on_cluster, block=4), cluster.address, place, 0.1)
    victim = cluster.list_all_nodes()[-1]

    def at_work():
        """Stops the node's processes in a request, once half of the job is done; returns them."""
        processes = {int(pid) for _, node, pid in begun(place) if node == victim.node_id}
        if len(committed(place / "output.jsonl")) < 60 or not processes:
            return set()
        for process in processes:
            os.kill(process, signal.SIGSTOP)
        time.sleep(0.5)  # what they had answered is committed
        done = committed(place / "output.jsonl")
        if any(int(name) not in done for name, node, _ in begun(place) if node == victim.node_id):
            return processes
        for process in processes:
            os.kill(process, signal.SIGCONT)
        return set()

    for process in await_that(at_work):
        os.kill(process, signal.SIGKILL)
    cluster.remove_node(victim, allow_graceful=False)
    done = len(committed(place / "output.jsonl"))
    assert done < 120
    assert child.result(90).startswith("120 of 120")
    assert (place / "output.jsonl").read_bytes() == expected
    asked = [name for name, _, _ in begun(place)]
    assert len({node for _, node, _ in begun(place)}) == 3
    assert len(set(asked)) < len(asked), "what was under way on the node was begun again elsewhere"
    cluster.add_node(num_cpus=1, object_store_memory=STORE)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_driver_is_stopped_and_the_job_goes_on_without_ray(cluster, tmp_path, number):
    expected = run_here(new_job(tmp_path / "here"))
    place = new_job(tmp_path / "there")
    child = Child(partial(run_on_cluster, block=4, replicas=1), cluster.address, place, 0.05)
    await_that(lambda: len(committed(place / "output.jsonl")) >= 50)
    os.kill(child.pid, number)
    if number == signal.SIGKILL:
        child.kill()
        child.close()
    else:
        with pytest.raises(RuntimeError, match=r"stopped by SIGTERM: .* lines are done and kept"):
            child.result(10)
    done = committed(place / "output.jsonl")
    assert 50 <= len(done) < 120
    (place / "begun").unlink()
    assert run_here(place) == expected
    assert not done & {int(name) for name, _, _ in begun(place)}


LINES = [
    {"id": f"q{i}", "prompt": {5: "die", 9: "device", 13: "raise"}.get(i, f"question {i}?")}
    | ({"video": "clip.mp4"} if i < 2 else {})
    for i in range(16)
]


def test_replicas_that_die_and_runners_that_raise(cluster, tmp_path):
    """A request that raises fails alone; one that kills its replicas fails with its block."""
    (tmp_path / "clip.mp4").write_bytes(b"clip")
    (tmp_path / "input.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    child = Child(partial(run_on_cluster, block=4, replicas=1, attempts=1), cluster.address, tmp_path, 0.0)
    assert child.result(90).startswith("16 of 16")
    found = {record["id"]: record for record in map(json.loads, (tmp_path / "output.jsonl").read_text().splitlines())}
    causes = [found[f"q{i}"].get("cause") for i in range(16)]
    lost, failed = "replica_lost", "decode_failed"
    expected = [None, failed, None, None, *[lost] * 8, None, "engine_failed", None, None]
    assert causes == expected
    assert found["q1"]["error"] == "no answer about clip.mp4"
    assert found["q4"]["error"] == "its replica died once while it answered this line and 3 others"
    assert "RuntimeError: the device is gone (on " in found["q8"]["error"]
    assert found["q13"]["error"] == "the engine failed at this request (KeyError: 'a bug')"


def test_a_pipeline_of_ones_own(cluster, tmp_path):
    """`AnswerLines` adds the records of a run on one machine to the caller's columns, and reports errors."""
    (tmp_path / "clip.mp4").write_bytes(b"clip")
    lines = [json.dumps(line) for line in LINES if line["prompt"].startswith("question")] + ["no JSON", ""]
    (tmp_path / "input.jsonl").write_text("\n".join(lines[:-1]))
    expected = run_here(tmp_path).decode().splitlines()
    rows, told = run(_pipeline, cluster.address, tmp_path, lines, seconds=90)
    assert [row["number"] for row in rows] == list(range(15))
    assert [row["record"] for row in rows[:-2]] == expected[:-1]
    assert [json.loads(row["record"])["cause"] for row in rows[-2:]] == ["invalid_request"] * 2
    assert "has no machine with TPU=4, which one replica needs" in told["no room"]
    assert "a replica has failed: ValueError: no such model" in told["no model"]
    assert "a replica has failed: MemoryError: lower --max-rows" in told["no memory"]
    assert told["an execution for each block"] == ["0", "1"]


def _pipeline(address, place, lines):
    """Runs in a separate process: returns a pipeline's rows, and errors about clusters and models that do not fit."""
    import ray

    ray.init(address=address, log_to_driver=False)
    rows = (
        ray.data.from_items([{"text": line, "number": i} for i, line in enumerate(lines)])
        .map_batches(
            AnswerLines,
            fn_constructor_args=[partial(Reads, place), BatchOptions(media_root=place)],
            compute=ray.data.ActorPoolStrategy(size=1),
            batch_size=4,
        )
        .take_all()
    )
    told = {}
    for name, make_runner, options in (
        ("no room", None, RayOptions(resources={"TPU": 4})),
        ("no model", _no_model, RayOptions(replicas=1)),
        ("no memory", partial(Fails, MemoryError("lower --max-rows")), RayOptions(replicas=1)),
    ):
        try:
            runner = RayRunner(make_runner, options, spool=place, lines=1)
            list(runner.run([asks(2)]))
        except OSError as error:
            told[name] = str(error)
    runner = RayRunner(partial(Reads, place), RayOptions(replicas=1, block=1), spool=place, lines=1)
    told["an execution for each block"] = [result.id for result in runner.run(asks(i) for i in range(2))]
    assert ray.is_initialized(), "a connection of the caller's stays"
    ray.shutdown()
    return sorted(rows, key=lambda row: row["number"]), told


def _no_model():
    raise ValueError("no such model")


def test_the_command_with_the_tiny_model(cluster, tmp_path, monkeypatch):
    source = tmp_path / "in.jsonl"
    write_model_job(source, MEDIA)
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    options = ("--ray", "--replicas", "1", "--ray-block", "9", "--json")
    there = start_command("batch", str(source), str(tmp_path / "there.jsonl"), *options)
    said = there.communicate(timeout=120)[0].decode()
    assert there.returncode == 0, said
    assert json.loads(said.splitlines()[-1])["answered"] == 18
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    assert main(["batch", str(source), str(tmp_path / "here.jsonl")]) == 0
    assert (tmp_path / "there.jsonl").read_bytes() == (tmp_path / "here.jsonl").read_bytes()
