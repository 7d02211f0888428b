"""Paths that need the engine: chat completions whole and streamed, scores of choices, numbers of tokens."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from videollava_jax.processing.given_media import known_frames
from videollava_jax.processing.processor import VideoLlavaProcessor
from videollava_jax.processing.prompt import parse_conversation, render
from videollava_jax.processing.segments import MediaKind
from videollava_jax.serving.answers import END, PING, Completion, event, score_record
from videollava_jax.serving.asking import Asking, Desk, Written
from videollava_jax.serving.errors import ApiError, invalid
from videollava_jax.serving.guards import send_json
from videollava_jax.serving.lifecycle import Lifecycle
from videollava_jax.serving.metrics import Metrics, Stopwatch
from videollava_jax.serving.protocol import (
    Asked,
    TokenizeBody,
    chat_asked,
    conversation,
    fields_of,
    parsed_json,
    require_model,
    score_asked,
)
from videollava_jax.serving.stops import TextBefore, before

Made = TypeVar("Made")
Answer = Callable[[bytes, Send], Coroutine[Any, Any, None]]

_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
_LARGE = 2**18
"""Bytes of a body whose reading would keep other requests waiting."""
_UNREAD = 30.0
"""Seconds that a client has to read what is left of its answer when its time is over."""
_TEXT = 16
"""How many times the positions of the model a text may have tokens, whose number is asked for."""


class ClientGone(Exception):
    """The client has closed its connection."""


class Chatting:
    """What is answered by the engine.

    Args:
      desk: the way to it.
      lifecycle: whether requests are taken.
      metrics: counted here.
      processor: of the model.
    """

    def __init__(self, desk: Desk, lifecycle: Lifecycle, metrics: Metrics, processor: VideoLlavaProcessor):
        self._desk, self._lifecycle, self._metrics, self._processor = desk, lifecycle, metrics, processor
        self._settings = desk.settings
        self._tokenizer = processor.light_tokenizer
        self._specials = frozenset(map(self._tokenizer.convert_tokens_to_ids, self._tokenizer.all_special_tokens))

    def endpoint(self, answer: Answer) -> Endpoint:
        """Returns an endpoint that reads a body, calls a method with it, and stops it when the client has gone."""
        return Endpoint(answer, self._lifecycle, self._metrics, self._settings.request_timeout)

    async def chat(self, raw: bytes, send: Send) -> None:
        """Answers a chat completion."""
        watch = Stopwatch(self._metrics)
        asked = await _aside(raw, chat_asked, raw, self._settings, self._kind_of)
        one = asked.requests[0]
        made = Completion(self._settings.model, self._tokenizer, self._specials, one.logprobs is not None)
        stops = one.options.get("stop_strings", ())
        self._metrics.asked.observe(len(asked.requests))
        self._metrics.most.observe(one.max_new_tokens)
        with self._lifecycle.place_for(len(asked.requests)):
            asking = Asking(self._desk)
            try:
                if asked.stream:
                    await self._stream(asking, asked, made, stops, send, watch)
                    return
                asking.submit(asked.requests, pieces=False, media_there=watch.media_there)
                results = {}
                async for parts in asking.written():
                    for part in parts:
                        if part.result is not None:
                            text = before(part.result.text, stops)
                            results[part.index] = dataclasses.replace(part.result, text=text)
                            watch.ended(part)
                await send_json(200, made.whole([results[i] for i in range(len(results))]), send)
            finally:
                asking.close()

    async def _stream(
        self, asking: Asking, asked: Asked, made: Completion, stops: Sequence[str], send: Send, watch: Stopwatch
    ) -> None:
        """Gets the media, and sends answers while they are written. An error before anything was sent has a status."""
        texts = [TextBefore(stops) for _ in asked.requests]
        begun: set[int] = set()
        started = False
        results: dict[int, Any] = {}

        async def write(content: bytes, more: bool = True) -> None:
            nonlocal started
            if not started:
                started = True
                await send({"type": "http.response.start", "status": 200, "headers": _STREAM_HEADERS})
            await send({"type": "http.response.body", "body": content, "more_body": more})

        def chunks(part: Written) -> bytes:
            content = b"" if part.index in begun else made.opening(part.index)
            begun.add(part.index)
            text = texts[part.index](part.text, last=part.result is not None)
            if part.text:
                watch.text_came(part.index)
            if text or part.logprobs:
                content += made.piece(part.index, text, part.logprobs)
            if part.result is not None:
                results[part.index] = part.result
                watch.ended(part)
                content += made.closing(part.index, part.result)
            return content

        try:
            asking.submit(asked.requests, pieces=True, media_there=watch.media_there)
            async for parts in asking.written(self._settings.ping_seconds):
                content = b"".join(map(chunks, parts)) if parts else PING
                if len(results) < len(asked.requests):
                    await write(content)
            if asked.include_usage:
                content += made.usage_chunk([results[i] for i in range(len(results))])
            await write(content + END, more=False)
        except ApiError as error:
            if not started:
                raise
            self._metrics.failed(error.status, error.code)
            await write(event(error.body()), more=False)

    async def score(self, raw: bytes, send: Send) -> None:
        """Says how likely each of some choices is as the answer to a conversation."""
        watch = Stopwatch(self._metrics)
        asked = await _aside(raw, score_asked, raw, self._settings, self._kind_of)
        with self._lifecycle.place_for(1):
            asking = Asking(self._desk)
            try:
                asking.score(asked, media_there=watch.media_there)
                async for parts in asking.written():
                    for part in parts:
                        watch.scored(part)
                        record = score_record(self._settings.model, asked.choices, part.result)
            finally:
                asking.close()
        await send_json(200, record, send)

    async def tokenize(self, raw: bytes, send: Send) -> None:
        """Returns the tokens of a text, or of a conversation with its media."""
        found = await asyncio.to_thread(self._tokens, raw)
        await send_json(200, found, send)

    def _tokens(self, raw: bytes) -> dict[str, Any]:
        given = fields_of(parsed_json(raw), TokenizeBody)
        require_model(given.model, self._settings)
        if (given.prompt is None) == (given.messages is None):
            raise invalid("expected a prompt or messages, one of the two")
        encoder, most = self._processor.encoder, _TEXT * self._settings.max_tokens
        try:
            if given.prompt is not None:
                segments = encoder.encode([given.prompt], most)
            else:
                turns = parse_conversation(conversation(given.messages or [], self._kind_of))
                segments = encoder.encode(render(turns, self._processor.template, True), most)
        except ValueError as error:
            raise invalid(str(error), "prompt" if given.messages is None else "messages") from None
        each = [self._tokens_of(medium.kind, medium.source) for medium in segments.media]
        ids = segments.expand(each, encoder.media_ids).input_ids.tolist()
        if given.prompt is not None and given.add_special_tokens is False:
            ids = [i for i in ids if i not in self._specials]
        found = {"count": len(ids), "max_model_len": self._settings.max_tokens, "tokens": ids}
        if given.return_token_strs:
            found["token_strs"] = [self._tokenizer.convert_ids_to_tokens(i) for i in ids]
        return found

    def _tokens_of(self, kind: MediaKind, source: Any) -> int:
        """The tokens of a medium; of a video whose frames its length decides, the most that there can be."""
        if kind == "image":
            return self._processor.tokens_per_image
        rule = self._processor.frames(self._settings.frame_sampling)
        frames = known_frames(source, rule)
        if frames is None:
            frames = getattr(rule, "max_frames", self._settings.max_frames)
        return frames * self._processor.tokens_per_frame

    def _kind_of(self, name: str) -> MediaKind:
        try:
            return self._desk.media.uploads.get(name).kind
        except ApiError as error:
            raise invalid(error.message, "messages", error.code) from None


class Endpoint:
    """An endpoint that answers a body, and is stopped when its client has gone."""

    def __init__(self, answer: Answer, lifecycle: Lifecycle, metrics: Metrics, seconds: float):
        self._answer, self._lifecycle, self._metrics, self._seconds = answer, lifecycle, metrics, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request.

        Raises:
          ApiError: it is not answered.
        """
        self._lifecycle.require_ready()
        pieces = []
        with self._lifecycle.body() as come:
            try:
                async with asyncio.timeout(self._seconds):
                    async for piece in Request(scope, receive).stream():
                        come(len(piece))
                        pieces.append(piece)
            except TimeoutError:
                raise ApiError(408, f"the body was not there within {self._seconds:g} s", code="deadline") from None
            except ClientDisconnect:
                return
            raw = b"".join(pieces)
            pieces.clear()
            try:
                # The engine has the same time. What is left is a client that does not read its answer.
                async with asyncio.timeout(self._seconds + _UNREAD):
                    await unless_gone(receive, self._answer(raw, send))
            except (ClientGone, TimeoutError):
                self._metrics.requests("abort").inc()


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Runs a coroutine, and cancels it when the client closes its connection.

    Raises:
      ClientGone: it has.
    """
    own = asyncio.current_task()
    assert own is not None
    has_gone = False

    async def watch() -> None:
        nonlocal has_gone
        while (await receive())["type"] != "http.disconnect":
            pass
        has_gone = True
        own.cancel()

    watching = asyncio.ensure_future(watch())
    try:
        await work
    except asyncio.CancelledError:
        if has_gone and own.uncancel() == 0:
            raise ClientGone from None
        raise
    finally:
        watching.cancel()


async def _aside(raw: bytes, call: Callable[..., Made], *arguments: Any) -> Made:
    """Calls a function, in a thread if the body is so long that others would wait."""
    return await asyncio.to_thread(call, *arguments) if len(raw) > _LARGE else call(*arguments)
