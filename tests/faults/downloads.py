"""Hosts that answer anything: a file is fetched whole and right, or refused in time, and no secret of its URL is shown.

python -m tests.faults --only downloads
"""

from __future__ import annotations

import io
import random
import socket
import socketserver
import threading
import time
from contextlib import suppress

from PIL import Image

from tests.faults.memory import forgotten_peak, most_memory
from tests.faults.odd_values import edit_bytes
from tests.faults.tables import Tally

SECONDS = 2.0
"""The most that a fetch may take."""
MOST = 200_000
"""The limit of a file's bytes."""
MEMORY = 64 * 2**20
SECRET = "X-Signature=d41d8cd98f00b204"


def _whole() -> bytes:
    file = io.BytesIO()
    Image.effect_noise((60, 60), 90).save(file, "PNG")
    return file.getvalue()


WHOLE = _whole()


def _head(status: str = "200 OK", *headers: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", *headers, "", ""]).encode("latin-1")


def _chunks(rng: random.Random, content: bytes) -> bytes:
    size = rng.choice([1, 7, 100, 5000])
    parts = [content[at : at + size] for at in range(0, len(content), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def answer(rng: random.Random, port: int) -> tuple[str, list[bytes | float]]:
    """Draws what a host sends: bytes, and pauses in seconds; then it closes the connection."""
    length = f"Content-Length: {len(WHOLE)}"
    cut = rng.randrange(len(WHOLE))
    chunked = _chunks(rng, WHOLE)
    place = rng.choice([
        "/loop", f"http://127.0.0.1:{port}/x?{SECRET}", "http://10.0.0.1/", "file:///etc/passwd", "//[", "",
        "http://[::1]:1/", "https://127.0.0.1:1/", "ftp://127.0.0.1/",
        "http://a:b@127.0.0.1/", "gopher://x", "http://127.0.0.1:99999/", "\x00",
    ])  # fmt: skip
    status = rng.choice([100, 101, 204, 206, 304, 400, 401, 404, 429, 500, 503, 999, 0, -1])
    kinds: dict[str, list[bytes | float]] = {
        "whole": [_head("200 OK", length) + WHOLE],
        "whole, chunked": [_head("200 OK", "Transfer-Encoding: chunked") + chunked],
        "whole, closed": [_head("200 OK", "Connection: close") + WHOLE],
        "cut short": [_head("200 OK", length) + WHOLE[:cut]],
        "cut short, chunked": [_head("200 OK", "Transfer-Encoding: chunked") + chunked[: rng.randrange(len(chunked))]],
        "cut short, closed": [_head("200 OK", "Connection: close") + WHOLE[:cut]],
        "more than it says": [_head("200 OK", length) + WHOLE + b"more"],
        "too long": [_head("200 OK", f"Content-Length: {10 ** rng.randrange(6, 30)}") + WHOLE],
        "endless": [_head("200 OK", "Connection: close"), *[bytes(60_000)] * 8],
        "endless chunks": [_head("200 OK", "Transfer-Encoding: chunked"), *[_chunks(rng, bytes(50_000))[:-5]] * 8],
        "a huge chunk": [_head("200 OK", "Transfer-Encoding: chunked") + b"7fffffffffffffff\r\n" + WHOLE],
        "odd lengths": [
            _head("200 OK", f"Content-Length: {rng.choice(['-1', '1e3', '', '0x10', '9' * 5000, '1, 2', 'é'])}") + WHOLE
        ],
        "stalls": [_head("200 OK", length) + WHOLE[:cut], 3.0],
        "drips": [_head("200 OK", length), *[piece for byte in WHOLE[:30] for piece in (bytes([byte]), 0.1)]],
        "a slow head": [b"HTTP/1.1 200 OK\r\nX: ", *[piece for _ in range(30) for piece in (b"x", 0.1)]],
        "nothing": [],
        "a long head": [b"HTTP/1.1 200 OK\r\n", *[b"X: " + b"x" * 60_000 + b"\r\n"] * 3],
        "many headers": [_head("200 OK", *[f"X-{i}: y" for i in range(500)], length) + WHOLE],
        "redirect": [_head(f"{rng.choice([301, 302, 303, 307, 308])} Moved", f"Location: {place}")],
        "status": [_head(f"{status} ?", length)],
        "noise": [rng.randbytes(rng.randrange(1, 3000))],
        "changed": [edit_bytes(rng, _head("200 OK", length, "Connection: close")) + WHOLE],
        "compressed": [_head("200 OK", length, "Content-Encoding: gzip") + WHOLE],
    }
    kind = rng.choice(list(kinds))
    return kind, kinds[kind]


class _Host(socketserver.ThreadingTCPServer):
    """A host whose answer is set before each fetch."""

    daemon_threads = True
    said: list[bytes | float]


class _Connection(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        with suppress(OSError):
            self.request.settimeout(5)
            self.request.recv(65536)
            for piece in self.server.said:  # type: ignore[attr-defined]
                if isinstance(piece, float):
                    time.sleep(piece)
                else:
                    self.request.sendall(piece)
            with suppress(OSError):
                self.request.shutdown(socket.SHUT_WR)


def part(seed: int, scale: float) -> list[Tally]:
    """Fetches `700 * scale` times; see `tests.faults.parts`."""
    from videollava_jax.media.remote import Fetcher
    from videollava_jax.media.urls import SourceError

    tallies: dict[str, Tally] = {}
    with _Host(("127.0.0.1", 0), _Connection) as host:
        threading.Thread(target=host.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        port = host.server_address[1]
        url = f"http://127.0.0.1:{port}/a.png?{SECRET}"
        fetch = Fetcher([f"127.0.0.1:{port}"], seconds=SECONDS, attempts=1, allowed_address=lambda _: True)
        for number in range(max(20, round(700 * scale))):
            kind, host.said = answer(random.Random(f"{seed}/{number}"), port)
            tally = tallies.setdefault(kind, Tally(f"a host: {kind}"))
            file, began, held = io.BytesIO(), time.monotonic(), forgotten_peak()
            try:
                fetch(url, file, MOST)
                got = file.getvalue()
                outcome, detail = ("fetched", "") if got == WHOLE else ("silent", f"{len(got)} bytes for {len(WHOLE)}")
                if kind == "changed":  # a host may send another file, and say that it is shorter
                    outcome = "fetched"
            except SourceError as refused:
                said = str(refused)
                fine = SECRET not in said and said.isprintable() and len(said) < 1000
                outcome, detail = ("refused", "") if fine else ("violation", f"its error: {said[:300]!r}")
            except Exception as error:
                outcome, detail = "crash", f"{type(error).__name__}: {error}"
            seconds, memory = time.monotonic() - began, most_memory() - held
            if seconds > 5 * SECONDS:
                outcome, detail = "hang", f"took {seconds:.1f} s"
            if memory > MEMORY:
                outcome, detail = "violation", f"took {memory / 2**20:.0f} MiB"
            tally.add(outcome, f"fetch {number} of seed {seed}: {detail}", seconds, memory)
        host.shutdown()
    return list(tallies.values())
