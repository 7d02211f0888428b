"""A scorer: marks answers one by one, adds up what a unit counts, and computes metrics from the sums.

marks ──grouped by unit──▶ counts of each unit ──summed──▶ metrics

Metrics are functions of sums, so that an interval needs no second look at the answers: clusters are drawn again, and
the sums of their counts give the metric of the draw.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from videollava_jax.evaluation.question import Mark, Marked, Question

Counts = Mapping[str, float]


def mean_counts(unit: Sequence[Marked]) -> Counts:
    """Counts a unit once: the means of its scores, by name, and 1 under `all`."""
    names = sorted({name for marked in unit for name in marked.mark.others})
    others = {name: sum(marked.mark.others.get(name, 0.0) for marked in unit) / len(unit) for name in names}
    return {"accuracy": sum(marked.mark.score for marked in unit) / len(unit), **others, "all": 1.0}


def percentages(sums: Counts) -> dict[str, float]:
    """Returns every count as a percentage of `all`."""
    total = sums.get("all", 0.0)
    return {name: 100 * value / total for name, value in sums.items() if name != "all"} if total else {}


def no_extras(marked: Sequence[Marked]) -> dict[str, Any]:
    """Returns nothing more."""
    return {}


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """How a task's answers are scored.

    Attributes:
      mark: marks an answer.
      metric: the name of the headline metric, one of those that `metrics` returns.
      counts: what a unit counts, by name; sums of these are all that `metrics` needs.
      metrics: metrics from sums of counts, 0 to 100 unless the name says otherwise.
      extras: what else the report says about all answers, without an interval.
    """

    mark: Callable[[Question, str], Mark]
    metric: str = "accuracy"
    counts: Callable[[Sequence[Marked]], Counts] = mean_counts
    metrics: Callable[[Counts], dict[str, float]] = percentages
    extras: Callable[[Sequence[Marked]], dict[str, Any]] = no_extras

    def marked(self, question: Question, text: str | None) -> Marked:
        """Marks the answer to a question; one without an answer has score 0."""
        mark = Mark(score=0.0, parsed=None) if text is None else self.mark(question, text)
        return Marked(question=question, text=text, mark=mark)


def units(marked: Sequence[Marked]) -> dict[str, list[Marked]]:
    """Groups marked questions by their units, in order."""
    found: dict[str, list[Marked]] = {}
    for one in marked:
        found.setdefault(one.question.unit or f"\0{one.question.id}", []).append(one)
    return found


def summed(counts: Sequence[Counts]) -> dict[str, float]:
    """Adds counts up, name by name."""
    sums: dict[str, float] = {}
    for each in counts:
        for name, value in each.items():
            sums[name] = sums.get(name, 0.0) + value
    return sums
