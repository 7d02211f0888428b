"""Jobs to simulate, drawn or read from a file: questions with lengths, about videos that take time to read."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import exp, log
from pathlib import Path

from videollava_jax.costs.work import Job
from videollava_jax.engine.events import Task

CHARACTERS_A_TOKEN = 4.0
"""Of English text in the Llama vocabulary, about: for lines whose model and tokenizer need not be here."""
TEMPLATE_TOKENS = 6
"""After the question: a line's end and "ASSISTANT:"."""
SPREAD = 0.3
"""Of the lengths of drawn questions and answers."""
ANSWER_LIMIT = 32
"""`max_new_tokens` of drawn questions, if no answer is meant to be longer."""


@dataclass(frozen=True)
class Video:
    """A video of a simulated job; equal ones are one prefix.

    Attributes:
      name: of it.
      seconds: that one host core takes to read, decode and resize it.
      tokens: of its prefix.
    """

    name: str
    seconds: float
    tokens: int

    @property
    def signature(self) -> str:
        """All are encoded by one program."""
        return "video"

    @property
    def frames(self) -> tuple[None, ...]:
        """Which frames were read, which the schedule passes on."""
        return (None,)


@dataclass(frozen=True, eq=False)
class SimulatedQuestion:
    """A question, as the schedule sees it, and what the clock needs to know.

    Attributes:
      id: of it.
      video: that it is about.
      tokens: after the prefix.
      answer_tokens: the most that its answer may have.
      written: the tokens that its answer has, its end included.
      at: seconds after the start at which it comes; 0 for a job, whose lines are all there.
    """

    id: str
    video: Video
    tokens: int
    answer_tokens: int
    written: int
    at: float = 0.0
    task: Task = field(default="answer", init=False)
    draws: bool = field(default=False, init=False)
    penalises: bool = field(default=False, init=False)
    stops: bool = field(default=False, init=False)
    wants_logprobs: bool = field(default=False, init=False)

    @property
    def required_tokens(self) -> int:
        """The tokens for which there has to be room in the model."""
        return self.answer_tokens


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The shape of a job: numbers of questions, lengths, and what reading a video costs.

    Attributes:
      name: of it.
      videos: of the whole job.
      questions: about a video, on average.
      spread: questions about a video are drawn evenly from `questions` ± `spread`.
      media_seconds: of one host core for a video, on average.
      media_spread: the factor between a quick video and a slow one: seconds are drawn from a log-normal distribution
        whose standard deviation is this factor.
      answer_limit: `max_new_tokens`.
      length_spread: the standard deviation of the lengths of questions and answers, as a share of their mean.
    """

    name: str
    videos: int
    questions: int
    spread: int = 0
    media_seconds: float
    media_spread: float = 1.0
    answer_limit: int = ANSWER_LIMIT
    length_spread: float = SPREAD


# The numbers of videos and questions are those of the published test splits: 13,157 questions about 520 videos, 8,000
# about 800. Seconds of a core: `python -m benchmarks.media_seconds`, which makes clips like theirs and reads them.
SHAPES = {
    "qa": Shape(name="qa", videos=500, questions=25, media_seconds=0.06, media_spread=1.5),
    "msvd": Shape(name="msvd", videos=520, questions=25, spread=15, media_seconds=0.06, media_spread=1.5),
    "activitynet": Shape(name="activitynet", videos=800, questions=10, media_seconds=0.17, media_spread=2.0),
    "caption": Shape(name="caption", videos=1000, questions=1, media_seconds=0.06, media_spread=1.5, answer_limit=256),
    "server": Shape(name="server", videos=400, questions=4, spread=3, media_seconds=0.06, media_spread=1.5),
}
"""Jobs that have a name."""


def shape_of(name: str, questions: int | None = None, media_seconds: float | None = None) -> Shape:
    """Returns the shape of a named job.

    Args:
      questions: about every video, instead of a number that differs.
      media_seconds: of a host core for every video, instead of what was measured for videos like the job's.
    """
    shape = SHAPES[name]
    if questions is not None:
        shape = replace(shape, questions=questions, spread=0)
    return shape if media_seconds is None else replace(shape, media_seconds=media_seconds, media_spread=1.0)


def drawn(shape: Shape, job: Job, prefix: int, *, rate: float | None = None, seed: int = 0) -> list[SimulatedQuestion]:
    """Draws the questions of a job, those about a video one after the other; the same for the same seed.

    Args:
      shape: numbers of videos and of questions about each.
      job: the mean lengths of questions and answers, around which these are drawn.
      prefix: tokens of a video and the text before it.
      rate: requests a second of a server, in random order and at random times; None for a job that is all there.
    """
    draw = random.Random(seed)
    limit = max(shape.answer_limit, job.answer_tokens)
    found: list[SimulatedQuestion] = []
    for v in range(shape.videos):
        sigma = log(shape.media_spread)
        cost = shape.media_seconds * draw.lognormvariate(0.0, sigma) / exp(sigma**2 / 2)  # their mean
        video = Video(f"{shape.name}-{v}", cost, prefix)
        for q in range(draw.randint(shape.questions - shape.spread, shape.questions + shape.spread)):
            tokens = max(1, round(job.question_tokens * draw.gauss(1.0, shape.length_spread)))
            written = min(limit, max(1, round(job.answer_tokens * draw.gauss(1.0, shape.length_spread))))
            found.append(SimulatedQuestion(f"{v}-{q}", video, tokens, limit, written))
    return found if rate is None else list(_arriving(found, rate, draw))


def _arriving(questions: Sequence[SimulatedQuestion], rate: float, draw: random.Random) -> Iterator[SimulatedQuestion]:
    """Yields questions in random order, with exponential times between them: a Poisson process."""
    at = 0.0
    for question in draw.sample(questions, len(questions)):
        at += draw.expovariate(rate)
        yield replace(question, at=at)


def read(file: Path, job: Job, prefix: int, media_seconds: float) -> list[SimulatedQuestion]:
    """Reads the questions of a job's lines, in their order and in any form that `videollava batch` takes.

    Args:
      file: of lines.
      job: the tokens of an answer, where a line allows as many.
      prefix: tokens of a video and the text before it.
      media_seconds: of a host core for each video.

    Raises:
      ValueError: it has none of the known forms, or no line asks about a video.
      OSError: it cannot be read.
    """
    from videollava_jax.batch.lines import recognise
    from videollava_jax.batch.pending import pending_lines
    from videollava_jax.batch.requests import Defaults

    videos: dict[object, Video] = {}
    found = []
    for line in pending_lines([file], recognise([file]), Defaults(), frozenset()):
        if isinstance(line.request, ValueError):
            continue
        request = line.request
        text = request.prompt or "".join(map(str, request.conversation or ()))
        video = videos.setdefault(line.about, Video(str(len(videos)), media_seconds, prefix))
        limit = request.max_new_tokens
        tokens = max(1, round(len(text) / CHARACTERS_A_TOKEN)) + TEMPLATE_TOKENS
        found.append(SimulatedQuestion(request.id, video, tokens, limit, min(limit, job.answer_tokens)))
    if not found:
        raise ValueError(f"{file}: expected lines with questions, and no line can be answered")
    return found
