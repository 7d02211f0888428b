"""Answers requests through running servers with OpenAI's protocol, `videollava serve` or others. No JAX.

 requests ──▶ for each, the server that its media choose ──▶ POST /v1/chat/completions ──▶ results
              (the next one if that is gone)                 media: POST /v1/files, or data: URLs

All questions about one medium go to one server, which computes its prefix once: the servers are ordered by a hash of
their URL and of the media ("rendezvous hashing"), so that losing a server moves only its own media.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import http.client
import itertools
import json
import os
import random
import ssl
import threading
import time
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

from videollava_jax.batch.completions import (
    LONGEST_ANSWER,
    Answer,
    Refused,
    body_of,
    content_of,
    data_url,
    failed,
    media_paths,
    messages_of,
    read_answer,
    reason_of,
    result_of,
)
from videollava_jax.batch.media.spool import FrameFile
from videollava_jax.batch.requests import with_sources
from videollava_jax.engine.request import Request, Result
from videollava_jax.media.urls import shown_url
from videollava_jax.processing.segments import MediaKind

_BUSY = frozenset((408, 409, 425, 429, 502, 503, 504))
_KEPT = 64
"""Uploaded media that a server keeps for later questions, beyond those that are asked about now."""


class ServersGone(OSError):
    """No server has answered for a while. What was answered is kept in the ledger."""


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """How servers are used.

    Attributes:
      key: that they ask for; None for none.
      at_once: requests that one server has at a time.
      patience: seconds without any answer after which the run ends.
      seconds: that one request may take.
      attempts: how often a request is tried to which a server answers with a fault of its own (status 500).
    """

    key: str | None = None
    at_once: int = 16
    patience: float = 300.0
    seconds: float = 600.0
    attempts: int = 3


class ServersRunner:
    """A runner of jobs: `run` gives one result for each request, in the order in which they come.

    Args:
      urls: of the servers, "http://host:8000" each, with or without "/v1".
      options: how to use them.

    Raises:
      ValueError: not a URL.
    """

    def __init__(self, urls: Iterable[str], options: ServerOptions = ServerOptions()):
        self._options = options
        self._servers = [_Server(url, options) for url in dict.fromkeys(urls)]
        if not self._servers:
            raise ValueError("expected the URL of a server, got none")
        self._stopped = threading.Event()
        self._last_answer = time.monotonic()

    def model(self) -> str:
        """Returns the name of the model that the servers have.

        Raises:
          ServersGone: none of them answers.
          ValueError: they have different models, or several; or one is no such server.
        """
        names: dict[str, str] = {}
        problems = []
        for server in self._servers:
            try:
                found = server.call("GET", "/v1/models")
            except OSError as error:
                problems.append(f"{server.name}: {reason_of(error)}")
                continue
            server.hang_up()
            if found.status != 200:
                raise ValueError(f"{server.name}: {found.message or 'no answer of a server with OpenAI’s protocol'}")
            served = [str(each.get("id")) for each in found.body.get("data", []) if isinstance(each, Mapping)]
            if len(served) != 1:
                raise ValueError(f"{server.name}: expected one model, got {', '.join(served) or 'none'}")
            names[server.name] = served[0]
        if not names:
            raise ServersGone(f"no server answers ({'; '.join(problems)}): start one with `videollava serve`")
        if len(set(names.values())) > 1:
            raise ValueError(f"expected servers of one model, got {names}")
        self._model = next(iter(names.values()))
        return self._model

    def run(self, requests: Iterable[Request]) -> Iterator[Result]:
        """Yields a result for each request, as they come.

        Raises:
          ServersGone: no server has answered for `patience` seconds.
        """
        self.model()
        self._last_answer = time.monotonic()
        threads = self._options.at_once * len(self._servers)
        pool = ThreadPoolExecutor(threads, thread_name_prefix="ask-server")
        incoming, waiting = iter(requests), set[Future[Result]]()
        try:
            while True:
                # Somewhat more than can be asked at a time, so that no connection waits for the next line.
                for request in itertools.islice(incoming, 2 * threads - len(waiting)):
                    waiting.add(pool.submit(self._answer, request))
                if not waiting:
                    return
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        finally:
            self.stop()
            pool.shutdown(wait=True, cancel_futures=True)
            self.close()

    def stop(self) -> None:
        """Ends current and later requests, which then fail. A signal handler may call it."""
        self._stopped.set()
        for server in self._servers:
            server.stop()

    def close(self) -> None:
        """Deletes what was uploaded, as far as the servers still answer."""
        for server in self._servers:
            server.close()

    # ── one request ──

    def _answer(self, request: Request) -> Result:
        media = media_paths(request)
        try:
            body = body_of(request, self._model)
        except ValueError as error:
            return failed(request, str(error), "invalid_request")
        attempts, pause = 0, 0.25
        while True:
            for server in sorted(self._servers, key=lambda server: server.rank(media)):
                try:
                    with server.media(request) as named:
                        answer = server.call("POST", "/v1/chat/completions", {**body, "messages": messages_of(named)})
                except Refused as refused:
                    answer = refused.answer
                except OSError as error:
                    answer = Answer(503, {}, reason_of(error), gone=True)
                if self._stopped.is_set():
                    return failed(request, "the run was stopped", "stopped")
                if answer.status == 200:
                    self._last_answer = time.monotonic()
                    return result_of(request, answer)
                if answer.status == 404 and answer.code == "no_such_file":
                    server.forget(request)  # it has expired, or the server was started anew
                elif answer.status in _BUSY:
                    if not answer.gone:  # a server that is busy keeps its media
                        break
                    continue
                elif answer.status < 500:
                    self._last_answer = time.monotonic()
                    return failed(request, answer.message, answer.code or f"http_{answer.status}")
                attempts += 1
                if attempts >= self._options.attempts:
                    return failed(request, answer.message, answer.code or f"http_{answer.status}")
                break
            if time.monotonic() - self._last_answer > self._options.patience:
                raise ServersGone(
                    f"no server has answered for {self._options.patience:g} s (the last said: {answer.message}); what "
                    "is answered is kept: the same command goes on from there"
                )
            # Not all at the same moment: the server would be full again.
            self._stopped.wait(max(answer.retry_after, pause) * random.uniform(0.5, 1.0))
            pause = min(2 * pause, 5.0)


class _Server:
    """One server: its connections, one for each thread, and the media that it has."""

    def __init__(self, url: str, options: ServerOptions):
        wrong = ValueError(f"{shown_url(url)}: expected the URL of a server, such as http://localhost:8000")
        try:
            parts = urllib.parse.urlsplit(url if "://" in url else f"http://{url}")
            port = parts.port
        except ValueError:
            raise wrong from None
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.username:
            raise wrong
        self._https, self._host, self._port = parts.scheme == "https", parts.hostname, port
        self._path = parts.path.rstrip("/").removesuffix("/v1")
        self.name = shown_url(parts.geturl()).rstrip("/")
        self._options = options
        self._local = threading.local()
        self._open: set[http.client.HTTPConnection] = set()
        self._lock = threading.Lock()
        self._files: collections.OrderedDict[str, Future[str]] = collections.OrderedDict()
        self._users: collections.Counter[str] = collections.Counter()
        self._takes_files = True
        self._stopped = False

    def rank(self, media: tuple[str, ...]) -> bytes:
        """Returns this server's place in the order of the servers for these media."""
        return hashlib.blake2b("\0".join((self.name, *media)).encode("utf-8", "surrogatepass"), digest_size=8).digest()

    # ── HTTP ──

    def call(self, method: str, path: str, body: Any = None, kind: str = "application/json") -> Answer:
        """Sends a request and returns the answer, whatever its status.

        Raises:
          OSError: there is no answer.
        """
        raw = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Accept": "application/json", **({} if raw is None else {"Content-Type": kind})}
        if self._options.key is not None:
            headers["Authorization"] = f"Bearer {self._options.key}"
        for fresh in (False, True):
            connection, used = self._connection(fresh)
            try:
                connection.request(method, self._path + path, raw, headers)
                response = connection.getresponse()
                content = response.read(LONGEST_ANSWER + 1)
                break
            except (OSError, http.client.HTTPException) as error:
                self._drop(connection)
                # A connection that the server closed while it lay idle fails at once, before anything was done.
                if used and not fresh and isinstance(error, (http.client.RemoteDisconnected, ConnectionError)):
                    continue
                raise error if isinstance(error, OSError) else OSError(type(error).__name__) from None
        return read_answer(response, content)

    def _connection(self, fresh: bool) -> tuple[http.client.HTTPConnection, bool]:
        kept: http.client.HTTPConnection | None = getattr(self._local, "connection", None)
        if kept is not None and not fresh:
            return kept, True
        if self._stopped:
            raise ConnectionAbortedError("the run was stopped")
        if self._https:
            made: http.client.HTTPConnection = http.client.HTTPSConnection(
                self._host, self._port, timeout=self._options.seconds, context=ssl.create_default_context()
            )
        else:
            made = http.client.HTTPConnection(self._host, self._port, timeout=self._options.seconds)
        self._local.connection = made
        with self._lock:
            self._open.add(made)
        return made, False

    def _drop(self, connection: http.client.HTTPConnection) -> None:
        self._local.connection = None
        with self._lock:
            self._open.discard(connection)
        connection.close()

    def stop(self) -> None:
        """Ends the calls that wait for an answer."""
        self._stopped = True
        for connection in list(self._open):
            if connection.sock is not None:
                with contextlib.suppress(OSError):
                    connection.sock.shutdown(2)

    def close(self) -> None:
        """Deletes what was uploaded and closes the connections."""
        self._stopped = False
        files = [f.result() for f in self._files.values() if f.done() and not f.exception()]
        with contextlib.suppress(OSError):
            for file in files:
                self.call("DELETE", f"/v1/files/{file}")
        self._files.clear()
        self._stopped = True
        self.hang_up()

    def hang_up(self) -> None:
        """Closes the connections."""
        for connection in list(self._open):
            self._drop(connection)

    # ── media ──

    @contextlib.contextmanager
    def media(self, request: Request) -> Iterator[Request]:
        """Yields the request with a URL for each medium, which the server has while the block lasts.

        Raises:
          Refused: the server does not take one.
          OSError: it does not answer, or a file cannot be read.
        """
        held: list[str] = []

        def url(kind: MediaKind, source: Any) -> str:
            if isinstance(source, FrameFile) or not self._takes_files:
                return data_url(kind, source)
            path = os.fspath(source)
            with self._lock:
                self._users[path] += 1
                held.append(path)
                found = self._files.get(path)
                own = self._files[path] = Future() if found is None else found
                self._files.move_to_end(path)
            if found is None:
                try:
                    own.set_result(self._upload(source))
                except BaseException as error:
                    with self._lock:
                        self._files.pop(path, None)
                    own.set_exception(error)
            try:
                return f"vllm-file://{own.result()}"
            except Refused as refused:
                if refused.answer.status not in (404, 405, 501):
                    raise
                self._takes_files = False  # a server without uploads
                return data_url(kind, source)

        try:
            yield with_sources(request, url)
        finally:
            with self._lock:
                self._users.subtract(held)
            self._forget_old()

    def forget(self, request: Request) -> None:
        """Forgets the uploads of a request's media: the server has them no longer."""
        with self._lock:
            for path in media_paths(request):
                self._files.pop(path, None)

    def _forget_old(self) -> None:
        """Deletes uploads that no request needs now, the oldest first, until few are left."""
        with self._lock:
            idle = [path for path, future in self._files.items() if future.done() and not self._users[path]]
            old = [self._files.pop(path) for path in idle[: max(0, len(idle) - _KEPT)]]
        for future in old:
            if future.exception() is None:
                with contextlib.suppress(OSError):
                    self.call("DELETE", f"/v1/files/{future.result()}")

    def _upload(self, source: Any) -> str:
        content = content_of(source)
        boundary = hashlib.blake2b(content, digest_size=16).hexdigest()
        head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nuser_data\r\n'
            f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="medium"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        )
        raw = b"".join((head.encode(), content, f"\r\n--{boundary}--\r\n".encode()))
        answer = self.call("POST", "/v1/files", raw, f"multipart/form-data; boundary={boundary}")
        name = answer.body.get("id")
        if answer.status != 200 or not isinstance(name, str):
            raise Refused(answer)
        return name
