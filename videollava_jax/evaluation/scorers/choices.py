"""Scorers of multiple choice: by the letter that a task's program reads, one answer for one or for a whole unit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from videollava_jax.evaluation.question import Mark, Marked, Question
from videollava_jax.evaluation.scorers.letters import (
    LETTERS,
    best_letter,
    mmbench_letter,
    mvbench_letter,
    nextqa_letter,
    science_letter,
)
from videollava_jax.evaluation.scorers.scorer import Counts, Scorer


def _by_letter(read: Callable[[Question, str], str | None]) -> Callable[[Question, str], Mark]:
    def mark(question: Question, text: str) -> Mark:
        letter = read(question, text)
        return Mark(score=float(letter is not None and letter == question.target), parsed=letter)

    return mark


def _options(question: Question) -> dict[str, str]:
    return dict(zip(LETTERS, question.options, strict=False))


def _circular(unit: Sequence[Marked]) -> Counts:
    """Counts a question with all its rotations: right if every one is; `vanilla` is the unrotated one alone."""
    right = all(one.mark.score == 1 for one in unit)
    first = min(unit, key=lambda one: int(one.question.id))
    return {"accuracy": float(right), "vanilla_accuracy": first.mark.score, "all": 1.0}


def _in_range(question: Question, text: str) -> str | None:
    letter = science_letter(text)
    return letter if letter is not None and letter in LETTERS[: len(question.options)] else None


def _science_counts(unit: Sequence[Marked]) -> Counts:
    counts = {"all": 1.0, "right": unit[0].mark.score}
    if unit[0].question.media:
        counts |= {"images": 1.0, "right images": unit[0].mark.score}
    return counts


def _science_metrics(sums: Counts) -> dict[str, float]:
    pairs = {"img_accuracy": ("right images", "images"), "accuracy": ("right", "all")}
    return {name: 100 * sums[part] / sums[whole] for name, (part, whole) in pairs.items() if sums.get(whole)}


def _answered_only(marked: Sequence[Marked]) -> dict[str, Any]:
    """Returns MVBench's accuracy over the answers that are not empty, as its program divides, and its tasks' mean."""
    answered = [one for one in marked if one.text]
    tasks: dict[str, list[float]] = {}
    for one in marked:
        tasks.setdefault(one.question.categories["task"], []).append(one.mark.score)
    extras = {"accuracy_of_answered": 100 * sum(o.mark.score for o in answered) / len(answered) if answered else 0.0}
    return {**extras, "mean_of_tasks": 100 * sum(sum(s) / len(s) for s in tasks.values()) / len(tasks)}


MMBENCH = Scorer(mark=_by_letter(lambda question, text: mmbench_letter(text, _options(question))), counts=_circular)
"""Circular: a question counts as right if it is in all rotations of its options. Without the judge that the published
program asks about answers without a letter: these are wrong."""
SCIENCEQA = Scorer(mark=_by_letter(_in_range), metric="img_accuracy", counts=_science_counts, metrics=_science_metrics)
"""`img_accuracy`: over the questions with an image. Without an answer a question is wrong and stays in the count."""
NEXTQA = Scorer(mark=_by_letter(lambda question, text: nextqa_letter(text, question.options)))
MVBENCH = Scorer(mark=_by_letter(lambda question, text: mvbench_letter(text)), extras=_answered_only)
VIDEOMME = Scorer(mark=_by_letter(lambda question, text: best_letter(text, ["A", "B", "C", "D"])))
