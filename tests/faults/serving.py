"""A server to destruction: clients that go at any moment, and bodies that nobody expects.

    python -m tests.faults.serving --connections 2000 --bodies 500 --seed 0

starts `videollava serve` with the tiny model, and counts what is left of its requests: rows, slots, files, workers,
descriptors, memory. No request may be answered with 5xx, and the server has to answer as before.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults.odd_values import dump, edit_bytes, odd, odd_name
from tests.faults.tables import Tally
from tests.serving.asking import CLIP, IMAGE, OTHER, about, data_url
from videollava_jax.assets import MEDIA

SECONDS = 120
HELD = (
    *("num_requests_open", "num_requests_running", "num_requests_waiting", "num_slots_running"),
    *("num_prefixes_pinned", "request_body_bytes"),
)
"""Metrics that are 0 when nobody asks for anything."""
QUESTION, ANSWER = about(CLIP, "Which way does it move?"), "up"


@dataclass
class Process:
    """A server that runs in a process of its own, with its temporary files in `directory`."""

    process: subprocess.Popen[str]
    host: str
    port: int
    directory: Path

    def get(self, path: str) -> bytes:
        """What a path answers."""
        with urllib.request.urlopen(f"http://{self.host}:{self.port}{path}", timeout=SECONDS) as answer:
            return answer.read()

    def post(self, body: bytes, path: str = "/v1/chat/completions") -> tuple[int, bytes]:
        """The status and the body of an answer."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=SECONDS)
        try:
            connection.request("POST", path, body)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def answers(self) -> None:
        """Requires the answer that was right before."""
        status, raw = self.post(json.dumps({"messages": QUESTION, "temperature": 0}).encode())
        assert status == 200, raw
        assert json.loads(raw)["choices"][0]["message"]["content"] == ANSWER, raw

    def metric(self, name: str) -> float:
        """The value of a metric that has no label but the model's name."""
        found = re.search(rf"^videollava:{name}{{[^}}]*}} (\S+)$", self.get("/metrics").decode(), re.MULTILINE)
        assert found, name
        return float(found[1])

    def left(self) -> dict[str, float]:
        """What is held for requests."""
        held = {name: self.metric(name) for name in HELD}
        held["files"] = sum(1 for _ in (self.directory / "media").iterdir())
        return held

    def costs(self) -> dict[str, float]:
        """What the two processes take, MiB of memory among it."""
        found = dict.fromkeys(("MiB", "descriptors", "children", "threads"), 0.0)
        for home in (Path(f"/proc/{self.process.pid}"), Path(f"/proc/{http_of(self.process.pid)}")):
            tasks = list((home / "task").iterdir())
            found["MiB"] += int((home / "statm").read_text().split()[1]) * 4096 / 2**20
            found["descriptors"] += len(list((home / "fd").iterdir()))
            found["children"] += sum(len((task / "children").read_text().split()) for task in tasks)
            found["threads"] += len(tasks)
        return found


def http_of(pid: int) -> int:
    """Returns the process of HTTP of a server."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    (found,) = (child for child in children if b"http_process" in Path(f"/proc/{child}/cmdline").read_bytes())
    return found


@contextmanager
def serving(place: Path, root: Path = MEDIA) -> Iterator[Process]:
    """Runs `videollava serve` with the tiny model and media below `root`; its temporary files are in `place`."""
    command = [sys.executable, "-c", "import sys; from videollava_jax.cli import main; sys.exit(main())"]
    flags = ["serve", "--port", "0", "--json", "--media-root", str(root), "--rows", "4", "--max-rows", "8"]
    more = ["--longest-answer", "32", "--workers", "2", "--max-queue", "64"]
    process = subprocess.Popen(
        [*command, *flags, *more], stdout=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(place)}
    )
    try:
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["url"]
        assert json.loads(process.stdout.readline())["state"] == "ready"
        (directory,) = place.glob("videollava-serve-*")
        yield Process(process, "127.0.0.1", int(url.rsplit(":", 1)[1]), directory)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert not list(place.glob("videollava-serve-*"))
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def valid(rng: random.Random) -> dict[str, Any]:
    """A body that is answered."""
    medium = rng.choice([None, CLIP, OTHER, IMAGE, data_url(IMAGE), data_url(CLIP)])
    body: dict[str, Any] = {"messages": about(medium, rng.choice(["what?", "Which way does it move?"]))}
    body["max_tokens"] = rng.randint(1, 32)
    body["stream"] = rng.random() < 0.6
    if rng.random() < 0.4:
        body["logit_bias"] = {"2": -100}  # it does not end by itself
    return body


def drop(server: Process, rng: random.Random) -> str:
    """Sends a request and closes the connection at some moment; returns which."""
    body = json.dumps(valid(rng)).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    whole = head + body
    moment = rng.choice(
        ["within the head", "within the body", "within an upload", "at once", "soon", "within the answer", "reset"]
    )
    with socket.create_connection((server.host, server.port), timeout=SECONDS) as client:
        if moment == "within the head":
            client.sendall(whole[: rng.randrange(len(head))])
        elif moment == "within the body":
            client.sendall(whole[: len(head) + rng.randrange(len(body))])
        elif moment == "within an upload":
            upload = b'--b\r\nContent-Disposition: form-data; name="file"; filename="x.mp4"\r\n\r\n' + bytes(5000)
            told = b"Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 9000\r\n\r\n"
            client.sendall(b"POST /v1/files HTTP/1.1\r\nHost: localhost\r\n" + told + upload)
        else:
            client.sendall(whole)
        if moment in ("soon", "reset"):
            time.sleep(rng.random() / 20)
        if moment == "within the answer":
            client.settimeout(0.5)
            with suppress(TimeoutError):
                client.recv(rng.choice([1, 100, 1000]))
        if moment == "reset":  # no orderly end: the kernel sends RST
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    return moment


def bad_body(rng: random.Random) -> bytes:
    """A body in which something is odd: bytes, a value, a name, or what a data: URL holds."""
    body = valid(rng)
    body["stream"] = False
    what = rng.choice(["bytes", "cut", "value", "field", "part", "media", "message"])
    part = body["messages"][0]["content"][0]
    match what:
        case "bytes":
            return edit_bytes(rng, dump(body))
        case "cut":
            raw = dump(body)
            return raw[: rng.randrange(len(raw))]
        case "value":
            body[rng.choice([*body, "temperature", "n", "stop", "seed", "top_p", "logprobs", "model"])] = odd(rng)
        case "field":
            body[odd_name(rng, "temperature")] = odd(rng)
        case "part":
            part[rng.choice([*part])] = odd(rng)
        case "message":
            body["messages"][0][rng.choice(["role", "content", "name"])] = odd(rng)
        case "media":
            raw = bytearray((MEDIA / rng.choice([CLIP, IMAGE])).read_bytes())
            for _ in range(rng.choice([1, 5, 50])):
                raw[rng.randrange(len(raw))] = rng.randrange(256)
            kind = rng.choice(["image", "video"])
            url = f"data:{kind}/x;base64,{base64.b64encode(bytes(raw[: rng.choice([len(raw), 900])])).decode()}"
            body["messages"][0]["content"][:1] = [{"type": f"{kind}_url", f"{kind}_url": {"url": url}}]
    return dump(body)


def until_nothing_is_left(server: Process) -> dict[str, float]:
    """Waits until the server holds nothing for requests."""
    ends = time.monotonic() + SECONDS
    while any(server.left().values()):
        assert time.monotonic() < ends, server.left()
        time.sleep(0.1)
    return server.left()


def run(
    server: Process, connections: int, bodies: int, seed: int, report: Any = print, tallies: Sequence[Tally] = ()
) -> None:
    """Drops connections and sends bodies; fails where something is left or an answer is wrong.

    Args:
      tallies: two rows, which count the connections and the bodies.
    """
    dropped, sent = tallies or (Tally("connections"), Tally("bodies"))
    rng = random.Random(seed)
    for _ in range(20):  # threads, workers and buffers that stay
        server.post(json.dumps(valid(rng)).encode())
    server.answers()
    until_nothing_is_left(server)
    before = server.costs()
    for _ in range(connections):
        dropped.add(drop(server, rng))
    until_nothing_is_left(server)
    server.answers()
    for _ in range(bodies):
        body, began = bad_body(rng), time.perf_counter()
        status, raw = server.post(body)
        sent.add(f"status {status}", seconds=time.perf_counter() - began)
        assert status < 500, (status, raw, body[:2000])
        assert str(server.directory).encode() not in raw, raw
        assert not re.search(rb"0x[0-9a-f]{6}|Traceback|site-packages", raw), raw
    until_nothing_is_left(server)
    server.answers()
    assert server.metric("compiled_programs_total") == 0
    after = server.costs()
    report(f"{connections} connections dropped: {dict(sorted(dropped.outcomes.items()))}")
    report(f"{bodies} bodies: {dict(sorted(sent.outcomes.items()))}")
    report(f"before: { {name: round(value) for name, value in before.items()} }")
    sent.memory = round(after["MiB"] * 2**20)
    report(f"after:  { {name: round(value) for name, value in after.items()} }")
    assert after["children"] <= before["children"] + 2
    assert after["descriptors"] <= before["descriptors"] + 16
    assert after["threads"] <= before["threads"] + 16
    assert after["MiB"] <= before["MiB"] + 200


def part(seed: int, scale: float) -> list[Tally]:
    """Drops `600 * scale` connections and sends `300 * scale` bodies; see `tests.faults.parts`."""
    tallies = Tally("connections that are dropped"), Tally("odd bodies")
    with tempfile.TemporaryDirectory() as place:
        try:
            with serving(Path(place)) as server:
                run(server, max(20, round(600 * scale)), max(20, round(300 * scale)), seed, tallies=tallies)
        except AssertionError as error:
            tallies[-1].add("violation", f"seed {seed}: {str(error)[:3000]}")
        except OSError as error:
            tallies[-1].add("crash", f"seed {seed}: the server is gone, or does not answer: {error}")
    return list(tallies)


def main() -> None:
    """Runs it as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=2000)
    parser.add_argument("--bodies", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as place, serving(Path(place)) as server:
        run(server, given.connections, given.bodies, given.seed)
    print(f"nothing is left, in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
