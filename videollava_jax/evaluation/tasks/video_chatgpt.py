"""Video-ChatGPT's benchmark of five dimensions, in the files of the authors' `Video_5_Benchmark`.

One answer to each question of generic_qa.json is judged for correctness, detail and context. A pair of questions about
the same thing, of consistency_qa.json, is judged as one.
"""

from __future__ import annotations

from collections import Counter

from videollava_jax.evaluation.question import Question
from videollava_jax.evaluation.scorers.open_answers import LONG
from videollava_jax.evaluation.tasks.files import read_rows, text_of, video_named
from videollava_jax.evaluation.tasks.task import Files, Needed, Task


def _read(files: Files, keys: tuple[str, ...]) -> list[Question]:
    path = files["questions"]
    seen: Counter[str] = Counter()
    questions = []
    for row in read_rows(path):
        video = text_of(row, "video_name", path)
        name = f"{video}_{seen[video]}"  # as the authors' judge names them
        seen[video] += 1
        for turn, key in enumerate(keys, 1):
            questions.append(
                Question(
                    id=name if len(keys) == 1 else f"{name}_{turn}",
                    unit=name,
                    text=text_of(row, key, path),
                    media=(("video", video_named(files.root, "Test_Videos", video)),),
                    target=text_of(row, "A", path),
                    cluster=video,
                )
            )
    return questions


def _task(name: str, title: str, file: str, judges: tuple[str, ...], keys: tuple[str, ...] = ("Q",)) -> Task:
    return Task(
        name=name,
        title=title,
        files=(Needed("questions", (f"Benchmarking_QA/{file}",), "Video-ChatGPT's Benchmarking_QA"),),
        media="Test_Videos/NAME.mp4, .avi, .mov or .mkv",
        read=lambda files: _read(files, keys),
        scorer=LONG,
        judges=judges,
        max_new_tokens=1024,
        template="llava_v1",
        note="The benchmark's scores, 0 to 5, are a judge's; without one there is only the share of words in common.",
    )


GENERIC = _task(
    "video_chatgpt",
    "Video-ChatGPT: correctness, detail, context",
    "generic_qa.json",
    ("correctness", "detail", "context"),
)
TEMPORAL = _task("video_chatgpt_temporal", "Video-ChatGPT: temporal", "temporal_qa.json", ("temporal",))
CONSISTENCY = _task(
    "video_chatgpt_consistency", "Video-ChatGPT: consistency", "consistency_qa.json", ("consistency",), ("Q1", "Q2")
)
