"""Requests and answers in the words of OpenAI's protocol, as a client of servers writes and reads them. No JAX."""

from __future__ import annotations

import base64
import http.client
import itertools
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from videollava_jax.batch.media.spool import FrameFile
from videollava_jax.batch.requests import with_sources
from videollava_jax.engine.request import Request, Result
from videollava_jax.generation.options import OPENAI_NAMES
from videollava_jax.media import Fps, Uniform
from videollava_jax.media.rooted import open_descriptor
from videollava_jax.media.urls import short_name
from videollava_jax.processing.segments import MediaKind

LONGEST_ANSWER = 64 * 2**20
"""The most bytes of an answer that are read."""
_OPENAI_NAMES = {ours: theirs for theirs, ours in OPENAI_NAMES.items()}


@dataclass(frozen=True)
class Answer:
    """What a server has answered, or that it has not."""

    status: int
    body: Mapping[str, Any]
    message: str = ""
    code: str | None = None
    retry_after: float = 0.0
    gone: bool = False


class Refused(Exception):
    """A server does not take a medium."""

    def __init__(self, answer: Answer):
        super().__init__(answer.message)
        self.answer = answer


def body_of(request: Request, model: str) -> dict[str, Any]:
    """Returns the body of a chat completion without its messages.

    Raises:
      ValueError: the request asks for what the protocol has no words for.
    """
    if request.conversation is None:
        raise ValueError(
            "a prompt with placeholders is used unchanged, which a server does not do: expected a question without "
            "<image> and <video>, or a conversation"
        )
    if request.video_pooling is not None:
        raise ValueError("pool: a server has its own; start it with --pool")
    options = {name: value for name, value in request.options.items() if value is not None}
    if options.pop("do_sample", None) is False:
        options = {**options, "temperature": 0}
        for name in ("top_p", "top_k", "min_p"):
            options.pop(name, None)
    unknown = [name for name in options if name not in _OPENAI_NAMES]
    if unknown:
        raise ValueError(f"{unknown[0]}: a server takes no such option for one request")
    body = {"model": model, "max_tokens": request.max_new_tokens, "seed": request.seed}
    body |= {_OPENAI_NAMES[name]: value for name, value in options.items()}
    match request.frame_sampling:
        case None:
            pass
        case Uniform(num_frames=count):
            body["media_io_kwargs"] = {"video": {"num_frames": count}}
        case Fps(fps=rate, max_frames=most):
            body["media_io_kwargs"] = {"video": {"fps": rate, "num_frames": most}}
        case other:
            raise ValueError(f"frames by {type(other).__name__}: a server takes a number of frames or --fps")
    return body


def messages_of(request: Request) -> list[dict[str, Any]]:
    """Returns the messages of a request whose media are URLs."""
    assert request.conversation is not None
    return [
        {**message, "content": [_part(part) for part in message["content"]]}
        if isinstance(message.get("content"), list)
        else dict(message)
        for message in request.conversation
    ]


def _part(part: Mapping[str, Any]) -> Mapping[str, Any]:
    kind = part.get("type")
    return {"type": f"{kind}_url", f"{kind}_url": {"url": part[kind]}} if kind in ("image", "video") else part


def media_paths(request: Request) -> tuple[str, ...]:
    """Returns the paths of a request's media, in their order."""
    found: list[str] = []

    def look(_: Any, source: Any) -> Any:
        found.append(os.fspath(source))
        return source

    with_sources(request, look)
    return tuple(found)


def content_of(source: Any) -> bytes:
    """Returns the bytes of a medium."""
    try:
        with open(open_descriptor(source), "rb") as file:
            return file.read()
    except OSError as error:
        raise Refused(Answer(400, {}, f"{source}: {reason_of(error)}", "unreadable")) from None


def data_url(kind: MediaKind, source: Any) -> str:
    """Returns a medium as a data: URL; of a `FrameFile` its frames, as vLLM takes them."""
    content = content_of(source)
    if isinstance(source, FrameFile):
        line, _, rest = content.partition(b"\n")
        ends = list(itertools.accumulate(json.loads(line)))
        frames = [rest[start:end] for start, end in zip([0, *ends], ends, strict=False)]
        return "data:video/jpeg;base64," + ",".join(base64.b64encode(frame).decode() for frame in frames)
    mime = "image/png" if kind == "image" else "video/mp4"  # servers go by the content
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"


def read_answer(response: http.client.HTTPResponse, content: bytes) -> Answer:
    """Reads an answer of HTTP; one of 200 without an object is a fault of the server."""
    try:
        body = json.loads(content) if len(content) <= LONGEST_ANSWER else None
    except (ValueError, RecursionError):
        body = None
    body = body if isinstance(body, dict) else {}
    error = body.get("error")
    error = error if isinstance(error, Mapping) else {}
    code = error.get("code")
    status = response.status if response.status != 200 or body else 502
    return Answer(
        status,
        body,
        short_name(str(error.get("message") or f"status {status}"), plain=True),
        code if isinstance(code, str) else None,
        _seconds(response.headers.get("Retry-After")),
    )


def _seconds(text: str | None) -> float:
    try:
        return min(max(float(text or 0), 0.0), 60.0)
    except ValueError:
        return 1.0  # a date


def result_of(request: Request, answer: Answer) -> Result:
    """Reads a chat completion; one that is none is a fault of the server."""
    try:
        choice, usage = answer.body["choices"][0], answer.body["usage"]
        text, reason = choice["message"]["content"] or "", choice["finish_reason"]
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        return Result(
            id=request.id,
            text=str(text),
            finish_reason="length" if reason == "length" else "stop",
            prompt_tokens=int(usage["prompt_tokens"]),
            cached_tokens=int(cached),
            answer_tokens=int(usage["completion_tokens"]),
        )
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        return failed(request, "the server's answer is no chat completion", "bad_answer")


def failed(request: Request, message: str, cause: str) -> Result:
    """Returns the result of a request that was not answered."""
    return Result(id=request.id, finish_reason="error", error=message, cause=cause)


def reason_of(error: OSError) -> str:
    """Returns why there is no answer, without the names of files."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return (os.strerror(error.errno).lower() if error.errno else str(error)) or type(error).__name__
