"""What a task asks, and how an answer was marked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from videollava_jax.processing.segments import MediaKind


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question of a task.

    Attributes:
      id: different for each question of the task.
      text: what is asked, as the authors' program writes it after the media.
      media: kinds and sources: paths under the task's directory, or data: URLs.
      span: the part of its videos that it is about, seconds from the first frame, the end None for a video's end; None
        for all of them.
      target: what the scorer compares with; None where the task's answers are not published.
      cluster: what it is about, a video or an image. Questions of one cluster are not independent.
      unit: questions with the same unit are right only together; "" for a unit of its own.
      categories: names of the groups that it is in, by what they group.
      options: of a choice, in the order of their letters.
      published_id: its id in the authors' files, where that is not `id`.
      facts: what else the scorer needs.
    """

    id: str
    text: str
    media: tuple[tuple[MediaKind, str], ...] = ()
    span: tuple[float, float | None] | None = None
    target: Any = None
    cluster: str
    unit: str = ""
    categories: Mapping[str, str] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    published_id: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Mark:
    """The mark of an answer.

    Attributes:
      score: 0 to 1.
      parsed: what was read out of the answer; None if nothing could be.
      others: other scores of it, 0 to 1, by name.
    """

    score: float
    parsed: str | None = ""
    others: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Marked:
    """A question with its answer and mark.

    Attributes:
      question: of the task.
      text: the answer; None if there is none, which counts as wrong.
      mark: of it.
    """

    question: Question
    text: str | None
    mark: Mark
