"""Answers as OpenAI's clients read them: completions, chunks, log-probabilities, usage, frames. No JAX."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from videollava_jax.engine.request import Result, Scored, TokenLogprob
from videollava_jax.generation.text import piece
from videollava_jax.media import Frames

_JSON = msgspec.json.Encoder()
PING = b": ping\n\n"
"""A comment in a stream of events, which clients ignore."""
END = b"data: [DONE]\n\n"


def event(record: Any) -> bytes:
    """Returns an object as one event of a stream."""
    return b"data: " + written(record) + b"\n\n"


def written(record: Any) -> bytes:
    """Returns an object as JSON. Half of a surrogate pair, which JSON can name and UTF-8 cannot, becomes a "?"."""
    try:
        return _JSON.encode(record)
    except UnicodeEncodeError:
        return json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


@dataclass(frozen=True)
class Completion:
    """The answers to one request, and what they have in common.

    Attributes:
      model: its name.
      tokenizer: of the processor, for the texts of single tokens.
      specials: ids of the tokenizer's special tokens.
      logprobs: whether log-probabilities were asked for.
    """

    model: str
    tokenizer: Any
    specials: frozenset[int] = frozenset()
    logprobs: bool = False
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, results: Sequence[Result]) -> dict[str, Any]:
        """Returns all answers as one object."""
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": result.text, "refusal": None},
                "logprobs": self._logprobs(result.logprobs),
                "finish_reason": result.finish_reason,
            }
            for index, result in enumerate(results)
        ]
        return {**self._head("chat.completion"), "choices": choices, "usage": usage(results), **frames_of(results[0])}

    def opening(self, index: int) -> bytes:
        """Returns the first chunk of an answer: its role."""
        return self._chunk(index, {"role": "assistant", "content": ""}, None)

    def piece(self, index: int, text: str, logprobs: Sequence[TokenLogprob]) -> bytes:
        """Returns a chunk of an answer's text, with the tokens that have come with it."""
        return self._chunk(index, {"content": text}, None, logprobs)

    def closing(self, index: int, result: Result) -> bytes:
        """Returns the last chunk of an answer: why it has ended, and which frames the model saw."""
        return self._chunk(index, {}, result.finish_reason, **frames_of(result))

    def usage_chunk(self, results: Sequence[Result]) -> bytes:
        """Returns the chunk that has the numbers of tokens and no choice."""
        return event({**self._head("chat.completion.chunk"), "choices": [], "usage": usage(results)})

    def _chunk(
        self, index: int, delta: dict[str, Any], reason: str | None, logprobs: Sequence[TokenLogprob] = (), **more: Any
    ) -> bytes:
        choice = {"index": index, "delta": delta, "finish_reason": reason}
        choice["logprobs"] = self._logprobs(logprobs) if logprobs else None
        return event({**self._head("chat.completion.chunk"), "choices": [choice], **more})

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _logprobs(self, given: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        if not self.logprobs:
            return None
        content = [
            {
                **self._token(each.token_id, each.logprob),
                "top_logprobs": [self._token(token, logprob) for token, logprob in each.top],
            }
            for each in given
            if each.token_id not in self.specials  # the end of an answer is none of its text
        ]
        return {"content": content, "refusal": None}

    def _token(self, token_id: int, logprob: float) -> dict[str, Any]:
        raw = token_bytes(self.tokenizer, token_id)
        # JSON has no infinity; OpenAI writes this number for what is never chosen.
        return {
            "token": raw.decode("utf-8", "replace"),
            "logprob": max(logprob, -9999.0),
            "bytes": list(raw),
        }


def token_bytes(tokenizer: Any, token_id: int) -> bytes:
    """Returns the bytes of a token of Llama's vocabulary: a space for its mark of a word, a byte for `<0x0A>`."""
    token = piece(tokenizer, token_id)
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes([int(token[3:5], 16)])
    return token.replace("\N{LOWER ONE EIGHTH BLOCK}", " ").encode("utf-8", "replace")


def score_record(model: str, choices: Sequence[str], scored: Scored) -> dict[str, Any]:
    """Returns how likely choices are, the most likely one's number, and what the prompt took."""
    rows = zip(choices, scored.log_likelihoods, scored.tokens, scored.greedy, strict=True)
    prompt = scored.prompt_tokens
    return {
        "id": f"score-{secrets.token_hex(12)}",
        "object": "score",
        "created": int(time.time()),
        "model": model,
        "data": [
            {"index": i, "choice": choice, "log_likelihood": likelihood, "tokens": tokens, "greedy": greedy}
            for i, (choice, likelihood, tokens, greedy) in enumerate(rows)
        ],
        "best": scored.best,
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": 0,
            "total_tokens": prompt,
            "prompt_tokens_details": {"cached_tokens": scored.cached_tokens},
        },
        **frames_of(scored),
    }


def usage(results: Sequence[Result]) -> dict[str, Any]:
    """Returns the numbers of tokens of one request: its prompt once, and all its answers."""
    prompt, written = results[0].prompt_tokens, sum(len(result.token_ids) for result in results)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": written,
        "total_tokens": prompt + written,
        "prompt_tokens_details": {"cached_tokens": min(result.cached_tokens for result in results)},
    }


def frames_of(result: Result | Scored) -> dict[str, Any]:
    """Returns which frames of videos the model saw, as `videos`; nothing where there are none."""
    return {"videos": [frames_record(frames) for frames in result.frames]} if result.frames else {}


def frames_record(frames: Frames | None) -> dict[str, Any] | None:
    """Returns the numbers and seconds of a video's frames; None of a video that is no file of frames in time."""
    if frames is None:
        return None
    seconds = None if frames.seconds is None else [round(second, 4) for second in frames.seconds]
    return {"frames": list(frames.indices), "seconds": seconds, "total_frames": frames.total}
