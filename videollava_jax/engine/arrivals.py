"""Questions whose prefix, or that of an earlier question, is not identified yet. No JAX."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass

from videollava_jax.engine.events import Question


@dataclass(eq=False)
class _Arrival:
    question: Question
    key: Hashable | Exception | None = None


class Arrivals:
    """Questions in the order in which they came."""

    def __init__(self) -> None:
        self._arrivals: dict[int, _Arrival] = {}

    def __len__(self) -> int:
        return len(self._arrivals)

    def add(self, question: Question) -> None:
        """Adds a question that has just come."""
        self._arrivals[id(question)] = _Arrival(question)

    def identify(self, question: Question, key: Hashable | Exception) -> None:
        """Notes the key of a question's prefix, or the error that came instead. The question may have been removed."""
        if (arrival := self._arrivals.get(id(question))) is not None:
            arrival.key = key

    def remove(self, question: Question) -> bool:
        """Removes a question; returns whether it was there."""
        return self._arrivals.pop(id(question), None) is not None

    def identified(self, *, in_order: bool) -> Iterator[tuple[Question, Hashable | Exception]]:
        """Removes and yields the questions that are identified.

        Args:
          in_order: only up to the first that is not.
        """
        for arrival in list(self._arrivals.values()):
            if arrival.key is not None:
                self.remove(arrival.question)
                yield arrival.question, arrival.key
            elif in_order:
                return
