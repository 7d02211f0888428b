"""Measures a job of many questions about many clips: accuracy, how often media are read, and answers per second.

    python benchmarks/batch.py --clips 500 --questions 5

The bundled model answers questions about drawn clips that were not in its training data, given as OpenAI batch lines in
a random order. Three ways take turns: the engine alone with media read by its threads, the engine alone with media read
by worker processes, and `run_batch`, from the file of lines to the file of committed answers. The first round of each
way compiles and starts the workers, and is not counted. Ends with status 1 if in any round a clip was not decoded or
encoded exactly once, or if answers differ.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax

import videollava_jax.engine.device as engine_device
from videollava_jax import VideoLlavaForConditionalGeneration, VideoLlavaProcessor
from videollava_jax.assets import TINY
from videollava_jax.assets.world import CLIP_KINDS, EVAL_SEEDS, Question, encode_mp4, sample_clip
from videollava_jax.batch.media.isolation import IsolatedReader
from videollava_jax.batch.pending import pending_lines
from videollava_jax.batch.requests import Defaults, with_sources
from videollava_jax.batch.runner import BatchOptions, run_batch
from videollava_jax.engine import Engine, Request

NEW_TOKENS = 6
CARD = 300
"""How many clips the model card has, one question each: those of the first evaluation seeds."""


@dataclass(frozen=True)
class Asked:
    """A line of the job.

    Attributes:
      clip: the index of the clip.
      number: the index of the question about it.
      again: whether an earlier line has the same question, as a scene has only two to five.
      question: with the right answer.
    """

    clip: int
    number: int
    again: bool
    question: Question


@dataclass
class Counts:
    """How often media were read in a round.

    Attributes:
      decoded: the name of a file, each time that it was decoded. Threads append to it.
      encoded: how many prefixes with media were encoded.
    """

    decoded: list[str] = field(default_factory=list)
    encoded: int = 0


Round = tuple[dict[str, str], Counts, float]
"""Answers by id, how often media were read, and seconds."""


def write_job(place: Path, clips: int, questions: int, seed: int) -> dict[str, Asked]:
    """Writes `media/*.mp4` and `job.jsonl`; returns the lines by their ids."""
    media = place / "media"
    media.mkdir()
    asked = {}
    for clip, scene in enumerate(map(sample_clip, EVAL_SEEDS[:clips])):
        (media / f"{clip}.mp4").write_bytes(encode_mp4(scene.frames))
        for number in range(questions):
            of_scene = len(scene.questions)
            question = scene.questions[number % of_scene]
            asked[f"{clip}-{number}"] = Asked(clip, number, number >= of_scene, question)
    names = list(asked)
    random.Random(seed).shuffle(names)
    with open(place / "job.jsonl", "w") as file:
        for name in names:
            content = [
                {"type": "video_url", "video_url": {"url": f"{asked[name].clip}.mp4"}},
                {"type": "text", "text": asked[name].question.text},
            ]
            body = {"model": "tiny", "messages": [{"role": "user", "content": content}], "max_tokens": NEW_TOKENS}
            line = {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body}
            file.write(json.dumps(line) + "\n")
    return asked


def requests_of(place: Path) -> list[Request]:
    """Returns the lines as requests for the engine, with paths, in the order of their media."""
    found = []
    for line in pending_lines([place / "job.jsonl"], "openai", Defaults(), ()):
        assert isinstance(line.request, Request)
        request = with_sources(line.request, lambda _, name: str(place / "media" / name))
        found.append(request)
    return found


@contextmanager
def counted() -> Iterator[Counts]:
    """Counts the prefixes that the engine encodes within the `with`; `counting` counts the files that it decodes."""
    counts, real = Counts(), engine_device.encode_prefixes

    def encode_prefixes(model: Any, processor: Any, reads: Any) -> Any:
        counts.encoded += sum(bool(read.kinds) for read in reads)
        return real(model, processor, reads)

    engine_device.encode_prefixes = encode_prefixes  # type: ignore[assignment]
    try:
        yield counts
    finally:
        engine_device.encode_prefixes = real


def counting(reader: Callable[..., Any], counts: Counts) -> Callable[..., Any]:
    """Wraps an engine's reader so that it counts the files that it decodes."""

    def read(medium: Any, frame_sampling: Any) -> Any:
        counts.decoded.append(Path(medium.source).name)
        return reader(medium, frame_sampling)

    return read


class Bench:
    """Answers one job in three ways.

    Args:
      place: the directory of the job (see `write_job`).
      model, processor: the bundled ones.
      window: how many requests the engine of `run_batch` reads ahead.
    """

    def __init__(self, place: Path, model: Any, processor: Any, window: int = 1024):
        self.place, self.model, self.processor, self.window = place, model, processor, window
        self.reader = IsolatedReader(self.processor)
        self.requests = requests_of(place)
        self.names = [json.loads(line)["custom_id"] for line in (place / "job.jsonl").read_text().splitlines()]

    def threads(self, round_: int) -> Round:
        """Runs the engine alone, with media read by its threads. It reads all requests ahead."""
        return self._engine(self.processor.read_medium)

    def workers(self, round_: int) -> Round:
        """Runs the engine alone, with media read by worker processes."""
        return self._engine(self.reader)

    def _engine(self, reader: Callable[..., Any]) -> Round:
        with counted() as counts:
            reader = counting(reader, counts)
            engine = Engine(self.model, self.processor, reader=reader, window=len(self.requests))
            started = time.perf_counter()
            results = list(engine.run(self.requests))
            seconds = time.perf_counter() - started
        return {self.names[int(result.id)]: result.text for result in results}, counts, seconds

    def batch(self, round_: int) -> Round:
        """Runs `run_batch`, with a new output in each round."""
        output = self.place / f"answers-{round_}.jsonl"
        with counted() as counts:
            reader = counting(self.reader, counts)
            engine = Engine(self.model, self.processor, reader=reader, window=self.window)
            started = time.perf_counter()
            run_batch(self.place / "job.jsonl", output, lambda: engine, BatchOptions(media_root=self.place / "media"))
            seconds = time.perf_counter() - started
        records = map(json.loads, output.read_text().splitlines())
        return (
            {r["custom_id"]: r["response"]["body"]["choices"][0]["message"]["content"] for r in records},
            counts,
            seconds,
        )


def accuracy_table(asked: dict[str, Asked], answers: dict[str, str]) -> str:
    """Returns a table of right answers by kind of question, with those of the model card."""
    card = json.loads((Path(TINY) / "card.json").read_text())["accuracy"]["clips"]
    columns: tuple[tuple[str, Callable[[Asked], bool]], ...] = (
        ("its clips, its question", lambda line: line.number == 0 and line.clip < CARD),
        ("all clips, its question", lambda line: line.number == 0),
        ("all clips, all questions", lambda line: not line.again),
    )
    lines = [f"{'':<10} {'card':>12} " + " ".join(f"{title:>25}" for title, _ in columns)]
    for kind in (*CLIP_KINDS, "all"):
        row = []
        for _, counts in columns:
            lines_ = [name for name, line in asked.items() if counts(line) and kind in (line.question.kind, "all")]
            right = sum(answers[name] == asked[name].question.answer for name in lines_)
            row.append(f"{right} of {len(lines_)}, {right / max(1, len(lines_)):.1%}")
        right, of = card[kind] if kind in card else map(sum, zip(*card.values(), strict=True))
        lines.append(f"{kind:<10} {f'{right} of {of}':>12} " + " ".join(f"{cell:>25}" for cell in row))
    return "\n".join(lines)


def spread(rates: list[float]) -> str:
    """Formats the median and the range of rates."""
    return f"{statistics.median(rates):.1f} ({min(rates):.1f}-{max(rates):.1f})"


def main() -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=500, help="default: %(default)s")
    parser.add_argument("--questions", type=int, default=5, help="about each clip; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="without the first, which compiles; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the order of lines; default: %(default)s")
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        asked = write_job(Path(name), wanted.clips, wanted.questions, wanted.seed)
        model = VideoLlavaForConditionalGeneration.from_pretrained(TINY, dtype="float32")
        bench = Bench(Path(name), model, VideoLlavaProcessor.from_pretrained(TINY))
        try:
            return measure(bench, asked, wanted)
        finally:
            bench.reader.close()


def measure(bench: Bench, asked: dict[str, Asked], wanted: argparse.Namespace) -> int:
    """Measures all ways and prints the results; returns the exit status."""
    print(
        f"{len(asked)} lines about {wanted.clips} clips, seed {wanted.seed}; jax {jax.__version__}, "
        f"{os.cpu_count()} cores"
    )
    once = Counter({f"{clip}.mp4": 1 for clip in range(wanted.clips)})
    ways = {"engine, threads": bench.threads, "engine, workers": bench.workers, "run_batch": bench.batch}
    rates: dict[str, list[float]] = {way: [] for way in ways}
    problems, answers = [], None
    for round_ in range(1 + wanted.rounds):
        for way, run in ways.items():
            found, counts, seconds = run(round_)
            if Counter(counts.decoded) != once or counts.encoded != wanted.clips:
                problems.append(f"{way}, round {round_}: {len(counts.decoded)} decoded, {counts.encoded} encoded")
            if found != (answers := answers or found):
                problems.append(f"{way}, round {round_}: answers differ from the first round's")
            if round_:
                rates[way].append(len(asked) / seconds)
    if not problems:
        print(f"in every round each of {wanted.clips} clips was decoded and encoded once; all answers were the same")
    print(f"\n{accuracy_table(asked, answers or {})}\n")
    for way, counted_rates in rates.items():
        print(f"{way:<15} {spread(counted_rates)} answers/s, median of {wanted.rounds} rounds and spread")
    ratio = statistics.median(rates["run_batch"]) / statistics.median(rates["engine, workers"])
    print(f"run_batch to the engine with workers, ratio of medians: {ratio:.2f}")
    print("\n".join(problems))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
