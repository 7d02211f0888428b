"""MSVD-QA, MSRVTT-QA, TGIF-QA and ActivityNet-QA, in the files of the authors' `GPT_Zero_Shot_QA`."""

from __future__ import annotations

from collections.abc import Callable

from videollava_jax.evaluation.question import Question
from videollava_jax.evaluation.scorers.open_answers import SHORT
from videollava_jax.evaluation.tasks.files import by_id, first_word, read_rows, text_of, video_named
from videollava_jax.evaluation.tasks.task import Files, Needed, Task

_JUDGED = (
    "The paper's figures are a judge's (gpt-3.5-turbo of 2023), which is no longer served; its programs also flipped "
    "half of the clips and left out questions whose video was missing."
)


def _reader(prefix: str) -> Callable[[Files], list[Question]]:
    """Returns the reader of a set whose videos' names have a prefix that its questions lack."""

    def read(files: Files) -> list[Question]:
        asked, answered = files["questions"], files["answers"]
        answers = by_id(read_rows(answered), "question_id", answered)
        questions = []
        found: dict[str, str] = {}
        for row in read_rows(asked):
            name, text = text_of(row, "question_id", asked), text_of(row, "question", asked)
            if name not in answers:
                raise ValueError(f"{answered}: no answer to question {name!r} of {asked.name}")
            video = text_of(row, "video_name", asked)
            if video not in found:
                found[video] = video_named(files.root, "videos", f"{prefix}{video}")
            categories = {"first word": first_word(text)}
            if "type" in answers[name]:
                categories["type"] = text_of(answers[name], "type", answered)
            questions.append(
                Question(
                    id=name,
                    text=text,
                    media=(("video", found[video]),),
                    target=text_of(answers[name], "answer", answered),
                    cluster=video,
                    categories=categories,
                )
            )
        return questions

    return read


def _task(name: str, title: str, accuracy: float, score: float, prefix: str = "") -> Task:
    return Task(
        name=name,
        title=title,
        files=(
            Needed("questions", ("test_q.json",), "the authors' GPT_Zero_Shot_QA.zip"),
            Needed("answers", ("test_a.json",), "next to it"),
        ),
        media=f"videos/{prefix}NAME.mp4, .avi, .mov or .mkv",
        read=_reader(prefix),
        scorer=SHORT,
        judges=("match",),
        paper={"judge_accuracy": accuracy, "judge_score": score},
        max_new_tokens=1024,
        template="llava_v1",
        note=_JUDGED,
    )


MSVD_QA = _task("msvd_qa", "MSVD-QA", 70.7, 3.9)
MSRVTT_QA = _task("msrvtt_qa", "MSRVTT-QA", 59.2, 3.5)
TGIF_QA = _task("tgif_qa", "TGIF-QA", 70.0, 4.0)
ACTIVITYNET_QA = _task("activitynet_qa", "ActivityNet-QA", 45.3, 3.3, prefix="v_")
