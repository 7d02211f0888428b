"""Two ends of a channel in one process."""

import contextlib
import socket

from videollava_jax.serving.http_process.channel import Channel


@contextlib.contextmanager
def channels():
    """Two ends."""
    ends = [Channel(each) for each in socket.socketpair()]
    try:
        yield ends
    finally:
        for end in ends:
            end.close()
