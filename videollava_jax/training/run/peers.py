"""Watches the other processes of a run: one that ends or stops answering ends the others too, with a message.

Without it a process whose peer was killed may wait in a collective until JAX misses its heartbeats and
aborts it without saying which process was lost.
"""

from __future__ import annotations

import secrets
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from videollava_jax.training.run.guards import STALLED, leave

SILENCE = 60.0
"""Seconds without a word after which a process counts as stopped."""
HEARTBEAT = 180
"""Seconds after which JAX aborts a process, without a name, where this watch does not end it.

It sends a heartbeat in every half of them, so it may miss one after half of the time already.
"""
GRACE = 1.5
"""Seconds that a process has to say itself why it ends, when another has ended: often both fail by one error."""
_ALIVE, _DONE, _FAILED, _LOST = b"alive", b"done", b"failed", b"lost"
_LONGEST_LINE = 200
_ADDRESS = "videollava_jax/peers"


class Store(Protocol):
    """Keys and values that all processes of a run see: JAX's client of its coordinator."""

    def key_value_set(self, key: str, value: str) -> None:
        """Sets a key that is not set."""

    def blocking_key_value_get(self, key: str, timeout_in_ms: int) -> str:
        """Waits for a key to be set; returns its value."""


@dataclass
class _Line:
    """A connection to another process.

    Attributes:
      index: of the process.
      connection: never waited for.
      held: bytes of a line that has not come whole.
      silent: seconds since its last word.
      done: whether it has said that its run is done.
    """

    index: int
    connection: socket.socket
    held: bytes = b""
    silent: float = 0.0
    done: bool = False

    def say(self, word: bytes) -> None:
        """Sends a line, or nothing where the connection is closed or full."""
        try:
            self.connection.send(word + b"\n")
        except OSError:
            return

    def words(self) -> list[bytes] | None:
        """Returns the lines that have come; None if the connection is closed."""
        try:
            got = self.connection.recv(4096)
        except BlockingIOError:
            return []
        except OSError:
            return None
        if not got or len(self.held) > _LONGEST_LINE:
            return None
        self.silent = 0.0
        *whole, self.held = (self.held + got).split(b"\n")
        return whole


class Peers:
    """A context in which a process of a run ends when another one has ended, or has not answered for too long.

    Each process has a connection to the first one, over which both say every tick that they are there. The kernel
    closes the connections of a process that ends in any way, so the others know at once. The first one passes on which
    process was lost. Time is counted in ticks and no clock is read: what passes while this process is stopped is no
    silence of the others.

    Args:
      index: of this process.
      count: how many processes the run has.
      store: where the first process says how it is reached.
      host: of the first process.
      going_on: the last sentence of the message: how to go on.
      silence: seconds.
      leave: ends the process with a status.
    """

    def __init__(
        self,
        index: int,
        count: int,
        store: Store,
        host: str,
        going_on: str,
        silence: float = SILENCE,
        leave: Callable[[int], object] = leave,
    ):
        self._index, self._count, self._store, self._host = index, count, store, host
        self._going_on, self._silence, self._leave = going_on, silence, leave
        self._lines: dict[int, _Line] = {}
        self._over = threading.Event()
        self._failed = False
        self._tick = min(1.0, silence / 4)
        self._selector = selectors.DefaultSelector()
        self._wake, self._waker = socket.socketpair()
        self._thread = threading.Thread(target=self._watch, name="peers", daemon=True)

    def __enter__(self) -> Peers:
        self._selector.register(self._wake, selectors.EVENT_READ, None)
        if self._index == 0:
            self._listen()
        else:
            self._join()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Says that this process is done and no longer to be waited for."""
        self._over.set()
        self._waker.send(b".")
        self._thread.join()
        for line in self._lines.values():
            line.say(_DONE)
            line.connection.close()
        if self._index == 0:
            self._listener.close()
        self._selector.close()
        self._wake.close()
        self._waker.close()

    def fail(self) -> None:
        """Tells the others that this process is about to end by an error, and lets them end by themselves."""
        self._failed = True
        for line in list(self._lines.values()):
            line.say(_FAILED)

    def silent(self) -> str:
        """Names the processes that have not answered for some ticks, for a message; "" if there are none."""
        late = [line for line in list(self._lines.values()) if not line.done and line.silent >= 3 * self._tick]
        return "; ".join(f"process {line.index} has not answered for {line.silent:.0f} s" for line in late)

    def _listen(self) -> None:
        """Opens the first process's door, and says to all where it is."""
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        self._listener = socket.create_server(("", 0), family=family, backlog=self._count, dualstack_ipv6=both)
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ, None)
        self._secret = secrets.token_hex(16)
        self._store.key_value_set(_ADDRESS, f"{self._listener.getsockname()[1]} {self._secret}")

    def _join(self) -> None:
        """Connects to the first process."""
        port, secret = self._store.blocking_key_value_get(_ADDRESS, 120_000).split()
        try:
            connection = socket.create_connection((self._host, int(port)), timeout=20)
        except OSError as error:
            print(
                f"process {self._index} of {self._count} cannot connect to port {port} of {self._host} ({error}), over "
                "which processes notice at once that another one has ended: only JAX's heartbeats will tell",
                file=sys.stderr,
                flush=True,
            )
            return
        connection.sendall(f"{secret} {self._index}\n".encode())
        self._add(_Line(0, connection))

    def _add(self, line: _Line) -> None:
        line.connection.setblocking(False)
        self._lines[line.index] = line
        self._selector.register(line.connection, selectors.EVENT_READ, line)

    def _admit(self) -> None:
        """Takes a connection whose first line has the run's secret, in time; closes others."""
        try:
            connection, _ = self._listener.accept()
            connection.settimeout(1.0)
            said = connection.recv(_LONGEST_LINE).split()
        except OSError:
            return
        if len(said) > 1 and secrets.compare_digest(said[0], self._secret.encode()) and said[1].isdigit():
            self._add(_Line(int(said[1]), connection))
        else:
            connection.close()

    def _watch(self) -> None:
        """Reads what the others say and says each tick that this process is there, until the end of the context."""
        next_tick = time.monotonic() + self._tick
        while not self._over.is_set():
            for key, _ in self._selector.select(max(0.0, next_tick - time.monotonic())):
                if isinstance(key.data, _Line):
                    self._read(key.data)
                elif key.fileobj is not self._wake:
                    self._admit()
            if time.monotonic() < next_tick:
                continue
            next_tick = time.monotonic() + self._tick
            for line in self._lines.values():
                line.say(_ALIVE)
                line.silent += self._tick
                if line.silent > self._silence and not line.done:
                    self._end(f"process {line.index} has not answered for {line.silent:.0f} s: stopped, or its host is "
                              "out of reach", STALLED)  # fmt: skip

    def _read(self, line: _Line) -> None:
        words = line.words()
        for word in words or ():
            if word == _DONE:
                line.done = True
            elif word == _FAILED:
                self._end(f"process {line.index} ends by an error", 1)
            elif word.startswith(_LOST):
                status, _, how = word.removeprefix(_LOST).decode(errors="replace").strip().partition(" ")
                self._end(how, int(status))
        if words is None:
            self._selector.unregister(line.connection)
            if not line.done:
                # JAX aborts this process a moment after the first one, with the coordinator, has ended.
                self._end(f"process {line.index} has ended without a word", 1, grace=0.0 if line.index == 0 else GRACE)

    def _end(self, how: str, status: int, grace: float = GRACE) -> None:
        """Passes on which process was lost and how, and ends this one, unless it ends by itself in good order."""
        for line in self._lines.values():
            line.say(_LOST + f" {status} {how}".encode())
        if self._over.wait(grace) or self._failed:
            self._over.set()
            return
        print(
            f"process {self._index} of {self._count} ends: {how}. If another one ended before it, or does not answer, "
            f"that one's output says why. {self._going_on}",
            file=sys.stderr,
            flush=True,
        )
        if self._index == 0:
            time.sleep(GRACE)  # the coordinator ends with this process, and JAX then aborts the others
        self._leave(status)
        self._over.set()
