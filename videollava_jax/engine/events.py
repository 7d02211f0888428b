"""The events that the schedule takes, and the actions that it returns. No JAX.

    TakeRequest    ◀── Arrived, Refused, Exhausted          Decode    ◀── RowsEnded
    Identify       ◀── Identified                           Wait      ◀── any of Identified, MediaRead
    ReadMedia      ◀── MediaRead

Each action on the left is followed by one of the events on its right. No other action has an event. A live schedule
takes no requests: `Arrived`, `Refused`, `Exhausted`, `Cancelled` and `Released` come by themselves.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import numpy.typing as npt

from videollava_jax.engine.sizes import Branches, GridShape

if TYPE_CHECKING:
    from videollava_jax.media import Frames

Task = Literal["answer", "score", "pin"]
"""What is wanted of a question: its answer, the likelihoods of its choices, or that its prefix stays."""


class Question(Protocol):
    """What the schedule needs to know of a question."""

    @property
    def id(self) -> str:
        """The id of its request."""

    @property
    def task(self) -> Task:
        """What is wanted of it."""

    @property
    def tokens(self) -> int:
        """Its tokens after the prefix; where its choices are scored, with the longest of these."""

    @property
    def answer_tokens(self) -> int:
        """The most tokens of its answer; 0 where nothing is written."""

    @property
    def required_tokens(self) -> int:
        """The tokens of its answer for which there has to be room in the model; at most `answer_tokens`."""

    @property
    def draws(self) -> bool:
        """Whether its tokens are drawn."""

    @property
    def penalises(self) -> bool:
        """Whether it has a penalty or a bias."""

    @property
    def stops(self) -> bool:
        """Whether it has stop strings, which the host looks for."""

    @property
    def wants_logprobs(self) -> bool:
        """Whether the log-probabilities of its answer are wanted."""


class PrefixMedia(Protocol):
    """What the schedule needs to know of a prefix whose media were read."""

    @property
    def tokens(self) -> int:
        """Its length, media included."""

    @property
    def signature(self) -> Hashable:
        """Equal for prefixes whose media can be encoded together."""

    @property
    def frames(self) -> tuple[Frames | None, ...]:
        """Which frames of each video were read."""


@dataclass(frozen=True)
class HeldPrefix:
    """A prefix in a slot, to a question about it.

    Attributes:
      tokens: its length.
      cached: whether the device held it already when the question came.
      frames: of its videos, those that were read.
    """

    tokens: int
    cached: bool
    frames: tuple[Frames | None, ...]


# ── events ──


@dataclass(frozen=True)
class Arrived:
    """The next request, prepared."""

    question: Question


@dataclass(frozen=True)
class Refused:
    """The next request cannot be carried out."""

    id: str
    error: Exception


@dataclass(frozen=True)
class Exhausted:
    """There are no more requests."""


@dataclass(frozen=True)
class Identified:
    """A question's prefix has a key, equal for prefixes of equal content; or an error came instead."""

    question: Question
    key: Hashable | Exception


@dataclass(frozen=True)
class MediaRead:
    """The media of the prefix of a key were read; or an error came instead."""

    key: Hashable
    media: PrefixMedia | Exception


class ReaderFailed(ValueError):
    """A reader has raised what is no error about a file. In a session it costs the requests about this file alone."""

    cause = "reader_failed"

    def __init__(self, error: Exception):
        super().__init__(f"its media could not be read: the reader raised {type(error).__name__}")


@dataclass(frozen=True)
class EndedRow:
    """A row whose answer has ended.

    Attributes:
      tokens: int32, of the answer, the last one included.
      finite: whether all logits were finite; otherwise the row ended because they were not.
      by_host: the host found a stop string, and the device does not know that the row has ended.
    """

    row: int
    tokens: npt.NDArray[np.int32]
    finite: bool = True
    by_host: bool = False


@dataclass(frozen=True)
class RowsEnded:
    """The outcome of `Decode`."""

    rows: tuple[EndedRow, ...]


@dataclass(frozen=True)
class Cancelled:
    """Nobody wants the answer to a question any more, whose result may have been given already.

    Attributes:
      error, cause: of its result.
    """

    question: Question
    error: str
    cause: str


@dataclass(frozen=True)
class Released:
    """A prefix need not stay any more for a question with the task "pin", whose prefix may not be there yet."""

    question: Question


Event = Arrived | Refused | Exhausted | Identified | MediaRead | RowsEnded | Cancelled | Released

# ── actions ──


@dataclass(frozen=True)
class TakeRequest:
    """Prepare the next request."""


@dataclass(frozen=True)
class Identify:
    """Find the key of a question's prefix. The schedule does not wait for the event before its next action."""

    question: Question


@dataclass(frozen=True)
class ReadMedia:
    """Read the media of a question's prefix. The schedule does not wait for the event before its next action."""

    key: Hashable
    question: Question


@dataclass(frozen=True)
class StopReading:
    """Nobody wants the media of a key any more, unless somebody asks for them again. `MediaRead` may still come."""

    key: Hashable


@dataclass(frozen=True)
class Wait:
    """Wait for an event, as there is nothing else to do: a prefix is identified, its media are read, or a live one."""


@dataclass(frozen=True)
class MakeGrid:
    """Replace the present grid, which nobody uses any more, by an empty one.

    Attributes:
      branches: what its programs can do.
    """

    shape: GridShape
    branches: Branches


@dataclass(frozen=True)
class Prefill:
    """Compute prefixes in the slots of one index, one for each shard."""

    slot: int
    prefixes: tuple[PrefixMedia, ...]


@dataclass(frozen=True)
class Begin:
    """Put questions into rows of the slots of one index.

    Attributes:
      questions: for each of the shards × rows; None for a row that keeps what it has.
    """

    slot: int
    questions: tuple[Question | None, ...]


@dataclass(frozen=True)
class Decode:
    """Decode all rows.

    Attributes:
      steps: at most.
      enough: rows that may have ended before the device stops.
      rows: the questions that are being answered, by their rows.
    """

    steps: int
    enough: int
    rows: Mapping[int, Question]


@dataclass(frozen=True)
class EndRows:
    """Tell the device that rows have ended."""

    rows: tuple[int, ...]


@dataclass(frozen=True)
class Answer:
    """Give a question's answer.

    Attributes:
      tokens: int32.
      prefix: of the question.
    """

    question: Question
    tokens: npt.NDArray[np.int32]
    prefix: HeldPrefix


@dataclass(frozen=True)
class Score:
    """Compute the likelihoods of a question's choices after the prefix in a slot, and give them.

    Attributes:
      slot, shard: of the slot.
      prefix: in it.
    """

    slot: int
    shard: int
    question: Question
    prefix: HeldPrefix


@dataclass(frozen=True)
class KeepPrefix:
    """Say that a prefix is on the device, and stays there until the question is cancelled."""

    question: Question
    prefix: HeldPrefix


@dataclass(frozen=True)
class Fail:
    """Give the error of a request.

    Attributes:
      question: None for a request that could not be prepared.
      read_for: where reading failed, the question whose files were read: the error names them.
    """

    id: str
    error: str
    cause: str | None = None
    question: Question | None = None
    read_for: Question | None = None


@dataclass(frozen=True)
class Finish:
    """All requests have their result."""


Action = (
    TakeRequest
    | Identify
    | ReadMedia
    | StopReading
    | Wait
    | MakeGrid
    | Prefill
    | Begin
    | Decode
    | EndRows
    | Answer
    | Score
    | KeepPrefix
    | Fail
    | Finish
)
