"""Runs a batch job over good and hostile media, and prints the outcomes.

    python -m tests.faults.media_job --good 300 --bad 300 --seed 0

`run_batch` answers a question about each medium with the tiny model, first about the good ones alone, then about all.
Ends with status 1 if an answer about a good one changes, a bad one has no record or several, a hostile one is answered,
a worker is left running, or memory exceeds the limits.
"""

from __future__ import annotations

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import argparse
import json
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.commands import MARK, ROOT, await_no_process, marked_processes
from tests.faults.hostile_media import BAD as BAD_MEDIA
from tests.faults.hostile_media import Medium, write_media
from tests.faults.tables import Tally, said, table
from videollava_jax.batch.requests import Defaults

MEBIBYTE = 2**20
MEMORY = 1024
"""MiB of address space that a worker has in addition to its imports."""
IMPORTS = 100
"""The most MiB resident that the imports take."""
MORE = 200
"""The most MiB that bad media may add to the main process."""
READERS = 4
MOST_FILES = 100
"""How many more files may be open at a time than at the end."""
QUESTIONS = ("What shape is it?", "What colour is it?", "Where is it?", "How many shapes are there?")
FAULTY = """
import os, signal, time
import videollava_jax.processing.given_media as inputs
kept = []
def faulty(read):
    def faulty_read(source, **options):
        kind = os.path.basename(os.fspath(source)).split("-")[0]
        if kind == "hangs":
            time.sleep(999)
        while kind == "spins":
            pass
        if kind == "crashes":
            signal.raise_signal(11)
        while kind == "eats":
            kept.append(b"x" * 2**23)
        if kind == "leaves":
            kept.append(b"x" * 600 * 2**20)
        return read(source, **options)
    return faulty_read
inputs.read_image, inputs.read_video = faulty(inputs.read_image), faulty(inputs.read_video)
"""
"""The program of workers that hang, crash or take memory if a file's name says so, as a faulty codec might."""


@dataclass
class Seen:
    """Observations of this process and its workers during a job.

    Attributes:
      main, worker: the peak resident memory of this process, and of any worker; bytes.
      workers: the ids of all that were started.
      at_once: workers, at most.
      files: open in this process, at most.
    """

    main: int = 0
    worker: int = 0
    workers: set[int] = field(default_factory=set)
    at_once: int = 0
    files: int = 0


@contextmanager
def watched(mark: str) -> Iterator[Seen]:
    """Observes this process and its marked workers every 10 ms: other tests leave readers open in it."""
    seen, ended = Seen(), threading.Event()
    thread = threading.Thread(target=_watch, args=[seen, ended, f"{MARK}={mark}".encode()])
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


def _watch(seen: Seen, ended: threading.Event, mark: bytes) -> None:
    others: set[str] = set()
    while not ended.wait(0.01):
        alive = 0
        for name in set(os.listdir("/proc")) - others:
            if not name.isdecimal():
                others.add(name)
                continue
            with suppress(OSError):
                # First whether it is a worker: until it is, its memory is that of this process.
                marked = mark in Path(f"/proc/{name}/environ").read_bytes().split(b"\0")
                status = dict(line.split(":", 1) for line in Path(f"/proc/{name}/status").read_text().splitlines())
                if int(status["PPid"]) != os.getpid():
                    others.add(name)
                elif marked and "VmHWM" in status:  # one that has ended has no memory
                    alive += 1
                    seen.workers.add(int(name))
                    seen.worker = max(seen.worker, _bytes(status["VmHWM"]))
        seen.at_once = max(seen.at_once, alive)
        seen.files = max(seen.files, len(os.listdir("/proc/self/fd")))
        own = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        seen.main = max(seen.main, _bytes(own["VmHWM"]))


def _bytes(text: str) -> int:
    return int(text.split()[0]) * 1024


@dataclass(frozen=True)
class Done:
    """A job that has ended.

    Attributes:
      records: of its output.
      seen: of its processes.
      problems: what must not be.
      seconds: that it took.
    """

    records: list[dict[str, Any]]
    seen: Seen
    problems: list[str]
    seconds: float


def run_media_job(place: Path, name: str, media: list[Medium], model: Any, processor: Any, seconds: float) -> Done:
    """Runs a job of a question about each medium.

    Args:
      name: of its files.
      seconds: that a medium may take.
    """
    from videollava_jax.batch.media.isolation import IsolatedReader, WorkerLimits
    from videollava_jax.batch.runner import BatchOptions, run_batch
    from videollava_jax.engine import Engine

    source, output, mark = place / f"{name}.jsonl", place / f"{name}-answers.jsonl", f"media-{os.getpid()}-{name}"
    lines = [{"id": m.name, m.type: m.name, "prompt": QUESTIONS[sum(m.name.encode()) % 4]} for m in media]
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    reader = IsolatedReader(processor, WorkerLimits(seconds=seconds, memory=MEMORY * MEBIBYTE))
    engine = Engine(model, processor, reader=reader, readers=READERS)
    options = BatchOptions(defaults=Defaults(options={"max_new_tokens": 6}), media_root=place / "media")
    started, problems = time.perf_counter(), []
    with environment(**{MARK: mark, "PYTHONPATH": _faults(place)}), watched(mark) as seen:
        try:
            run_batch(source, output, lambda: engine, options)
        finally:
            reader.close()
        files = len(os.listdir("/proc/self/fd"))
    if not await_no_process(mark, 5):
        problems.append(f"processes left behind: {marked_processes(mark)}")
    if seen.at_once > READERS:
        problems.append(f"{seen.at_once} workers at once, for {READERS} readers")
    if seen.files > files + MOST_FILES:
        problems.append(f"{seen.files} files open, {files} at the end")
    if seen.worker > (MEMORY + IMPORTS) * MEBIBYTE:
        problems.append(f"a worker took {seen.worker / MEBIBYTE:.0f} MiB")
    records = [json.loads(line) for line in output.read_text().splitlines()]
    return Done(records, seen, problems, time.perf_counter() - started)


@contextmanager
def environment(**values: str) -> Iterator[None]:
    """Sets variables for the processes that are started in the block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _faults(place: Path) -> str:
    directory = place / "faults"
    directory.mkdir(exist_ok=True)
    (directory / "sitecustomize.py").write_text(FAULTY)
    return str(directory)


def judge(media: list[Medium], mixed: Done, alone: Done) -> list[Tally]:
    """Returns a row for each kind of medium, with its outcomes, and one for the resources of both jobs."""
    tallies = {medium.kind: Tally(medium.kind) for medium in sorted(media, key=lambda medium: medium.kind)}
    jobs = Tally("jobs")
    for name, job in (("of all", mixed), ("of the good ones", alone)):
        for problem in job.problems:
            jobs.add("violation", f"the job {name}: {problem}")
    if mixed.seen.main > alone.seen.main + MORE * MEBIBYTE:
        jobs.add("violation", "the main process took more memory for the bad media")
    if (names := [record["id"] for record in mixed.records]) != [medium.name for medium in media]:
        kind = "doubled" if len(names) > len(set(names)) else "lost"
        jobs.add(kind, f"{len(names)} records of {len(media)} lines, {len(set(names))} of them different")
    jobs.add("two jobs")
    expected = {record["id"]: record for record in alone.records}
    records = {record["id"]: record for record in mixed.records}
    for medium in media:
        outcome, detail = _judged(medium, records.get(medium.name, {}), expected.get(medium.name))
        tallies[medium.kind].add(outcome, f"{medium.name}: {detail}")
    jobs.memory = max(mixed.seen.main, mixed.seen.worker)
    return [*tallies.values(), jobs]


def _judged(medium: Medium, record: dict[str, Any], alone: dict[str, Any] | None) -> tuple[str, str]:
    if medium.expected == "answer":
        same = record == alone and record["finish_reason"] in ("stop", "length")
        wrong = "silent" if record.get("error") is None and record else "lost"
        return ("answered as alone", "") if same else (wrong, f"{record}, alone {alone}")
    if record.get("error") is None:
        read = medium.expected == "either" and record.get("finish_reason") in ("stop", "length")
        return (
            ("answered", "") if read else ("silent" if record else "lost", f"answered, or without a record: {record}")
        )
    if not record.get("cause") or not record["error"].startswith(medium.name) or "\n" in record["error"]:
        return "violation", f"an error without its cause or its name: {record}"
    return record["cause"], ""


def run(good: int, bad: int, seed: int, seconds: float, model: Any, processor: Any) -> list[Tally]:
    """Runs and checks both jobs; prints their resources."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        media = write_media(place, good, bad, seed)
        alone = run_media_job(place, "alone", [m for m in media if m.expected == "answer"], model, processor, seconds)
        mixed = run_media_job(place, "mixed", media, model, processor, seconds)
    for what, job in (("good alone", alone), ("good and bad", mixed)):
        seen = job.seen
        print(f"{what}: {len(job.records)} records in {job.seconds:.0f} s")
        print(f"  {len(seen.workers)} workers, {seen.at_once} at once, {seen.files} files open in the main process")
        print(
            f"  most memory: a worker {seen.worker / MEBIBYTE:.0f} MiB, the main process {seen.main / MEBIBYTE:.0f} MiB"
        )
    return judge(media, mixed, alone)


def tiny() -> tuple[Any, Any]:
    """Returns the bundled model, with a compilation cache on disk, and its processor."""
    import jax

    from videollava_jax import VideoLlavaForConditionalGeneration, VideoLlavaProcessor
    from videollava_jax.assets import TINY

    jax.config.update("jax_compilation_cache_dir", str(ROOT / ".cache" / "jax"))
    return VideoLlavaForConditionalGeneration.from_pretrained(TINY), VideoLlavaProcessor.from_pretrained(TINY)


def part(seed: int, scale: float) -> list[Tally]:
    """Asks about `80 * scale` good and `84 * scale` bad media; see `tests.faults.parts`."""
    return run(max(8, round(80 * scale)), max(len(BAD_MEDIA), round(84 * scale)), seed, 10, *tiny())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--good", type=int, default=300, help="media without fault; default: %(default)s")
    parser.add_argument("--bad", type=int, default=300, help="others; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the bad ones and the order; default: %(default)s")
    parser.add_argument("--seconds", type=float, default=10, help="that a medium may take; default: %(default)s")
    wanted = parser.parse_args()
    print(f"seed {wanted.seed}; a worker has {wanted.seconds:g} s, and {MEMORY} MiB beyond its imports")
    tallies = run(wanted.good, wanted.bad, wanted.seed, wanted.seconds, *tiny())
    print(f"\n{table(tallies)}")
    return said(tallies)


if __name__ == "__main__":
    sys.exit(main())
