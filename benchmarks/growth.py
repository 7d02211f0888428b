"""Measures how cost grows: questions a video, lines of a job, frames of a video, devices.

    python benchmarks/growth.py --out out/growth.json --picture out/growth.png
    python benchmarks/growth.py --axes lines --most 1000

Every point is a process of its own, which does the work once to compile, and once more for the figures: CPU seconds of
an answer (all threads), answers a second, and the peak of memory. The axes:

    questions   about each of 4 drawn clips, the tiny model
    lines       of a job about drawn clips, 25 a clip, through `run_batch`, the tiny model; clips are read by worker
                processes, as by the command, whose cost is not in the figures: see `decoding.py`
    ledger      lines of a job whose answers cost nothing: what the runner itself takes
    frames      of each of 16 clips, one question each, a random model of the tiny one's shape
    devices     virtual ones, each with an equal share of 64 questions about 8 clips, the tiny model

The last column says how cost grew since the point before, for each factor of the axis: 1 for cost in step with the
work, more for cost that outgrows it. Devices share the cores of one machine: there cost should stay as it is.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

AXES = {
    "questions": (1, 5, 25, 100, 400),
    "lines": (10, 100, 1000, 10_000),
    "ledger": (10, 100, 1000, 10_000, 100_000),
    "frames": (1, 2, 4, 8, 16, 32),
    "devices": (1, 2, 4, 8),
}
CLIPS, FRAME_CLIPS, DEVICE_CLIPS, DEVICE_QUESTIONS, PER_CLIP = 4, 16, 8, 8, 25


@dataclass(frozen=True)
class Point:
    """The cost of one point.

    Attributes:
      axis, value: where it is.
      answers: that were given.
      cpu, seconds: of the whole work, seconds.
      peak: of the process's resident memory, bytes.
    """

    axis: str
    value: int
    answers: int
    cpu: float
    seconds: float
    peak: int


# ── in the process of a point ───────────────────────────────────────────────────────────────────────────────


def measured(axis: str, value: int) -> Point:
    """Does the work of a point twice and measures the second time."""
    with tempfile.TemporaryDirectory() as name:
        work = WORK[axis](value, Path(name))
        work()
        before, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        answers = work()
        seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Point(axis, value, answers, cpu, seconds, after.ru_maxrss * 1024)


def _asked(clips: int, questions: int, frames: int = 8) -> list[Any]:
    """Returns requests about drawn clips, given as pixels."""
    from videollava_jax import Request
    from videollava_jax.assets.world import EVAL_SEEDS, sample_clip

    found = []
    for number, scene in enumerate(map(sample_clip, EVAL_SEEDS[:clips])):
        pixels = scene.frames[[round(index * (len(scene.frames) - 1) / max(1, frames - 1)) for index in range(frames)]]
        for question in range(questions):
            text = f"{scene.questions[question % len(scene.questions)].text} Say it in {question} words."
            content = [{"type": "video", "video": pixels}, {"type": "text", "text": text}]
            conversation = [{"role": "user", "content": content}]
            found.append(Request(id=f"{number}-{question}", conversation=conversation, max_new_tokens=6))
    return found


def _engine(mesh: Any = None, model: Any = None, isolated: bool = False) -> Any:
    from videollava_jax import VideoLlavaForConditionalGeneration, VideoLlavaProcessor
    from videollava_jax.batch.media.isolation import IsolatedReader
    from videollava_jax.engine import Engine

    if model is None:
        model = VideoLlavaForConditionalGeneration.from_pretrained(_tiny(), dtype="float32", mesh=mesh)
    processor = VideoLlavaProcessor.from_pretrained(_tiny())
    return Engine(model, processor, reader=IsolatedReader(processor) if isolated else None)


def _tiny() -> Path:
    from videollava_jax.assets import TINY

    return TINY


def _run(engine: Any, requests: list[Any]) -> Callable[[], int]:
    def work() -> int:
        results = list(engine.run(requests))
        assert all(result.error is None for result in results), next(r.error for r in results if r.error)
        return len(results)

    return work


def questions(value: int, place: Path) -> Callable[[], int]:
    """Prepares questions about each of a few clips."""
    return _run(_engine(), _asked(CLIPS, value))


def frames(value: int, place: Path) -> Callable[[], int]:
    """Prepares one question about each of several clips of this many frames, for a model with room for all of them."""
    from random_models import our_model

    from videollava_jax.config import ModelConfig

    tiny = ModelConfig.from_hf(_tiny())
    text = dataclasses.replace(tiny.text_config, max_position_embeddings=2048)
    model = our_model(dataclasses.replace(tiny, text_config=text), "float32")
    return _run(_engine(model=model), _asked(FRAME_CLIPS, 1, value))


def devices(value: int, place: Path) -> Callable[[], int]:
    """Prepares the same questions for this many devices, which share the slots."""
    from videollava_jax.model.sharding import make_mesh

    return _run(_engine(make_mesh(value, 1)), _asked(DEVICE_CLIPS, DEVICE_QUESTIONS))


class Instant:
    """A runner that answers each request at once."""

    def run(self, requests: Iterable[Any]) -> Iterator[Any]:
        """Yields a result for each request."""
        from videollava_jax.engine import Result

        for request in requests:
            yield Result(id=request.id, text="yes", finish_reason="stop")


def lines(value: int, place: Path, runner: Callable[[], Any] | None = None) -> Callable[[], int]:
    """Prepares a job; each run of it has a new output."""
    from videollava_jax.assets.world import EVAL_SEEDS, encode_mp4, sample_clip
    from videollava_jax.batch.runner import BatchOptions, run_batch

    clips = math.ceil(value / PER_CLIP)
    scenes = [sample_clip(seed) for seed in EVAL_SEEDS[: min(clips, 100)]]
    with open(place / "job.jsonl", "w") as job:
        for clip in range(clips):
            scene = scenes[clip % len(scenes)]
            (place / f"{clip}.mp4").write_bytes(encode_mp4(scene.frames) if runner is None else b"")
            for question in range(min(PER_CLIP, value - clip * PER_CLIP)):
                text = f"{scene.questions[question % len(scene.questions)].text} Say it in {question} words."
                job.write(json.dumps({"id": f"{clip}-{question}", "video": f"{clip}.mp4", "prompt": text}) + "\n")
    engine = _engine(isolated=True) if runner is None else runner()
    count = 0

    def work() -> int:
        nonlocal count
        count += 1
        summary = run_batch(
            place / "job.jsonl", place / f"out-{count}.jsonl", lambda: engine, BatchOptions(media_root=place)
        )
        return summary.done

    return work


def ledger(value: int, place: Path) -> Callable[[], int]:
    """Prepares a job whose answers cost nothing."""
    return lines(value, place, Instant)


WORK: dict[str, Callable[[int, Path], Callable[[], int]]] = {
    "questions": questions,
    "lines": lines,
    "ledger": ledger,
    "frames": frames,
    "devices": devices,
}

# ── in the program ──────────────────────────────────────────────────────────────────────────────────────────


def point(axis: str, value: int) -> Point:
    """Measures a point in a process of its own."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(value if axis == "devices" else 1)}
    done = subprocess.run(
        [sys.executable, __file__, "--point", axis, str(value)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return Point(**json.loads(done.stdout.splitlines()[-1]))


def growth(before: Point, after: Point) -> float:
    """Returns the exponent of the work with which CPU seconds grew between two points of an axis."""
    return math.log(after.cpu / before.cpu) / math.log(after.value / before.value)


def table(points: list[Point]) -> str:
    """Returns a Markdown table of the points."""
    rows = [
        "| axis | value | answers | CPU ms an answer | answers/s | peak, MiB | grew by the power |",
        "|---" * 7 + "|",
    ]
    before: Point | None = None
    for found in points:
        grew = growth(before, found) if before is not None and before.axis == found.axis else None
        rows.append(
            f"| {found.axis} | {found.value:,} | {found.answers:,} | {1000 * found.cpu / found.answers:.2f} | "
            f"{found.answers / found.seconds:,.1f} | {found.peak / 2**20:,.0f} | "
            f"{'' if grew is None else f'{grew:.2f}'} |"
        )
        before = found
    return "\n".join(rows)


def draw(points: list[Point], path: Path) -> None:
    """Draws CPU seconds and memory over the value of each axis."""
    from matplotlib.figure import Figure

    axes = list(dict.fromkeys(found.axis for found in points))
    figure = Figure(figsize=(3.2 * len(axes), 5), layout="constrained")
    panels = figure.subplots(2, len(axes), squeeze=False)
    for column, axis in enumerate(axes):
        of_axis = [found for found in points if found.axis == axis]
        values = [found.value for found in of_axis]
        for row, (label, heights) in enumerate(
            (
                ("CPU ms an answer", [1000 * found.cpu / found.answers for found in of_axis]),
                ("peak, MiB", [found.peak / 2**20 for found in of_axis]),
            )
        ):
            panel = panels[row][column]
            panel.plot(values, heights, marker="o")
            panel.set_xscale("log")
            panel.minorticks_off()
            panel.set_xticks(values, [f"{value:,}" for value in values], fontsize=8)
            panel.set_ylim(0, 1.1 * max(heights))
            panel.set_xlabel(axis)
            panel.set_ylabel(label if column == 0 else "")
            panel.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--most", type=int, help="leave out values above it")
    parser.add_argument("--out", type=Path, help="a JSON file for the points")
    parser.add_argument("--picture", type=Path, help="a PNG file; needs matplotlib")
    parser.add_argument("--point", nargs=2, help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    if wanted.point:
        print(json.dumps(asdict(measured(wanted.point[0], int(wanted.point[1])))))
        return 0
    points = []
    for axis in wanted.axes:
        for value in AXES[axis]:
            if wanted.most is None or value <= wanted.most:
                points.append(point(axis, value))
                print(f"  {axis} {value}: {points[-1].cpu:.2f} CPU s", file=sys.stderr, flush=True)
    print(table(points))
    if wanted.out:
        wanted.out.parent.mkdir(parents=True, exist_ok=True)
        wanted.out.write_text(json.dumps([asdict(found) for found in points], indent=2))
    if wanted.picture:
        draw(points, wanted.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
