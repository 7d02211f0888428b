"""Measures the server under load: Poisson arrivals of questions about clips, streamed, and transformers the same way.

    python benchmarks/serving.py --model tiny
    python benchmarks/serving.py --model random        # 157 M parameters, as in benchmarks/qa.py

First the offline engine answers such questions, all known in advance, about as many on each clip as a load has, on a
grid of the server's sizes: its rate is the capacity. Then `videollava serve` gets questions at 0.5, 0.8 and 1.2 times
that rate for `--seconds` each, about `--clips` clips that no load before had, chosen at random, with answers of
`--answer-tokens` tokens. Then transformers' `generate`, one question at a time behind the same HTTP
(benchmarks/serving_theirs.py), gets the same loads.

The rate of a load is its answers over the time from its beginning to its last answer. Refusals are answers with status
429. Times are those of a client on the same machine (benchmarks/serving_load.py).

The offline engine, the server and transformers all have the cores of `--server-cores`, no more and no fewer; the client
has those of `--client-cores`, and the server's process of HTTP those of `--http-cores`. Where one core is in several,
HTTP and the client take their share of what the offline engine has for itself; with

    python benchmarks/serving.py --server-cores 0 --http-cores 1 --client-cores 1

the engine has a core of its own in both, as it has a device of its own elsewhere. Processor time is printed for each
answer: of the engine with its device, which the offline engine spends too, of HTTP, and of the client.
"""

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from serving_load import COLUMNS, Asked, load, summary
from serving_ours import http_process

from videollava_jax.assets import TINY
from videollava_jax.assets.world import encode_mp4, sample_clip
from videollava_jax.cli.common import size
from videollava_jax.processing.processor import VideoLlavaProcessor

LOADS = (0.5, 0.8, 1.2)
QUESTIONS = {"tiny": 400, "random": 12}
"""Questions on each clip for the offline engine: as many as a load has, or enough that prefixes hardly count."""
LONGEST_QUESTION = 64
"""Tokens, for which the offline engine makes room too."""


def main() -> None:
    """Runs the command line."""
    arguments = parsed()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        model = TINY if arguments.model == "tiny" else random_model(place / "random")
        # Those of the offline engine, of the first requests, and of each load.
        write_clips(place / "clips", arguments.clips * (2 + len(arguments.loads)), arguments.seed)
        capacity, facts, alone = arguments.capacity, "the offline engine's rate is given", None
        if capacity is None:
            capacity, facts, alone = offline(model, place / "clips", arguments)
        print(
            f"{facts}; cores: {cores(arguments.server_cores)} of the server and the offline engine, "
            f"{cores(arguments.http_cores or arguments.server_cores)} of HTTP, {cores(arguments.client_cores)} of the "
            f"client; offline engine: {capacity:.2f} answers/s"
            + ("" if alone is None else f", {1000 * alone:.2f} ms of processor time each")
        )
        rows = [f"| | load | asked/s | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 3) + "|"]
        for side, command in commands(model, arguments).items():
            with serving(command, place / "clips", arguments) as server, on(arguments.client_cores):
                asked = asyncio.run(send(server, 4, 4, 1, arguments))  # the first requests of connections and readers
                for number, share in enumerate(arguments.loads, 2):
                    rate = share * capacity
                    before = server.spent()
                    asked = asyncio.run(send(server, rate, max(4, round(rate * arguments.seconds)), number, arguments))
                    took = [after - b for after, b in zip(server.spent(), before, strict=True)]
                    for one in asked:
                        one.read()
                    rows.append(f"| {side} | {share} | {rate:.2f} | {' | '.join(summary(asked, capacity, took))} |")
                    print(rows[-1], file=sys.stderr, flush=True)
        print("\n".join(rows))


def parsed() -> argparse.Namespace:
    """Returns the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("tiny", "random"), default="tiny")
    parser.add_argument("--seconds", type=float, default=60.0, help="that questions come, for each load")
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--answer-tokens", type=int, default=16)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--max-queue", type=int, default=256)
    parser.add_argument(
        "--their-queue", type=int, default=8, help="as transformers would answer a longer one for hours"
    )
    parser.add_argument("--memory", default="5GiB", help="for keys and values, of the offline engine too")
    parser.add_argument("--loads", type=float, nargs="+", default=LOADS, help="times the capacity")
    parser.add_argument("--capacity", type=float, help="of the offline engine, answers/s; otherwise it is measured")
    parser.add_argument("--only", choices=("ours", "transformers"), help="measure one side alone")
    parser.add_argument("--seed", type=int, default=0)
    every = sorted(os.sched_getaffinity(0))
    parser.add_argument(
        "--server-cores", type=int, nargs="+", default=every, help="of server and offline engine; default: all"
    )
    parser.add_argument("--http-cores", type=int, nargs="+", help="of our process of HTTP; default: the server's")
    parser.add_argument("--client-cores", type=int, nargs="+", default=every[-1:], help="default: the last one")
    return parser.parse_args()


async def send(server: "Server", rate: float, count: int, number: int, arguments: argparse.Namespace) -> list[Asked]:
    """Sends the questions of a load; `number` is that of the load, which has clips of its own."""
    return await load(
        server.url, rate, count, number * arguments.clips, clips=arguments.clips, tokens=arguments.answer_tokens,
        seed=arguments.seed,
    )  # fmt: skip


# ── what is measured ──


def write_clips(place: Path, count: int, seed: int) -> None:
    """Writes clips of the drawn world."""
    place.mkdir()
    for number in range(count):
        (place / f"{number}.mp4").write_bytes(encode_mp4(sample_clip(seed + number).frames))


def random_model(place: Path) -> Path:
    """Saves the random model of benchmarks/qa.py, made to write tokens that have a text, with a processor for it."""
    import torch
    from qa import random_model as made
    from questions import processor_for_224_pixels

    torch.set_grad_enabled(False)
    place.mkdir()
    model, processor = made(place), processor_for_224_pixels()
    model.lm_head.weight[len(processor.tokenizer) :] = 0  # a client sees no other tokens come
    model.save_pretrained(place)
    processor.save_pretrained(place)
    return place


def offline(model: Path, clips: Path, arguments: argparse.Namespace) -> tuple[float, str, float]:
    """Returns what the offline engine gives on such questions: answers a second, facts, processor time of an answer."""
    code = Path(__file__).with_name("serving_offline.py")
    sizes = (arguments.rows, arguments.answer_tokens, size(arguments.memory))
    numbers = (arguments.clips, QUESTIONS[arguments.model], *sizes)
    command = [sys.executable, str(code), str(model), str(clips), *map(str, numbers)]
    with on(arguments.server_cores):
        ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(ran.stdout.splitlines()[-1])
    return found["rate"], found["facts"], found["seconds"]


def commands(model: Path, arguments: argparse.Namespace) -> dict[str, list[str]]:
    """Returns the command of each side's server."""
    here = Path(__file__)
    ours = [
        *(sys.executable, str(here.with_name("serving_ours.py"))),
        *("--model", str(model), "--port", "0", "--json", "--served-model-name", "served", "--dtype", "float32"),
        *("--rows", str(arguments.rows), "--longest-answer", str(max(32, arguments.answer_tokens))),
        *("--max-queue", str(arguments.max_queue), "--media-root", "."),
        *("--max-rows", str(arguments.rows * arguments.clips), "--memory", arguments.memory),
        *("--longest-question", str(LONGEST_QUESTION), "--longest-prefix", str(longest_prefix(model))),
    ]
    theirs = [sys.executable, str(here.with_name("serving_theirs.py")), str(model), str(arguments.their_queue)]
    return {side: it for side, it in (("ours", ours), ("transformers", theirs)) if arguments.only in (None, side)}


def longest_prefix(model: Path) -> int:
    """Returns the tokens of a clip and of the few before it, for which the offline engine makes room."""
    processor = VideoLlavaProcessor.from_pretrained(model)
    return 8 * processor.tokens_per_frame + 32


@contextmanager
def on(wanted: Sequence[int]) -> Iterator[None]:
    """Runs this process, and what it starts, on some cores alone."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, wanted)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def cores(numbers: Sequence[int]) -> str:
    """Returns the numbers of cores as text."""
    return ", ".join(map(str, numbers))


@dataclass
class Server:
    """A server that runs.

    Attributes:
      url: where it listens.
      process: it says what it does in lines of JSON, and how much processor time it has taken when it is asked.
    """

    url: str
    process: subprocess.Popen[str]

    def spent(self) -> tuple[float, float, float]:
        """Returns the seconds of processor time of the engine with its device, of HTTP, and of this process so far."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        found = json.loads(self.process.stdout.readline())
        return found["engine"] + found["device"], found["http"], time.process_time()


@contextmanager
def serving(command: list[str], clips: Path, arguments: argparse.Namespace) -> Iterator[Server]:
    """Starts a server in the directory of the clips, on its cores, and yields it when it is ready."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with on(arguments.server_cores):
        process = subprocess.Popen(command, cwd=clips, text=True, env=environment(), **pipes)
    assert process.stdout is not None
    try:
        url = ""
        for line in process.stdout:
            record = json.loads(line)
            url = record.get("url", url)
            if record["state"] == "ready":
                break
        else:
            raise SystemExit(f"the server has ended with status {process.wait()}")
        http = http_process(process.pid)
        if http is not None and arguments.http_cores is not None:
            for task in Path(f"/proc/{http}/task").iterdir():
                os.sched_setaffinity(int(task.name), arguments.http_cores)
        yield Server(url, process)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def environment() -> dict[str, str]:
    """The environment of servers: modules of this directory and of the package are found from any other one."""
    here = Path(__file__).resolve()
    return {**os.environ, "PYTHONPATH": os.pathsep.join((str(here.parent), str(here.parents[1])))}


if __name__ == "__main__":
    main()
