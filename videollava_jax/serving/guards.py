"""What is checked of every request before anything else: where it comes from, its key, the size of its body. No JAX."""

from __future__ import annotations

import base64
import binascii
import hmac
import ipaddress
import socket
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from videollava_jax.serving.answers import written
from videollava_jax.serving.errors import ApiError
from videollava_jax.serving.page_route import is_of_page
from videollava_jax.serving.settings import Settings

OPEN = frozenset(("/health",))
"""Paths that need no key and are answered under any name. All others but the page are closed, known or not."""


class Guard:
    """Refuses requests of other web pages, without the key or with a body that is too large; passes on all others.

    A web page elsewhere can send requests to a server on its reader's machine, either across origins (`Origin` is then
    another host) or under a name of its own that it points to this machine (`Host` is then that name).
    """

    def __init__(self, app: ASGIApp, settings: Settings, max_upload: int, refused: Callable[[ApiError], None]):
        """Wraps an app.

        Args:
          max_upload: bytes of the body of an upload.
          refused: called with the error of each request that is turned away.
        """
        self._app, self._settings, self._max_upload, self._refused = app, settings, max_upload, refused
        self._key = None if settings.api_key is None else settings.api_key.encode()
        self._names = frozenset(
            name.lower() for name in ("localhost", socket.gethostname(), *settings.public_names) if name
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Checks a request of HTTP; other scopes are passed on."""
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008})
        headers = _headers(scope)
        try:
            if scope["path"] not in OPEN:
                self._require_known_host(headers)
                # The page is in every installation. It asks for the key, and sends it with what it asks the server for.
                if not is_of_page(scope["path"]):
                    self._require_key(headers)
            limit = self._max_upload if scope["path"].startswith("/v1/files") else self._settings.max_body_bytes
            length = headers.get("content-length", "0")
            if length.isdecimal() and int(length) > limit:
                raise too_large(limit)
        except ApiError as error:
            self._refused(error)
            return await send_error(error, send)
        return await self._app(scope, _limited(receive, limit), send)

    def _require_known_host(self, headers: dict[str, str]) -> None:
        host = headers.get("host", "")
        name = _host_name(host)
        if name is None or not (_is_address(name) or name in self._names or self._key is not None):
            raise ApiError(
                403,
                "the server is not known under the name in the Host header: --public-name NAME allows one",
                code="unknown_host",
            )
        origin = headers.get("origin")
        if origin is not None and urlsplit_netloc(origin) != host.lower():
            raise ApiError(403, "requests of other web pages are refused", code="other_origin")

    def _require_key(self, headers: dict[str, str]) -> None:
        if self._key is None:
            return
        kind, _, given = headers.get("authorization", "").partition(" ")
        sent = b""
        if kind.lower() == "bearer":
            sent = given.strip().encode("latin-1", "replace")
        elif kind.lower() == "basic":
            try:
                sent = base64.b64decode(given, validate=True).partition(b":")[2]
            except binascii.Error:
                sent = b""
        if not hmac.compare_digest(sent, self._key):
            raise ApiError(
                401,
                "expected the server's key: Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )


def too_large(limit: int) -> ApiError:
    """Returns the error of a body that is larger than `limit` bytes."""
    return ApiError(413, f"the body is too large: expected at most {limit} bytes", code="too_large")


def _limited(receive: Receive, limit: int) -> Receive:
    """Returns a `receive` that raises an ApiError when more than `limit` bytes of body have come."""
    come = 0

    async def limited() -> Message:
        nonlocal come
        message = await receive()
        if message["type"] == "http.request":
            come += len(message.get("body", b""))
            if come > limit:
                raise too_large(limit)
        return message

    return limited


async def send_error(error: ApiError, send: Send) -> None:
    """Sends an error as a whole response."""
    await send_json(error.status, error.body(), send, error.headers.items())


async def send_json(status: int, body: Any, send: Send, headers: Iterable[tuple[str, str]] = ()) -> None:
    """Sends an object as a whole response of JSON."""
    content = written(body)
    sent = [("content-type", "application/json"), ("content-length", str(len(content))), *headers]
    raw = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in sent]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": content})


def _headers(scope: Scope) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}


def _host_name(host: str) -> str | None:
    """The name in a Host header, without its port; None if it is malformed."""
    try:
        name = urlsplit(f"//{host}").hostname
    except ValueError:
        return None
    return name.rstrip(".") if name and "@" not in host else None


def urlsplit_netloc(origin: str) -> str:
    """Returns the host and port of an origin, in lower case; of "null" an empty text."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
