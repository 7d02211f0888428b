"""Starts `videollava` in processes that are found again by a mark in their environment, and a job for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

from tests.compiling import ENVIRONMENT

ROOT = Path(__file__).parents[2]

MODEL_LINES = 24

MARK = "VIDEOLLAVA_MARK"
"""A variable in the environment of a run and its workers, by which they are found."""


def write_model_job(path: Path, media: Path) -> None:
    """Writes OpenAI lines about the bundled media, with a bad one among them."""
    questions = ("Which way does it move?", "What shape is it?", "Does it change colour?")
    with open(path, "w") as file:
        for i in range(MODEL_LINES):
            name = ("rising-triangle.mp4", "circle-then-square.mp4", "none.mp4")[i // 3 % 3]
            kind = {"type": "video_url", "video_url": {"url": str(media / name)}}
            content = [kind, {"type": "text", "text": questions[i % 3]}]
            body = {"model": "tiny", "messages": [{"role": "user", "content": content}], "max_tokens": 8}
            line = {"custom_id": f"q{i}", "method": "POST", "url": "/v1/chat/completions", "body": body}
            file.write(json.dumps(line) + "\n")


def start_command(
    *arguments: str, mark: str = "1", output: IO[bytes] | int = subprocess.PIPE, **more: str
) -> subprocess.Popen[bytes]:
    """Starts `videollava` in a separate process that can be found by its mark.

    Args:
      output: takes what it prints.
      more: variables of its environment.
    """
    environment = {
        **os.environ, "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1", "SOURCE_DATE_EPOCH": "1700000000", MARK: mark,
        **ENVIRONMENT, **more,
    }  # fmt: skip
    code = "import sys; from videollava_jax.cli import main; sys.exit(main())"
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env=environment,
        cwd=ROOT,
        stdout=output,
        stderr=subprocess.STDOUT,
    )


def marked_processes(mark: str) -> list[int]:
    """Returns the processes with the mark in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"{MARK}={mark}".encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def await_no_process(mark: str, seconds: float) -> bool:
    """Waits for all marked processes to end; returns whether they did in time."""
    end = time.monotonic() + seconds
    while marked_processes(mark):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True
