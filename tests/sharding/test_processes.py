"""Two processes of four virtual devices each: one job, and both give all its results."""

import json
import socket
import subprocess
import sys
from pathlib import Path

from tests.engine.jobs import generated, mixed_job, random_model

CHILD = """
import json, sys
import jax
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.config.update("jax_default_matmul_precision", "highest")
jax.distributed.initialize(f"localhost:{sys.argv[1]}", num_processes=2, process_id=int(sys.argv[2]))
assert jax.device_count() == 8 and jax.process_count() == 2
from tests.engine.jobs import mixed_job, on_mesh, random_model
from videollava_jax import VideoLlavaForConditionalGeneration, VideoLlavaProcessor
from videollava_jax.demo import TINY
from videollava_jax.engine import Engine
from videollava_jax.sharding import make_mesh
mesh = make_mesh(*map(int, sys.argv[3].split("x")))
if sys.argv[4] == "tiny":
    model = VideoLlavaForConditionalGeneration.from_pretrained(TINY, mesh=mesh)
else:
    model = on_mesh(random_model(VideoLlavaForConditionalGeneration.from_pretrained(TINY)), mesh)
engine = Engine(model, VideoLlavaProcessor.from_pretrained(TINY), max_rows=8)
print(json.dumps({result.id: result.token_ids for result in engine.run(mixed_job())}))
"""


def results_of_two_processes(mesh, model):
    """What each process gave: token ids by request."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    children = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, str(port), str(i), mesh, model],
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    try:
        said = [child.communicate(timeout=240) for child in children]
    finally:
        for child in children:
            child.kill()
    assert [child.returncode for child in children] == [0, 0], said[0][1][-3000:] + said[1][1][-3000:]
    return [{name: tuple(ids) for name, ids in json.loads(out.splitlines()[-1]).items()} for out, _ in said]


def test_two_processes_answer_as_one_device(tiny_model, tiny_processor):
    """Data over the processes: each holds half of the batch and a whole decoder in four parts."""
    model = random_model(tiny_model)
    expected = {request.id: generated(model, tiny_processor, request) for request in mixed_job()}
    assert results_of_two_processes("2x4", "random") == [expected, expected]


def test_a_decoder_spread_over_two_processes(tiny_model, tiny_processor):
    """The tensor axis goes across the processes; the checkpoint is read by both."""
    expected = {request.id: generated(tiny_model, tiny_processor, request) for request in mixed_job()}
    assert results_of_two_processes("1x8", "tiny") == [expected, expected]
