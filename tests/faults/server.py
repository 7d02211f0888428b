"""Clients that go at any moment, and bodies that no client should send, against a server of the tiny model.

    python -m tests.faults.server --dropped 2000 --bodies 500 --seed 0

starts `videollava serve`, drops connections at random moments (before, within and after the request, while it waits,
while its answer is streamed, during uploads), sends bad bodies, and then compares with before: rows, slots, requests,
open files, threads, workers, files on disk, memory, and the answers to the same questions. Prints one table.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.compiling import ENVIRONMENT
from videollava_jax.assets import MEDIA

CLIPS = ("rising-triangle.mp4", "circle-then-square.mp4", "three-triangles.png")
QUESTIONS = ("Which way does it move?", "What shape is it?", "Does it change colour?")
SECONDS = 60
MEMORY = 200
"""MiB by which the server may grow: allocators keep some of what was used at once."""


@dataclass
class Address:
    """Where a server listens, and the process that is it; None if it is this one."""

    host: str
    port: int
    process: int | None = None

    def connect(self) -> socket.socket:
        """Opens a connection."""
        return socket.create_connection((self.host, self.port), timeout=SECONDS)

    def get(self, path: str) -> bytes:
        """Fetches a path."""
        with urllib.request.urlopen(f"http://{self.host}:{self.port}{path}", timeout=SECONDS) as answer:
            return bytes(answer.read())


@dataclass
class Tally:
    """What was done and what came of it."""

    done: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    slowest: float = 0.0


# ── requests ──


def chat(rng: random.Random, **more: Any) -> dict[str, Any]:
    """Draws the body of a good request."""
    name = rng.choice(CLIPS)
    kind = "image_url" if name.endswith("png") else "video_url"
    return {
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": kind, kind: {"url": name}},
                    {"type": "text", "text": f"{rng.choice(QUESTIONS)} {rng.randrange(50)}"},
                ],
            }
        ],
        "max_tokens": 24,
        "temperature": 0,
        "logit_bias": {"2": -100},
        **more,
    }


def http(path: str, body: bytes, kind: str = "application/json", length: int | None = None) -> bytes:
    """Writes a request by hand."""
    count = len(body) if length is None else length
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {count}\r\n\r\n"
    return head.encode() + body


def upload(content: bytes) -> bytes:
    """Writes an upload by hand."""
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="x.mp4"\r\n\r\n'
    return http("/v1/files", head + content + b"\r\n--b--\r\n", "multipart/form-data; boundary=b")


# ── clients that go ──


def drop(address: Address, seed: int) -> str:
    """Sends a part of a request or a whole one, perhaps reads a part of the answer, and is gone."""
    rng = random.Random(seed)
    how = rng.choice(("silent", "within", "waiting", "waiting", "streaming", "streaming", "unstreamed", "uploading"))
    raw = http("/v1/chat/completions", json.dumps(chat(rng, stream=how != "unstreamed")).encode())
    if how == "uploading":
        raw = upload((MEDIA / CLIPS[0]).read_bytes())
    raw = raw.replace(b"Host: localhost", b"Host: localhost\r\nConnection: close")
    with address.connect() as connection:
        if how == "silent":
            time.sleep(rng.uniform(0, 0.02))
        elif how in ("within", "uploading"):
            connection.sendall(raw[: rng.randrange(1, len(raw))])
        else:
            connection.sendall(raw)
            if how == "streaming":
                wanted = rng.randrange(1, 2500)
                while wanted > 0 and (piece := connection.recv(min(wanted, 4096))):
                    wanted -= len(piece)
            else:
                time.sleep(rng.choice((0, 0, rng.uniform(0, 0.3))))
        if rng.random() < 0.5:  # a reset instead of an end
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    return how


# ── bodies ──


def _bad(rng: random.Random) -> bytes:
    """Draws a body that cannot be answered; each is one that the server has to refuse."""
    good = chat(rng)
    odd: list[Any] = [None, True, -1, 1e308, 10**30, "", "x", "\0", [], {}, [[]], {"a": 1}, "x" * 10_000, ["x"] * 500]
    field_ = rng.choice(
        ("messages", "messages", "temperature", "max_tokens", "n", "stop", "logit_bias", "top_p", "seed", "stream",
         "logprobs", "top_logprobs", "media_io_kwargs", "mm_processor_kwargs", "model", "tools", "response_format",
         "stream_options", "unheard_of")
    )  # fmt: skip
    match rng.choice(("field", "field", "part", "url", "json", "deep", "bytes")):
        case "field":
            good[field_] = rng.choice(odd)
        case "part":
            good["messages"][0]["content"][0] = rng.choice([*odd, {"type": "audio"}, {"type": "video_url"}])
        case "url":
            part = good["messages"][0]["content"][0]
            kind = part["type"]
            part[kind] = {
                "url": rng.choice(
                    ("../secret", "/etc/passwd", "file:///etc/passwd", "http://127.0.0.1/", "http://169.254.169.254/",
                     "ftp://host/a", "data:video/mp4;base64,AAAA", "data:video/mp4;base64,!", "data:,", "none.mp4",
                     "vllm-file://none", "vllm-file://../../x", "x" * 5000, "\0", "http://[", "\ud800",
                     "data:video/jpeg;base64," + "," * 3000)
                )
            }  # fmt: skip
        case "deep":
            return b'{"messages": ' + b"[" * 100_000
        case "bytes":
            return bytes(rng.randrange(256) for _ in range(rng.randrange(300)))
        case "json":
            raw = bytearray(json.dumps(good).encode())
            for _ in range(rng.randrange(1, 4)):
                raw[rng.randrange(len(raw))] = rng.randrange(256)
            return bytes(raw)
    return json.dumps(good).encode()


def send_bad(address: Address, seed: int) -> tuple[str, str]:
    """Sends a bad body and reads the answer: returns its status, and what is wrong with it."""
    rng = random.Random(seed)
    path = rng.choice(("/v1/chat/completions",) * 4 + ("/v1/score", "/tokenize", "/v1/files"))
    body = _bad(rng)
    with address.connect() as connection:
        connection.sendall(http(path, body).replace(b"Host: localhost", b"Host: localhost\r\nConnection: close"))
        answer = b""
        while piece := connection.recv(2**16):
            answer += piece
    status = answer.split(b" ", 2)[1].decode() if answer.startswith(b"HTTP/") else "none"
    text = answer.decode("utf-8", "replace")
    if status not in ("200", "400", "404", "413", "422", "429"):
        return status, f"status {status} for {body[:200]!r}: {text[-300:]}"
    if status != "200" and '"message"' not in text:
        return status, f"an error without a message: {text[-300:]}"
    if found := re.search(r"0x[0-9a-f]{6}|Traceback|site-packages|/tmp/|\broot:", text):
        return status, f"the answer shows {found[0]!r}: {text[-300:]}"
    return status, ""


# ── before and after ──


@dataclass(frozen=True)
class State:
    """What a server holds when nobody asks for anything."""

    gauges: Mapping[str, float]
    files: int
    threads: int
    workers: int
    memory: int
    answers: tuple[str, ...]


_GAUGES = ("num_requests_running", "num_requests_waiting", "num_requests_reading", "num_requests_open")


def state_of(address: Address) -> State:
    """Waits until the server is idle, asks it some questions, and looks at its process."""
    answers = tuple(_ask(address, number) for number in range(6))
    end = time.monotonic() + SECONDS
    while any((gauges := _gauges(address)).values()) and time.monotonic() < end:
        time.sleep(0.05)
    place = Path("/proc") / str(address.process or os.getpid())
    time.sleep(0.3)
    status = (place / "status").read_text()
    children = [path for path in Path("/proc").glob("[0-9]*/stat") if _parent(path) == int(place.name)]
    return State(
        gauges, len(os.listdir(place / "fd")), int(re.search(r"Threads:\s+(\d+)", status)[1]), len(children),
        int(re.search(r"VmRSS:\s+(\d+)", status)[1]) // 1024, answers,
    )  # fmt: skip


def _parent(path: Path) -> int:
    try:
        return int(path.read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _gauges(address: Address) -> dict[str, float]:
    text = address.get("/metrics").decode()
    found = {}
    for name in _GAUGES:
        values = re.findall(rf"^videollava:{name}(?:{{[^}}]*}})? ([0-9.e+]+)$", text, re.MULTILINE)
        if values:
            found[name] = sum(map(float, values))
    return found


def _ask(address: Address, number: int) -> str:
    body = chat(random.Random(number))
    request = urllib.request.Request(
        f"http://{address.host}:{address.port}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=SECONDS) as answer:
        return str(json.load(answer)["choices"][0]["message"]["content"])


def differences(before: State, after: State) -> list[str]:
    """Returns what a server holds afterwards that it did not hold before."""
    wrong = []
    if after.answers != before.answers:
        wrong.append(f"other answers: {before.answers} then, {after.answers} now")
    wrong += [f"{name} is {value:g}" for name, value in after.gauges.items() if value]
    for name, more in (("files", 8), ("threads", 12), ("workers", 4), ("memory", MEMORY)):
        then, now = getattr(before, name), getattr(after, name)
        if now > then + more:
            wrong.append(f"{name}: {then} then, {now} now")
    return wrong


# ── all of it ──


def attack(address: Address, dropped: int, bodies: int, seed: int, threads: int = 8) -> Tally:
    """Drops connections and sends bad bodies, several at a time, with good questions among them."""
    tally, lock = Tally(), threading.Lock()

    def one(number: int) -> None:
        started = time.monotonic()
        what, wrong = "", ""
        try:
            if number < dropped:
                what = f"dropped, {drop(address, seed * 10**6 + number)}"
            else:
                status, wrong = send_bad(address, seed * 10**6 + number)
                what = f"bad body, answered {status}"
        except OSError as error:
            what, wrong = "no answer", f"number {number}: {type(error).__name__}: {error}"
        with lock:
            tally.done[what] += 1
            tally.slowest = max(tally.slowest, time.monotonic() - started)
            if wrong:
                tally.violations.append(wrong)

    order = list(range(dropped + bodies))
    random.Random(seed).shuffle(order)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(one, order))
    return tally


@contextmanager
def server(place: Path) -> Iterator[Address]:
    """Starts `videollava serve` with the tiny model, in a process of its own."""
    code = "import sys; from videollava_jax.cli import main; sys.exit(main())"
    flags = (
        "--port",
        "0",
        "--json",
        "--media-root",
        str(MEDIA),
        "--longest-answer",
        "32",
        "--rows",
        "4",
        "--max-queue",
        "64",
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, "serve", *flags], stdout=subprocess.PIPE, text=True,
        env={**os.environ, **ENVIRONMENT, "JAX_PLATFORMS": "cpu", "TMPDIR": str(place)},
    )  # fmt: skip
    try:
        for line in process.stdout or ():
            record = json.loads(line)
            if record["state"] == "starting":
                port = int(record["url"].rpartition(":")[2])
            if record["state"] == "ready":
                break
        yield Address("127.0.0.1", port, process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(SECONDS)
        process.kill()


def main(arguments: Sequence[str] | None = None, show: Callable[[str], None] = print) -> int:
    """Runs the command line; returns 1 if something was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dropped", type=int, default=2000)
    parser.add_argument("--bodies", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        with server(place) as address:
            state_of(address)  # the first questions start workers
            before = state_of(address)
            tally = attack(address, given.dropped, given.bodies, given.seed)
            after = state_of(address)
            wrong = tally.violations + differences(before, after)
            spooled = sum(path.is_file() for path in place.rglob("*"))
        left = [str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()]
        if left:
            wrong.append(f"files left behind: {left[:5]}")
    show("| | times |\n|---|---|")
    for what, count in sorted(tally.done.items()):
        show(f"| {what} | {count} |")
    for what in ("files", "threads", "workers", "memory"):
        show(f"| {what}, before and after | {getattr(before, what)}, {getattr(after, what)} |")
    show(f"| files on disk before the end | {spooled} |")
    show(f"| slowest, s | {tally.slowest:.1f} |\n| violations | {len(wrong)} |")
    for sentence in wrong[:20]:
        show(sentence)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
