"""Reads files of answers and joins them to questions by id; what does not belong is counted, and nothing is shifted.

The authors' programs go by position. Theirs split questions over processes and reference answers not, so that all parts
but the first are scored against other questions.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from videollava_jax.evaluation.question import Question
from videollava_jax.evaluation.tasks.files import read_rows
from videollava_jax.processing.segments import MEDIA_TOKENS


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A record of a file of answers.

    Attributes:
      id: of its question, in the file's own names.
      text: what was answered; None for an error.
      error: why there is no answer.
      asked: the question that the record repeats; None if it does not.
      expected: the reference answer that the record repeats; None if it does not.
    """

    id: str
    text: str | None
    error: str | None = None
    asked: str | None = None
    expected: str | None = None


@dataclass(frozen=True, kw_only=True)
class Joined:
    """Answers by the ids of their questions.

    Attributes:
      texts: the answers.
      failed: questions whose record is an error, with the error.
      missing: questions without a record.
      double: questions with several records of one text, which is used.
      contradictory: questions with several records of different texts; they count as unanswered.
      foreign: ids of records that belong to no question.
      misplaced: questions whose record repeats another question; they count as unanswered.
      wrong_reference: questions whose record repeats another reference answer; the task's own is used.
    """

    texts: Mapping[str, str]
    failed: Mapping[str, str] = field(default_factory=dict)
    missing: Sequence[str] = ()
    double: Sequence[str] = ()
    contradictory: Sequence[str] = ()
    foreign: Sequence[str] = ()
    misplaced: Sequence[str] = ()
    wrong_reference: Sequence[str] = ()

    def counts(self) -> dict[str, int]:
        """Returns how many there are of each kind."""
        return {
            "answered": len(self.texts),
            **{name: len(value) for name, value in vars(self).items() if name != "texts"},
        }

    def unanswered(self) -> int:
        """Returns how many questions have no answer that can be used."""
        return len(self.failed) + len(self.missing) + len(self.contradictory) + len(self.misplaced)

    def require(self, questions: int, max_missing: float, where: Path) -> None:
        """Checks that the answers belong to the questions, and that few enough are missing.

        Raises:
          ValueError: they do not, or more than this share of questions has no answer; the message counts each kind.
        """
        said = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in self.counts().items() if count)
        if not self.texts and not self.failed:
            raise ValueError(f"{where}: none of its records belongs to a question of this data ({said})")
        if self.unanswered() > max_missing * questions:
            first = [*self.missing, *self.failed, *self.contradictory, *self.misplaced][:3]
            reason = f"; the first error: {next(iter(self.failed.values()))}" if self.failed else ""
            raise ValueError(
                f"{where}: {self.unanswered()} of {questions} questions have no answer, more than --max-missing "
                f"{max_missing:g} allows ({said}), such as {', '.join(first)}{reason}"
            )


def read_answers(path: Path) -> list[Answer]:
    """Reads answers: records of `videollava batch` (ours, LLaVA's), lines of the authors' programs, their JSON lists.

    Raises:
      ValueError: the file, or a record, has none of these forms.
    """
    answers: list[Answer] = []
    seen: Counter[str] = Counter()
    for number, row in enumerate(read_rows(path), 1):
        found = _answers_of(row, seen)
        if not found:
            raise ValueError(
                f"{path}, record {number}: expected 'id' or 'question_id' with 'text' or 'pred', or 'video_name' with "
                f"'pred' or 'pred1' and 'pred2'; got the keys {', '.join(map(repr, row))[:200]}"
            )
        answers += found
    return answers


def _answers_of(row: Mapping[str, Any], seen: Counter[str]) -> list[Answer]:
    name = row.get("id", row.get("question_id"))
    if name is not None:
        metadata = row.get("metadata")
        error = row.get("error") or (metadata.get("error") if isinstance(metadata, Mapping) else None)
        text = row.get("text", row.get("pred"))
        if error is not None:
            return [Answer(id=str(name), text=None, error=str(error))]
        if not isinstance(text, str):
            return []
        asked, expected = row.get("question", row.get("prompt")), row.get("answer")
        return [Answer(id=str(name), text=text, asked=_text(asked), expected=_text(expected))]
    if isinstance(row.get("video_name"), str):
        video = row["video_name"]
        turn = f"{video}_{seen[video]}"
        seen[video] += 1
        if isinstance(row.get("pred"), str):
            return [Answer(id=turn, text=row["pred"], asked=_text(row.get("Q")), expected=_text(row.get("A")))]
        if all(isinstance(row.get(key), str) for key in ("pred1", "pred2")):
            return [
                Answer(
                    id=f"{turn}_{i}", text=row[f"pred{i}"], asked=_text(row.get(f"Q{i}")), expected=_text(row.get("A"))
                )
                for i in (1, 2)
            ]
    return []


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _bare(text: str) -> str:
    """Returns a prompt without media's placeholders and space around it, to compare questions."""
    return re.sub("|".join(map(re.escape, MEDIA_TOKENS.values())), "", text).strip()


def join(questions: Sequence[Question], answers: Iterable[Answer]) -> Joined:
    """Joins answers to questions by id; where several questions have one published id, by the question too."""
    by_name: dict[str, list[Question]] = defaultdict(list)
    for question in questions:
        by_name[question.id].append(question)
        if question.published_id not in ("", question.id):
            by_name[question.published_id].append(question)
    records: dict[str, list[Answer]] = defaultdict(list)
    foreign, misplaced, wrong_reference = [], [], []
    for answer in answers:
        candidates = by_name.get(answer.id, [])
        if not candidates:
            foreign.append(answer.id)
            continue
        same = [each for each in candidates if answer.asked is not None and _bare(answer.asked) == _bare(each.text)]
        if answer.asked is not None and not same:
            misplaced.append(candidates[0].id)
            continue
        if len(candidates) > 1 and len(same) != 1:
            foreign.append(answer.id)
            continue
        question = (same or candidates)[0]
        if answer.expected is not None and isinstance(question.target, str) and answer.expected != question.target:
            wrong_reference.append(question.id)
        records[question.id].append(answer)
    texts, failed, missing, double, contradictory = {}, {}, [], [], []
    displaced = set(misplaced)
    for question in questions:
        found = records.get(question.id, [])
        given = [answer.text for answer in found if answer.text is not None]
        if not found:
            if question.id not in displaced:
                missing.append(question.id)
        elif not given:
            failed[question.id] = found[0].error or "no answer"
        elif len(set(given)) > 1:
            contradictory.append(question.id)
        else:
            texts[question.id] = given[0]
            if len(found) > 1:
                double.append(question.id)
    unused = [name for name in dict.fromkeys(misplaced) if name not in texts and name not in failed]
    return Joined(
        texts=texts,
        failed=failed,
        missing=missing,
        double=double,
        contradictory=contradictory,
        foreign=foreign,
        misplaced=[name for name in unused if name not in contradictory],
        wrong_reference=wrong_reference,
    )
