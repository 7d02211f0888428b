"""The server's paths: what is answered where."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from videollava_jax.media.addresses import Address, is_public
from videollava_jax.processing.processor import VideoLlavaProcessor
from videollava_jax.serving.asking import Desk
from videollava_jax.serving.chatting import Chatting
from videollava_jax.serving.errors import ApiError
from videollava_jax.serving.guards import Guard
from videollava_jax.serving.lifecycle import Lifecycle, State
from videollava_jax.serving.live_session import LiveSession
from videollava_jax.serving.looking import Looking
from videollava_jax.serving.media import MediaStore
from videollava_jax.serving.metrics import CONTENT_TYPE, Metrics
from videollava_jax.serving.page_route import page_routes
from videollava_jax.serving.protocol import require_model
from videollava_jax.serving.settings import Settings
from videollava_jax.version import __version__

_MULTIPART = 2**20
"""The most bytes of an upload's body that are not the file's."""


def create_app(
    session: LiveSession,
    processor: VideoLlavaProcessor,
    settings: Settings,
    *,
    reader: Callable[..., Any] | None = None,
    allowed_address: Callable[[Address], bool] = is_public,
) -> App:
    """Returns the server as an ASGI app. It takes requests when `server.lifecycle.state` is READY.

    Args:
      session: of the engine; whoever made it warms it up and closes it.
      processor: of the same model.
      settings: of the server.
      reader: reads the media of uploads, to show their frames; None for the processor, in this process.
      allowed_address: returns whether media may be fetched from an address, of the hosts that the settings allow.
    """
    server = Server(session, processor, settings, reader or processor.read, allowed_address)
    chatting = server.chatting
    routes = [
        Route("/v1/chat/completions", chatting.endpoint(chatting.chat), methods=["POST"]),
        Route("/v1/score", chatting.endpoint(chatting.score), methods=["POST"]),
        Route("/tokenize", chatting.endpoint(chatting.tokenize), methods=["POST"]),
        Route("/v1/models", server.models, methods=["GET"]),
        Route("/v1/models/{name:path}", server.model, methods=["GET"]),
        Route("/v1/files", server.files, methods=["GET"]),
        Route("/v1/files", server.upload, methods=["POST"]),
        Route("/v1/files/{id}", server.file, methods=["GET"]),
        Route("/v1/files/{id}", server.delete_file, methods=["DELETE"]),
        Route("/v1/files/{id}/frames", server.frames, methods=["GET"]),
        Route("/health", server.health, methods=["GET"]),
        Route("/ping", server.health, methods=["GET", "POST"]),
        Route("/version", server.version, methods=["GET"]),
        Route("/metrics", server.metrics_text, methods=["GET"]),
        *page_routes(settings.hosts, examples=settings.examples),
    ]
    handlers: dict[Any, Any] = {
        ApiError: server.refused,
        HTTPException: server.no_such_path,
        ClientDisconnect: server.gone,
        Exception: server.fault,
    }
    return App(Starlette(routes=routes, exception_handlers=handlers, lifespan=server.lifespan), server)


class App(Guard):
    """The server as an ASGI app.

    Attributes:
      server: its state.
    """

    def __init__(self, app: ASGIApp, server: Server):
        super().__init__(app, server.settings, server.settings.uploads.bytes + _MULTIPART, server.count_refusal)
        self.server = server


class Server:
    """The state of a server, and the paths that need no engine.

    Attributes:
      lifecycle: whether requests are taken.
      metrics: of requests.
      media: of clients.
      desk, chatting: the way to the engine, and what it answers.
      looking: uploads.
    """

    def __init__(
        self,
        session: LiveSession,
        processor: VideoLlavaProcessor,
        settings: Settings,
        reader: Callable[..., Any],
        allowed_address: Callable[[Address], bool],
    ):
        self.session, self.settings = session, settings
        self.lifecycle = Lifecycle(settings)
        self.media = MediaStore(settings, allowed_address)
        self.metrics = Metrics(session, self.lifecycle, self.media, settings)
        self.desk = Desk(session, self.media, settings)
        self.chatting = Chatting(self.desk, self.lifecycle, self.metrics, processor)
        self.looking = Looking(reader, self.media.uploads, session, settings)
        for measured in (reader, session):  # the engine's media are read where the session is
            if hasattr(measured, "observe"):
                measured.observe = self.metrics.medium_read
        self._created = int(time.time())

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

    # ── models ──

    async def models(self, request: Request) -> Response:
        """Lists the model."""
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        """Describes the model."""
        require_model(request.path_params["name"], self.settings)
        return JSONResponse(self._model())

    def _model(self) -> dict[str, Any]:
        return {
            "id": self.settings.model,
            "object": "model",
            "created": self._created,
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
        with self.lifecycle.place_for(1):
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
        self.lifecycle.require_ready()
        with self.lifecycle.place_for(1):
            return JSONResponse(await self.looking.frames(request.path_params["id"], request.query_params))

    # ── the server itself ──

    async def health(self, request: Request) -> Response:
        """Says whether requests are taken."""
        state = self.lifecycle.state if self.session.error is None else State.FAILED
        ready = state is State.READY
        return JSONResponse({"status": state.value}, 200 if ready else 503, {} if ready else {"Retry-After": "5"})

    async def version(self, request: Request) -> Response:
        """The package's version."""
        return JSONResponse({"version": __version__})

    async def metrics_text(self, request: Request) -> Response:
        """The metrics, for Prometheus."""
        return Response(self.metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    # ── errors ──

    def count_refusal(self, error: ApiError) -> None:
        """Counts a request that is not answered."""
        self.metrics.failed(error.status, error.code)

    async def refused(self, request: Request, error: Any) -> Response:
        """Answers with an error of ours."""
        self.count_refusal(error)
        return JSONResponse(error.body(), error.status, error.headers)

    async def no_such_path(self, request: Request, error: Any) -> Response:
        """Answers with Starlette's error, in words of our own."""
        said = {404: "there is no such path", 405: "this path has no such method"}.get(error.status_code, "bad request")
        return JSONResponse(ApiError(error.status_code, said).body(), error.status_code, error.headers)

    async def gone(self, request: Request, error: Any) -> Response:
        """Ends a request whose client closed its connection while it sent a file: nobody reads this."""
        return Response(status_code=400)

    async def fault(self, request: Request, error: Exception) -> Response:
        """Answers after a fault of ours, which the log has with its traceback."""
        made = ApiError(500, "a fault of the server's own", code="internal_error")
        self.count_refusal(made)
        return JSONResponse(made.body(), 500)
