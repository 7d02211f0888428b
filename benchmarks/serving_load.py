"""A client that sends questions at random moments and notes when their answers come: for `benchmarks/serving.py`.

It does as little as it can while a load lasts, as it takes its share of the machine: what comes is kept with its time,
and read as events when the load is over. Connections are kept and used again, as by OpenAI's client.
"""

import asyncio
import json
import random
import re
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

LONGEST_WAIT = 300.0
"""Seconds that a client waits for an answer."""
WORDS = ("which", "way", "does", "it", "move", "what", "shape", "is", "first", "colour", "how", "many", "are", "there")
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


@dataclass
class Asked:
    """One request as its client saw it: seconds since it was sent, None if it did not come so far.

    Attributes:
      sent: when, on the clock of the load.
      pieces: when each piece of text came, since it was sent.
      ended: when the answer ended.
      status: of HTTP; 0 without one, 500 for an error within a stream.
      came: what came and when; `read` turns it into the other fields.
    """

    sent: float
    pieces: list[float] = field(default_factory=list)
    ended: float | None = None
    status: int = 0
    came: list[tuple[float, bytes]] = field(default_factory=list)

    def read(self) -> None:
        """Reads what has come."""
        if not self.came:
            return
        self.status = int(self.came[0][1].split(b" ", 2)[1])
        if self.status == 200 and self.ended is None:
            self.status = 500
        rest = b""
        for at, content in self.came:
            *lines, rest = (rest + content).split(b"\n")
            for line in lines:
                if line.startswith(b"data: {"):
                    event = json.loads(line[6:])
                    if "error" in event:
                        self.status = 500
                    elif event["choices"] and event["choices"][0]["delta"].get("content"):
                        self.pieces.append(at)
        self.came.clear()


class Connection(asyncio.Protocol):
    """A connection that sends one request after the other, each when the answer before has ended."""

    def __init__(self, idle: list["Connection"]):
        self._idle, self._asked, self._ended = idle, None, None
        self._left: int | None = None
        self._transport: Any = None

    def connection_made(self, transport: Any) -> None:
        """Keeps the transport."""
        self._transport = transport

    def ask(self, raw: bytes, asked: Asked, started: float) -> asyncio.Future[None]:
        """Sends a request; the future is done when its answer has ended, or the connection."""
        self._asked, self._started, self._left, self._head = asked, started, None, b""
        self._ended = asyncio.get_running_loop().create_future()
        self._transport.write(raw)
        return self._ended

    def data_received(self, data: bytes) -> None:
        """Notes what has come; an answer ends with the last chunk of a stream, or with its bytes as announced."""
        if self._asked is None:
            return
        at = time.perf_counter() - self._started - self._asked.sent
        self._asked.came.append((at, data))
        if self._left is None:
            self._head += data
            head, found, rest = self._head.partition(b"\r\n\r\n")
            if not found:
                return
            length = _LENGTH.search(head)
            self._left = -1 if length is None else int(length[1])
            data = rest
        if self._left < 0:
            ended = data.endswith(b"0\r\n\r\n")
        else:
            self._left -= len(data)
            ended = self._left <= 0
        if ended:
            self._asked.ended = at
            self._idle.append(self)
            self._end()

    def connection_lost(self, error: Exception | None) -> None:
        """Ends an answer that has not ended."""
        if self in self._idle:
            self._idle.remove(self)
        self._end()

    def give_up(self) -> None:
        """Closes the connection."""
        self._transport.close()

    def _end(self) -> None:
        self._asked = None
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)


async def load(url: str, rate: float, count: int, first: int, *, clips: int, tokens: int, seed: int) -> list[Asked]:
    """Sends `count` questions at random moments, `rate` a second on average, and waits for all answers.

    Args:
      url: of the server.
      first: of the clips that are asked about.
      clips: their number.
      tokens: of an answer.
    """
    rng = random.Random(seed)
    host, port = url.removeprefix("http://").split(":")
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
    bodies = [json.dumps(question(rng, i, first, clips, tokens)).encode() for i in range(count)]
    requests = [f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body for body in bodies]
    gaps = [rng.expovariate(rate) for _ in range(count)]
    asked: list[Asked] = []
    tasks: list[asyncio.Task[None]] = []
    idle: list[Connection] = []
    started, at = time.perf_counter(), 0.0
    for raw, gap in zip(requests, gaps, strict=True):
        at += gap
        if (early := started + at - time.perf_counter()) > 0:
            await asyncio.sleep(early)
        asked.append(one := Asked(time.perf_counter() - started))
        tasks.append(asyncio.create_task(_ask(host, int(port), idle, raw, one, started)))
    await asyncio.gather(*tasks)
    for connection in list(idle):
        connection.give_up()
    return asked


async def _ask(host: str, port: int, idle: list[Connection], raw: bytes, asked: Asked, started: float) -> None:
    connection = None
    try:
        async with asyncio.timeout(LONGEST_WAIT):
            if idle:
                connection = idle.pop()
            else:
                _, connection = await asyncio.get_running_loop().create_connection(lambda: Connection(idle), host, port)
            await connection.ask(raw, asked, started)
    except (OSError, TimeoutError):
        if connection is not None:
            connection.give_up()


def question(rng: random.Random, number: int, first: int, clips: int, tokens: int) -> dict[str, Any]:
    """Draws the body of a request about one of `clips` clips from `first` on."""
    clip = {"type": "video_url", "video_url": {"url": f"{first + rng.randrange(clips)}.mp4"}}
    return {
        "model": "served",
        "messages": [{"role": "user", "content": [clip, {"type": "text", "text": words(rng, number)}]}],
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "logit_bias": {"2": -100},  # so that all answers have the same length
    }


def words(rng: random.Random, number: int) -> str:
    """Draws the text of a question."""
    return " ".join(rng.choices(WORDS, k=6)) + f" {number % 97}?"


# ── the table ──

COLUMNS = (
    "answers/s", "of the offline engine", "first text, s: p50", "p99", "between pieces, ms: p50", "p99", "refused",
    "failed", "CPU ms of an answer: engine", "HTTP", "client",
)  # fmt: skip


def summary(asked: Sequence[Asked], capacity: float, spent: Sequence[float]) -> list[str]:
    """Returns the cells of a load's row.

    Args:
      capacity: of the offline engine, answers a second.
      spent: processor time of the engine, of HTTP and of the client, seconds.
    """
    done = [one for one in asked if one.status == 200]
    first = [one.pieces[0] for one in done if one.pieces]
    between = [1000 * (b - a) for one in done for a, b in zip(one.pieces, one.pieces[1:], strict=False)]
    last = max((one.sent + (one.ended or 0) for one in done), default=1.0)
    rate = len(done) / last
    refused = sum(one.status == 429 for one in asked)
    return [
        f"{rate:.2f}", f"{rate / capacity:.0%}", *(share(first, p, 3) for p in (50, 99)),
        *(share(between, p, 0) for p in (50, 99)), f"{refused} of {len(asked)}",
        str(len(asked) - len(done) - refused), *(f"{1000 * each / max(1, len(done)):.2f}" for each in spent),
    ]  # fmt: skip


def share(values: Sequence[float], percent: int, digits: int) -> str:
    """Returns a percentile with some digits; a dash for too few values, as where every text came in one piece."""
    if len(values) < 2:
        return "–"
    return f"{statistics.quantiles(values, n=100, method='inclusive')[percent - 1]:.{digits}f}"
