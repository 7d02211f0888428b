"""Kills batch jobs at random moments until they are done, and prints what became of them.

    python -m tests.faults.batch --kills 1000 --model-kills 60 --seed 0

`--kills`: jobs whose answers are made without a model, half of them killed at a random moment and half at a random step
of the file system; and a tenth as many that are killed while they try the errors of a finished output again.
`--model-kills`: `videollava batch` with the tiny model. Ends with status 1 if anything ended as it must not: a line
without its one record, committed work done again, an output other than that of a run that nobody disturbed, a process
left behind.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from tests.compiling import ENVIRONMENT
from tests.faults.children import Child, Died, run
from tests.faults.tables import Tally, said, table

ROOT = Path(__file__).parents[2]
LINES = 60
MODEL_LINES = 24
MARK = "VIDEOLLAVA_BATCH_TEST"
"""In the environment of a run and of its workers, by which they are found."""


# ── a job without a model ──


def fake_answer(request: Any) -> Any:
    """Always the same for the same request; an error for every seventh."""
    from videollava_jax.engine import Result

    answer = mended_answer(request)
    if answer.token_ids[0] % 7 == 0:
        return Result(id=request.id, finish_reason="error", error="no answer to this", cause="decode_failed")
    return answer


def mended_answer(request: Any) -> Any:
    """The same without errors."""
    from videollava_jax.engine import Result

    digest = hashlib.sha256(f"{request.id} {request.conversation[0]['content'][-1]}".encode()).digest()
    return Result(id=request.id, text=digest.hex(), token_ids=tuple(digest[:9]), finish_reason="stop", prompt_tokens=7)


class FakeRunner:
    """Answers by the prompt alone, some at a time, in an order and after pauses of its own.

    Args:
      log: a file to which the id of every request that it is given is appended.
      seed: of order and pauses.
      answer: to a request.
    """

    def __init__(self, log: Path, seed: int, pause: float = 0.004, answer: Callable[[Any], Any] = fake_answer):
        self._log, self._rng, self._pause, self._answer = log, random.Random(seed), pause, answer

    def run(self, requests: Iterable[Any]) -> Iterator[Any]:
        incoming, waiting = iter(requests), []
        with open(self._log, "ab", buffering=0) as log:
            while True:
                for request in islice(incoming, 8 - len(waiting)):
                    log.write(f"{request.id}\n".encode())
                    waiting.append(request)
                if not waiting:
                    return
                time.sleep(self._rng.uniform(0, self._pause))
                yield self._answer(waiting.pop(self._rng.randrange(len(waiting))))


def write_job(path: Path, lines: int = LINES) -> None:
    """An input of good lines and bad ones, with media that have to be spooled among them."""
    picture = "data:image/png;base64," + base64.b64encode(b"\x89PNG" * 50).decode()
    kinds: list[Any] = [
        {"prompt": "What is it?"},
        {"prompt": "What is in it?", "image": picture},
        {"prompt": "Who is there?", "video": "missing.mp4"},
        "not JSON",
        {"prompt": "Why?", "options": {"max_new_tokens": 5}},
    ]
    with open(path, "w") as file:
        for i in range(lines):
            kind = kinds[i % len(kinds)]
            file.write(f"{kind}\n" if isinstance(kind, str) else json.dumps({"id": f"q{i}", **kind}) + "\n")


def run_job(place: Path, seed: int, pause: float = 0.004) -> str:
    """Runs the job of a directory, or what is left of it."""
    return _run_job(FakeRunner(place / "asked", seed, pause), place)


def run_mended_job(place: Path, seed: int, pause: float = 0.004) -> str:
    """The same with a runner that has no errors."""
    return _run_job(FakeRunner(place / "asked", seed, pause, mended_answer), place)


def run_job_and_keep(place: Path, seed: int) -> str:
    """The same as `run_job`, with the ledger kept."""
    return _run_job(FakeRunner(place / "asked", seed, 0.0), place, keep_ledger=True)


def retry_job(place: Path, seed: int, pause: float = 0.004) -> str:
    """Tries the errors of a finished output again, with a runner that has none."""
    runner = FakeRunner(place / "asked", seed, pause, mended_answer)
    return _run_job(runner, place, retry_errors=True, keep_ledger=True)


def _run_job(runner: FakeRunner, place: Path, **options: bool) -> str:
    from videollava_jax.batch.runner import BatchOptions, run_batch

    wanted = BatchOptions(max_error_rate=1, **options)
    return str(run_batch(place / "input.jsonl", place / "output.jsonl", lambda: runner, wanted))


def run_to_step(job: Callable[[Path, int, float], str], place: Path, seed: int, step: int) -> int:
    """A job that kills itself at a step of the file system, counted from 1; the number of steps without."""
    count = 0

    def step_taken(event: str, _: Any) -> None:
        nonlocal count
        if event.split(".")[0] in ("open", "os", "shutil", "fcntl", "sqlite3", "tempfile"):
            count += 1
            if count == step:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(step_taken)
    job(place, seed, 0.0)
    return count


def committed(output: Path) -> set[int]:
    """The lines in the ledger of an output."""
    return set(ledger_causes(output))


def ledger_causes(output: Path) -> dict[int, str | None]:
    """The causes of errors, None for answers, of the lines in a ledger, read from a copy: to open it is to mend it."""
    ledger = output.with_name(f"{output.name}.partial") / "ledger.db"
    if not ledger.exists():
        return {}
    with tempfile.TemporaryDirectory() as name:
        for suffix in ("", "-wal"):
            if (path := ledger.with_name(ledger.name + suffix)).exists():
                shutil.copy(path, name)
        database = sqlite3.connect(Path(name) / ledger.name)
        try:
            return dict(database.execute("SELECT line, cause FROM answers").fetchall())
        except sqlite3.OperationalError:  # killed before there was a table
            return {}
        finally:
            database.close()


def asked(place: Path) -> set[int]:
    """What the runner was given since the last look; takes the log away."""
    log = place / "asked"
    found = {int(line) for line in log.read_text().split()} if log.exists() else set()
    log.unlink(missing_ok=True)
    return found


def kill(number: int, seed: int) -> list[Tally]:
    """Kills so many runs of jobs, one after the other until each job is done."""
    tally, jobs = Tally("kills: no model"), Tally("jobs finished: no model")
    with tempfile.TemporaryDirectory() as name:
        undisturbed = Path(name) / "undisturbed"
        undisturbed.mkdir()
        write_job(undisturbed / "input.jsonl")
        seconds = _seconds(undisturbed)
        expected = (undisturbed / "output.jsonl").read_bytes()
        steps = run(run_to_step, run_job, _new_place(Path(name) / "steps"), 0, 0)
        place = _new_place(Path(name) / "0")
        for i in range(number):
            rng = random.Random(f"{seed}/{i}")
            outcome, detail = _killed(place, rng, i, seconds, steps)
            tally.add(outcome, f"kill {i} of seed {seed}: {detail}")
            # A job that is killed early each time would never end: now and then one is left to itself.
            if (place / "output.jsonl").exists() or rng.random() < 0.15:
                problem = _finish(place, expected, i)
                jobs.add("violation" if problem else "as undisturbed", f"after kill {i} of seed {seed}: {problem}")
                shutil.rmtree(place)
                place = _new_place(Path(name) / str(i + 1))
        if number and (problem := _finish(place, expected, number)):
            jobs.add("violation", f"the last of seed {seed}: {problem}")
    return [tally, jobs]


def _seconds(place: Path) -> float:
    child = Child(run_job, place, 0)
    started = time.perf_counter()
    child.result()
    return time.perf_counter() - started


def _new_place(place: Path) -> Path:
    place.mkdir()
    write_job(place / "input.jsonl")
    return place


def _killed(place: Path, rng: random.Random, i: int, seconds: float, steps: int) -> tuple[str, str]:
    """(outcome, detail) of one run that is killed."""
    output = place / "output.jsonl"
    before = committed(output)
    if i % 2:
        child = Child(run_job, place, i)
        time.sleep(rng.uniform(0, seconds))
        died = child.kill()
        child.close()
    else:
        child = Child(run_to_step, run_job, place, i, rng.randrange(1, steps + 1))
        try:
            child.result()
            died = False
        except Died:
            died = True
        except RuntimeError as error:
            return "violation", str(error)
    after, again = committed(output), asked(place) & before
    if again:
        return "violation", f"asked again, though committed: {sorted(again)[:9]}"
    if not output.exists() and not before <= after:
        return "violation", f"committed, and gone: {sorted(before - after)[:9]}"
    if not died:
        return "had ended before", ""
    if output.exists():
        return "killed after the output", ""
    return ("killed between" if after else "killed before the first commit"), ""


def _finish(place: Path, expected: bytes, seed: int) -> str:
    """Runs a job to its end; what is wrong with it then."""
    output = place / "output.jsonl"
    before = committed(output)
    try:
        run(run_job, place, seed)
        again = run(run_job, place, seed)
    except (Died, RuntimeError) as error:
        return str(error)
    if asked(place) & before:
        return "the last run did committed work again"
    if output.read_bytes() != expected:
        return "another output than undisturbed"
    if not again.startswith("nothing to do"):
        return f"a run over the finished output: {again}"
    left = {path.name for path in place.iterdir()} - {"input.jsonl", "output.jsonl", "output.jsonl.job.json"}
    return f"left behind: {sorted(left)}" if left else ""


def kill_retries(number: int, seed: int) -> Tally:
    """Kills so many runs that try the errors of a finished output again, each then gone on with as a plain run."""
    tally = Tally("kills: errors tried again")
    with tempfile.TemporaryDirectory() as name:
        base = _new_place(Path(name) / "base")
        run(run_job_and_keep, base, 0)
        before, place = (base / "output.jsonl").read_bytes(), Path(name) / "place"
        shutil.copytree(base, place)
        steps = run(run_to_step, retry_job, place, 0, 0)
        mended = (place / "output.jsonl").read_bytes()
        for i in range(number):
            shutil.rmtree(place)
            shutil.copytree(base, place)
            step = random.Random(f"{seed}/retry/{i}").randrange(1, steps + 1)
            outcome, detail = _killed_retry(place, i, step, before, mended)
            tally.add(outcome, f"retry {i} of seed {seed}, killed at step {step}: {detail}")
    return tally


def _killed_retry(place: Path, i: int, step: int, before: bytes, mended: bytes) -> tuple[str, str]:
    output = place / "output.jsonl"
    try:
        run(run_to_step, retry_job, place, i, step)
        return "violation", "it was not killed"
    except Died:
        pass
    now, begun = output.read_bytes(), "decode_failed" not in ledger_causes(output).values()
    if now not in (before, mended):
        return "violation", "the output is neither as it was nor mended"
    try:
        run(run_mended_job, place, i)
    except (Died, RuntimeError) as error:
        return "violation", str(error)
    if output.read_bytes() != (mended if begun else before):
        return "violation", "what was tried again was lost" if begun else "another output than before"
    return ("after the output" if now == mended else "between") if begun else "before the errors were forgotten", ""


# ── the command with the tiny model ──


def write_model_job(path: Path, media: Path) -> None:
    """OpenAI's lines about the bundled media, a bad one among them."""
    questions = ("Which way does it move?", "What shape is it?", "Does it change colour?")
    with open(path, "w") as file:
        for i in range(MODEL_LINES):
            name = ("rising-triangle.mp4", "circle-then-square.mp4", "none.mp4")[i // 3 % 3]
            kind = {"type": "video_url", "video_url": {"url": str(media / name)}}
            content = [kind, {"type": "text", "text": questions[i % 3]}]
            body = {"model": "tiny", "messages": [{"role": "user", "content": content}], "max_tokens": 8}
            line = {"custom_id": f"q{i}", "method": "POST", "url": "/v1/chat/completions", "body": body}
            file.write(json.dumps(line) + "\n")


def start_command(*arguments: str, mark: str = "1") -> subprocess.Popen[bytes]:
    """`videollava` as a process of its own, found again by its mark."""
    environment = {
        **os.environ, "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1", "SOURCE_DATE_EPOCH": "1700000000", MARK: mark,
        **ENVIRONMENT,
    }  # fmt: skip
    code = "import sys; from videollava_jax.cli import main; sys.exit(main())"
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def marked_processes(mark: str) -> list[int]:
    """Processes with the mark in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"{MARK}={mark}".encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def await_no_process(mark: str, seconds: float) -> bool:
    """Whether all marked processes are gone within the time."""
    end = time.monotonic() + seconds
    while marked_processes(mark):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def kill_model(number: int, seed: int) -> list[Tally]:
    """Kills `videollava batch` so many times, half from its start on, half once its ledger is there."""
    from videollava_jax.assets import MEDIA

    tally, jobs = Tally("kills: tiny model"), Tally("jobs finished: tiny model")
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        source = place / "input.jsonl"
        write_model_job(source, MEDIA)
        _run_command(source, place / "compiled.jsonl")  # what is compiled is compiled once
        started = time.perf_counter()
        _run_command(source, place / "undisturbed.jsonl")
        seconds = time.perf_counter() - started
        expected = (place / "undisturbed.jsonl").read_bytes()
        output = place / "0.jsonl"
        for i in range(number):
            rng = random.Random(f"{seed}/model/{i}")
            outcome, detail = _killed_command(source, output, rng, i, seconds)
            tally.add(outcome, f"model kill {i} of seed {seed}: {detail}")
            if output.exists() or rng.random() < 0.25 or i == number - 1:
                _run_command(source, output)
                same = output.read_bytes() == expected
                jobs.add("as undisturbed" if same else "violation", f"after model kill {i} of seed {seed}")
                output = place / f"{i + 1}.jsonl"
    return [tally, jobs]


def _run_command(source: Path, output: Path) -> None:
    process = start_command("batch", str(source), str(output))
    said = process.communicate(timeout=600)[0]
    if process.returncode:
        raise RuntimeError(said.decode(errors="replace")[-2000:])


def _killed_command(source: Path, output: Path, rng: random.Random, i: int, seconds: float) -> tuple[str, str]:
    mark = f"{os.getpid()}-{i}"
    before = committed(output)
    process = start_command("batch", str(source), str(output), mark=mark)
    ledger = output.with_name(f"{output.name}.partial") / "ledger.db"
    if i % 2:
        time.sleep(rng.uniform(0, seconds))
    else:
        end = time.monotonic() + 300
        while not ledger.exists() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.7 * seconds))
    died = process.poll() is None
    process.kill()
    process.communicate()
    if not await_no_process(mark, 30):
        return "violation", f"processes left behind: {marked_processes(mark)}"
    after = committed(output)
    if not output.exists() and not before <= after:
        return "violation", f"committed, and gone: {sorted(before - after)[:9]}"
    if not died:
        return "had ended before", ""
    return ("killed between" if after else "killed before the first commit"), ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1000, help="of runs without a model; default: %(default)s")
    parser.add_argument("--model-kills", type=int, default=60, help="of runs with one; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of all of it; default: %(default)s")
    wanted = parser.parse_args()
    started = time.perf_counter()
    tallies = kill(wanted.kills, wanted.seed) if wanted.kills else []
    tallies += [kill_retries(wanted.kills // 10, wanted.seed)] if wanted.kills else []
    tallies += kill_model(wanted.model_kills, wanted.seed) if wanted.model_kills else []
    print(f"seed {wanted.seed}, {time.perf_counter() - started:.0f} s\n\n{table(tallies)}")
    return said(tallies)


if __name__ == "__main__":
    sys.exit(main())
