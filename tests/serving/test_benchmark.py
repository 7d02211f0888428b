"""The client of `benchmarks/serving.py`: what it notes of streams, refusals and cut connections, and its table."""

import asyncio
import json

import pytest

from benchmarks.serving_load import COLUMNS, Asked, load, summary


def chunk(content):
    return f"{len(content):x}\r\n".encode() + content + b"\r\n"


def event(record):
    return b"data: " + json.dumps(record).encode() + b"\n\n"


def piece(text):
    return event({"choices": [{"delta": {"content": text}}]})


HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
END = event({"choices": [], "usage": {}}) + b"data: [DONE]\n\n"
TWO = HEAD + chunk(piece("a") + piece("b") + END)
REFUSED = b'HTTP/1.1 429 Too Many Requests\r\ncontent-length: 12\r\n\r\n{"error": 0}'
ANSWERS = {
    "two pieces": [HEAD + chunk(piece("a")), chunk(piece("b") + END) + b"0\r\n\r\n"],
    "an event in two parts": [TWO[:70], TWO[70:], b"0\r\n\r\n"],
    "refused": [REFUSED[:60], REFUSED[60:]],
    "an error in the stream": [HEAD + chunk(piece("a") + event({"error": {}})) + b"0\r\n\r\n"],
    "cut": [HEAD + chunk(piece("a"))],
}


@pytest.mark.parametrize(
    ("kind", "status", "pieces"),
    [
        ("two pieces", 200, 2),
        ("an event in two parts", 200, 2),
        ("refused", 429, 0),
        ("an error in the stream", 500, 1),
        ("cut", 500, 1),
    ],
)
def test_what_came_is_read_when_the_load_is_over(kind, status, pieces):
    connections = []

    async def answer(reader, writer):
        connections.append(writer)
        while head := await reader.readuntil(b"\r\n\r\n"):
            length = next(int(line[15:]) for line in head.splitlines() if line.lower().startswith(b"content-length:"))
            body = json.loads(await reader.readexactly(length))
            assert (body["stream"], body["max_tokens"]) == (True, 16)
            for part in ANSWERS[kind]:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(0.01)
            if kind == "cut":
                writer.close()
                return

    async def measure():
        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            asked = await load(f"http://127.0.0.1:{port}", 20, 4, 0, clips=2, tokens=16, seed=3)
            for writer in connections:
                writer.close()
            return asked

    asked = asyncio.run(measure())
    for one in asked:
        one.read()
    assert [(one.status, len(one.pieces)) for one in asked] == [(status, pieces)] * 4
    assert all(one.ended is None if kind == "cut" else one.ended >= max(one.pieces, default=0) for one in asked)
    assert len(connections) == 4 if kind == "cut" else len(connections) < 4


def test_the_rate_is_that_of_whole_answers_until_the_last_of_them():
    asked = [Asked(second, pieces=[0.5, 1.5], ended=2.0, status=200) for second in range(3)]
    asked += [Asked(3.0, ended=0.1, status=429), Asked(3.0, status=500)]
    cells = dict(zip(COLUMNS, summary(asked, 1.5, (0.3, 0.15, 0.03)), strict=True))
    assert cells["answers/s"] == "0.75"  # 3 in the 4 s until the last has ended
    assert cells["of the offline engine"] == "50%"
    assert cells["first text, s: p50"] == "0.500"
    assert cells["between pieces, ms: p50"] == "1000"
    assert (cells["refused"], cells["failed"]) == ("1 of 5", "1")
    assert [cells[name] for name in COLUMNS[-3:]] == ["100.00", "50.00", "10.00"]


def test_a_dash_stands_for_what_too_few_answers_say():
    asked = [Asked(float(second), pieces=[0.5], ended=1.0, status=200) for second in range(3)]
    assert summary(asked, 1.0, (0.0, 0.0, 0.0))[4:6] == ["–", "–"]
    assert summary(asked, 1.0, (0.0, 0.0, 0.0))[2] == "0.500"
