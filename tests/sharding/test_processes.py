"""Two processes of four virtual devices each: one job, and both give all its results."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.compiling import ENVIRONMENT
from tests.engine.jobs import generated, mixed_job
from tests.loopback import free_port
from tests.small_models import random_model

CASES = {"2x4": "random", "1x8": "tiny"}
"""Meshes, and the model on each."""
CHILD = """
import json, sys
import jax
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.config.update("jax_default_matmul_precision", "highest")
jax.distributed.initialize(f"localhost:{sys.argv[1]}", num_processes=2, process_id=int(sys.argv[2]))
assert jax.device_count() == 8 and jax.process_count() == 2
from tests.engine.jobs import mixed_job
from tests.small_models import on_mesh, random_model
from videollava_jax import VideoLlavaForConditionalGeneration, VideoLlavaProcessor
from videollava_jax.assets import TINY
from videollava_jax.engine import Engine
from videollava_jax.model.sharding import make_mesh
results = {}
for shape, kind in json.loads(sys.argv[3]).items():
    mesh = make_mesh(*map(int, shape.split("x")))
    if kind == "tiny":
        model = VideoLlavaForConditionalGeneration.from_pretrained(TINY, mesh=mesh)
    else:
        model = on_mesh(random_model(VideoLlavaForConditionalGeneration.from_pretrained(TINY)), mesh)
    engine = Engine(model, VideoLlavaProcessor.from_pretrained(TINY), max_rows=8)
    results[shape] = {result.id: result.token_ids for result in engine.run(mixed_job())}
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def results():
    """By mesh: token ids by request, from each of two processes, which start once for all meshes."""
    port = free_port()
    children = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, str(port), str(i), json.dumps(CASES)],
            cwd=Path(__file__).parents[2],
            env=os.environ | ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    try:
        said = [child.communicate(timeout=480) for child in children]
    finally:
        for child in children:
            child.kill()
    assert [child.returncode for child in children] == [0, 0], said[0][1][-3000:] + said[1][1][-3000:]
    found = [json.loads(out.splitlines()[-1]) for out, _ in said]
    return {shape: [{name: tuple(ids) for name, ids in of[shape].items()} for of in found] for shape in CASES}


def test_two_processes_answer_as_one_device(tiny_model, tiny_processor, results):
    """Data over the processes: each holds half of the batch and a whole decoder in four parts."""
    model = random_model(tiny_model)
    expected = {request.id: generated(model, tiny_processor, request) for request in mixed_job()}
    assert results["2x4"] == [expected, expected]


def test_a_decoder_spread_over_two_processes(tiny_model, tiny_processor, results):
    """The tensor axis goes across the processes; the checkpoint is read by both."""
    expected = {request.id: generated(tiny_model, tiny_processor, request) for request in mixed_job()}
    assert results["1x8"] == [expected, expected]
