"""Media from hosts that were allowed by name, and from no address of a private network. No JAX in here.

A name is resolved once and the connection made to that address, so that what was checked is what is spoken to. Every
redirect is a new request with all checks. Proxies of the environment are not used.
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

from videollava_jax.batch.media.spool import SourceError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

REDIRECTS = 5
_CHUNK = 2**16
_WAIT = 10.0
"""Seconds without a byte."""
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class _Passing(Exception):
    """A failure that another attempt may not meet."""


def is_public(address: Address) -> bool:
    """Whether an address belongs to the internet: not private, loopback, link-local, multicast or reserved.

    An IPv6 address that stands for an IPv4 one is judged by that.
    """
    if isinstance(address, ipaddress.IPv6Address):
        inner = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
        if address in _NAT64:
            inner.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        if not all(is_public(v4) for v4 in inner if v4 is not None):
            return False
        if address.ipv4_mapped is not None:
            return True
    return address.is_global and not address.is_multicast and not address.is_reserved


class Fetcher:
    """Fetches URLs.

    Args:
      hosts: names that may be asked, each "example.org", or "example.org:8080" for a port other than the usual ones.
      seconds: that one URL may take, with redirects.
      attempts: at a URL whose host does not answer or answers with a passing failure.
      allowed_address: which addresses may be spoken to.
    """

    def __init__(
        self,
        hosts: Iterable[str],
        *,
        seconds: float = 60.0,
        attempts: int = 3,
        allowed_address: Callable[[Address], bool] = is_public,
    ):
        self._hosts = frozenset(host.lower().rstrip(".") for host in hosts)
        self._seconds, self._attempts, self._allowed_address = seconds, attempts, allowed_address
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Ends what is being fetched."""
        self._stopped.set()

    def __call__(self, url: str, file: BinaryIO, max_bytes: int) -> None:
        """Writes what a URL names to a file.

        Raises:
          SourceError: not allowed, too large, or not to be had.
        """
        deadline = time.monotonic() + self._seconds
        for attempt in range(self._attempts):
            try:
                file.seek(0)
                file.truncate()
                return self._follow(url, file, max_bytes, deadline)
            except (_Passing, OSError, http.client.HTTPException) as error:
                why = str(error) if isinstance(error, _Passing) else type(error).__name__
                last = attempt + 1 == self._attempts or time.monotonic() > deadline
                if last or self._stopped.wait(0.5 * 2**attempt):
                    raise SourceError("fetch_failed", f"{url[:200]}: cannot be fetched ({why})") from None
        raise AssertionError

    def _follow(self, url: str, file: BinaryIO, max_bytes: int, deadline: float) -> None:
        for _ in range(REDIRECTS + 1):
            connection, target = self._connect(url, deadline)
            # A host that sends a byte now and then keeps every single wait short.
            timer = threading.Timer(max(0.0, deadline - time.monotonic()), _cut, [connection.sock])
            timer.daemon = True
            timer.start()
            try:
                connection.request("GET", target, headers={"Accept-Encoding": "identity", "User-Agent": "videollava"})
                with connection.getresponse() as answer:
                    if answer.status not in (301, 302, 303, 307, 308):
                        return self._read(answer, url, file, max_bytes, deadline)
                    url = urllib.parse.urljoin(url, answer.headers.get("Location", ""))
            finally:
                timer.cancel()
                connection.close()
        raise SourceError("fetch_failed", f"{url[:200]}: more than {REDIRECTS} redirects")

    def _read(
        self, answer: http.client.HTTPResponse, url: str, file: BinaryIO, max_bytes: int, deadline: float
    ) -> None:
        if answer.status in (408, 425, 429) or answer.status >= 500:
            raise _Passing(f"status {answer.status}")
        if answer.status != 200:
            raise SourceError("fetch_failed", f"{url[:200]}: status {answer.status}")
        announced = answer.length
        count = 0
        while True:
            if (announced or 0) > max_bytes or count > max_bytes:
                raise SourceError("too_large", f"{url[:200]}: over the limit of {max_bytes} bytes")
            if time.monotonic() > deadline or self._stopped.is_set():
                raise _Passing(f"not whole after {self._seconds:g} s")
            chunk = answer.read1(_CHUNK)
            if not chunk:
                break
            file.write(chunk)
            count += len(chunk)
        if announced is not None and count != announced:
            raise _Passing(f"{count} of {announced} bytes came")

    def _connect(self, url: str, deadline: float) -> tuple[http.client.HTTPConnection, str]:
        """A connection to the address that was checked, and what to ask for there."""
        try:
            parts = urllib.parse.urlsplit(url)
            host, port = (parts.hostname or "").rstrip("."), parts.port
        except ValueError:
            raise SourceError("forbidden_source", f"{url[:200]}: not a URL") from None
        if parts.scheme not in ("http", "https") or parts.username is not None or any(c in url for c in " \r\n\t"):
            raise SourceError("forbidden_source", f"{url[:200]}: expected a plain http: or https: URL")
        usual = 443 if parts.scheme == "https" else 80
        named = host if port in (None, usual) else f"{host}:{port}"
        if named not in self._hosts:
            raise SourceError("forbidden_source", f"{url[:200]}: the host {named!r} is not allowed by --allow-host")
        address = self._address(host, port or usual, url)
        wait = max(0.1, min(_WAIT, deadline - time.monotonic()))
        made = _Pinned(host, port or usual, timeout=wait)
        made.default_port = usual  # which the Host header leaves out
        made.sock = socket.create_connection((str(address), port or usual), timeout=wait)
        if parts.scheme == "https":
            try:
                made.sock = ssl.create_default_context().wrap_socket(made.sock, server_hostname=host)
            except OSError:
                made.close()
                raise
        return made, urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, ""))

    def _address(self, host: str, port: int, url: str) -> Address:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            raise _Passing("the name of its host cannot be resolved") from None
        addresses = [ipaddress.ip_address(entry[4][0]) for entry in found]
        for address in addresses:
            if not self._allowed_address(address):
                raise SourceError(
                    "forbidden_source", f"{url[:200]}: {host!r} is an address of a private or reserved network"
                )
        return addresses[0]


def _cut(connection: socket.socket) -> None:
    """Ends whatever waits for a socket."""
    with suppress(OSError):
        socket.socket.shutdown(connection, socket.SHUT_RDWR)  # of TLS too, which its own method would unwrap first


class _Pinned(http.client.HTTPConnection):
    """A connection that was made already, and is made by nobody else."""

    def connect(self) -> None:
        raise AssertionError("a connection is made once, to the address that was checked")
