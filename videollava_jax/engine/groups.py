"""Questions brought together by what they share, and their media read ahead of the device."""

from __future__ import annotations

import itertools
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from videollava_jax.engine.preparation import Prefix, Question, ReadPrefix


@dataclass(eq=False)
class Group:
    """Questions about one prefix.

    Attributes:
      waiting: those that no row has taken yet.
      reading: the prefix with its media, once somebody reads them.
    """

    prefix: Prefix
    waiting: deque[Question] = field(default_factory=deque)
    reading: Future[ReadPrefix] | None = None

    @property
    def read(self) -> ReadPrefix:
        """The prefix with its media; waits for them, and raises what reading them raised."""
        assert self.reading is not None
        return self.reading.result()


class Pending:
    """Groups that no slot has taken yet, oldest first; the media of the first `ahead` of them are being read."""

    def __init__(self, read: Callable[[Prefix], ReadPrefix], readers: int, ahead: int):
        self._read, self._ahead = read, ahead
        self._pool = ThreadPoolExecutor(readers, thread_name_prefix="read-media")
        self._groups: OrderedDict[Hashable, Group] = OrderedDict()
        self.questions = 0

    def __len__(self) -> int:
        return len(self._groups)

    def add(self, question: Question) -> None:
        """Puts a question to those about the same prefix."""
        group = self._groups.setdefault(question.prefix.key, Group(question.prefix))
        group.waiting.append(question)
        self.questions += 1

    def first(self) -> list[Group]:
        """The oldest groups, their media being read."""
        found = list(itertools.islice(self._groups.values(), self._ahead))
        for group in found:
            if group.reading is None:
                group.reading = self._pool.submit(self._read, group.prefix)
        return found

    def take(self, group: Group) -> Group:
        """A group that a slot takes, or that has failed."""
        del self._groups[group.prefix.key]
        self.questions -= len(group.waiting)
        return group

    def drop(self, group: Group, question: Question) -> None:
        """A question that has failed; a group without any goes too."""
        group.waiting.remove(question)
        self.questions -= 1
        if not group.waiting:
            del self._groups[group.prefix.key]

    def groups(self) -> list[Group]:
        """All groups, oldest first, whether their media are being read or not."""
        return list(self._groups.values())

    def close(self) -> None:
        """Ends the reading; what has begun is waited for."""
        self._pool.shutdown(wait=True, cancel_futures=True)
