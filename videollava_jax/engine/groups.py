"""Questions grouped by their prefix, and the slots and rows that they take. No JAX."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from videollava_jax.engine.events import HeldPrefix, PrefixMedia, Question
from videollava_jax.engine.sizes import PREFIX_BUCKET, Branches, GridShape
from videollava_jax.engine.usage import Usage
from videollava_jax.generation.buckets import bucket
from videollava_jax.processing.room import TooLong

if TYPE_CHECKING:
    from videollava_jax.media import Frames


@dataclass(eq=False)
class Group:
    """Questions about one prefix.

    Attributes:
      key: of the prefix.
      first: the question that came first: the media are read for it.
      waiting: questions that no row has taken yet.
      media: the media, or the error that came instead; None before, and again once a slot holds the prefix.
    """

    key: Hashable
    first: Question
    waiting: deque[Question] = field(default_factory=deque)
    media: PrefixMedia | Exception | None = None


class Groups:
    """Groups that no slot holds yet, oldest first.

    Attributes:
      questions: of all groups, counted.
    """

    def __init__(self) -> None:
        self._groups: OrderedDict[Hashable, Group] = OrderedDict()
        self._unread: deque[Group] = deque()  # media are read in order: these stand behind all the others
        self.questions = 0

    def __len__(self) -> int:
        return len(self._groups)

    def __iter__(self) -> Iterator[Group]:
        return iter(list(self._groups.values()))

    def get(self, key: Hashable) -> Group | None:
        """Returns the group of a key; None if it has none."""
        return self._groups.get(key)

    def add(self, key: Hashable, question: Question) -> None:
        """Adds a question to the group of its prefix."""
        if key not in self._groups:
            self._groups[key] = Group(key, question)
            self._unread.append(self._groups[key])
        self._groups[key].waiting.append(question)
        self.questions += 1

    def drop(self, group: Group, question: Question) -> bool:
        """Removes a question that has failed, and its group if it was the only one.

        Returns:
          Whether somebody is reading the media of a group that is no more.
        """
        group.waiting.remove(question)
        self.questions -= 1
        if group.waiting:
            return False
        del self._groups[group.key]
        if group in self._unread:
            self._unread.remove(group)
            return False
        return group.media is None

    def remove(self, group: Group) -> None:
        """Removes a group that a slot takes, or that has failed."""
        del self._groups[group.key]
        self.questions -= len(group.waiting)

    def next_to_read(self, ahead: int) -> Group | None:
        """Returns the oldest group whose media nobody has asked for, if fewer than `ahead` stand before it."""
        if not self._unread or len(self._groups) - len(self._unread) >= ahead:
            return None
        return self._unread.popleft()


@dataclass(eq=False)
class Slot:
    """A slot of the grid.

    Attributes:
      group: whose questions it answers; None when all are answered.
      holds: the key of the prefix in it, which stays until another is prefilled.
      length: tokens of that prefix.
      frames: of its videos, those that were read.
      pins: questions for which the prefix has to stay.
      used: when it last had a group, as a number that grows.
    """

    group: Group | None = None
    holds: Hashable = None
    length: int = 0
    frames: tuple[Frames | None, ...] = ()
    pins: list[Question] = field(default_factory=list)
    used: int = 0


class Slots:
    """Which slots and rows of a grid are taken, and by what.

    Attributes:
      shape: of the grid.
      branches: what its programs can do.
      fixed: whether it stays whatever the requests are, so that a shorter prefix may take a slot too.
      slots: of all shards: those of the first shard, then those of the second.
      rows: the question that each row answers; the rows of a slot are neighbours.
      cached: questions that wait or are answered, and whose prefix was there when they came.
      prompt_tokens: of the questions so far.
    """

    def __init__(self, shape: GridShape, branches: Branches, *, fixed: bool = False):
        self.shape, self.branches, self.fixed = shape, branches, fixed
        self.cached: set[Question] = set()
        self.prompt_tokens = 0
        self._uses = 0
        self.slots = [Slot() for _ in range(shape.prefixes)]
        self.rows: list[Question | None] = [None] * shape.batch

    @property
    def busy(self) -> bool:
        """Whether a slot has questions that are not answered."""
        return any(slot.group is not None for slot in self.slots)

    @property
    def waiting(self) -> int:
        """Questions of the groups in slots that no row has taken yet."""
        return sum(len(slot.group.waiting) for slot in self.slots if slot.group is not None)

    @property
    def live(self) -> dict[int, Question]:
        """The questions that are being answered, by their rows."""
        return {row: question for row, question in enumerate(self.rows) if question is not None}

    def of_index(self, index: int) -> list[Slot]:
        """Returns the slots of one index, one for each shard."""
        return self.slots[index :: self.shape.slots]

    def rows_of(self, index: int, shard: int) -> range:
        """Returns the rows of a slot."""
        first = (shard * self.shape.slots + index) * self.shape.rows
        return range(first, first + self.shape.rows)

    def is_free(self, index: int) -> bool:
        """Returns whether nobody needs the prefixes in the slots of one index any more."""
        return all(slot.group is None and not slot.pins for slot in self.of_index(index))

    def free_index(self, keys: list[Hashable]) -> int | None:
        """Returns a free slot index for the prefixes of these keys.

        It is one that holds them already, or else the one whose prefixes were used least recently.
        """
        free = [index for index in range(self.shape.slots) if self.is_free(index)]
        held = (index for index in free if [slot.holds for slot in self.of_index(index)] == keys)
        oldest = min(free, key=lambda index: max(slot.used for slot in self.of_index(index)), default=None)
        return next(held, oldest)

    def give(self, slot: Slot, group: Group | None) -> None:
        """Gives a slot to a group, or frees it."""
        self._uses += 1
        slot.group, slot.used = group, self._uses

    def holding(self, key: Hashable) -> Slot | None:
        """Returns the slot that holds the prefix of a key, with the most room for questions if there are several."""

        def room(slot: Slot) -> int:
            return self.shape.rows - (0 if slot.group is None else len(slot.group.waiting) + self._taken(slot))

        return max((slot for slot in self.slots if slot.holds == key), key=room, default=None)

    def _taken(self, slot: Slot) -> int:
        first = self.slots.index(slot) * self.shape.rows
        return sum(question is not None for question in self.rows[first : first + self.shape.rows])

    def slot_of(self, key: Hashable, question: Question) -> Slot | None:
        """Returns the slot that answers questions about this prefix, if it is of this size and kind."""
        if not self.takes(question):
            return None
        return next((slot for slot in self.slots if slot.group is not None and slot.group.key == key), None)

    def takes(self, question: Question) -> bool:
        """Returns whether rows have room for a question and its answer, and programs for its options."""
        return (
            question.tokens <= self.shape.question
            and question.answer_tokens <= self.shape.answer
            and (self.branches.draw or not question.draws)
            and (self.branches.penalise or not question.penalises)
            and (self.branches.logprobs or not question.wants_logprobs)
        )

    def too_long(self, question: Question) -> TooLong:
        """Returns the error about a question that the rows of a fixed grid do not take."""
        return TooLong(
            f"a question of {question.tokens} tokens and an answer of up to {question.answer_tokens}: expected at most "
            f"{self.shape.question} and {self.shape.answer}, for which the engine was started"
        )

    def require_room(self, tokens: int) -> None:
        """Raises `TooLong` for a prefix that is longer than a slot of a fixed grid."""
        if tokens > self.shape.prefix:
            raise TooLong(
                f"media and the text before them of {tokens} tokens: expected at most {self.shape.prefix}, for which "
                "the engine was started; take fewer frames or pool them (video_pooling)"
            )

    def fits(self, group: Group, tokens: int) -> bool:
        """Returns whether a prefix of this length fills a slot by more than half, and rows take its questions."""
        positions, room = bucket(max(1, tokens), PREFIX_BUCKET), self.shape.prefix
        fits = positions <= room and (self.fixed or positions > room // 2)
        return fits and all(self.takes(question) for question in group.waiting)

    def take_row(self, row: int, question: Question) -> None:
        """Gives a row to a question that waits for one."""
        slot = self._slot_of_row(row)
        assert slot.group is not None
        slot.group.waiting.remove(question)
        self.rows[row] = question
        self.prompt_tokens += slot.length + question.tokens

    def take_prefix(self, slot: Slot, question: Question) -> HeldPrefix:
        """Removes a question that waits for a prefix and needs no row; returns what it gets."""
        assert slot.group is not None
        slot.group.waiting.remove(question)
        self.prompt_tokens += slot.length + question.tokens
        return self._held(slot, question)

    def free_row(self, row: int) -> tuple[Question, HeldPrefix]:
        """Frees a row, and its slot if no question about the prefix is left. Returns the row's question and prefix."""
        slot, question = self._slot_of_row(row), self.rows[row]
        assert question is not None
        held = self._held(slot, question)
        self.rows[row] = None
        self.release(slot)
        return question, held

    def _slot_of_row(self, row: int) -> Slot:
        return self.slots[row // self.shape.rows]

    def _held(self, slot: Slot, question: Question) -> HeldPrefix:
        held = HeldPrefix(slot.length, question in self.cached, slot.frames)
        self.cached.discard(question)
        return held

    def withdraw(self, question: Question) -> bool:
        """Removes a question that no row has taken yet from its slot; returns whether it was there."""
        for slot in self.slots:
            if slot.group is not None and question in slot.group.waiting:
                slot.group.waiting.remove(question)
                self.cached.discard(question)
                self.release(slot)
                return True
        return False

    @property
    def pinned(self) -> set[Hashable]:
        """The keys of the prefixes that have to stay."""
        return {slot.holds for slot in self.slots if slot.pins}

    def unpin(self, question: Question) -> bool:
        """Lets the prefix go that had to stay for a question; returns whether there was one."""
        for slot in self.slots:
            if question in slot.pins:
                slot.pins.remove(question)
                return True
        return False

    def release(self, slot: Slot) -> None:
        """Frees a slot if no question about its prefix is left."""
        if slot.group is not None and not slot.group.waiting and not self._taken(slot):
            self.give(slot, None)


def usage_of(groups: Groups, slots: Slots) -> Usage:
    """Returns what groups wait for and what slots and rows do."""
    return Usage(
        reading=sum(len(group.waiting) for group in groups if group.media is None),
        running=len(slots.live),
        rows=slots.shape.batch,
        slots=slots.shape.prefixes,
        slots_in_use=sum(slot.group is not None or bool(slot.pins) for slot in slots.slots),
        held=sum(slot.holds is not None for slot in slots.slots),
        pinned=len(slots.pinned),
        prompt_tokens=slots.prompt_tokens,
    )
