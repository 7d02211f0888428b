"""Child processes, forked from one server that has imported everything, so that their time is that of their work."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.faults.failing_calls import preloaded

_ROOT = Path(__file__).parents[2]
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.faults.preload"])


class Died(Exception):
    """A child ended without an answer: crashed in native code, was killed, or took too long.

    Attributes:
      outcome: "hang" if it took too long, "crash" otherwise, as a `Tally` counts it.
    """

    outcome = "crash"


class Late(Died):
    """A child took too long."""

    outcome = "hang"


ENDS = 20.0
"""Seconds that a child may take to end after its answer: a thread that it leaves may keep it."""


class Child:
    """A process that runs one function.

    Args:
      function: called in the child with `arguments`; of a module, so that it can be sent there. With `say`, its first
        argument is a function that sends messages before the result.
    """

    def __init__(self, function: Callable[..., Any], *arguments: Any, say: bool = False):
        # The server looks for this package where its path says, not where pytest was started.
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH", "")]))
        self._connection, theirs = _CONTEXT.Pipe()
        descriptor, self._errors = tempfile.mkstemp()
        os.close(descriptor)
        called = (theirs, self._errors, function, arguments, say)
        self._process = _CONTEXT.Process(target=_serve, args=called, daemon=True)
        with preloaded():
            self._process.start()
        theirs.close()
        if self.receive(120) != ("ready", None):
            raise Died("it did not start")

    def receive(self, seconds: float) -> tuple[str, Any]:
        """Waits for ("said", message), ("returned", result) or ("raised", its traceback)."""
        try:
            if self._connection.poll(seconds):
                answer: tuple[str, Any] = self._connection.recv()
                return answer
        except EOFError:
            self._process.join()
            raise self._died(f"it ended with status {self._process.exitcode}") from None
        self.kill()
        raise self._died(f"it did not answer within {seconds:g} s", Late)

    def result(self, seconds: float = 60) -> Any:
        """Returns what the function returns; raises Died, or a RuntimeError with the function's traceback.

        A child that has answered and does not end within `ENDS` is `Late` too.
        """
        kind, value = self.receive(seconds)
        self._process.join(ENDS)
        if self._process.exitcode is None:
            self.kill()
            raise self._died(f"it answered {str(value)[:300]} and did not end within {ENDS:g} s", Late)
        self.close()
        if kind != "returned":
            raise RuntimeError(value)
        return value

    @property
    def running(self) -> bool:
        """Whether it is still at work."""
        return self._process.is_alive()

    @property
    def pid(self) -> int:
        return int(self._process.pid or 0)

    def status(self, seconds: float) -> int:
        """Waits for it to end; returns its exit status, the number of the signal that ended it below zero.

        Raises:
          TimeoutError: it is still at work after that time.
        """
        self._process.join(seconds)
        if self._process.exitcode is None:
            raise TimeoutError(f"it did not end within {seconds:g} s")
        return int(self._process.exitcode)

    def close(self) -> None:
        """Frees the connection and the file of a child that has ended."""
        self._connection.close()
        Path(self._errors).unlink(missing_ok=True)

    def _died(self, how: str, kind: type[Died] = Died) -> Died:
        """Makes the error about a child that has ended, with the end of its standard error; frees its file."""
        last_words = Path(self._errors).read_text(errors="replace")[-500:]
        self.close()
        return kind(f"{how}: {last_words}")

    def kill(self) -> bool:
        """Ends it with SIGKILL; returns whether it was still at work."""
        self._process.kill()
        self._process.join()
        return bool(self._process.exitcode)


def messages(start: Callable[[], Child | None], seconds: float) -> Iterator[Any]:
    """Yields what children say, one child after another; `Died` for one that crashed in native code or hung.

    Args:
      start: starts a child that goes on where the last one ended; returns None when nothing is left to do.
      seconds: that a message may take.

    Raises:
      RuntimeError: a child raised an exception; with its traceback.
    """
    while (child := start()) is not None:
        try:
            while (answer := child.receive(seconds))[0] == "said":
                yield answer[1]
        except Died as died:
            yield died
            continue
        child.close()
        if answer[0] == "raised":
            raise RuntimeError(answer[1])


def run(function: Callable[..., Any], *arguments: Any, seconds: float = 60) -> Any:
    """Runs a function in a child; returns its result."""
    return Child(function, *arguments).result(seconds)


def command(*arguments: str) -> tuple[int, str]:
    """Runs the `videollava` command in this process; returns its exit status and its standard error."""
    from videollava_jax.cli import main

    with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.redirect_stdout(io.StringIO()):
        status = main(arguments)
    return status, said.getvalue()


def _serve(
    connection: Connection, errors: str, function: Callable[..., Any], arguments: tuple[Any, ...], say: bool
) -> None:
    warnings.simplefilter("ignore")
    # Orbax and TensorStore say much of damaged files: it is read where a child dies, and does not drown the table.
    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT), 2)
    connection.send(("ready", None))
    try:
        first = (lambda message: connection.send(("said", message)),) if say else ()
        connection.send(("returned", function(*first, *arguments)))
    except BaseException:
        connection.send(("raised", traceback.format_exc()))


def timed(function: Callable[..., Any], *arguments: Any) -> float:
    """Runs a function in a child; returns its seconds, without those of the child's start."""
    child = Child(function, *arguments)
    started = time.perf_counter()
    child.result()
    return time.perf_counter() - started
