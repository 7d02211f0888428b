"""`videollava serve` as a command: what it prints, its exit status, its signals. No model is computed."""

import json
import os
import signal
import socket
import sys
import threading
import time
import urllib.error
import urllib.request

import pytest

from tests.serving.fake import FakeSession
from videollava_jax.cli import main, serve
from videollava_jax.cli.errors import FAULT
from videollava_jax.serving.http_process import start
from videollava_jax.serving.metrics import MeasuredReader


class Reader:
    """Stands in for the worker processes."""

    closed = False

    def close(self):
        self.closed = True


@pytest.fixture
def session(monkeypatch):
    """A session of the test's for the command; `said` has the command's records."""
    made, reader = FakeSession(), Reader()
    made.said = []
    # The collector has to drop compiled programs of this process later on.
    monkeypatch.setattr(start, "freeze_objects", lambda: None)
    monkeypatch.setattr(serve, "_session", lambda *_: (reader, MeasuredReader(reader), made))
    for name in ("_say", "print_json"):
        monkeypatch.setattr(serve, name, _both(made.said.append, getattr(serve, name)))
    yield made
    assert reader.closed
    assert made.closed


def _both(first, second):
    def call(record):
        second(record)
        first(record)

    return call


def while_it_serves(session, call):
    """Calls a function with the server's URL, in a thread, when the server is ready."""

    def run():
        ends = time.monotonic() + 20
        while len(session.said) < 2 and time.monotonic() < ends:
            time.sleep(0.01)
        if len(session.said) >= 2:
            call(session.said[0]["url"])

    thread = threading.Thread(target=run)
    thread.start()
    return thread


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_success(session, capsys, by):
    def call(url):
        assert json.loads(urllib.request.urlopen(f"{url}/v1/models").read())["data"][0]["id"] == "tiny"
        os.kill(os.getpid(), by)

    thread = while_it_serves(session, call)
    assert main(["serve", "--port", "0"]) == 0
    thread.join()
    out, err = capsys.readouterr()
    assert "going down: waiting for 0 requests, 25 s at most\nended\n" in out
    assert err == ""
    assert "serves tiny; its programs are being compiled\nready after " in out


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (MemoryError("lower --max-rows"), 1, "not enough memory: lower --max-rows"),
        (RuntimeError("the device is lost"), FAULT, "the device is lost"),
    ],
)
def test_when_the_engine_stops_it_ends_with_an_error(session, capsys, error, status, said):
    thread = while_it_serves(session, lambda url: session.die(error))
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--port", "0", "--api-key", "s3cret"])
    thread.join()
    assert ended.value.code == status
    err = capsys.readouterr().err
    assert err.startswith("videollava: the engine has stopped\nvideollava: ")
    assert said in err
    assert "s3cret" not in err


def test_what_does_not_compile_is_an_error_too(session, capsys, monkeypatch):
    monkeypatch.setattr(session, "warm_up", lambda: (_ for _ in ()).throw(MemoryError("lower --memory")))
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--port", "0"])
    assert ended.value.code == 1
    assert "not enough memory: lower --memory" in capsys.readouterr().err


def test_the_page_is_opened_when_requests_are_taken(session, capsys, monkeypatch):
    opened = []

    def open_page(url):
        opened.append((url, urllib.request.urlopen(f"{url}/health").status))
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("webbrowser.open", open_page)
    assert main(["serve", "--port", "0", "--open", "--host", "0.0.0.0"]) == 0
    ((url, status),) = opened
    assert url.startswith("http://127.0.0.1:")
    assert status == 200


def test_each_step_is_an_object_with_json(session, capsys):
    thread = while_it_serves(session, lambda url: os.kill(os.getpid(), signal.SIGTERM))
    assert main(["serve", "--port", "0", "--json", "--served-model-name", "mine"]) == 0
    thread.join()
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["state"] for record in records] == ["starting", "ready", "draining", "ended"]
    assert records[0]["model"] == "mine"


def test_a_port_in_use_is_one_line(capsys):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert main(["serve", "--port", str(port)]) == 1
    said = f"videollava: port {port} is in use: choose another with --port, or end what uses it\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "nothing/here/at/all"], "no such directory"),
        (["--host", "host.invalid"], "--host host.invalid: expected an address of this machine"),
        (["--host", "192.0.2.1"], "--host 192.0.2.1: expected an address of this machine"),
        (["--longest-question", "500"], "leave none for an answer"),
        (["--longest-answer", "512"], "--longest-answer 512: expected less than the model's 512 positions"),
        (["--memory", "1KiB"], "there are 0 MiB for them"),
        (["--media-root", "nowhere"], "expected a directory"),
    ],
)
def test_what_cannot_be_served_is_one_line(capsys, arguments, said):
    assert main(["serve", "--port", "0", *arguments]) == 1
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


def test_an_extra_that_is_missing_is_one_line(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve"]) == 1
    assert capsys.readouterr().err == (
        "videollava: serving needs uvicorn: pip install -e '.[serve]', in this project's directory\n"
    )


def test_the_key_comes_from_the_environment_too(session, capsys, monkeypatch):
    monkeypatch.setenv(serve.KEY, "s3cret")
    statuses = []

    def call(url):
        for headers in ({}, {"Authorization": "Bearer s3cret"}):
            try:
                answered = urllib.request.urlopen(urllib.request.Request(f"{url}/v1/models", headers=headers))
                statuses.append(answered.status)
            except urllib.error.HTTPError as error:
                statuses.append(error.code)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = while_it_serves(session, call)
    assert main(["serve", "--port", "0"]) == 0
    thread.join()
    assert statuses == [401, 200]
