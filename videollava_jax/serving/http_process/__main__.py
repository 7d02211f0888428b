"""The process of HTTP: `start.HttpProcess` begins it. It has no JAX, and ends when the engine's process does.

Its standard input has a `start.Beginning`; its arguments are the descriptors of the socket to the engine's process, and
of the one on which it listens.
"""

from __future__ import annotations

import pickle
import signal
import socket
import sys
from typing import Any

from videollava_jax.batch.media.isolation import IsolatedReader
from videollava_jax.serving.http_process.channel import Channel
from videollava_jax.serving.http_process.messages import Say
from videollava_jax.serving.http_process.remote_session import RemoteSession
from videollava_jax.serving.http_process.start import Beginning
from videollava_jax.serving.metrics import MeasuredReader
from videollava_jax.serving.process import freeze_objects
from videollava_jax.serving.run import run


def main(engine: int, bound: int) -> int:
    """Serves; returns the exit status.

    Args:
      engine: the descriptor of the socket to the engine's process.
      bound: that of the socket of clients.
    """
    # The engine's process passes its signals on; a terminal, or a manager of services, sends them to both.
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    channel = Channel(socket.socket(fileno=engine))
    try:
        begins: Beginning = pickle.load(sys.stdin.buffer)  # noqa: S301 — from the process that has started this one
    except EOFError:  # that has ended before
        return 0
    session = RemoteSession(channel, begins.shape)
    reader = IsolatedReader(begins.processor, begins.limits)

    def said(record: dict[str, Any]) -> None:
        if record["state"] == "ready":
            freeze_objects()
        channel.send(Say(record))

    try:
        failed = run(
            session,
            begins.processor,
            begins.settings,
            socket.socket(fileno=bound),
            reader=MeasuredReader(reader),
            said=said,
            on_drain=session.on_drain,
        )
    finally:
        reader.close()
        channel.close()
    return 0 if failed is None else 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
