"""Requests, which go into the engine, and results, which come out of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

FinishReason = Literal["stop", "length", "error"]


@dataclass(frozen=True, kw_only=True)
class Request:
    """A question about images and videos, or a text alone.

    Attributes:
      id: of the request; its result has the same.
      prompt: with `<image>` and `<video>` where media stand, as the processor's call takes it.
      conversation: messages as `processing.prompt.parse_conversation` takes them, instead of `prompt`.
      images, videos: in the order of the prompt's placeholders; those of a conversation are in its messages.
      max_new_tokens: the answer is cut there.
      seed: of the random draws, where the options hold `do_sample=True`.
      choices: for `Engine.score`, the answers whose likelihoods are wanted.
      frame_sampling: which frames of a video file to take; None for 8, evenly.
      video_pooling: how far the tokens of videos are pooled; None for the processor's setting.
      options: `do_sample`, `temperature`, `top_k`, `top_p`, `repetition_penalty`, `stop_strings` of `generate`.
    """

    id: str
    prompt: str | None = None
    conversation: Sequence[Mapping[str, Any]] | None = None
    images: Sequence[Any] = ()
    videos: Sequence[Any] = ()
    max_new_tokens: int = 128
    seed: int = 0
    choices: Sequence[str] = ()
    frame_sampling: Any = None
    video_pooling: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Result:
    """An answer, or the error that came instead.

    Attributes:
      id: the request's.
      text: the answer without special tokens; empty with an error.
      token_ids: its tokens, the end of the answer included where it was reached.
      finish_reason: "stop" at an end token or a stop string, "length" at `max_new_tokens`, or "error".
      error: a line that says what went wrong; None for answers.
      cause: a word for the kind of error, so that programs can count errors by it: a `media.Cause`, "not_finite", or
        what the exception of a custom `reader` has as `cause`. None where the kind is not known.
      prompt_tokens: length of the whole prompt, media included.
      shared_tokens: tokens of the prefix, which was computed once for all questions about its media.
    """

    id: str
    text: str = ""
    token_ids: tuple[int, ...] = ()
    finish_reason: FinishReason
    error: str | None = None
    cause: str | None = None
    prompt_tokens: int = 0
    shared_tokens: int = 0


@dataclass(frozen=True, kw_only=True)
class Scored:
    """How likely each of a request's choices is as the answer.

    Attributes:
      id: the request's.
      log_likelihoods: for each choice the sum of its tokens' log-probabilities, natural.
      tokens: tokens of each choice, for means.
      greedy: for each choice, whether every token was the likeliest.
      error: a line that says what went wrong; None otherwise.
    """

    id: str
    log_likelihoods: tuple[float, ...] = ()
    tokens: tuple[int, ...] = ()
    greedy: tuple[bool, ...] = ()
    error: str | None = None

    @property
    def best(self) -> int:
        """The index of the likeliest choice."""
        return max(range(len(self.log_likelihoods)), key=self.log_likelihoods.__getitem__)
