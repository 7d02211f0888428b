"""POPE: whether an answer says no, and F1 of yes by category, as LLaVA's `eval_pope.py`."""

from __future__ import annotations

from collections.abc import Sequence

from videollava_jax.evaluation.question import Mark, Marked, Question
from videollava_jax.evaluation.scorers.scorer import Counts, Scorer


def says_yes(text: str) -> bool:
    """Returns whether an answer counts as yes: unless a word before its first full stop is exactly No, no or not."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return not {"No", "no", "not"} & set(words)


def _mark(question: Question, text: str) -> Mark:
    yes = says_yes(text)
    return Mark(score=float(yes == question.target), parsed="yes" if yes else "no")


def _counts(unit: Sequence[Marked]) -> Counts:
    (one,) = unit
    category = one.question.categories["category"]
    if one.mark.parsed is None:  # without an answer: neither a yes nor a no, and wrong
        said = "missing, yes" if one.question.target else "missing, no"
    else:
        said = ("true " if one.mark.score else "false ") + one.mark.parsed
    return {"all": 1.0, "right": one.mark.score, f"{category}/{said}": 1.0}


def _metrics(sums: Counts) -> dict[str, float]:
    metrics = {"accuracy": 100 * sums["right"] / sums["all"]} if sums.get("all") else {}
    by_category = {}
    for category in sorted({name.split("/")[0] for name in sums if "/" in name}):
        true_yes, false_yes, true_no, false_no, no_answer, no_answer_no = (
            sums.get(f"{category}/{name}", 0.0)
            for name in ("true yes", "false yes", "true no", "false no", "missing, yes", "missing, no")
        )
        total = true_yes + false_yes + true_no + false_no + no_answer + no_answer_no
        if not total:
            continue
        precision = true_yes / (true_yes + false_yes) if true_yes + false_yes else 0.0
        positive = true_yes + false_no + no_answer
        recall = true_yes / positive if positive else 0.0
        by_category[category] = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
        metrics |= {
            f"{category}/f1": 100 * by_category[category],
            f"{category}/accuracy": 100 * (true_yes + true_no) / total,
            f"{category}/precision": 100 * precision,
            f"{category}/recall": 100 * recall,
            f"{category}/yes_ratio": 100 * (true_yes + false_yes) / total,
        }
    if by_category:
        metrics["f1"] = 100 * sum(by_category.values()) / len(by_category)
    return metrics


POPE = Scorer(mark=_mark, metric="f1", counts=_counts, metrics=_metrics)
"""The mean of the categories' F1, in percent. Where the published program divides by zero, the ratio is 0 here."""
