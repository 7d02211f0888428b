"""GQA: exact equality with the answer, and the measures of its program: `eval_gqa.py`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from videollava_jax.evaluation.question import Mark, Marked, Question
from videollava_jax.evaluation.scorers.scorer import Scorer


def prediction(text: str) -> str:
    """Returns an answer as LLaVA writes it for GQA's program: without full stops at its end, in lower case."""
    return text.rstrip(".").lower()


def _mark(question: Question, text: str) -> Mark:
    answer = prediction(text)
    others = {}
    if (choices := question.facts.get("choices")) is not None:
        for name, group in (("validity", "valid"), ("plausibility", "plausible")):
            allowed = choices[group] if not question.facts["common"] else ("color", "material", "shape")
            others[name] = float(answer in allowed)
    return Mark(score=float(answer == question.target), parsed=answer, others=others)


def _mean(values: Sequence[float]) -> float:
    return 100 * sum(values) / len(values) if values else 0.0


def distribution(marked: Sequence[Marked]) -> float:
    """Returns how far the answers' distribution is from the true one: chi-square by group, lower is better."""
    truth: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    answers: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for one in marked:
        if (group := one.question.facts.get("group")) is not None:
            truth[group][one.question.target] += 1
            answers[group][one.mark.parsed or ""] += 1
    weighted = total = 0.0
    for group, counts in truth.items():
        size = sum(counts.values())
        weighted += size * sum((answers[group][answer] - count) ** 2 / count for answer, count in counts.items())
        total += size
    return weighted / total / 100 if total else 0.0


def _extras(marked: Sequence[Marked]) -> dict[str, Any]:
    kinds = {"binary": [one.mark.score for one in marked if one.question.facts["structural"] != "query"]}
    kinds["open"] = [one.mark.score for one in marked if one.question.facts["structural"] == "query"]
    return {**{name: _mean(scores) for name, scores in kinds.items()}, "distribution": distribution(marked)}


GQA = Scorer(mark=_mark, extras=_extras)
"""Accuracy over the balanced questions. Consistency needs answers to all questions of val and is not computed."""
