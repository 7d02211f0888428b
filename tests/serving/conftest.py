"""A server of the tiny model on a real socket, shared by all tests of this folder, and the official client for it."""

import asyncio
import contextlib
import socket
import threading
import time
from dataclasses import dataclass
from typing import Any

import openai
import pytest

from videollava_jax.assets import MEDIA
from videollava_jax.batch.media.isolation import IsolatedReader, WorkerLimits
from videollava_jax.engine import Engine
from videollava_jax.serving.app import create_app
from videollava_jax.serving.http_process.channel import Channel
from videollava_jax.serving.http_process.engine_side import EngineSide
from videollava_jax.serving.http_process.remote_session import RemoteSession
from videollava_jax.serving.listening import listen
from videollava_jax.serving.metrics import MeasuredReader
from videollava_jax.serving.run import Running
from videollava_jax.serving.settings import Settings

SECONDS = 120
LONGEST_ANSWER = 32


@dataclass
class Served:
    """A server that runs in a thread."""

    url: str
    running: Running
    server: Any
    said: list[dict[str, Any]]

    def client(self, **options: Any) -> openai.OpenAI:
        """The official client."""
        return openai.OpenAI(
            **{"base_url": f"{self.url}/v1", "api_key": "none", "max_retries": 0, "timeout": SECONDS} | options
        )

    def wait_until_idle(self) -> None:
        """Waits until nobody asks for anything."""
        ends = time.monotonic() + SECONDS
        while (self.server.lifecycle.open or self.server.session.unanswered) and time.monotonic() < ends:
            time.sleep(0.01)
        assert self.server.lifecycle.open == 0
        assert self.server.session.unanswered == 0


@contextlib.contextmanager
def serving(session, processor, settings, reader=None, **options):
    """Serves a session on a free port while the context lasts; options as in `create_app`."""
    app = create_app(session, processor, settings, reader=reader, **options)
    said: list[dict[str, Any]] = []
    running = Running(app, session, settings, said.append)
    with listen("127.0.0.1", 0) as bound:
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        thread = threading.Thread(target=lambda: asyncio.run(running.serve([bound])), name="server")
        thread.start()
        try:
            while not running.started and thread.is_alive():
                time.sleep(0.005)
            yield Served(url, running, app.server, said)
        finally:
            running.should_exit = True
            thread.join(SECONDS)
            assert not thread.is_alive()


@pytest.fixture(scope="session")
def reader(tiny_processor):
    """Worker processes that read media."""
    made = IsolatedReader(tiny_processor, WorkerLimits(seconds=30))
    yield made
    made.close()


@pytest.fixture(scope="session")
def settings(tmp_path_factory):
    """Of the shared server: the bundled media are in its root."""
    return Settings(
        model="tiny", media_root=MEDIA, max_frames=8, longest_answer=LONGEST_ANSWER, max_tokens=512, max_queue=64
    )


@contextlib.contextmanager
def apart(session, reader):
    """What the process of HTTP has of a session, with the messages of the two processes, in this one."""
    ours, theirs = (Channel(each) for each in socket.socketpair())
    side = EngineSide(ours, session, lambda record: None)
    reader.observe = side.medium_read
    thread = threading.Thread(target=side.serve, name="messages")
    thread.start()
    try:
        yield RemoteSession(theirs, session.shape)
    finally:
        theirs.close()
        thread.join(SECONDS)
        ours.close()
        session.close(0)
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def served(tiny_model, tiny_processor, reader, settings):
    """The shared server, ready. Its sizes are those of tests/engine/test_session.py: the same programs are compiled."""
    measured = MeasuredReader(reader)
    engine = Engine(tiny_model, tiny_processor, max_rows=8, reader=measured)
    session = engine.session(rows=4, longest_answer=LONGEST_ANSWER)
    with apart(session, measured) as remote, serving(remote, tiny_processor, settings, MeasuredReader(reader)) as made:
        ends = time.monotonic() + 300
        while not any(record["state"] == "ready" for record in made.said) and time.monotonic() < ends:
            time.sleep(0.05)
        yield made


@pytest.fixture(scope="session")
def client(served):
    """The official client of the shared server."""
    with served.client() as made:
        yield made
