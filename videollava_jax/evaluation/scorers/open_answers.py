"""Scores of free answers that need no judge: equal, contained, and shared words. They are ours, not the paper's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from videollava_jax.evaluation.question import Mark, Question
from videollava_jax.evaluation.scorers.scorer import Counts, Scorer, percentages
from videollava_jax.evaluation.scorers.vqa import normalised


def contains(text: str, answer: str) -> bool:
    """Returns whether the words of an answer stand in a text one after the other; both normalised, and not empty."""
    return bool(answer) and f" {answer} " in f" {text} "


def word_f1(text: str, answer: str) -> float:
    """Returns the harmonic mean of the shares of words that a text and an answer have in common, 0 to 1."""
    words, expected = Counter(text.split()), Counter(answer.split())
    shared = (words & expected).total()
    if not shared:
        return 0.0
    precision, recall = shared / words.total(), shared / expected.total()
    return 2 * precision * recall / (precision + recall)


def _short(question: Question, text: str) -> Mark:
    answer, expected = normalised(text), normalised(question.target)
    equal = float(answer == expected)
    first = float(bool(expected) and answer.split()[:1] == expected.split()[:1])
    others = {"first_word": first, "contains": float(contains(answer, expected)), "word_f1": word_f1(answer, expected)}
    return Mark(score=equal, parsed=answer, others=others)


def _long(question: Question, text: str) -> Mark:
    answer, expected = normalised(text), normalised(question.target)
    return Mark(score=word_f1(answer, expected), parsed=answer, others={"exact": float(answer == expected)})


def elements(text: str, answer: str) -> float:
    """Returns the share of an answer's parts, joined by <AND>, that a text contains; <OR> joins alternatives."""
    parts = [[normalised(each) for each in part.split("<OR>")] for part in answer.split("<AND>")]
    return sum(any(contains(text, each) for each in part) for part in parts) / len(parts)


def _parts(question: Question, text: str) -> Mark:
    answer = normalised(text)
    f1 = word_f1(answer, normalised(question.target.replace("<AND>", " ").replace("<OR>", " ")))
    return Mark(score=elements(answer, question.target), parsed=answer, others={"word_f1": f1})


def _named(name: str) -> Callable[[Counts], dict[str, float]]:
    """Returns metrics in which the headline one has a name that nobody takes for the paper's accuracy."""

    def metrics(sums: Counts) -> dict[str, float]:
        return {name if key == "accuracy" else key: value for key, value in percentages(sums).items()}

    return metrics


SHORT = Scorer(mark=_short, metric="exact", metrics=_named("exact"))
"""For answers of a word or a phrase: `exact`, equal after VQA's normalisation; `contains`, the answer's words in order
within the text; `first_word`; `word_f1`."""
LONG = Scorer(mark=_long, metric="word_f1", metrics=_named("word_f1"))
"""For answers of sentences: `word_f1` after VQA's normalisation, and `exact`."""
PARTS = Scorer(mark=_parts, metric="elements", metrics=_named("elements"))
"""For MM-Vet's answers, which have parts: `elements`, the share of them that the text contains; `word_f1`."""
