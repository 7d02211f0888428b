"""The server's paths: what is answered where."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from videollava_jax.engine.session import Session
from videollava_jax.processing.processor import VideoLlavaProcessor
from videollava_jax.serving.answers import END, PING, Completion, event
from videollava_jax.serving.asking import Asking, Desk
from videollava_jax.serving.errors import ApiError
from videollava_jax.serving.guards import Guard, send_json
from videollava_jax.serving.lifecycle import Lifecycle, State
from videollava_jax.serving.looking import Looking
from videollava_jax.serving.media import MediaStore
from videollava_jax.serving.protocol import Asked, chat_asked
from videollava_jax.serving.settings import Settings
from videollava_jax.version import __version__

_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
_MULTIPART = 2**20
"""Bytes of an upload's body besides the file."""


class App(Guard):
    """The server as an ASGI app.

    Attributes:
      server: its state.
    """

    def __init__(self, app: ASGIApp, server: Server):
        super().__init__(app, server.settings, server.settings.uploads.bytes + _MULTIPART)
        self.server = server


class ClientGone(Exception):
    """The client has closed its connection."""


def create_app(
    session: Session,
    processor: VideoLlavaProcessor,
    settings: Settings,
    *,
    reader: Callable[..., Any] | None = None,
) -> App:
    """Returns the server as an ASGI app; its `server` has the state.

    Args:
      session: of the engine; whoever made it warms it up and closes it.
      processor: of the same model.
      settings: of the server.
      reader: reads the media of uploads, to show their frames; None for the processor, in this process.
    """
    server = Server(session, processor, settings, reader or processor.read_medium)
    routes = [
        Route("/v1/chat/completions", server.answering(server.chat), methods=["POST"]),
        Route("/v1/models", server.models),
        Route("/v1/models/{name:path}", server.model),
        Route("/v1/files", server.files, methods=["GET"]),
        Route("/v1/files", server.upload, methods=["POST"]),
        Route("/v1/files/{id}", server.file, methods=["GET"]),
        Route("/v1/files/{id}", server.delete_file, methods=["DELETE"]),
        Route("/v1/files/{id}/frames", server.frames, methods=["GET"]),
        Route("/health", server.health),
        Route("/ping", server.ping),
        Route("/version", server.version),
    ]
    handlers: dict[Any, Any] = {ApiError: _refused, HTTPException: _no_such_path, Exception: _fault}
    app = Starlette(routes=routes, exception_handlers=handlers, lifespan=server.lifespan)
    return App(app, server)


class Server:
    """The state of a server, and what it answers.

    Attributes:
      lifecycle: whether requests are taken.
      desk: the way to the engine.
      media: of clients.
    """

    def __init__(
        self, session: Session, processor: VideoLlavaProcessor, settings: Settings, reader: Callable[..., Any]
    ):
        self.session, self.processor, self.settings = session, processor, settings
        self.lifecycle = Lifecycle(settings)
        self.media = MediaStore(settings)
        self.desk = Desk(session, self.media, settings)
        self.looking = Looking(reader, self.media.uploads, settings)
        self.created = int(time.time())

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Runs with the server: files expire while it does, and threads and files end after it."""

        async def expire() -> None:
            while True:
                await asyncio.sleep(min(60.0, self.settings.uploads.seconds))
                await asyncio.to_thread(self.media.uploads.expire)

        expiring = asyncio.create_task(expire())
        try:
            yield
        finally:
            expiring.cancel()
            self.desk.close()
            self.looking.close()
            self.media.close()

    # ── answers ──

    def answering(self, answer: Callable[[bytes, Send], Coroutine[Any, Any, None]]) -> _Answering:
        """Returns an endpoint that reads a body, calls a function with it, and stops it when the client has gone."""
        return _Answering(self, answer)

    async def chat(self, raw: bytes, send: Send) -> None:
        """Answers a chat completion."""
        kind_of = lambda name: self.media.uploads.get(name).kind  # noqa: E731
        asked = await _aside(raw, chat_asked, raw, self.settings, kind_of)
        with self.lifecycle.place_for(len(asked.requests)):
            asking = Asking(self.desk)
            try:
                await asking.submit(asked.requests, pieces=asked.stream)
                made = Completion(self.settings.model, self.processor.light_tokenizer)
                if asked.stream:
                    await self._stream(asking, asked, made, send)
                else:
                    results = {p.index: p.result async for p in asking.written() if p is not None and p.result}
                    await send_json(200, made.whole([results[i] for i in range(len(results))]), send)
            finally:
                asking.close()

    async def _stream(self, asking: Asking, asked: Asked, made: Completion, send: Send) -> None:
        """Sends answers while they are written. An error before the first text has a status of its own."""
        begun: set[int] = set()
        started = False
        results: dict[int, Any] = {}

        async def write(content: bytes) -> None:
            nonlocal started
            if not started:
                started = True
                await send({"type": "http.response.start", "status": 200, "headers": _STREAM_HEADERS})
            await send({"type": "http.response.body", "body": content, "more_body": True})

        try:
            async for part in asking.written(self.settings.ping_seconds):
                if part is None:
                    await write(PING)
                    continue
                content = b"" if part.index in begun else made.opening(part.index)
                begun.add(part.index)
                if part.text or part.logprobs:
                    content += made.piece(part.index, part.text, part.logprobs)
                if part.result is not None:
                    results[part.index] = part.result
                    content += made.closing(part.index, part.result)
                await write(content)
            if asked.include_usage:
                await write(made.usage_chunk([results[i] for i in range(len(results))]))
            await write(END)
        except ApiError as error:
            if not started:
                raise
            await write(event(error.body()))
        await send({"type": "http.response.body", "body": b""})

    # ── models ──

    async def models(self, request: Request) -> Response:
        """Lists the model."""
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        """Describes the model."""
        from videollava_jax.serving.protocol import require_model

        require_model(request.path_params["name"], self.settings)
        return JSONResponse(self._model())

    def _model(self) -> dict[str, Any]:
        return {
            "id": self.settings.model,
            "object": "model",
            "created": self.created,
            "owned_by": "videollava",
            "max_model_len": self.settings.max_tokens,
        }

    # ── files ──

    async def files(self, request: Request) -> Response:
        """Lists the uploaded files."""
        found = [file.record() for file in self.media.uploads.all()]
        after = request.query_params.get("after")  # OpenAI's clients ask for the next page until `has_more` says no
        if after is not None:
            at = next((i for i, file in enumerate(found) if file["id"] == after), len(found))
            found = found[at + 1 :]
        return JSONResponse({"object": "list", "data": found, "has_more": False})

    async def upload(self, request: Request) -> Response:
        """Takes a file."""
        self.lifecycle.require_ready()
        return JSONResponse((await self.looking.upload(request)).record())

    async def file(self, request: Request) -> Response:
        """Describes an uploaded file."""
        return JSONResponse(self.media.uploads.get(request.path_params["id"]).record())

    async def delete_file(self, request: Request) -> Response:
        """Deletes an uploaded file."""
        deleted = self.media.uploads.delete(request.path_params["id"])
        return JSONResponse({"id": deleted.id, "object": "file", "deleted": True})

    async def frames(self, request: Request) -> Response:
        """Shows the frames of an uploaded file that the model would see."""
        return JSONResponse(await self.looking.frames(request.path_params["id"], request.query_params))

    # ── the server itself ──

    async def health(self, request: Request) -> Response:
        """Says whether requests are taken."""
        state = self.lifecycle.state
        ready = state is State.READY
        headers = {} if ready else {"Retry-After": "5"}
        return JSONResponse({"status": state.value}, 200 if ready else 503, headers)

    async def ping(self, request: Request) -> Response:
        """The same as `/health`, but for the key."""
        return await self.health(request)

    async def version(self, request: Request) -> Response:
        """The package's version."""
        return JSONResponse({"version": __version__})


class _Answering:
    """An endpoint that answers a body, and is stopped when its client has gone."""

    def __init__(self, server: Server, answer: Callable[[bytes, Send], Coroutine[Any, Any, None]]):
        self._server, self._answer = server, answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        lifecycle = self._server.lifecycle
        lifecycle.require_ready()
        request = Request(scope, receive)
        with lifecycle.body_of(int(request.headers.get("content-length") or 0)):
            try:
                raw = await request.body()
                await unless_gone(receive, self._answer(raw, send))
            except (ClientGone, ClientDisconnect):
                return


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Runs a coroutine, and cancels it when the client closes its connection.

    Raises:
      ClientGone: it has.
    """

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working, watching = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        await working
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _aside(raw: bytes, call: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function, in a thread if the body is so long that others would wait."""
    return await asyncio.to_thread(call, *arguments) if len(raw) > 2**18 else call(*arguments)


async def _refused(request: Request, error: Any) -> Response:
    return JSONResponse(error.body(), error.status, error.headers)


async def _no_such_path(request: Request, error: Any) -> Response:
    said = {404: "there is no such path", 405: "this path has no such method"}.get(error.status_code, "a bad request")
    return JSONResponse(ApiError(error.status_code, said).body(), error.status_code, error.headers)


async def _fault(request: Request, error: Exception) -> Response:
    return JSONResponse(ApiError(500, "a fault of the server's own", code="internal_error").body(), 500)
