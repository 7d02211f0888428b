"""Requests, which go into the engine, and results, which come out of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from videollava_jax.media import Frames

FinishReason = Literal["stop", "length", "error"]
MOST_LOGPROBS = 20
"""The most alternatives whose log-probabilities a request may ask for."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """A question about images and videos, or a text alone.

    Attributes:
      id: of the request; its result has the same.
      prompt: with `<image>` and `<video>` where media stand, as the processor's call takes it.
      conversation: messages as `processing.prompt.parse_conversation` takes them, instead of `prompt`.
      images, videos: in the order of the prompt's placeholders; those of a conversation are in its messages.
      max_new_tokens: the answer is cut there.
      cut_to_fit: cut the answer earlier where the model's positions have no room for `max_new_tokens`; otherwise such a
        request is refused.
      seed: of the random draws, where the options hold `do_sample=True`.
      choices: for `Engine.score` and `Session.score`, the answers whose likelihoods are wanted.
      frame_sampling: which frames of a video file to take: a rule, a number of them, or None for 8; by the rule of the
        processor's preset.
      video_pooling: how far the tokens of videos are pooled; None for the processor's setting.
      options: of `GenerationOptions`, those that requests do not share.
      logprobs: the number of likeliest tokens, at most 20, whose log-probabilities are wanted at each place, with that
        of the token that was chosen; 0 for the chosen one alone, None for none.
    """

    id: str
    prompt: str | None = None
    conversation: Sequence[Mapping[str, Any]] | None = None
    images: Sequence[Any] = ()
    videos: Sequence[Any] = ()
    max_new_tokens: int = 128
    cut_to_fit: bool = False
    seed: int = 0
    choices: Sequence[str] = ()
    frame_sampling: Any = None
    video_pooling: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    logprobs: int | None = None


@dataclass(frozen=True)
class TokenLogprob:
    """How likely the token at one place of an answer was.

    Natural logarithms of the model's own probabilities: the softmax of its logits, before penalties, biases, the
    temperature and whatever else changes what is chosen.

    Attributes:
      token_id: the chosen token.
      logprob: its log-probability.
      top: the likeliest tokens with their log-probabilities, the likeliest first.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Result:
    """An answer, or the error that came instead.

    Attributes:
      id: the request's.
      text: the answer without special tokens; empty with an error.
      token_ids: its tokens, the end of the answer included where it was reached.
      finish_reason: "stop" at an end token or a stop string, "length" at `max_new_tokens`, or "error".
      error: a line that says what went wrong; None for answers.
      cause: a word for the kind of error, so that programs can count errors by it: a `media.Cause`, "not_finite",
        "too_long" (it does not fit the model or the session), "cancelled", "deadline", or what the exception of a
        custom `reader` has as `cause`. None where the kind is not known.
      prompt_tokens: length of the whole prompt, media included.
      shared_tokens: tokens of the prefix, which was computed once for all questions about its media.
      cached_tokens: those of them that the device held already when the request came; all or none.
      frames: for each video which frames the model saw; None for one that was given as pixels.
      logprobs: for each of `token_ids`, where the request asks for them.
      answer_tokens: the number of `token_ids`; of an answer that came from a server, of the tokens it does not send.
    """

    id: str
    text: str = ""
    token_ids: tuple[int, ...] = ()
    finish_reason: FinishReason
    error: str | None = None
    cause: str | None = None
    prompt_tokens: int = 0
    shared_tokens: int = 0
    cached_tokens: int = 0
    frames: tuple[Frames | None, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    answer_tokens: int = -1

    def __post_init__(self) -> None:
        if self.answer_tokens < 0:
            object.__setattr__(self, "answer_tokens", len(self.token_ids))


@dataclass(frozen=True, kw_only=True)
class Scored:
    """How likely each of a request's choices is as the answer.

    Attributes:
      id: the request's.
      log_likelihoods: for each choice the sum of its tokens' log-probabilities, natural.
      tokens: tokens of each choice, for means.
      greedy: for each choice, whether every token was the likeliest.
      error, cause: as in `Result`.
      prompt_tokens, cached_tokens, frames: as in `Result`.
    """

    id: str
    log_likelihoods: tuple[float, ...] = ()
    tokens: tuple[int, ...] = ()
    greedy: tuple[bool, ...] = ()
    error: str | None = None
    cause: str | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    frames: tuple[Frames | None, ...] = ()

    @property
    def best(self) -> int:
        """The index of the likeliest choice."""
        return max(range(len(self.log_likelihoods)), key=self.log_likelihoods.__getitem__)


@dataclass(frozen=True, kw_only=True)
class Pinned:
    """A prefix that stays on the device, or the error that came instead.

    Attributes:
      id: the request's.
      tokens: of the prefix.
      cached_tokens, frames: as in `Result`.
      error, cause: as in `Result`.
    """

    id: str
    tokens: int = 0
    cached_tokens: int = 0
    frames: tuple[Frames | None, ...] = ()
    error: str | None = None
    cause: str | None = None


Outcome = Result | Scored | Pinned
