"""What the two processes say to each other, and how it is written: objects of these classes alone. No JAX.

MessagePack without code: bytes that a process sends can only become one of the classes below, with plain values.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from videollava_jax.batch.media.spool import FrameFile
from videollava_jax.engine.events import Task
from videollava_jax.engine.request import Pinned, Request, Result, Scored, TokenLogprob
from videollava_jax.engine.tickets import Moments
from videollava_jax.engine.usage import Usage
from videollava_jax.media import Fps, Frames, Indices, Linspace, Uniform, Within
from videollava_jax.media.rooted import RootedFile

# ── from HTTP to the engine ──


@dataclass(frozen=True)
class Ask:
    """A request to the engine.

    Attributes:
      number: of the request, for what is said about it later.
      task: what is wanted: an answer, scores of its choices, or that its prefix is kept.
      request: itself; its media are files.
      timeout: seconds; None for no limit.
      text, tokens: whether pieces of the answer, and log-probabilities with them, are wanted while it is written.
    """

    number: int
    task: Task
    request: Request
    timeout: float | None
    text: bool
    tokens: bool


@dataclass(frozen=True)
class GiveUp:
    """Nobody wants the answer, or the prefix that was to be kept."""

    number: int


@dataclass(frozen=True)
class WarmUp:
    """Compile all programs."""


@dataclass(frozen=True)
class Close:
    """End the session, as `Session.close` does."""

    drain_seconds: float | None
    stop_seconds: float | None


@dataclass(frozen=True)
class Say:
    """A record of what the server does, for the command to print."""

    record: dict[str, Any]


# ── from the engine to HTTP ──


@dataclass(frozen=True)
class Piece:
    """A part of an answer that has been written: text, or log-probabilities of tokens."""

    number: int
    text: str
    logprobs: Sequence[TokenLogprob]


@dataclass(frozen=True)
class Ended:
    """The end of a request.

    Attributes:
      number: of the request.
      outcome: its result; None if it has none.
      refused: why it has none: "queue_full" or "closed", or the name of an exception's class.
      moments: of its ticket.
    """

    number: int
    outcome: Result | Scored | Pinned | None
    refused: str | None
    moments: Moments | None


@dataclass(frozen=True)
class News:
    """What has happened since the last news.

    Attributes:
      said: pieces and ends in their order.
      usage: of the session.
      steps: of the session.
    """

    said: Sequence[Piece | Ended]
    usage: Usage
    steps: int


@dataclass(frozen=True)
class MediumRead:
    """A medium was read: in how many seconds, and how many bytes its file has."""

    seconds: float
    size: int


@dataclass(frozen=True)
class WarmedUp:
    """The programs are compiled, or an error came instead."""

    programs: int
    error: str | None


@dataclass(frozen=True)
class Closed:
    """The session has ended; the error says that it would not."""

    error: str | None


@dataclass(frozen=True)
class Stopped:
    """The session's thread has ended by an error."""

    error: str


@dataclass(frozen=True)
class Drain:
    """A signal has come: take no more requests."""


Message = Ask | GiveUp | WarmUp | Close | Say | News | MediumRead | WarmedUp | Closed | Stopped | Drain

# ── how they are written ──

_CLASSES: tuple[type, ...] = (
    *(Ask, GiveUp, WarmUp, Close, Say, Piece, Ended, News, MediumRead, WarmedUp, Closed, Stopped, Drain),
    *(Request, Result, Scored, Pinned, TokenLogprob, Moments, Usage, Frames),
    *(FrameFile, RootedFile, Uniform, Linspace, Fps, Indices, Within),
)
_CODES = {kind: code for code, kind in enumerate(_CLASSES)}
_FIELDS = [[field.name for field in dataclasses.fields(kind)] for kind in _CLASSES]
_LARGE, _TUPLE, _SURROGATES = 125, 126, 127
"""Codes of what MessagePack does not have: numbers of more than 64 bits, tuples that differ from lists, and texts with
half of a surrogate pair. Clients may send any of them, and are refused by the one who knows what is wrong with it."""
_PLAIN = frozenset((float, bool, type(None), bytes))


def written(message: Message) -> bytes:
    """Returns a message as bytes.

    Raises:
      TypeError: it holds an object of a class that is not sent.
    """
    return _ENCODER.encode(_packed(message))


def read(content: bytes) -> Message:
    """Returns the message that some bytes are.

    Raises:
      ValueError: they are none.
    """
    try:
        found = _DECODER.decode(content)
    except (msgspec.MsgspecError, TypeError, IndexError, RecursionError) as error:
        raise ValueError(f"not a message: {error}") from None
    if not isinstance(found, Message):
        raise ValueError(f"not a message: {type(found).__name__}")
    return found


def _packed(value: Any) -> Any:
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is str:
        return value if value.isascii() else _text(value)
    if kind is int:
        return value if -(2**63) <= value < 2**64 else _large(value)
    if kind is tuple:
        return _ext(_TUPLE, value)
    code = _CODES.get(kind)
    if code is not None:
        return _ext(code, [getattr(value, name) for name in _FIELDS[code]])
    if kind is list:
        return [_packed(each) for each in value]
    if isinstance(value, Mapping):
        return {_packed(key): _packed(each) for key, each in value.items()}
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, str):  # a word for the cause of an error is a member of an enumeration
        return str(value)
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"an object of {kind.__name__} is not sent to the other process")


def _ext(code: int, values: Sequence[Any]) -> msgspec.msgpack.Ext:
    return msgspec.msgpack.Ext(code, _ENCODER.encode([_packed(each) for each in values]))


def _large(value: int) -> msgspec.msgpack.Ext:
    return msgspec.msgpack.Ext(_LARGE, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))


def _text(value: str) -> Any:
    try:
        value.encode()
    except UnicodeEncodeError:
        return msgspec.msgpack.Ext(_SURROGATES, value.encode("utf-8", "surrogatepass"))
    return value


def _made(code: int, content: memoryview) -> Any:
    if code == _SURROGATES:
        return bytes(content).decode("utf-8", "surrogatepass")
    if code == _LARGE:
        return int.from_bytes(content, "big", signed=True)
    values = _DECODER.decode(content)
    if not isinstance(values, list):
        raise ValueError(f"expected a list, got {type(values).__name__}")
    if code == _TUPLE:
        return tuple(values)
    kind, names = _CLASSES[code], _FIELDS[code]
    if len(values) != len(names):
        raise ValueError(f"{kind.__name__}: expected {len(names)} fields")
    return kind(**dict(zip(names, values, strict=True)))


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(ext_hook=_made)
