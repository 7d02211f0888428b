"""The watch of a run's processes over each other, with processes of a moment that only watch."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.faults.children import Child
from videollava_jax.training.run import peers
from videollava_jax.training.run.guards import STALLED
from videollava_jax.training.run.peers import Peers

SILENCE = 4.0


class Files:
    """Keys and values in files, for what JAX's coordinator keeps."""

    def __init__(self, place: Path):
        self.file = place / "store"

    def key_value_set(self, key: str, value: str) -> None:
        new = self.file.with_suffix(".new")
        new.write_text(value)
        new.rename(self.file)

    def blocking_key_value_get(self, key: str, timeout_in_ms: int) -> str:
        while not self.file.exists():
            time.sleep(0.02)
        return self.file.read_text()


def watch(say: Callable[[str], None], place: Path, index: int) -> None:
    """Watches the other processes until a file says how to end."""
    os.dup2(os.open(place / f"said-{index}", os.O_WRONLY | os.O_CREAT), 2)
    sys.stderr = os.fdopen(2, "w")
    with Peers(index, 3, Files(place), "localhost", "Go on so.", SILENCE) as watching:
        say("here")
        while not (place / f"end-{index}").exists():
            time.sleep(0.02)
        if (place / f"end-{index}").read_text() == "fail":
            watching.fail()
            time.sleep(0.2)
            print("process 0 fails", file=sys.stderr, flush=True)
            os._exit(3)
    sys.stderr.flush()
    os._exit(0)


class Run:
    """Three processes that watch each other until each is asked to end."""

    def __init__(self, place: Path):
        self.place = place
        self.children = [Child(watch, place, i, say=True) for i in range(3)]
        for child in self.children:
            assert child.receive(60) == ("said", "here")
        time.sleep(0.3)  # until the first one has let the others in

    def signal(self, i: int, number: int) -> None:
        os.kill(self.children[i].pid, number)

    def end(self, i: int, how: str = "well") -> tuple[int, str]:
        """Asks a process to end; returns its status and what it has said."""
        (self.place / "new").write_text(how)
        (self.place / "new").rename(self.place / f"end-{i}")
        return self.ended(i)

    def ended(self, i: int) -> tuple[int, str]:
        """Waits for a process to end; returns its status and what it has said."""
        return self.children[i].status(60), (self.place / f"said-{i}").read_text()

    def close(self) -> None:
        for child in self.children:
            child.kill()
            child.close()


@pytest.fixture
def run(tmp_path):
    found = Run(tmp_path)
    yield found
    found.close()


def test_processes_that_are_done_end_one_after_the_other(run):
    for i in (0, 2, 1):
        assert run.end(i) == (0, "")
        time.sleep(0.5)


@pytest.mark.parametrize("lost", [0, 1])
def test_a_process_that_is_killed_ends_the_others_at_once(run, lost):
    run.signal(lost, signal.SIGKILL)
    began = time.monotonic()
    for i in {0, 1, 2} - {lost}:
        status, said = run.ended(i)
        assert (status, said.count("\n")) == (1, 1)
        assert f"process {i} of 3 ends: process {lost} has ended without a word. If another" in said
        assert said.endswith("Go on so.\n")
    assert time.monotonic() - began < 30  # it takes 3 s, on a machine that is not busy


@pytest.mark.parametrize("stopped", [0, 2])
def test_a_process_that_is_stopped_ends_the_others_by_its_name(run, stopped):
    run.signal(stopped, signal.SIGSTOP)
    for i in {0, 1, 2} - {stopped}:
        status, said = run.ended(i)
        assert status == STALLED
        assert f"process {i} of 3 ends: process {stopped} has not answered for" in said
    run.signal(stopped, signal.SIGCONT)
    assert run.ended(stopped)[0] in (1, STALLED)


@pytest.mark.parametrize("stopped", [0, 1])
def test_a_process_that_is_stopped_for_a_moment_changes_nothing(run, stopped):
    run.signal(stopped, signal.SIGSTOP)
    time.sleep(SILENCE / 2)
    run.signal(stopped, signal.SIGCONT)
    time.sleep(SILENCE / 2)
    assert [run.end(i) for i in range(3)] == [(0, "")] * 3


def test_time_in_which_all_are_stopped_is_no_silence(run):
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for i in range(3):
            run.signal(i, number)
        time.sleep(2 * SILENCE if number == signal.SIGSTOP else 1)
    assert [run.end(i) for i in range(3)] == [(0, "")] * 3


def test_a_process_that_fails_has_its_own_words_and_the_others_name_it(run):
    assert run.end(0, "fail") == (3, "process 0 fails\n")
    for i in (1, 2):
        status, said = run.ended(i)
        assert status == 1
        assert "process 0 ends by an error" in said


def test_strangers_are_not_let_in(run):
    port, _ = (run.place / "store").read_text().split()
    for said in (b"x 1\n", b"", b"\0" * 10_000):
        with socket.create_connection(("localhost", int(port)), timeout=30) as stranger, suppress(OSError):
            stranger.sendall(said)
            stranger.shutdown(socket.SHUT_WR)
            while stranger.recv(100):  # until it is closed
                pass
    assert [run.end(i) for i in range(3)] == [(0, "")] * 3


def test_a_door_that_cannot_be_reached_is_said(monkeypatch, capsys):
    class Store:
        def blocking_key_value_get(self, key: str, timeout_in_ms: int) -> str:
            return "1 secret"

        def key_value_set(self, key: str, value: str) -> None:
            raise AssertionError

    with Peers(1, 2, Store(), "127.0.0.1", "", leave=os._exit):
        pass
    said = capsys.readouterr().err
    assert "process 1 of 2 cannot connect to port 1 of 127.0.0.1" in said
    assert peers.SILENCE + 20 < peers.HEARTBEAT / 2
