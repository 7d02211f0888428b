"""A socket between two processes that passes on messages in order, and makes nobody wait for its reader. No JAX."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections import deque
from collections.abc import Iterator

from videollava_jax.serving.http_process.messages import Message, read, written

_LENGTH = struct.Struct("<I")
_AT_ONCE = 2**18
"""Bytes that are received by one call."""


class Channel:
    """One end of the socket. Any thread may send; one thread receives.

    What the socket does not take at once, since the other process is slow or stopped, is sent later by a thread.
    """

    def __init__(self, connected: socket.socket):
        """Takes over a connected socket of streams."""
        self._socket = connected
        self._lock = threading.Lock()
        self._left: deque[bytes] = deque()
        self._sender: threading.Thread | None = None
        self._gone = False

    def send(self, message: Message) -> None:
        """Sends a message; does nothing if the other process has gone, which its reader learns from `receive`."""
        content = written(message)
        content = _LENGTH.pack(len(content)) + content
        with self._lock:
            if self._gone:
                return
            sent = 0 if self._left else self._send_now(content)
            if sent < len(content):
                self._left.append(content[sent:])
                if self._sender is None:
                    self._sender = threading.Thread(target=self._send_left, name="send-messages", daemon=True)
                    self._sender.start()

    def receive(self) -> Iterator[Message]:
        """Yields messages until the other process closes its end, or has ended.

        Raises:
          ValueError: bytes came that are no message.
        """
        come = bytearray()
        while True:
            try:
                content = self._socket.recv(_AT_ONCE)
            except OSError:  # the other end was closed with messages unread, or this one is closed
                return
            if not content:
                return
            come += content
            at = 0
            while len(come) - at >= _LENGTH.size:
                end = at + _LENGTH.size + _LENGTH.unpack_from(come, at)[0]
                if len(come) < end:
                    break
                yield read(bytes(memoryview(come)[at + _LENGTH.size : end]))
                at = end
            del come[:at]

    def close(self) -> None:
        """Ends the connection: `receive` ends at both ends, after what was sent."""
        self._gone = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _send_now(self, content: bytes) -> int:
        """Returns how many bytes the socket takes at once."""
        try:
            return self._socket.send(content, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0
        except OSError:
            self._gone = True
            return len(content)

    def _send_left(self) -> None:
        while True:
            with self._lock:
                if not self._left or self._gone:
                    self._left.clear()
                    self._sender = None
                    return
                content = self._left[0]
            try:
                self._socket.sendall(content)
            except OSError:
                self._gone = True
            with self._lock:
                if self._left:
                    self._left.popleft()
