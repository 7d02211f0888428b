"""A task: the files that it needs, how they are read, how its answers are scored, and what the paper reports."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from videollava_jax.evaluation.question import Marked, Question
from videollava_jax.evaluation.scorers.scorer import Scorer

SHORT_ANSWER = "\nAnswer the question using a single word or phrase."
"""What LLaVA's files of questions end with; added where a task's own files are read."""
LETTER_ANSWER = "\nAnswer with the option's letter from the given choices directly."


@dataclass(frozen=True)
class Needed:
    """A file that a task needs.

    Attributes:
      name: by which its reader asks for it.
      paths: where it may be in the task's directory: the first one that is there is read.
      about: what it is, and who publishes it.
      optional: whether the task can do without.
    """

    name: str
    paths: tuple[str, ...]
    about: str
    optional: bool = False


@dataclass(frozen=True)
class Files:
    """The files of a task that are there.

    Attributes:
      root: the task's directory.
      paths: absolute paths, by the names of `Needed`.
    """

    root: Path
    paths: Mapping[str, Path]

    def __getitem__(self, name: str) -> Path:
        return self.paths[name]

    def get(self, name: str) -> Path | None:
        """Returns the path of an optional file, or None."""
        return self.paths.get(name)


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task of evaluation.

    Attributes:
      name: as the command takes it.
      title: as papers write it.
      files: what it needs; media are found by the questions.
      media: where its media are.
      read: reads its questions. Raises ValueError for files that are not as published.
      scorer: of its answers, without a judge.
      judges: names of the judge's prompts, for tasks that the paper scores by a judge.
      paper: the figures of the paper's 7B model, by metric.
      max_new_tokens: of an answer, in the authors' program.
      template: of prompts, in the authors' program.
      pads: whether that program pads images to squares.
      submission: makes what is uploaded to a server that has the answers; None if they are published.
      note: what a reader of its score must know.
    """

    name: str
    title: str
    files: tuple[Needed, ...]
    media: str
    read: Callable[[Files], list[Question]]
    scorer: Scorer
    judges: tuple[str, ...] = ()
    paper: Mapping[str, float] = field(default_factory=dict)
    max_new_tokens: int = 128
    template: str = "vicuna_v1"
    pads: bool = False
    submission: Callable[[Sequence[Marked], Files], Any] | None = None
    note: str = ""

    def find(self, root: Path) -> Files:
        """Finds the task's files in a directory.

        Raises:
          ValueError: the directory or a needed file is not there; the message names all that are missing.
        """
        if not root.is_dir():
            raise ValueError(f"{root}: no such directory; expected the data of {self.title}")
        found, missing = {}, []
        for needed in self.files:
            there = [root / path for path in needed.paths if (root / path).is_file()]
            if there:
                found[needed.name] = there[0]
            elif not needed.optional:
                missing.append(f"{' or '.join(needed.paths)} ({needed.about})")
        if missing:
            raise ValueError(f"{root}: {self.title} needs {'; '.join(missing)}")
        return Files(root, found)

    def questions(self, root: Path) -> tuple[Files, list[Question]]:
        """Reads the task's questions from a directory.

        Raises:
          ValueError: a file is missing or not as published, there are no questions, or two have one id.
        """
        files = self.find(root)
        questions = self.read(files)
        if not questions:
            raise ValueError(f"{root}: expected questions of {self.title}, but its files hold none")
        again = [name for name, count in Counter(question.id for question in questions).items() if count > 1]
        for question in questions:
            for _, source in question.media:
                if not source.startswith("data:") and (source.startswith("/") or ".." in source.split("/")):
                    raise ValueError(f"{root}: expected media in it, but question {question.id} names {source[:200]!r}")
        if again:
            raise ValueError(
                f"{root}: expected a different id for each question, but {_some(again)} come more than once"
            )
        return files, questions


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
