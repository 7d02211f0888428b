"""Stops and kills each process of a run, one by one, and looks at what is left.

    python -m tests.faults.signals --rounds 3 --seed 0
    python -m tests.faults.signals --only server

A process of `videollava batch`, `videollava serve` or `videollava finetune`, the main one or a worker, is killed
(SIGKILL), stopped for good (SIGSTOP) or stopped for some seconds (SIGSTOP, SIGCONT) at a random moment. Then the run
must end or go on within its time and say so; when it has ended no process of it may be there, and none of the shared
memory and the semaphores that its processes held. What a stop of seconds changes is a violation, and so is a result
that differs from an undisturbed run's.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.commands import await_no_process, marked_processes, start_command, write_model_job
from tests.faults.serving import http_of
from tests.faults.tables import Tally, said, table
from tests.training.data_sets import write_data
from videollava_jax.assets import MEDIA

START = 240
"""Seconds that a run may take to be at work, on a busy machine."""
GONE = 20
"""Seconds within which no process of an ended run is left."""
RAY_GONE = 120
"""The same for a cluster whose driver was killed: Ray looks for it once in a while."""
WORKER = re.compile(rb"videollava_jax\.batch\.media\.worker|multiprocessing\.spawn|ray::")


@dataclass
class Running:
    """A run whose processes are found by a mark.

    Attributes:
      process: the main one.
      place: of its temporary files and of what it prints.
      held: names of shared memory and of semaphores that its processes were seen with.
    """

    process: subprocess.Popen[bytes]
    mark: str
    place: Path
    held: set[str] = field(default_factory=set)

    def said(self) -> str:
        """What it has printed."""
        return (self.place / "said").read_text(errors="replace")

    def workers(self) -> list[int]:
        """Its processes that work for the main one."""
        found = []
        for number in marked_processes(self.mark):
            with suppress(OSError):
                command = Path(f"/proc/{number}/cmdline").read_bytes()
                if number != self.process.pid and WORKER.search(command):
                    found.append(number)
        return sorted(found)

    def until(self, done: Callable[[], Any], seconds: float = START) -> Any:
        """Waits for something while the run is at work; returns it.

        Raises:
          AssertionError: it has ended before, or it takes too long.
        """
        end = time.monotonic() + seconds
        while not (found := done()):
            assert self.process.poll() is None, f"it has ended with {self.process.returncode}: {self.said()[-1500:]}"
            assert time.monotonic() < end, f"nothing after {seconds:g} s: {self.said()[-1500:]}"
            time.sleep(0.05)
        return found

    def note(self) -> None:
        """Notes the shared memory and the semaphores that its processes have mapped."""
        for number in marked_processes(self.mark):
            with suppress(OSError):
                self.held |= set(re.findall(r"/dev/shm/(\S+)$", Path(f"/proc/{number}/maps").read_text(), re.MULTILINE))

    def ended(self, seconds: float) -> int:
        """Waits for the main process to end; returns its status."""
        return self.process.wait(seconds)

    def left(self, seconds: float = GONE) -> str:
        """What is left of a run that has ended; "" for nothing."""
        if not await_no_process(self.mark, seconds):
            names = [command_of(number).strip(b"\0")[-80:] for number in marked_processes(self.mark)]
            return f"processes are left: {names}"
        end = time.monotonic() + GONE
        while found := sorted(name for name in self.held if Path("/dev/shm", name).exists()):
            if time.monotonic() > end:
                return f"shared memory is left: {found[:5]}"
            time.sleep(0.05)
        if "leaked" in self.said():
            return f"it warns of what is freed: {self.said()[-300:]}"
        return ""


@contextmanager
def running(place: Path, name: str, *arguments: str, temporary: Path | None = None) -> Iterator[Running]:
    """Starts `videollava`, with its temporary files in its place or elsewhere; kills what is left of it at the end."""
    mark = f"{os.getpid()}-{name}-{time.monotonic_ns()}"
    with open(place / "said", "wb") as printed:
        process = start_command(*arguments, mark=mark, output=printed, TMPDIR=str(temporary or place))
    found = Running(process, mark, place)
    try:
        yield found
    finally:
        for number in {process.pid, *marked_processes(mark)}:
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        process.wait()


KILL, STOP, PAUSE = "killed", "stopped", "stopped for 5 s"


def strike(number: int, how: str) -> None:
    """Kills or stops a process."""
    os.kill(number, signal.SIGKILL if how == KILL else signal.SIGSTOP)
    if how == PAUSE:
        time.sleep(5)
        os.kill(number, signal.SIGCONT)


# ── batch ──


def batch(place: Path, who: str, how: str, rng: random.Random, expected: list[bytes]) -> str:
    """Strikes a process of a job; returns what is wrong."""
    source, output = place / "input.jsonl", place / "output.jsonl"
    write_model_job(source, MEDIA)
    arguments = ("batch", str(source), str(output), "--workers", "2", "--limit-seconds", "8")
    if not expected:
        with running(place, "batch", *arguments) as run:
            assert run.ended(START) == 0, run.said()
        expected.append(output.read_bytes())
        output.unlink()
    with running(place, "batch", *arguments) as run:
        victims = run.until(run.workers)
        time.sleep(rng.uniform(0, 1))
        with suppress(ProcessLookupError):
            strike(rng.choice(victims) if who == "worker" else run.process.pid, how)
        if who == "worker" or how == PAUSE:
            if (status := run.ended(START)) or output.read_bytes() != expected[0]:
                return f"status {status}, or other answers: {run.said()[-500:]}"
            return run.left()
        if run.ended(10) not in (-signal.SIGKILL, 0):
            return f"status {run.process.returncode}"
        if left := run.left():
            return left
    with running(place, "batch", *arguments) as run:
        status = run.ended(START)
        return "" if status == 0 and output.read_bytes() == expected[0] else f"the next run: {run.said()[-500:]}"


# ── the server ──


def serve(place: Path, who: str, how: str, rng: random.Random, expected: list[bytes]) -> str:
    """Strikes a process of a server; returns what is wrong."""
    flags = ("serve", "--port", "0", "--json", "--media-root", str(MEDIA), "--rows", "4", "--max-rows", "8")
    sizes = ("--longest-answer", "32", "--workers", "2", "--limit-seconds", "8", "--drain-seconds", "2")

    def started(run: Running) -> int:
        run.until(lambda: '"ready"' in run.said())
        return int(re.search(r'"url": "http://127\.0\.0\.1:(\d+)', run.said())[1])  # type: ignore[index]

    def answer(port: int, name: str) -> tuple[int, str]:
        content = [
            {"type": "video_url", "video_url": {"url": name}},
            {"type": "text", "text": "Which way does it move?"},
        ]
        body = json.dumps({"messages": [{"role": "user", "content": content}], "temperature": 0})
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            connection.request("POST", "/v1/chat/completions", body)
            response = connection.getresponse()
            raw = response.read()
        finally:
            connection.close()
        return response.status, json.loads(raw)["choices"][0]["message"]["content"] if response.status == 200 else str(
            raw
        )

    with running(place, "serve", *flags, *sizes) as run:
        port = started(run)
        first = answer(port, "rising-triangle.mp4")
        if first != (200, "up"):
            return f"it answers {first}"
        if who == "worker":
            with suppress(ProcessLookupError):
                strike(rng.choice(run.until(run.workers)), how)
            found = [answer(port, name) for name in ("circle-then-square.mp4", "rising-triangle.mp4")]
            if found[1] != (200, "up") or found[0][0] != 200:
                return f"then it answers {found}"
            run.process.send_signal(signal.SIGTERM)
            status = run.ended(60)
            return run.left() or (f"status {status}" if status else "")
        strike(http_of(run.process.pid) if who == "http" else run.process.pid, how)
        if how == STOP:
            run.process.send_signal(signal.SIGTERM)
        if how == PAUSE:
            return "" if answer(port, "rising-triangle.mp4") == first else "then it answers differently"
        status = run.ended(60 if how == STOP else 20)
        if who == "http" and (status != 1 or "the process that answers HTTP has ended" not in run.said()):
            return f"status {status}: {run.said()[-300:]}"
        if left := run.left():
            return left
    with running(place, "serve", *flags, *sizes) as run:
        started(run)
        places = list(place.glob("videollava-serve-*"))
        return "" if len(places) == 1 else f"temporary directories are left: {places}"


# ── fine-tuning ──


STEPS = 8


def recipe(place: Path, *more: str) -> tuple[str, ...]:
    """The arguments of a run whose data, next to its place, two worker processes load."""
    data = place.parent / "data"  # the same for all runs: clips are not encoded to the same bytes twice
    if not data.exists():
        data.mkdir()
        write_data(data, 9, media="cit")
    return (
        *("finetune", "--model", "tiny", "--output", str(place / "run"), "--data.train", str(data / "data.json")),
        *("--data.steps", str(STEPS), "--rates.lora", "1e-3", "--lora.rank", "4", "--data.batch", "6"),
        *("--data.rows", "4", "--data.row_tokens", "200", "--data.images_per_row", "1", "--data.workers", "2"),
        *("--compute.dtype", "float32", "--keeping.save_every", "3", *more),
    )


def losses(place: Path) -> list[Any]:
    """The loss of every step of a run."""
    lines = [json.loads(line) for line in (place / "run" / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]


def train(place: Path, who: str, how: str, rng: random.Random, expected: list[Any]) -> str:
    """Strikes a process of a fine-tuning run; returns what is wrong."""
    if not expected:
        with running(place, "train", *recipe(place)) as run:
            assert run.ended(START) == 0, run.said()
        expected.append(losses(place))
        shutil.rmtree(place / "run")
    stall = ("--stall_seconds", "60") if how == STOP else ()
    with running(place, "train", *recipe(place, *stall)) as run:
        metrics, first = place / "run" / "metrics.jsonl", rng.randrange(1, 3)
        run.until(lambda: metrics.exists() and metrics.read_text().count("\n") >= first)
        run.note()
        victims = run.workers() if who == "worker" else [run.process.pid]
        with suppress(ProcessLookupError, IndexError):
            strike(rng.choice(victims), how)
        status = run.ended(START)
        if left := run.left():
            return left
        if how == PAUSE:
            return "" if status == 0 and losses(place) == expected[0] else f"status {status}: {run.said()[-500:]}"
        wanted = {("main", KILL): (-signal.SIGKILL, ""), ("worker", KILL): (1, "a process that loads data has ended"),
                  ("worker", STOP): (75, "no progress for")}  # fmt: skip
        # What is loaded ahead may be all that the run needs.
        if status and (status, wanted[who, how][1] in run.said()) != (wanted[who, how][0], True):
            return f"status {status}: {run.said()[-500:]}"
    with running(place, "train", *recipe(place)) as run:
        status = run.ended(START)
    if status or losses(place) != expected[0]:
        return f"the next run: status {status}: {run.said()[-500:]}"
    places = list(place.glob("videollava-*"))
    return f"temporary directories are left: {places}" if places else ""


# ── fine-tuning by two processes ──


def pair(place: Path, who: str, how: str, rng: random.Random, expected: list[Any]) -> str:
    """Strikes one of two processes that fine-tune together; returns what is wrong."""
    from tests.training.run.test_processes import pair as two

    struck = int(who[-1])
    arguments = list(recipe(place, "--compute.data", "4", "--compute.tensor", "2"))[1:]
    del arguments[2:4]
    with two(arguments, place / "run") as both:
        both.reach(rng.randrange(1, 4))
        child, other = both.children[struck], both.children[1 - struck]
        strike(child.pid, how)
        if how == PAUSE:
            statuses = both.statuses()
            return "" if statuses == [0, 0] else f"{statuses}: {both.said(0)[-500:]} {both.said(1)[-500:]}"
        began = time.monotonic()
        status = other.wait(120)
        seconds, words = time.monotonic() - began, both.said(1 - struck)
        # JAX aborts the second one where it sees first that the coordinator has ended.
        aborted = struck == 0 and how == KILL and status == -signal.SIGABRT and "another task died" in words
        good = {KILL: (1,), STOP: (75,)}[how]
        if not aborted and (status not in good or f"process {1 - struck} of 2" not in words):
            return f"the other ends with {status} after {seconds:.0f} s: {words[-500:]}"
        if how == STOP and f"process {struck} has not answered" not in words:
            return f"it does not say which one does not answer: {words[-500:]}"
        return ""


# ── a job on Ray ──


def on_ray(place: Path, who: str, how: str, rng: random.Random, expected: list[bytes]) -> str:
    """Strikes the driver or a replica of a job on a cluster of this machine; returns what is wrong.

    Ray gives its node 30 s to start, which a busy machine may exceed: such a run is started again, twice at the most.
    """
    for attempt in range(3):
        try:
            wrong = _on_ray(place, who, how, rng, expected)
        except AssertionError as error:
            if attempt == 2 or _NOT_STARTED not in str(error):
                raise
            continue
        if _NOT_STARTED not in wrong:
            break
    return wrong


_NOT_STARTED = "Ray does not start here: The current node timed out during startup"


def _on_ray(place: Path, who: str, how: str, rng: random.Random, expected: list[bytes]) -> str:
    source, output = place / "input.jsonl", place / "output.jsonl"
    write_model_job(source, MEDIA)
    arguments = ("batch", str(source), str(output), "--workers", "1")
    if not expected:
        with running(place, "ray", *arguments) as run:
            assert run.ended(START) == 0, run.said()
        expected.append(output.read_bytes())
        output.unlink()
    replicas = ("--ray", "--replicas", "1", "--ray-block", "6")
    # Ray makes sockets there, whose paths may not have more than 107 bytes.
    short = tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True)
    with short as temporary, running(place, "ray", *arguments, *replicas, temporary=Path(temporary)) as run:

        def replica() -> list[int]:
            commands = {number: command_of(number) for number in marked_processes(run.mark)}
            return [number for number, command in commands.items() if b"ray::" in command and b"IDLE" not in command]

        victims = run.until(replica)
        time.sleep(rng.uniform(0, 5))
        with suppress(ProcessLookupError):
            strike(run.process.pid if who == "driver" else rng.choice(victims), how)
        status = run.ended(START)
        if left := run.left(RAY_GONE):
            return left
        if (who, how) != ("driver", KILL) and (status or output.read_bytes() != expected[0]):
            return f"status {status}, or other answers: {run.said()[-800:]}"
    with running(place, "ray", *arguments) as run:
        status = 0 if output.exists() else run.ended(START)
    return "" if status == 0 and output.read_bytes() == expected[0] else f"the next run: {run.said()[-500:]}"


def command_of(number: int) -> bytes:
    """The command line of a process; empty for one that has ended."""
    try:
        return Path(f"/proc/{number}/cmdline").read_bytes()
    except OSError:
        return b""


# ── all of them ──


Case = Callable[[Path, str, str, random.Random, list[Any]], str]
CASES: dict[str, tuple[Case, tuple[tuple[str, str], ...]]] = {
    "batch": (batch, (("main", KILL), ("worker", STOP), ("worker", KILL), ("main", PAUSE), ("worker", PAUSE))),
    "server": (
        serve,
        (
            *(("main", KILL), ("worker", STOP), ("worker", KILL), ("main", PAUSE), ("worker", PAUSE)),
            *(("http", how) for how in (KILL, STOP, PAUSE)),
        ),
    ),
    "training": (train, (("main", KILL), ("worker", STOP), ("worker", KILL), ("main", PAUSE), ("worker", PAUSE))),
    "two processes": (pair, tuple((f"process {i}", how) for how in (KILL, STOP, PAUSE) for i in (0, 1))),
    "ray": (on_ray, (("driver", KILL), ("replica", KILL), ("driver", PAUSE), ("replica", PAUSE))),
}


def try_all(rounds: float, seed: int, only: tuple[str, ...] = tuple(CASES)) -> list[Tally]:
    """Strikes each process of each kind of run `rounds` times; below 1, that share of the cases."""
    tallies = []
    for name in only:
        case, strikes = CASES[name]
        tally, expected = Tally(f"processes: {name}"), []
        rng = random.Random(f"{seed}/{name}")
        with tempfile.TemporaryDirectory(prefix="signals-") as directory:
            for i in range(max(1, round(rounds * len(strikes)))):
                who, how = strikes[i % len(strikes)]
                began, place = time.monotonic(), Path(directory, str(i))
                place.mkdir()
                try:
                    wrong = case(place, who, how, rng, expected)
                    outcome = "violation" if wrong else f"{who} {how}"
                except subprocess.TimeoutExpired as error:
                    outcome, wrong = "hang", str(error)[-200:]
                except AssertionError as error:
                    outcome, wrong = "violation", str(error)[-800:]
                detail = f"strike {i} of seed {seed}, {who} {how}: {wrong}"
                tally.add(outcome, detail, time.monotonic() - began)
        tallies.append(tally)
    return tallies


def part(seed: int, scale: float) -> list[Tally]:
    """Strikes each process of each kind of run `scale` times; see `tests.faults.parts`."""
    return try_all(scale, seed)


def main() -> int:
    """Runs it as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=float, default=1, help="of strikes; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the moments; default: %(default)s")
    parser.add_argument("--only", choices=[*CASES], nargs="+", default=[*CASES], help="these runs alone")
    wanted = parser.parse_args()
    tallies = try_all(wanted.rounds, wanted.seed, tuple(wanted.only))
    print(table(tallies))
    return said(tallies)


if __name__ == "__main__":
    sys.exit(main())
