"""Measures `videollava eval answer` against the batch job that it runs: answers per second on MSVD-QA's shape of work.

    python benchmarks/evaluation.py --clips 100 --questions 25 --rounds 5

The bundled model is asked about drawn clips, 25 questions about each as MSVD-QA has them, in the files of that task.
Two commands take turns, each a process of its own: `videollava eval answer`, and `videollava batch` on the questions
that the first one has written. The first round of each compiles and is not counted. Rates are by the clock of the whole
command, from its start to its end, and by that of the job, without imports and loading. Ends with status 1 if the
answers differ.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from videollava_jax.assets.world import EVAL_SEEDS, encode_mp4, sample_clip

COMMAND = "import sys; from videollava_jax.cli import main; sys.exit(main(sys.argv[1:]))"
NEW_TOKENS = "16"


@dataclass(frozen=True)
class Round:
    """What a command took.

    Attributes:
      seconds: of the whole command.
      job: seconds of its job.
      cpu: CPU seconds of the command and its workers.
      answers: that it gave.
    """

    seconds: float
    job: float
    cpu: float
    answers: int


def write_task(place: Path, clips: int, questions: int) -> None:
    """Writes clips and questions as MSVD-QA's authors do; a clip's own questions come again until there are enough."""
    (place / "videos").mkdir(parents=True)
    asked, answers = [], []
    for clip, scene in enumerate(map(sample_clip, EVAL_SEEDS[:clips])):
        (place / "videos" / f"clip{clip}.mp4").write_bytes(encode_mp4(scene.frames))
        for number in range(questions):
            question = scene.questions[number % len(scene.questions)]
            row = {"question_id": f"{clip}_{number}"}
            asked.append({"video_name": f"clip{clip}", **row, "question": question.text})
            answers.append({"answer": question.answer, **row})
    (place / "test_q.json").write_text(json.dumps(asked))
    (place / "test_a.json").write_text(json.dumps(answers))


def run(*arguments: str) -> Round:
    """Runs a command of `videollava` that answers, and returns what it took."""
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", COMMAND, *arguments, "--json"], capture_output=True, text=True)
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    summary = json.loads(done.stdout.splitlines()[-1])
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Round(seconds, summary["seconds"], cpu, summary["answered"])


def shown(values: list[float]) -> str:
    """Returns a median with its spread."""
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def main(arguments: list[str] | None = None) -> int:
    """Runs the rounds and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=100)
    parser.add_argument("--questions", type=int, default=25)
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        write_task(place / "data", chosen.clips, chosen.questions)
        out, alone = place / "out", place / "answers.jsonl"
        of_task = ["eval", "answer", "msvd_qa", "--data", str(place / "data"), "--as", "hf"]
        of_job = ["batch", str(place / "questions.jsonl"), str(alone)]
        of_job += ["--media-root", str(place / "data"), "--preset", "hf"]
        rounds: dict[str, list[Round]] = {"eval answer": [], "batch": []}
        for number in range(chosen.rounds + 1):
            shutil.rmtree(out, ignore_errors=True)
            alone.unlink(missing_ok=True)
            first = run(*of_task, "-o", str(out), "--max-new-tokens", NEW_TOKENS)
            shutil.copy(out / "questions.jsonl", place / "questions.jsonl")
            second = run(*of_job, "--max-new-tokens", NEW_TOKENS)
            if alone.read_bytes() != (out / "answers.jsonl").read_bytes():
                print("the answers differ")
                return 1
            if number:
                rounds["eval answer"].append(first)
                rounds["batch"].append(second)
            for file in place.glob("answers.jsonl.*"):
                file.unlink()
        print(f"{chosen.clips} clips, {chosen.questions} questions about each, {chosen.rounds} rounds: equal answers")
        print("| | answers per second of the command | of its job | CPU seconds |\n|---|---|---|---|")
        rates = {}
        for name, found in rounds.items():
            rates[name] = [one.answers / one.seconds for one in found]
            jobs, cpu = [one.answers / one.job for one in found], [one.cpu for one in found]
            print(f"| {name} | {shown(rates[name])} | {shown(jobs)} | {shown(cpu)} |")
        median = {name: statistics.median(values) for name, values in rates.items()}
        processor = {name: statistics.median(one.cpu for one in found) for name, found in rounds.items()}
        print(f"eval answer / batch: {median['eval answer'] / median['batch']:.3f} by the command's clock,", end=" ")
        print(f"{processor['eval answer'] / processor['batch']:.3f} in CPU seconds")
    return 0


if __name__ == "__main__":
    sys.exit(main())
