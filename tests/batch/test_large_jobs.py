"""docs/large_jobs.md: its programs run, its manifests and scripts are well formed."""

import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.compiling import ENVIRONMENT
from tests.faults.commands import write_model_job
from videollava_jax.assets import MEDIA, TINY
from videollava_jax.cli import main

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "large_jobs.md").read_text(encoding="utf-8")


def blocks(language):
    """Returns the page's code blocks in a language."""
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_a_model_over_several_processes_keeps_one_ledger(tmp_path):
    """Two processes of two devices each, started like Slurm's, give the records of one process."""
    (program,) = (text for text in blocks("python") if "jax.distributed" in text)
    (tmp_path / "answer_slice.py").write_text(program)
    write_model_job(tmp_path / "in.jsonl", MEDIA)
    environment = {
        **os.environ, **ENVIRONMENT, "JAX_NUM_CPU_DEVICES": "2", "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
        "JAX_DEFAULT_MATMUL_PRECISION": "highest",
        "PYTHONPATH": str(ROOT),
        "SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2",
    }  # fmt: skip
    command = [sys.executable, "answer_slice.py", "in.jsonl", "out.jsonl", str(TINY), "1x4"]
    processes = [
        subprocess.Popen(
            command,
            env={**environment, "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)},
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(2)
    ]
    try:
        said = [process.communicate(timeout=240)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)[-3000:]
    assert "24 of 24 lines done" in said[0]
    assert main(["batch", str(tmp_path / "in.jsonl"), str(tmp_path / "here.jsonl")]) == 0
    assert answers(tmp_path / "out.jsonl") == answers(tmp_path / "here.jsonl")


def answers(path):
    """Returns the text of each OpenAI record, or the cause of its error, by id."""
    return {
        record["custom_id"]: record["error"]["code"]
        if record["error"]
        else record["response"]["body"]["choices"][0]["message"]["content"]
        for record in map(json.loads, path.read_text().splitlines())
    }


LINES = {
    "ours": lambda i, video: {"id": i, "video": video, "prompt": "?"},
    "media": lambda i, video: {"id": i, "media": [{"image": "a.png"}, {"video": video}], "prompt": "?"},
    "openai": lambda i, video: {
        "custom_id": str(i),
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "video_url", "video_url": {"url": video}}, {"type": "text", "text": "?"}],
                }
            ]
        },
    },
    "llava": lambda i, video: {"question_id": i, "video": video, "text": "?"},
}


@pytest.mark.parametrize("form", LINES)
def test_an_input_in_parts(form, tmp_path, monkeypatch):
    """The page's program keeps every line, and all lines about a video in one part; one that is broken, too."""
    (program,) = (text for text in blocks("python") if "split_questions.py" in text)
    lines = [json.dumps(LINES[form](i, f"{i % 40}.mp4")) + "\n" for i in range(400)]
    (tmp_path / "questions.jsonl").write_text("".join([*lines[:7], "\n", "{broken\n", *lines[7:]]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["split_questions.py", "questions.jsonl", "4"])
    exec(program, {})
    parts = [(tmp_path / f"questions.jsonl.{i}").read_text().splitlines(keepends=True) for i in range(4)]
    assert sorted(itertools.chain(*parts)) == sorted([*lines, "{broken\n"])
    videos = [{video for line in part for video in re.findall(r"\w+\.mp4", line)} for part in parts]
    assert all(videos)
    assert sum(map(len, videos)) == 40


@pytest.mark.parametrize("text", blocks("yaml"))
def test_manifests_are_yaml_whose_parts_fit(text):
    (job,) = yaml.safe_load_all(text)
    assert (job["apiVersion"], job["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (part,) = job["spec"]["replicatedJobs"]
    pod = part["template"]["spec"]["template"]["spec"]
    chips = eval(pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].replace("x", "*"))
    (container,) = pod["containers"]
    assert chips == part["template"]["spec"]["completions"] * container["resources"]["limits"]["google.com/tpu"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
