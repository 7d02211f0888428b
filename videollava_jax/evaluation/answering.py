"""What `videollava batch` answers for a task: a file of questions, and a note on what they are.

OUT/
  questions.jsonl   a question on each line, in the batch job's own form
  run.json          the task, its data's fingerprint, and how it is asked
  answers.jsonl     written by the batch job, with answers.jsonl.job.json: the model's fingerprint and every setting
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videollava_jax.evaluation.digests import data_fingerprint, same_data
from videollava_jax.evaluation.question import Question
from videollava_jax.evaluation.tasks.files import read_json
from videollava_jax.evaluation.tasks.task import Files, Task
from videollava_jax.processing.segments import MEDIA_TOKENS

QUESTIONS, RUN, ANSWERS = "questions.jsonl", "run.json", "answers.jsonl"


@dataclass(frozen=True)
class Way:
    """A way of asking a task.

    Attributes:
      name: as `--as` takes it.
      preset: of prompts, frames and pixels, in `processing.preset.PRESETS`; None for the checkpoint's own.
      as_task: whether the template and the padding of images are those of the task's program.
      about: what it is, in a line.
    """

    name: str
    preset: str | None
    as_task: bool
    about: str


WAYS: dict[str, Way] = {
    way.name: way
    for way in (
        Way("paper", "original", True, "prompts, frames and pixels of the authors' program for this task"),
        Way("hf", "hf", False, "those of transformers' documentation"),
        Way("model", None, False, "those of the checkpoint's own preset"),
    )
}


def first_media(questions: Sequence[Question], limit: int | None) -> list[Question]:
    """Returns the questions about the first media, in the order of the task's files; all with `limit` None."""
    if limit is None:
        return list(questions)
    kept = set(list(dict.fromkeys(question.cluster for question in questions))[:limit])
    return [question for question in questions if question.cluster in kept]


def longest_answer(task: Task, positions: int | None) -> int:
    """Returns the most tokens of an answer: the authors' number, at most a quarter of the model's positions.

    The authors' 1024 is a quarter of their model's positions; a smaller model keeps as much room for its prompts.
    """
    return min(task.max_new_tokens, positions // 4 if positions else task.max_new_tokens)


def missing_media(files: Files, questions: Sequence[Question]) -> list[str]:
    """Returns the media that are not there, each once."""
    named = dict.fromkeys(source for question in questions for _, source in question.media)
    return [source for source in named if not source.startswith("data:") and not (files.root / source).is_file()]


def require_media(
    files: Files, questions: Sequence[Question], max_missing: float, option: str = "--max-missing"
) -> list[str]:
    """Returns the media that are not there.

    Args:
      files: of the task.
      questions: of the task.
      max_missing: the share of questions that may lack their media.
      option: by which the user has said so, for the message.

    Raises:
      ValueError: more than this share of the questions is about them.
    """
    missing = missing_media(files, questions)
    gone = set(missing)
    lost = sum(any(source in gone for _, source in question.media) for question in questions)
    if lost > max_missing * len(questions):
        raise ValueError(
            f"{files.root}: {len(missing)} media of {lost} of {len(questions)} questions are missing, more than "
            f"{option} {max_missing:g} allows, such as {', '.join(missing[:3])}"
        )
    return missing


def media_root(files: Files, questions: Sequence[Question]) -> Path | None:
    """Returns the directory that no medium is outside of: the task's; None if links lead out of it.

    A job follows no link out of its root. The directories of large sets are often links to another disk, which the user
    who made them means: their media are then named by absolute paths.
    """
    root = files.root.resolve()
    named = {source for question in questions for _, source in question.media if not source.startswith("data:")}
    folders = {str(Path(source).parent) for source in named}
    inside = all((root / folder).resolve().is_relative_to(root) for folder in folders)
    return root if inside and not any((root / source).is_symlink() for source in named) else None


def write_questions(
    out: Path,
    task: Task,
    files: Files,
    questions: Sequence[Question],
    asked: dict[str, Any],
    root: Path | None,
) -> Path:
    """Writes what a batch job answers, and what it is for; the same for the same data, whatever its files' order.

    Args:
      out: the directory; it is made.
      task: whose questions they are.
      files: of the task.
      questions: of the task.
      asked: how they are asked, for run.json.
      root: of the job's media; None writes absolute paths.

    Returns:
      The file of questions.

    Raises:
      ValueError: the directory is of another task, other data or another way of asking.
    """
    run = {"task": task.name, "data": data_fingerprint(files, questions), "asked": asked}
    out.mkdir(parents=True, exist_ok=True)
    if (out / RUN).exists():
        before = read_run(out)
        changed = [name for name in ("task", "asked") if before.get(name) != run[name]]
        changed += [] if same_data(before.get("data"), run["data"]) else ["data"]
        if changed:
            raise ValueError(
                f"{out}: expected the run that was begun there, but its {' and '.join(changed)} "
                f"{'is' if len(changed) == 1 else 'are'} not the same now; choose another -o, or remove it"
            )
    base = None if root is not None else files.root
    ordered = sorted(questions, key=lambda question: question.id)
    lines = [json.dumps(_line(question, base), ensure_ascii=False) for question in ordered]
    (out / QUESTIONS).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", errors="backslashreplace")
    (out / RUN).write_text(
        json.dumps(run, indent=1, sort_keys=True) + "\n", encoding="utf-8", errors="backslashreplace"
    )
    return out / QUESTIONS


def read_run(out: Path) -> dict[str, Any]:
    """Reads run.json.

    Raises:
      ValueError: it is not as `write_questions` wrote it.
    """
    run = read_json(out / RUN)
    if not isinstance(run, dict) or "task" not in run:
        raise ValueError(f"{out / RUN}: expected the task of the run, as `videollava eval answer` writes it")
    return run


def _line(question: Question, base: Path | None) -> dict[str, Any]:
    def place(source: str) -> str:
        return str((base / source).resolve()) if base is not None and not source.startswith("data:") else source

    media = [(kind, place(source)) for kind, source in question.media]
    if any(token in question.text for token in MEDIA_TOKENS.values()):  # a job would take it for the whole prompt
        parts = [*({"type": kind, kind: source} for kind, source in media), {"type": "text", "text": question.text}]
        return {"id": question.id, "conversation": [{"role": "user", "content": parts}], **_options(question)}
    named: dict[str, list[str]] = {}
    for kind, source in media:
        named.setdefault(kind, []).append(source)
    return {"id": question.id, **named, "prompt": question.text, **_options(question)}


def _options(question: Question) -> dict[str, Any]:
    if question.span is None:
        return {}
    start, end = question.span
    return {"options": {"start": start, **({} if end is None else {"end": end})}}
