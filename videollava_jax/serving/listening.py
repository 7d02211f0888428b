"""Makes the socket on which a server listens."""

from __future__ import annotations

import errno
import os
import socket


def listen(host: str, port: int) -> socket.socket:
    """Returns a socket on an address, on which nobody is answered yet.

    Raises:
      OSError: the address is taken, or is none of this machine.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        made = socket.socket(found[0], found[1])
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(found[4])
        except BaseException:
            made.close()
            raise
        return made
    except socket.gaierror:
        raise ValueError(f"--host {host}: expected an address of this machine, such as 127.0.0.1 or 0.0.0.0") from None
    except OSError as error:
        why = {
            errno.EADDRINUSE: f"port {port} is in use: choose another with --port, or end what uses it",
            errno.EACCES: f"port {port} is not for ordinary users: choose one from 1024 on with --port",
            errno.EADDRNOTAVAIL: f"--host {host}: expected an address of this machine, such as 127.0.0.1 or 0.0.0.0",
        }.get(error.errno or 0, f"cannot listen on {host}:{port} ({os.strerror(error.errno or 0).lower()})")
        raise ValueError(why) from None
