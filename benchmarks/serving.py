"""Measures the server under load: Poisson arrivals of questions about clips, streamed, and transformers the same way.

    python benchmarks/serving.py --model tiny
    python benchmarks/serving.py --model random        # 157 M parameters, as in benchmarks/qa.py

First the offline engine answers such questions, all known in advance, about as many on each clip as a load has, on a
grid of the server's sizes: its rate is the capacity. Then `videollava serve` gets questions at 0.5, 0.8 and 1.2 times
that rate for `--seconds` each, about `--clips` clips that no load before had, chosen at random, with answers of
`--answer-tokens` tokens. Then transformers' `generate`, one question at a time behind the same HTTP
(benchmarks/serving_theirs.py), gets the same loads.

The rate of a load is its answers over the time from its beginning to its last answer. Times are those of a client in
this process, on the same machine: it takes its share of the processors, which the offline engine has for itself. The
processor time of server and client is printed for each answer. Refusals are answers with status 429.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from videollava_jax.assets import TINY
from videollava_jax.assets.world import encode_mp4, sample_clip
from videollava_jax.cli.common import size
from videollava_jax.processing.processor import VideoLlavaProcessor

LOADS = (0.5, 0.8, 1.2)
QUESTIONS = {"tiny": 100, "random": 12}
"""Questions on each clip for the offline engine, about as many as a load has."""
LONGEST_WAIT = 300.0
"""Seconds that a client waits for an answer."""
LONGEST_QUESTION = 64
"""Tokens, for which the offline engine makes room too."""
WORDS = ("which", "way", "does", "it", "move", "what", "shape", "is", "first", "colour", "how", "many", "are", "there")


@dataclass
class Asked:
    """One request as its client saw it: seconds since it was sent, None if it did not come so far.

    Attributes:
      sent: when, on the clock of the load.
      pieces: when each piece of text came, since it was sent.
      ended: when the answer ended.
      status: of HTTP; 0 without one.
      cached: tokens of its prompt that were there already.
    """

    sent: float
    pieces: list[float] = field(default_factory=list)
    ended: float | None = None
    status: int = 0
    cached: int = 0


def main() -> None:
    """Runs the command line."""
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
    arguments = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        model = TINY if arguments.model == "tiny" else random_model(place / "random")
        # Those of the offline engine, of the first requests, and of each load.
        write_clips(place / "clips", arguments.clips * (2 + len(arguments.loads)), arguments.seed)
        capacity, facts = arguments.capacity, "the offline engine's rate is given"
        if capacity is None:
            capacity, facts = offline(model, place / "clips", arguments)
        print(f"{facts}; {os.cpu_count()} cores; offline engine: {capacity:.2f} answers/s")
        rows = [f"| | load | asked/s | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 3) + "|"]
        for side, command in commands(model, arguments).items():
            with serving(command, place / "clips") as (url, server):
                asyncio.run(load(url, 1.0, 4, 1, arguments))  # the first requests of connections and readers
                for number, share in enumerate(arguments.loads, 2):
                    rate = share * capacity
                    count = max(4, round(rate * arguments.seconds))
                    before = processor_seconds(server), time.process_time()
                    asked = asyncio.run(load(url, rate, count, number, arguments))
                    spent = processor_seconds(server) - before[0], time.process_time() - before[1]
                    cells = summary(asked, capacity, spent)
                    rows.append(f"| {side} | {share} | {rate:.2f} | {' | '.join(cells)} |")
                    print(rows[-1], file=sys.stderr, flush=True)
        print("\n".join(rows))


# ── the load ──

COLUMNS = (
    "answers/s", "of the offline engine", "first text, s: p50", "p99", "between pieces, ms: p50", "p99", "refused",
    "failed", "processor time of an answer, ms: server", "client",
)  # fmt: skip


async def load(url: str, rate: float, count: int, number: int, arguments: argparse.Namespace) -> list[Asked]:
    """Sends `count` questions at random moments, `rate` a second on average, and waits for all answers.

    Args:
      number: of the load, which has clips of its own.
    """
    rng = random.Random(arguments.seed)
    host, port = url.removeprefix("http://").split(":")
    started, asked, tasks = time.perf_counter(), [], []
    at = 0.0
    for i in range(count):
        at += rng.expovariate(rate)
        await asyncio.sleep(max(0.0, started + at - time.perf_counter()))
        asked.append(one := Asked(time.perf_counter() - started))
        body = question(rng, i, number * arguments.clips, arguments)
        tasks.append(asyncio.create_task(ask(host, int(port), body, one, started)))
    await asyncio.gather(*tasks)
    return asked


def question(rng: random.Random, number: int, first: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Draws the body of a request about a clip from `first` on."""
    clip = {"type": "video_url", "video_url": {"url": f"{first + rng.randrange(arguments.clips)}.mp4"}}
    text = " ".join(rng.choices(WORDS, k=6)) + f" {number % 97}?"
    return {
        "model": "served",
        "messages": [{"role": "user", "content": [clip, {"type": "text", "text": text}]}],
        "max_tokens": arguments.answer_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "logit_bias": {"2": -100},  # so that all answers have the same length
    }


async def ask(host: str, port: int, body: dict[str, Any], asked: Asked, started: float) -> None:
    """Sends a request on a connection of its own and reads the events of its answer."""

    def now() -> float:
        return time.perf_counter() - started - asked.sent

    raw = json.dumps(body).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(raw)}\r\nConnection: close\r\n\r\n"
    )
    try:
        async with asyncio.timeout(LONGEST_WAIT):
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(head.encode() + raw)
            asked.status = int((await reader.readline()).split()[1])
            async for line in reader:
                if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    asked.status = 500
                elif event["choices"] and event["choices"][0]["delta"].get("content"):
                    asked.pieces.append(now())
                elif not event["choices"]:
                    asked.cached = event["usage"]["prompt_tokens_details"]["cached_tokens"]
        asked.ended = now()
        writer.close()
    except (OSError, ValueError, IndexError):
        asked.status = asked.status if asked.status != 200 else 500


def summary(asked: Sequence[Asked], capacity: float, spent: tuple[float, float]) -> list[str]:
    """Returns the cells of a load's row.

    Args:
      spent: processor time of the server and of the client, seconds.
    """
    done = [one for one in asked if one.status == 200 and one.ended is not None]
    first = [one.pieces[0] for one in done if one.pieces]
    between = [1000 * (b - a) for one in done for a, b in zip(one.pieces, one.pieces[1:], strict=False)]
    last = max((one.sent + (one.ended or 0) for one in done), default=1.0)
    rate = len(done) / last
    refused = sum(one.status == 429 for one in asked)
    return [
        f"{rate:.2f}", f"{rate / capacity:.0%}", *(f"{share(first, p):.3f}" for p in (50, 99)),
        *(f"{share(between, p):.0f}" for p in (50, 99)), f"{refused} of {len(asked)}",
        str(len(asked) - len(done) - refused), *(f"{1000 * each / max(1, len(done)):.1f}" for each in spent),
    ]  # fmt: skip


def processor_seconds(process: int) -> float:
    """Returns the processor time of a process so far, by Linux's count; not that of its children, who read media."""
    fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def share(values: Sequence[float], percent: int) -> float:
    """Returns a percentile; not a number of too few values."""
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1] if len(values) > 1 else float("nan")


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


def offline(model: Path, clips: Path, arguments: argparse.Namespace) -> tuple[float, str]:
    """Returns the offline engine's rate on such questions, answers a second, and what it was measured with."""
    code = Path(__file__).with_name("serving_offline.py")
    sizes = (arguments.rows, arguments.answer_tokens, size(arguments.memory))
    numbers = (arguments.clips, QUESTIONS[arguments.model], *sizes)
    command = [sys.executable, str(code), str(model), str(clips), *map(str, numbers)]
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
    return found["rate"], found["facts"]


def commands(model: Path, arguments: argparse.Namespace) -> dict[str, list[str]]:
    """Returns the command of each side's server."""
    ours = [
        *(sys.executable, "-c", "import sys; from videollava_jax.cli import main; sys.exit(main())", "serve"),
        *("--model", str(model), "--port", "0", "--json", "--served-model-name", "served", "--dtype", "float32"),
        *("--rows", str(arguments.rows), "--longest-answer", str(max(32, arguments.answer_tokens))),
        *("--max-queue", str(arguments.max_queue), "--media-root", "."),
        *("--max-rows", str(arguments.rows * arguments.clips), "--memory", arguments.memory),
        *("--longest-question", str(LONGEST_QUESTION), "--longest-prefix", str(longest_prefix(model))),
    ]
    theirs = [
        sys.executable,
        str(Path(__file__).with_name("serving_theirs.py")),
        str(model),
        str(arguments.their_queue),
    ]
    return {side: it for side, it in (("ours", ours), ("transformers", theirs)) if arguments.only in (None, side)}


def longest_prefix(model: Path) -> int:
    """Returns the tokens of a clip and of the few before it, for which the offline engine makes room."""
    processor = VideoLlavaProcessor.from_pretrained(model)
    return 8 * processor.tokens_per_frame + 32


@contextmanager
def serving(command: list[str], clips: Path) -> Iterator[tuple[str, int]]:
    """Starts a server in the directory of the clips and yields its URL and its process when it is ready."""
    process = subprocess.Popen(command, cwd=clips, stdout=subprocess.PIPE, text=True, env=environment())
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
        yield url, process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def environment() -> dict[str, str]:
    """The environment of servers: modules of this directory and of the package are found from any other one."""
    here = Path(__file__).resolve()
    return {**os.environ, "PYTHONPATH": os.pathsep.join((str(here.parent), str(here.parents[1])))}


if __name__ == "__main__":
    main()
