"""A few of the connections and bodies of `tests.faults.serving`, on the socket of the tests' server."""

import json
import random
import socket

from tests.faults.serving import bad_body, drop
from tests.serving.fake import FakeSession
from tests.serving.test_scheduling import chat, request, served_by, until


class Address:
    """Where a server in this process listens."""

    def __init__(self, url):
        self.host, port = url.removeprefix("http://").split(":")
        self.port = int(port)


def test_odd_bodies_are_never_a_fault_of_the_server(tiny_processor):
    session, rng = FakeSession(), random.Random(0)
    session.answer_at_once = "yes"
    with served_by(session, tiny_processor) as served:
        for _ in range(300):
            body = bad_body(rng)
            code, _, raw = request(served, "POST", "/v1/chat/completions", body)
            assert code < 500, (raw, body[:2000])
            assert code == 200 or json.loads(raw)["error"]["message"]
        until(lambda: served.server.lifecycle.open == 0)
        assert not list(served.server.media.spool._directory.iterdir())


def test_connections_that_are_dropped_leave_nothing(tiny_processor):
    session, rng = FakeSession(), random.Random(1)
    with served_by(session, tiny_processor, max_queue=40, ping_seconds=0.05) as served:
        address = Address(served.url)
        for _ in range(150):
            drop(address, rng)
        until(lambda: served.server.lifecycle.open == 0 and not session.open)
        until(lambda: served.server.lifecycle.body_bytes == 0)
        until(lambda: not list(served.server.media.spool._directory.iterdir()))
        session.answer_at_once = "still here"
        assert chat(served)[0] == 200
        with socket.create_connection((address.host, address.port)):
            assert request(served, "GET", "/health")[0] == 200
