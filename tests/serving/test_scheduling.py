"""Overload, cancelling, draining and failing, with a session that the tests drive: nothing is computed."""

import asyncio
import http.client
import json
import re
import socket
import threading
import time
from contextlib import contextmanager
from urllib.parse import urlsplit

import openai
import pytest

from tests.serving.asking import about, data_url
from tests.serving.conftest import serving
from tests.serving.fake import FakeSession
from videollava_jax.engine.tickets import Moments
from videollava_jax.media.addresses import is_public
from videollava_jax.serving.settings import Settings

SECONDS = 30


@contextmanager
def served_by(session, processor, ready=True, reader=None, allowed_address=is_public, **changes):
    """A server of a fake session."""
    settings = Settings(**{"model": "tiny", "ping_seconds": 0.2, "drain_seconds": 5.0} | changes)
    with serving(session, processor, settings, reader, allowed_address=allowed_address) as made:
        if ready:
            until(lambda: status(made, "/health") == 200)
        yield made


def until(condition):
    ends = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < ends, "it did not become so"
        time.sleep(0.005)


def status(served, path):
    return request(served, "GET", path)[0]


def request(served, method, path, body=None, headers=()):
    """A request without a client's cleverness: its status, headers and body."""
    connection = http.client.HTTPConnection(urlsplit(served.url).netloc, timeout=SECONDS)
    try:
        raw = json.dumps(body) if isinstance(body, dict) else body
        connection.request(method, path, raw, dict(headers))
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def chat(served, **body):
    return request(served, "POST", "/v1/chat/completions", {"messages": about(None, "what?"), **body})


def posted(body):
    """The bytes of a request."""
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def in_thread(call):
    """Starts a call; returns what gives its value or raises its error."""
    found = []

    def run():
        try:
            found.append(call())
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()

    def join():
        thread.join(SECONDS)
        assert not thread.is_alive()
        return found[0]

    return join


def test_a_full_queue_is_429_before_media_are_looked_at(tiny_processor):
    session = FakeSession()
    with served_by(session, tiny_processor, max_queue=2) as served:
        waiting = [in_thread(lambda: chat(served)) for _ in range(2)]
        session.wait_for(2)
        code, headers, raw = chat(served, messages=about(data_url("rising-triangle.mp4"), "what?"))
        assert code == 429
        assert int(headers["Retry-After"]) >= 1
        assert json.loads(raw)["error"]["code"] == "queue_full"
        assert not list(served.server.media.spool._directory.iterdir())
        for ticket in session.tickets:
            ticket.answer("yes")
        assert [join()[0] for join in waiting] == [200, 200]
        until(lambda: served.server.lifecycle.open == 0)
        done = in_thread(lambda: chat(served))
        session.wait_for(3).answer("yes")
        assert done()[0] == 200


def test_answers_of_one_request_count_each(tiny_processor):
    session = FakeSession()
    with served_by(session, tiny_processor, max_queue=3) as served:
        assert chat(served, n=4)[0] == 429
        done = in_thread(lambda: chat(served, n=3, seed=7, temperature=1))
        for ticket in (session.wait_for(3), *session.tickets[:2]):
            ticket.answer(str(ticket.request.seed))
        choices = json.loads(done()[2])["choices"]
        assert [choice["message"]["content"] for choice in choices] == ["7", "8", "9"]
        assert [choice["index"] for choice in choices] == [0, 1, 2]


def test_the_official_client_tries_again_after_429(tiny_processor):
    session = FakeSession(max_requests=1)
    with served_by(session, tiny_processor) as served, served.client(max_retries=2) as client:
        first = in_thread(lambda: chat(served))
        holding = session.wait_for(1)
        ask = lambda: client.chat.completions.create(model="tiny", messages=about(None, "what?"))  # noqa: E731
        second = in_thread(ask)
        until(lambda: served.server.metrics.text().count(b'status="429"') > 0)
        session.answer_at_once = "later"
        holding.answer("first")
        assert second().choices[0].message.content == "later"
        assert first()[0] == 200


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_client_that_goes_is_cancelled(tiny_processor, stream):
    session = FakeSession()
    with served_by(session, tiny_processor) as served:
        body = json.dumps({"messages": about(data_url("rising-triangle.mp4"), "what?"), "stream": stream})
        host, port = urlsplit(served.url).netloc.split(":")
        with socket.create_connection((host, int(port))) as raw:
            raw.sendall(posted(body.encode()))
            ticket = session.wait_for(1)
            ticket.write("some")
            if stream:
                assert b"200 OK" in raw.recv(100)
        until(lambda: ticket.cancelled)
        until(lambda: served.server.lifecycle.open == 0)
        until(lambda: not list(served.server.media.spool._directory.iterdir()))
        assert b'finished_reason="abort"' in served.server.metrics.text()


def test_a_stream_without_text_has_comments_and_an_error_is_an_event(tiny_processor):
    session = FakeSession()
    with served_by(session, tiny_processor, ping_seconds=0.05) as served:
        done = in_thread(lambda: chat(served, stream=True))
        ticket = session.wait_for(1)
        time.sleep(0.2)
        ticket.fail("scores that are not finite", "not_finite")
        code, headers, raw = done()
        assert (code, headers["Content-Type"]) == (200, "text/event-stream; charset=utf-8")
        assert raw.count(b": ping\n\n") >= 2
        last = json.loads(raw.strip().split(b"data: ")[-1])
        assert last["error"]["code"] == "not_finite"
        assert b"[DONE]" not in raw


def test_the_official_client_reads_an_error_within_a_stream(tiny_processor):
    session = FakeSession()
    with served_by(session, tiny_processor) as served, served.client() as client:
        stream = client.chat.completions.create(model="tiny", messages=about(None, "what?"), stream=True)
        ticket = session.wait_for(1)
        ticket.write("a ")
        pieces = iter(stream)
        assert next(pieces).choices[0].delta.content in ("", "a ")
        ticket.fail("no", "closed")
        with pytest.raises(openai.APIError, match="going down"):
            list(pieces)


@pytest.mark.parametrize(
    ("cause", "code", "again"),
    [
        ("decode_failed", 400, None),
        ("worker_crashed", 400, None),
        ("worker_timeout", 400, None),
        ("too_long", 400, None),
        (None, 400, None),
        ("not_finite", 500, "false"),
        ("deadline", 504, "false"),
        ("closed", 503, None),
    ],
)
def test_the_status_of_an_error_says_whether_to_try_again(tiny_processor, cause, code, again):
    session = FakeSession()
    with served_by(session, tiny_processor) as served:
        done = in_thread(lambda: chat(served))
        session.wait_for(1).fail("/tmp/secret/x.mp4: av.error at 0x7f3210abcdef", cause)
        got, headers, raw = done()
        assert (got, headers["x-should-retry"]) == (code, again)
        assert (headers["Retry-After"] is not None) == (code == 503)
        assert b"secret" not in raw
        assert b"0x7f" not in raw


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_the_times_of_an_answer_are_those_of_its_ticket(tiny_processor, stream):
    session = FakeSession()
    with served_by(session, tiny_processor) as served:
        done = in_thread(lambda: chat(served, stream=stream))
        ticket = session.wait_for(1)
        began = ticket.moments.submitted
        ticket.moments = Moments(began, began + 2, began + 5, began + 11)
        ticket.answer("yes")
        assert done()[0] == 200
        until(lambda: served.server.lifecycle.open == 0)
        text = served.server.metrics.text().decode()
        for part, seconds in (("queue", 2), ("prefill", 3), ("decode", 6), ("inference", 9)):
            (sum_of,) = re.findall(rf"request_{part}_time_seconds_sum\{{.*?\}} (\S+)", text)
            assert float(sum_of) == pytest.approx(seconds, abs=1e-3)
        (first,) = re.findall(r"time_to_first_token_seconds_sum\{.*?\} (\S+)", text)
        assert 5 <= float(first) < 6


def test_starting_is_503_and_health_says_so(tiny_processor):
    session = FakeSession(warm=False)
    with served_by(session, tiny_processor, ready=False) as served:
        code, headers, raw = request(served, "GET", "/health")
        assert (code, headers["Retry-After"], json.loads(raw)) == (503, "5", {"status": "starting"})
        code, headers, raw = chat(served)
        assert (code, json.loads(raw)["error"]["code"]) == (503, "starting")
        assert int(headers["Retry-After"]) > 0
        session.warm.set()
        until(lambda: status(served, "/health") == 200)


def test_a_server_that_is_still_compiling_ends_at_once(tiny_processor):
    session = FakeSession(warm=False)
    began = time.monotonic()
    with served_by(session, tiny_processor, ready=False) as served:
        served.running.drain_soon()
        until(lambda: served.running.should_exit)
    assert time.monotonic() - began < 10
    session.warm.set()


def test_bytes_that_are_announced_and_do_not_come_take_nothing_from_others(tiny_processor):
    session = FakeSession()
    session.answer_at_once = "yes"
    with served_by(session, tiny_processor, max_body_bytes=10**6, max_bodies_bytes=10**6) as served:
        host, port = urlsplit(served.url).netloc.split(":")
        head = posted(b"x" * 900_000)[:-900_000]
        with socket.create_connection((host, int(port))) as slow:
            slow.sendall(head + b"x")
            until(lambda: served.server.lifecycle.body_bytes == 1)
            assert chat(served)[0] == 200
            slow.sendall(b"x" * 800_000)
            until(lambda: served.server.lifecycle.body_bytes == 800_001)
            code, _, raw = chat(served, messages=about(None, "y" * 300_000))
            assert (code, json.loads(raw)["error"]["code"]) == (429, "bodies_full")
        until(lambda: served.server.lifecycle.body_bytes == 0)


def test_draining_lets_open_requests_end_and_takes_no_more(tiny_processor):
    session = FakeSession()
    with served_by(session, tiny_processor) as served:
        done = in_thread(lambda: chat(served, stream=True))
        ticket = session.wait_for(1)
        served.running.drain_soon()
        until(lambda: status(served, "/health") == 503)
        assert json.loads(chat(served)[2])["error"]["code"] == "draining"
        ticket.write("the end")
        ticket.answer("the end")
        assert b"the end" in done()[2]
        until(lambda: served.running.should_exit)
        assert served.running.failed is None


def test_an_answer_without_max_tokens_is_cut_to_what_fits_the_model_and_others_are_refused(tiny_processor):
    session = FakeSession()
    session.answer_at_once = "yes"
    with served_by(session, tiny_processor, longest_answer=400) as served:
        for given in ({}, {"max_tokens": None}, {"max_tokens": 300}, {"max_completion_tokens": 300}):
            assert chat(served, **given)[0] == 200
    asked = [(ticket.request.max_new_tokens, ticket.request.cut_to_fit) for ticket in session.tickets]
    assert asked == [(400, True), (400, True), (300, False), (300, False)]


def test_what_is_left_after_the_drain_seconds_ends_with_an_error(tiny_processor):
    session = FakeSession()
    with served_by(session, tiny_processor, drain_seconds=0.2) as served:
        streamed, whole = in_thread(lambda: chat(served, stream=True)), in_thread(lambda: chat(served))
        session.wait_for(2)
        for ticket in session.tickets:
            ticket.write("a beginning")
        served.running.drain_soon()
        assert b'"code":"closed"' in streamed()[2]
        assert whole()[0] == 503
        until(lambda: served.running.should_exit)


def test_when_the_engine_dies_open_requests_end_and_the_server_too(tiny_processor):
    session = FakeSession()
    with served_by(session, tiny_processor) as served:
        streamed, whole = in_thread(lambda: chat(served, stream=True)), in_thread(lambda: chat(served))
        session.wait_for(2)
        for ticket in session.tickets:
            ticket.write("a beginning")
        session.die(RuntimeError("the device is lost"))
        assert asyncio.run(served.server.health(None)).status_code == 503
        assert b'"error"' in streamed()[2]
        assert whole()[0] == 503
        until(lambda: served.running.failed is not None)
        assert str(served.running.failed) == "the device is lost"


def test_a_signal_ends_a_server_whose_engine_hangs(tiny_processor, monkeypatch):
    session = FakeSession()
    session.hangs = True
    with served_by(session, tiny_processor, drain_seconds=0) as served:
        served.running.drain_soon()
        until(lambda: served.running.should_exit)
        assert isinstance(served.running.failed, TimeoutError)


def test_a_server_goes_on_when_nobody_reads_what_it_says(tiny_processor):
    """The program that started it has ended, and the pipe with it."""

    def closed(record):
        raise BrokenPipeError

    session = FakeSession()
    with served_by(session, tiny_processor, drain_seconds=0) as served:
        served.running._said = closed
        served.running.drain_soon()
        until(lambda: served.running.should_exit)
        assert served.running.failed is None


def test_an_engine_that_hangs_is_said_by_health_until_it_moves_again(tiny_processor):
    session = FakeSession()
    with served_by(session, tiny_processor, request_timeout=0.5, stuck_seconds=0.3) as served:
        time.sleep(1.2)
        assert status(served, "/health") == 200  # nobody has asked for anything
        began = time.monotonic()
        code = in_thread(lambda: chat(served))
        session.wait_for(1)
        until(lambda: status(served, "/health") == 503)
        assert time.monotonic() - began > 0.5
        assert json.loads(request(served, "GET", "/health")[2]) == {"status": "stuck"}
        assert json.loads(chat(served)[2])["error"]["code"] == "stuck"
        assert b'why="stuck"} 1.0' in served.server.metrics.text()
        session.steps += 1
        until(lambda: status(served, "/health") == 200)
        assert [record["state"] for record in served.said] == ["ready", "stuck", "ready"]
        session.tickets[0].fail("late", "deadline")
        assert code()[0] == 504


def test_an_engine_that_works_for_long_does_not_hang(tiny_processor):
    session = FakeSession()
    with served_by(session, tiny_processor, request_timeout=0.5, stuck_seconds=1.0) as served:
        done = in_thread(lambda: chat(served))
        ticket = session.wait_for(1)
        for _ in range(20):
            time.sleep(0.1)
            session.steps += 1
            assert status(served, "/health") == 200
        ticket.answer("at last")
        assert done()[0] == 200


def test_a_request_has_its_time_and_no_more(tiny_processor):
    session = FakeSession()
    with served_by(session, tiny_processor, request_timeout=7.0) as served:
        done = in_thread(lambda: chat(served))
        ticket = session.wait_for(1)
        assert 6 < ticket.timeout <= 7
        ticket.answer()
        assert done()[0] == 200


def test_many_clients_that_go_at_random_leave_nothing_behind(tiny_processor):
    """500 connections, each closed at some moment; what is left is counted."""
    import random

    session, draw = FakeSession(), random.Random(0)
    with served_by(session, tiny_processor, max_queue=40) as served:
        host, port = urlsplit(served.url).netloc.split(":")
        body = json.dumps({"messages": about(data_url("three-triangles.png"), "what?"), "stream": True}).encode()
        whole = posted(body)
        for _ in range(500):
            with socket.create_connection((host, int(port))) as raw:
                raw.sendall(whole[: draw.choice([1, 60, 1000, len(whole), len(whole), len(whole)])])
                time.sleep(draw.choice([0, 0, 0.002]))
            for ticket in list(session.open)[: draw.randrange(3)]:
                ticket.write("text")
        until(lambda: served.server.lifecycle.open == 0 and not session.open)
        until(lambda: served.server.lifecycle.body_bytes == 0)
        until(lambda: not list(served.server.media.spool._directory.iterdir()))
        session.answer_at_once = "still here"
        assert b"still here" in chat(served)[2]
