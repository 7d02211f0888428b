"""The two processes of the server: what one asks of the other, and what happens when one of them ends or hangs."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest

from tests.faults.serving import http_of
from tests.serving.channels import channels
from tests.serving.fake import FakeSession
from videollava_jax.engine.request import Request
from videollava_jax.engine.tickets import QueueFull, SessionClosed
from videollava_jax.engine.usage import Usage
from videollava_jax.serving.http_process.engine_side import EngineSide
from videollava_jax.serving.http_process.messages import (
    Drain,
    GiveUp,
    News,
)
from videollava_jax.serving.http_process.remote_session import RemoteSession

SECONDS = 60


def until(holds):
    """Waits until something holds."""
    ends = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < ends
        time.sleep(0.005)


# ── both ends with a session that the test drives ──


@pytest.fixture
def session():
    """A session of the test's."""
    return FakeSession()


@pytest.fixture
def remote(session):
    """What the process of HTTP has of it."""
    with channels() as (one, other):
        side = EngineSide(one, session, lambda record: None)
        serving = threading.Thread(target=side.serve)
        serving.start()
        made = RemoteSession(other, session.shape)
        made.side = side
        yield made
        other.close()
        serving.join(SECONDS)
        assert not serving.is_alive()


def ask(text="what?"):
    """A request."""
    return Request(id="mine", prompt=text)


def test_an_answer_comes_in_pieces_and_whole(session, remote):
    pieces, logprobs, ended = [], [], []
    ticket = remote.submit(ask("why?"), on_text=pieces.append, on_tokens=logprobs.append, timeout=7.5)
    ticket.add_done_callback(ended.append)
    theirs = session.wait_for(1)
    assert theirs.request == ask("why?")
    assert theirs.timeout == 7.5
    assert remote.unanswered == 1
    theirs.write("u")
    theirs.write("p")
    theirs.answer("up", prompt_tokens=12)
    assert ticket.result(SECONDS).text == "up"
    assert ticket.result(0).prompt_tokens == 12
    assert pieces == ["u", "p"]
    until(lambda: ended == [ticket])
    assert ticket.moments.submitted == theirs.moments.submitted
    assert remote.unanswered == 0


def test_what_cannot_be_sent_is_refused(session, remote):
    nested = []
    for _ in range(2000):
        nested = [nested]
    for value in (nested, {"thread": threading.Thread()}):
        refused = remote.submit(Request(id="", conversation=[{"role": "user", "content": value}])).result(SECONDS)
        assert refused.error.startswith("the request holds what no request may hold")
        assert remote.score(Request(id="", prompt="?", options={"a": value})).result(SECONDS).error
    assert remote.unanswered == 0
    assert not session.tickets


def test_scores_come(remote):
    found = remote.score(Request(id="", prompt="what?", choices=["a", "b"])).result(SECONDS)
    assert found.log_likelihoods == (-1.0, -1.0)


def test_what_one_call_of_the_device_gives_comes_together(session, remote):
    """The engine's thread says when it has said everything; the other process is woken once."""
    come, woken = [], []
    tickets = [remote.submit(ask(), on_text=come.append) for _ in range(3)]
    session.wait_for(3)
    remote.after_callbacks = lambda: woken.append(list(come))

    def engine():
        session.after_callbacks()  # so that it knows which thread that is
        for each in session.tickets:
            each.write("a")
            each.answer("a")
        assert come == []
        session.after_callbacks()

    thread = threading.Thread(target=engine)
    thread.start()
    thread.join()
    for ticket in tickets:
        ticket.result(SECONDS)
    until(lambda: woken and woken[-1] == ["a", "a", "a"])
    assert not any(0 < len(each) < 3 for each in woken)


def test_a_request_is_given_up(session, remote):
    ticket = remote.submit(ask())
    theirs = session.wait_for(1)
    ticket.cancel()
    assert ticket.result(SECONDS).cause == "cancelled"
    assert theirs.cancelled
    ticket.cancel()


def test_a_prefix_is_kept_until_it_is_released(session, remote):
    pin = remote.pin(ask())
    until(lambda: session.pins)
    pin.release()
    until(lambda: not session.pins)
    pin.release()


def test_a_full_engine_is_said(session, remote):
    session.max_requests = 1
    first = remote.submit(ask())
    with pytest.raises(QueueFull):
        remote.submit(ask()).result(SECONDS)
    session.wait_for(1).answer()
    assert first.result(SECONDS).text == "done"


def test_a_fault_in_one_request_is_its_own(session, remote, monkeypatch):
    real = session.submit

    def submit(request, **options):
        if request.prompt == "fault":
            raise KeyError("fault")
        return real(request, **options)

    monkeypatch.setattr(session, "submit", submit)
    with pytest.raises(RuntimeError, match="KeyError"):
        remote.submit(ask("fault")).result(SECONDS)
    ticket = remote.submit(ask())
    session.wait_for(1).answer()
    assert ticket.result(SECONDS).text == "done"


def test_a_server_that_can_take_no_more_messages_says_so(session, remote, capsys):
    def fault(text):
        raise KeyError("fault")

    ticket = remote.submit(ask(), on_text=fault)
    session.wait_for(1).write("a")
    with pytest.raises(SessionClosed):
        ticket.result(SECONDS)
    assert remote.error is not None
    assert "KeyError" in capsys.readouterr().err


def test_counts_come_without_an_answer(session, remote):
    remote.submit(ask())
    until(lambda: remote.usage.running == 1)
    session.steps = 5
    until(lambda: remote.steps == 5)


def test_all_programs_are_compiled_there(session, remote):
    session.warm.clear()
    compiled = threading.Thread(target=remote.warm_up)
    compiled.start()
    assert compiled.is_alive()
    session.warm.set()
    compiled.join(SECONDS)
    assert not compiled.is_alive()


def test_an_error_of_the_compiler_is_said(session, remote, monkeypatch):
    error = MemoryError("lower --memory")
    monkeypatch.setattr(session, "warm_up", lambda: (_ for _ in ()).throw(error))
    with pytest.raises(RuntimeError, match="lower --memory"):
        remote.warm_up()
    assert remote.side.error is error


def test_the_end_of_the_engines_thread_is_the_end_of_all_requests(session, remote):
    ticket = remote.submit(ask())
    session.wait_for(1)
    session.die(RuntimeError("the device is lost"))
    with pytest.raises(SessionClosed):
        ticket.result(SECONDS)
    until(lambda: remote.error is not None)
    assert "the device is lost" in str(remote.error)
    with pytest.raises(SessionClosed):
        remote.submit(ask())
    assert isinstance(remote.side.error, RuntimeError)


def test_closing_ends_what_is_open(session, remote):
    ticket = remote.submit(ask())
    session.wait_for(1)
    remote.close(0, 5)
    assert ticket.result(SECONDS).cause == "closed"
    assert session.closed
    assert remote.side.closed
    assert remote.error is None
    with pytest.raises(SessionClosed):
        remote.submit(ask())


def test_an_engine_that_cannot_be_closed_is_said(session, remote):
    session.hangs = True
    with pytest.raises(TimeoutError, match="a call of the device has not returned within 5 s"):
        remote.close(0, 5)
    assert isinstance(remote.side.error, TimeoutError)


def test_the_end_of_the_engines_process_is_the_end_of_all_requests(session):
    with channels() as (one, other):
        remote = RemoteSession(other, session.shape)
        ticket = remote.submit(ask())
        one.close()
        with pytest.raises(SessionClosed, match="the engine's process has ended"):
            ticket.result(SECONDS)
        with pytest.raises(RuntimeError, match="the engine's process has ended"):
            remote.warm_up()
        assert remote.error is not None
        remote.close(0, 1)


def test_a_signal_that_came_before_is_passed_on(session):
    with channels() as (one, other):
        remote = RemoteSession(other, session.shape)
        one.send(Drain())
        until(lambda: remote._signals)
        drained = []
        remote.on_drain(lambda: drained.append(1))
        one.send(Drain())
        until(lambda: len(drained) == 2)


@pytest.mark.parametrize("message", [News([], Usage(), 0), GiveUp(99)])
def test_messages_for_the_other_end_and_of_unknown_requests(session, message):
    with channels() as (one, other):
        other.send(message)
        side = EngineSide(one, session, lambda record: None)
        if isinstance(message, News):
            with pytest.raises(ValueError, match="News is no message for the engine"):
                side.serve()
        else:
            other.close()
            side.serve()


# ── the processes of the command ──

COMMAND = "import sys; from videollava_jax.cli import main; sys.exit(main())"
FLAGS = [
    "serve",
    "--port",
    "0",
    "--json",
    "--rows",
    "2",
    "--max-rows",
    "2",
    "--longest-answer",
    "16",
    "--memory",
    "64MiB",
]


@dataclasses.dataclass
class Command:
    """A server that runs."""

    process: subprocess.Popen
    url: str
    http: int

    def health(self):
        """What /health answers."""
        with urllib.request.urlopen(f"{self.url}/health", timeout=SECONDS) as answer:
            return json.loads(answer.read())


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """Starts a server; what is left of it is killed in the end."""
    left = []

    def start(place):
        process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, *FLAGS],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": str(place)},
        )
        left.append(process)
        url = json.loads(process.stdout.readline())["url"]
        assert json.loads(process.stdout.readline())["state"] == "ready"
        return Command(process, url, http_of(process.pid))

    yield start
    for process in left:
        process.kill()
        process.communicate()


def gone(pid):
    """Whether a process has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def test_a_command_whose_process_of_http_is_killed_ends_with_an_error(started, tmp_path):
    command = started(tmp_path)
    assert command.health() == {"status": "ready"}
    assert b"jax" not in Path(f"/proc/{command.http}/maps").read_bytes()
    os.kill(command.http, signal.SIGKILL)
    _, err = command.process.communicate(timeout=SECONDS)
    assert command.process.returncode == 1
    assert err.splitlines()[-1] == "videollava: the process that answers HTTP has ended (killed by SIGKILL)"


def test_the_process_of_http_ends_with_the_command(started, tmp_path):
    command = started(tmp_path)
    os.kill(command.http, signal.SIGTERM)  # a manager of services may send it to all processes
    os.kill(command.http, signal.SIGINT)
    assert command.health() == {"status": "ready"}
    command.process.kill()
    until(lambda: gone(command.http))
    assert not list(tmp_path.glob("videollava-serve-*"))


def test_a_process_of_http_that_is_stopped_is_killed_when_its_time_is_over(started, tmp_path, monkeypatch):
    """SIGTERM gives it the seconds to drain and some more; here the test does not wait for them."""
    command = started(tmp_path)
    os.kill(command.http, signal.SIGSTOP)
    command.process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert command.process.poll() is None
    os.kill(command.http, signal.SIGCONT)
    out, _ = command.process.communicate(timeout=SECONDS)
    assert command.process.returncode == 0
    assert [json.loads(line)["state"] for line in out.splitlines()] == ["draining", "ended"]
