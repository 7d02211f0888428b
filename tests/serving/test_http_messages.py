"""What the two processes of the server say to each other: as it was sent, in order, and nothing else."""

import contextlib
import dataclasses
import random
import socket
import threading
from pathlib import Path
from typing import get_args

import msgspec
import numpy as np
import pytest

from tests.serving.channels import channels
from videollava_jax.batch.media.spool import FrameFile
from videollava_jax.engine.request import Pinned, Request, Result, Scored, TokenLogprob
from videollava_jax.engine.tickets import Moments
from videollava_jax.engine.usage import Usage
from videollava_jax.media import Cause, Fps, Frames, Indices, Linspace, Uniform, Within
from videollava_jax.media.rooted import RootedFile
from videollava_jax.serving.http_process.channel import Channel
from videollava_jax.serving.http_process.messages import (
    Ask,
    Drain,
    Ended,
    Message,
    News,
    Piece,
    Say,
    WarmUp,
    read,
    written,
)

# ── messages ──

SOURCES = ("a.mp4", FrameFile("/tmp/x"), RootedFile("/data", "b/c.mp4"))
RULES = (
    None,
    5,
    Uniform(3),
    Linspace(4),
    Fps(0.5, 6, 2),
    Indices((1, 5, 5)),
    Within(1.5, None, Fps(2.0)),
    Within(0, 9, 4),
)


@pytest.mark.parametrize("seed", range(50))
def test_a_request_comes_as_it_was_sent(seed):
    draw = random.Random(seed)
    source, rule = draw.choice(SOURCES), draw.choice(RULES)
    text = {"type": "text", "text": draw.choice(["why?", "ä", "half \ud800"])}
    request = Request(
        id="",
        conversation=[{"role": "user", "content": [{"type": "video", "video": source}, text]}],
        videos=[source] if draw.random() < 0.5 else [],
        frame_sampling=rule,
        seed=draw.choice([0, 7, 2**63, -(2**63), 2**64 - 1, 2**64, -(2**63) - 1, 10**400, -(10**400)]),
        options={"stop_strings": ["a", ""], "sequence_bias": {"5": -100.0}, "temperature": 0.25, "do_sample": True},
        choices=["up", "down"],
        logprobs=draw.choice([None, 0, 5]),
    )
    asked = Ask(seed, "score", request, draw.choice([None, 2.5]), True, False)
    assert read(written(asked)) == asked


def test_what_the_engine_says_comes_as_it_was_sent():
    logprobs = (TokenLogprob(5, -0.25, ((5, -0.25), (7, -3.5))), TokenLogprob(6, -float("inf")))
    frames = (Frames((0, 9), (0.0, 1.5), 12), None, Frames((1,), None, None))
    result = Result(id="a", text="up", token_ids=(5, 6, 2), finish_reason="stop", logprobs=logprobs, frames=frames)
    scored = Scored(id="", log_likelihoods=(-1.5, -2.0), tokens=(1, 2), greedy=(True, False))
    said = [
        Piece(3, "u", ()),
        Piece(3, "", logprobs),
        Ended(3, result, None, Moments(1.5, 2.0, None, 3.25)),
        Ended(4, scored, None, None),
        Ended(5, Pinned(id="x", tokens=7), None, None),
        Ended(6, None, "queue_full", None),
    ]
    news = News(said, Usage(running=3, compiled=1), 17)
    assert read(written(news)) == news
    state = Say({"state": "ready", "seconds": 1.5, "url": None})
    assert read(written(state)) == state
    odd = Say({"cause": Cause.TRUNCATED, "count": np.int32(3), "path": Path("/tmp/a")})
    assert read(written(odd)) == Say({"cause": "truncated", "count": 3, "path": "/tmp/a"})


@pytest.mark.parametrize("seed", range(300))
def test_bytes_that_are_no_message_are_refused(seed):
    draw = random.Random(seed)
    content = bytearray(written(Ask(1, "answer", Request(id="a", prompt="what?"), 1.0, True, False)))
    for _ in range(draw.choice([1, 3, 20])):
        content[draw.randrange(len(content))] = draw.randrange(256)
    content = content[: draw.choice([len(content), draw.randrange(len(content))])]
    with contextlib.suppress(ValueError):
        assert dataclasses.is_dataclass(read(bytes(content)))  # a field may have another value


def test_only_messages_are_read_and_nothing_else_is_sent():
    pack = msgspec.msgpack.encode
    for content in (
        *(b"", b"\xc1", pack({"number": 1}), pack([1]), pack(msgspec.msgpack.Ext(100, b""))),
        *(pack(msgspec.msgpack.Ext(1, pack({"number": 1}))), pack(msgspec.msgpack.Ext(1, pack([1, 2])))),
        written(Drain())[:-1],
    ):
        with pytest.raises(ValueError, match=r"not a message|expected"):
            read(content)
    codes = range(128)
    alone = [pack(msgspec.msgpack.Ext(code, pack(fields))) for code in codes for fields in ([], [3], ["a", "b"])]
    made = []
    for content in alone:
        with contextlib.suppress(ValueError):
            made.append(read(content))
    assert {type(each) for each in made} <= set(get_args(Message))
    assert WarmUp() in made
    with pytest.raises(TypeError, match="an object of Thread is not sent"):
        written(Say({"thread": threading.Thread()}))


def test_what_a_client_sends_cannot_pass_for_an_object_of_ours():
    """A client's JSON becomes mappings, lists and texts, never one of the classes that name files."""
    told = {"type": "video", "video": {"root": "/etc", "name": "shadow"}}
    asked = Ask(1, "answer", Request(id="", conversation=[{"role": "user", "content": [told]}]), None, False, False)
    assert read(written(asked)).request.conversation[0]["content"][0] == told


# ── the channel ──


def test_messages_come_in_order_and_nobody_waits_for_a_slow_reader():
    with channels() as (one, other):
        sent = [Say({"number": number, "text": "x" * (number % 5000)}) for number in range(2000)]
        for message in sent:  # megabytes more than the socket holds, and nobody reads
            one.send(message)
        come = other.receive()
        assert [next(come) for _ in sent] == sent
        one.close()
        assert list(come) == []
        other.send(Drain())  # to nobody


def test_a_message_that_makes_no_sense_is_an_error():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"\x03\0\0\0abc")
        with pytest.raises(ValueError, match="not a message"):
            next(Channel(ours).receive())
