"""Kills batch jobs at random moments until they are done, and prints the outcomes.

    python -m tests.faults.batch --kills 1000 --model-kills 60 --seed 0

`--kills` kills jobs without a model, half of them at a random moment and half at a random step of the file system, and
a tenth as many while they retry the errors of a finished output. `--model-kills` kills `videollava batch` with the tiny
model. Ends with status 1 if a line has not exactly one record, committed work is repeated, an output differs from that
of an undisturbed run, or a process is left running.
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
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from tests.faults.children import Child, Died, run
from tests.faults.commands import await_no_process, marked_processes, start_command, write_model_job
from tests.faults.tables import Tally, said, table

LINES = 60


# ── a job without a model ──


def fake_answer(request: Any) -> Any:
    """Answers a request, always in the same way; every seventh gets an error."""
    from videollava_jax.engine import Result

    answer = mended_answer(request)
    if answer.token_ids[0] % 7 == 0:
        return Result(id=request.id, finish_reason="error", error="no answer to this", cause="decode_failed")
    return answer


def mended_answer(request: Any) -> Any:
    """Answers like `fake_answer`, but without errors."""
    from videollava_jax.engine import Result

    digest = hashlib.sha256(f"{request.id} {request.conversation[0]['content'][-1]}".encode()).digest()
    return Result(id=request.id, text=digest.hex(), token_ids=tuple(digest[:9]), finish_reason="stop", prompt_tokens=7)


class FakeRunner:
    """A runner that answers by the prompt alone, several requests at a time, in a random order, with pauses.

    Args:
      log: a file to which the id of every received request is appended.
      seed: of order and pauses.
      answer: makes the answer to a request.
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
    """Writes an input of good and bad lines, some with media that must be spooled."""
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
    """Runs or resumes the job of a directory."""
    return _run_job(FakeRunner(place / "asked", seed, pause), place)


def run_mended_job(place: Path, seed: int, pause: float = 0.004) -> str:
    """Runs or resumes the job with a runner that has no errors."""
    return _run_job(FakeRunner(place / "asked", seed, pause, mended_answer), place)


def run_job_and_keep(place: Path, seed: int) -> str:
    """Runs the job like `run_job`, and keeps the ledger."""
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
    """Runs a job that kills itself at a step of the file system, from 1; with step 0, returns the number of steps."""
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
    """Returns the lines in the ledger of an output."""
    return set(ledger_causes(output))


def ledger_causes(output: Path) -> dict[int, str | None]:
    """Returns the cause of each line's error, None for answers, from a copy of the ledger, as opening it repairs it."""
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
    """Returns the lines that the runner received since the last call, and deletes the log."""
    log = place / "asked"
    found = {int(line) for line in log.read_text().split()} if log.exists() else set()
    log.unlink(missing_ok=True)
    return found


def kill(number: int, seed: int) -> list[Tally]:
    """Kills `number` runs of jobs, one after the other; each job is run until it is done."""
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
            # A job that is always killed early would never end, so now and then one is not killed.
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
    """Kills one run and returns (outcome, detail)."""
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
        return "doubled", f"asked again, though committed: {sorted(again)[:9]}"
    if not output.exists() and not before <= after:
        return "lost", f"committed, and gone: {sorted(before - after)[:9]}"
    if not died:
        return "had ended before", ""
    if output.exists():
        return "killed after the output", ""
    return ("killed between" if after else "killed before the first commit"), ""


def _finish(place: Path, expected: bytes, seed: int) -> str:
    """Runs a job to its end; returns what is wrong with it, or ""."""
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
    """Kills `number` runs that retry the errors of a finished output; each is then resumed by a plain run."""
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
        return "silent", "the output is neither as it was nor mended"
    try:
        run(run_mended_job, place, i)
    except (Died, RuntimeError) as error:
        return "violation", str(error)
    if output.read_bytes() != (mended if begun else before):
        return "lost" if begun else "silent", "what was tried again was lost" if begun else "another output than before"
    return ("after the output" if now == mended else "between") if begun else "before the errors were forgotten", ""


# ── the command with the tiny model ──


def kill_model(number: int, seed: int) -> list[Tally]:
    """Kills `videollava batch` `number` times, half at any time after its start, half once its ledger exists."""
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
                jobs.add("as undisturbed" if same else "silent", f"after model kill {i} of seed {seed}")
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
        return "lost", f"committed, and gone: {sorted(before - after)[:9]}"
    if not died:
        return "had ended before", ""
    return ("killed between" if after else "killed before the first commit"), ""


def part(seed: int, scale: float) -> list[Tally]:
    """Kills `200 * scale` runs without a model and `6 * scale` with the tiny one; see `tests.faults.parts`."""
    retried = kill_retries(max(2, round(20 * scale)), seed)
    return [*kill(max(10, round(200 * scale)), seed), retried, *kill_model(max(1, round(6 * scale)), seed)]


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
