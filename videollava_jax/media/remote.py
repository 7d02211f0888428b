"""Fetches media from hosts that are allowed by name, but never from an address of a private network. No JAX.

A host name is resolved once, and the connection is made to the address that was checked. Every redirect is a new
request with all checks. Proxies set in the environment are not used.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import BinaryIO

from videollava_jax.media.addresses import Address, is_public
from videollava_jax.media.ending import says_its_end
from videollava_jax.media.urls import SourceError, shown_url

REDIRECTS = 5
_CHUNK = 2**16
_WAIT = 10.0
"""The most seconds without a byte."""


class _Transient(Exception):
    """A failure that may not occur at the next attempt."""


class Fetcher:
    """Fetches URLs of allowed hosts, at public addresses.

    Args:
      hosts: names of allowed hosts, "example.org", or "example.org:8080" for a port other than 80 and
        443; None for all.
      seconds: the most seconds for one URL, with redirects.
      attempts: how often to try if the host does not answer, or answers with a status such as 503.
      allowed_address: returns whether connections to an address are allowed.
    """

    def __init__(
        self,
        hosts: Iterable[str] | None,
        *,
        seconds: float = 60.0,
        attempts: int = 3,
        allowed_address: Callable[[Address], bool] = is_public,
    ):
        self._hosts = None if hosts is None else frozenset(host.lower().rstrip(".") for host in hosts)
        self._seconds, self._attempts, self._allowed_address = seconds, attempts, allowed_address
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Ends current fetches, which then fail."""
        self._stopped.set()

    def __call__(self, url: str, file: BinaryIO, max_bytes: int) -> None:
        """Fetches a URL into a file.

        Raises:
          SourceError: it is not allowed, too large, or could not be fetched.
        """
        deadline = time.monotonic() + self._seconds
        for attempt in range(self._attempts):
            try:
                file.seek(0)
                file.truncate()
                return self._follow(url, file, max_bytes, deadline)
            except (_Transient, OSError, http.client.HTTPException) as error:
                why = str(error) if isinstance(error, _Transient) else type(error).__name__
                last = attempt + 1 == self._attempts or time.monotonic() > deadline
                if last or self._stopped.wait(0.5 * 2**attempt):
                    raise SourceError("fetch_failed", f"{shown_url(url)}: cannot be fetched ({why})") from None
        raise AssertionError

    def _follow(self, url: str, file: BinaryIO, max_bytes: int, deadline: float) -> None:
        for _ in range(REDIRECTS + 1):
            connection, target = self._connect(url, deadline)
            # The socket's timeout does not stop a host that sends a byte now and then; the timer does.
            timer = threading.Timer(max(0.0, deadline - time.monotonic()), _shut_down, [connection.sock])
            timer.daemon = True
            timer.start()
            try:
                connection.request("GET", target, headers={"Accept-Encoding": "identity", "User-Agent": "videollava"})
                with connection.getresponse() as answer:
                    if answer.status not in (301, 302, 303, 307, 308):
                        return self._read(answer, url, file, max_bytes, deadline)
                    url = _next_url(url, answer.headers.get("Location", ""))
            finally:
                timer.cancel()
                connection.close()
        raise SourceError("fetch_failed", f"{shown_url(url)}: more than {REDIRECTS} redirects")

    def _read(
        self, answer: http.client.HTTPResponse, url: str, file: BinaryIO, max_bytes: int, deadline: float
    ) -> None:
        if answer.status in (408, 425, 429) or answer.status >= 500:
            raise _Transient(f"status {answer.status}")
        if answer.status != 200:
            raise SourceError("fetch_failed", f"{shown_url(url)}: status {answer.status}")
        announced = answer.length
        count = 0
        while True:
            if (announced or 0) > max_bytes or count > max_bytes:
                raise SourceError("too_large", f"{shown_url(url)}: over the limit of {max_bytes} bytes")
            chunk = answer.read1(_CHUNK)
            # At the deadline the socket is shut down, which looks like the end of the file.
            if time.monotonic() > deadline or self._stopped.is_set():
                raise _Transient(f"not whole after {self._seconds:g} s")
            if not chunk:
                break
            file.write(chunk)
            count += len(chunk)
        if announced is not None and count != announced:
            raise _Transient(f"{count} of {announced} bytes came")
        if announced is None and not answer.chunked:
            file.seek(0)
            if not says_its_end(file):
                raise _Transient(f"{count} bytes came, and neither its host nor its format says whether that is all")

    def _connect(self, url: str, deadline: float) -> tuple[http.client.HTTPConnection, str]:
        """Connects to a URL's host, at an address that was checked. Returns the connection and the path to request."""
        try:
            parts = urllib.parse.urlsplit(url)
            host, port = (parts.hostname or "").rstrip("."), parts.port
            target = _escaped(urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, "")))
        except ValueError:
            raise SourceError("forbidden_source", f"{shown_url(url)}: not a URL") from None
        odd = any(c in "\\" or c <= " " or c == "\x7f" for c in url)  # which other programs read otherwise
        if parts.scheme not in ("http", "https") or parts.username is not None or odd:
            raise SourceError("forbidden_source", f"{shown_url(url)}: expected a plain http: or https: URL")
        default_port = 443 if parts.scheme == "https" else 80
        named = host if port in (None, default_port) else f"{host}:{port}"
        if self._hosts is not None and named not in self._hosts:
            raise SourceError(
                "forbidden_source", f"{shown_url(url)}: the host {named!r} is not allowed by --allow-host"
            )
        address = self._address(host, port or default_port, url)
        wait = max(0.1, min(_WAIT, deadline - time.monotonic()))
        made = _PinnedConnection(host, port or default_port, timeout=wait)
        made.default_port = default_port  # the Host header leaves the default port out
        made.sock = socket.create_connection((str(address), port or default_port), timeout=wait)
        if parts.scheme == "https":
            try:
                # A connection that is cut looks otherwise like one that was closed.
                made.sock = ssl.create_default_context().wrap_socket(
                    made.sock, server_hostname=host, suppress_ragged_eofs=False
                )
            except OSError:
                made.close()
                raise
        return made, target

    def _address(self, host: str, port: int, url: str) -> Address:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            raise _Transient("the name of its host cannot be resolved") from None
        addresses = [ipaddress.ip_address(entry[4][0]) for entry in found]
        for address in addresses:
            if not self._allowed_address(address):
                raise SourceError(
                    "forbidden_source", f"{shown_url(url)}: {host!r} is an address of a private or reserved network"
                )
        return addresses[0]


def _next_url(url: str, location: str) -> str:
    """Returns where a redirect leads. http.client reads a header as Latin-1, and hosts write it in UTF-8.

    Raises:
      SourceError: to no URL.
    """
    try:
        return urllib.parse.urljoin(url, location.encode("latin-1").decode(errors="surrogateescape"))
    except ValueError:
        raise SourceError("forbidden_source", f"{shown_url(url)}: redirects to what is not a URL") from None


def _escaped(target: str) -> str:
    """Escapes what is not ASCII in a path and a query, as browsers do; raises a ValueError for what has no bytes."""
    return urllib.parse.quote(target, safe=_ASCII, errors="surrogateescape")


_ASCII = "".join(map(chr, range(0x21, 0x7F)))


def _shut_down(connection: socket.socket) -> None:
    """Shuts a socket down, which ends a read that waits for it."""
    with suppress(OSError):
        socket.socket.shutdown(connection, socket.SHUT_RDWR)  # not SSLSocket's own method, which would unwrap TLS first


class _PinnedConnection(http.client.HTTPConnection):
    """A connection whose socket is given, so that http.client never connects by itself."""

    def connect(self) -> None:
        """Never called, as the socket exists already."""
        raise AssertionError("a connection is made once, to the address that was checked")
