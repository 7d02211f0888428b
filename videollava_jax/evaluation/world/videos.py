"""The drawn world in the published forms of tasks about videos."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from videollava_jax.assets import world
from videollava_jax.evaluation.world.drawing import Writer, options_of

_REPHRASED: dict[str, tuple[str, str]] = {
    "colour": ("What colour is it?", "Which colour is it?"),
    "shape": ("What shape is it?", "Which shape is it?"),
    "how many": ("How many shapes are there?", "How many shapes do you see?"),
    "direction": ("Which way does it move?", "In which direction does it move?"),
    "where": ("Where is it?", "Where is the shape?"),
    "change": ("Does it change colour?", "Does it change color?"),
}


def _video_qa(prefix: str) -> Callable[[Writer], None]:
    def write_files(writer: Writer) -> None:
        asked, answers = [], []
        for drawn in writer.drawn("videos", f"{prefix}clip{{}}.mp4"):
            for number, question in enumerate(drawn.scene.questions):
                name = drawn.name.removeprefix(prefix)
                row = {"question_id": f"{name}_{number}"}
                asked.append({"video_name": name, **row, "question": question.text})
                answers.append({"answer": question.answer, **row})
        writer.json("test_q.json", asked)
        writer.json("test_a.json", answers)

    return write_files


def _video_chatgpt(file: str, paired: bool = False) -> Callable[[Writer], None]:
    def write_files(writer: Writer) -> None:
        rows = []
        for drawn in writer.drawn("Test_Videos", "clip{}.mp4"):
            for question in drawn.scene.questions:
                row = {"video_name": drawn.name, "Q": question.text, "A": question.answer}
                if paired:
                    both = _REPHRASED.get(question.kind, (question.text,))
                    other = next((text for text in both if text != question.text), question.text)
                    row = {"video_name": drawn.name, "Q1": question.text, "Q2": other, "A": question.answer}
                rows.append(row)
        writer.json(f"Benchmarking_QA/{file}", rows)

    return write_files


_NEXTQA_TYPES = {"change": "CW", "order": "TC", "direction": "TN", "where": "DL", "how many": "DC"}


def _nextqa(writer: Writer) -> None:
    rows = []
    for turn, drawn in enumerate(writer.drawn("videos", "{}.mp4")):
        for number, question in enumerate(drawn.scene.questions):
            options, right = options_of(question, 5, turn + number)
            facts = {"frame_count": world.FRAMES, "width": world.SIZE, "height": world.SIZE, "question": question.text}
            kind = _NEXTQA_TYPES.get(question.kind, "DO")
            choice = {f"a{i}": option for i, option in enumerate(options)}
            rows.append({"video": drawn.name, **facts, "answer": right, "qid": number, "type": kind, **choice})
    writer.table("test.csv", rows, ",")


_MVBENCH_TASKS = {"direction": "moving_direction", "how many": "moving_count", "colour": "moving_attribute"}


def _mvbench(writer: Writer) -> None:
    rows: dict[str, list[dict[str, Any]]] = {task: [] for task in _MVBENCH_TASKS.values()}
    for turn, drawn in enumerate(writer.drawn("video/clevrer/video_validation", "video_{}.mp4")):
        for question in drawn.scene.questions:
            if question.kind in _MVBENCH_TASKS:
                options, _ = options_of(question, 4, turn)
                row = {"video": drawn.path.name, "question": question.text, "candidates": options}
                rows[_MVBENCH_TASKS[question.kind]].append({**row, "answer": question.answer})
    for task, found in rows.items():
        writer.json(f"json/{task}.json", found)


def _videomme(writer: Writer) -> None:
    rows = []
    for turn, drawn in enumerate(writer.drawn("data", "clip{}.mp4")):
        for number, question in enumerate(drawn.scene.questions):
            options, right = options_of(question, 4, turn + number)
            rows.append(
                {
                    "video_id": f"{turn:03d}",
                    "videoID": drawn.name,
                    "duration": "short",
                    "domain": "Drawn",
                    "sub_category": drawn.scene.medium,
                    "task_type": question.kind,
                    "question_id": f"{turn:03d}-{number + 1}",
                    "question": question.text,
                    "options": [f"{letter}. {option}." for letter, option in zip("ABCD", options, strict=True)],
                    "answer": "ABCD"[right],
                }
            )
    writer.json("test.json", rows)


WRITERS: dict[str, Callable[[Writer], None]] = {
    "msvd_qa": _video_qa(""),
    "msrvtt_qa": _video_qa(""),
    "tgif_qa": _video_qa(""),
    "activitynet_qa": _video_qa("v_"),
    "video_chatgpt": _video_chatgpt("generic_qa.json"),
    "video_chatgpt_temporal": _video_chatgpt("temporal_qa.json"),
    "video_chatgpt_consistency": _video_chatgpt("consistency_qa.json", paired=True),
    "nextqa": _nextqa,
    "mvbench": _mvbench,
    "videomme": _videomme,
}
"""What writes each task's files."""
