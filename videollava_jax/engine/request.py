"""What goes into the engine and what comes out of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

FinishReason = Literal["stop", "length", "error"]


@dataclass(frozen=True, kw_only=True)
class Request:
    """A question about images and videos, or about nothing but its text.

    Attributes:
      id: comes back with the result.
      prompt: with `<image>` and `<video>` where media stand, as the processor's call takes it.
      conversation: messages as `apply_chat_template` takes them, in the place of `prompt`.
      images, videos: in the order of the prompt's placeholders; those of a conversation are in its messages.
      max_new_tokens: the answer is cut there.
      seed: of the draws, with `do_sample=True` among the options.
      choices: for `Engine.score`, the answers whose likelihoods are wanted.
      frame_sampling: which frames of a video file to take; None for 8, evenly.
      video_pooling: None for the processor's.
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
    """An answer, or why there is none.

    Attributes:
      id: the request's.
      text: the answer without special tokens; empty with an error.
      token_ids: its tokens, the end of the answer included where it was reached.
      finish_reason: "stop" at an end token or a stop string, "length" at `max_new_tokens`, or "error".
      error: what went wrong, in a line; None for answers.
      cause: the kind of the error where it has one, for programs to count by: a `media.Cause`, "not_finite", what a
        `reader` of the caller's says.
      prompt_tokens: length of the whole prompt, media included.
      shared_tokens: how many of them are the prefix that was computed for all questions about its media.
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
      error: what went wrong, in a line; None otherwise.
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
