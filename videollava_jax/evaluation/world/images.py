"""The drawn world in the published forms of tasks about images."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

from videollava_jax.assets import world
from videollava_jax.evaluation.tasks.task import SHORT_ANSWER
from videollava_jax.evaluation.world.drawing import Writer, options_of, ten_answers


def _vqav2(writer: Writer) -> None:
    rows = [
        {"question_id": int(drawn.name) * 10 + number, "image": drawn.path.name, "text": question.text + SHORT_ANSWER}
        for drawn in writer.drawn("test2015", "{:06d}.png")
        for number, question in enumerate(drawn.scene.questions)
    ]
    writer.lines("llava_vqav2_mscoco_test-dev2015.jsonl", rows)
    writer.lines("llava_vqav2_mscoco_test2015.jsonl", [*rows, {**rows[0], "question_id": 10**9}])


def _vqav2_val(writer: Writer) -> None:
    questions, annotations = [], []
    for drawn in writer.drawn("val2014", "COCO_val2014_{:012d}.jpg"):
        for number, question in enumerate(drawn.scene.questions):
            name = int(drawn.name.rpartition("_")[2])
            ids = {"image_id": name, "question_id": name * 10 + number}
            questions.append({**ids, "question": question.text})
            annotations.append({**ids, "answers": ten_answers(question.answer, number), "answer_type": question.kind})
    writer.json("v2_OpenEnded_mscoco_val2014_questions.json", {"questions": questions})
    writer.json("v2_mscoco_val2014_annotations.json", {"annotations": annotations})


def _vizwiz(writer: Writer) -> None:
    writer.lines(
        "llava_test.jsonl",
        [
            {
                "question_id": drawn.path.name,
                "image": drawn.path.name,
                "text": drawn.scene.questions[0].text + SHORT_ANSWER,
            }
            for drawn in writer.drawn("test", "VizWiz_test_{:08d}.jpg")
        ],
    )


def _vizwiz_val(writer: Writer) -> None:
    rows = []
    for turn, drawn in enumerate(writer.drawn("val", "VizWiz_val_{:08d}.jpg")):
        question = drawn.scene.questions[0]
        facts = {"answer_type": "other", "answerable": 1, "answers": ten_answers(question.answer, turn)}
        rows.append({"image": drawn.path.name, "question": question.text, **facts})
    writer.json("val.json", rows)


def _textvqa(writer: Writer) -> None:
    rows, annotations = [], []
    for drawn in writer.drawn("train_images", "image{}.jpg"):
        for turn, question in enumerate(drawn.scene.questions):
            text = f"{question.text}\nReference OCR token: {question.answer}, shape{SHORT_ANSWER}"
            rows.append({"question_id": drawn.name, "image": drawn.path.name, "text": text})
            given = [each["answer"] for each in ten_answers(question.answer, turn)]
            annotations.append({"image_id": drawn.name, "question": question.text, "answers": given})
    writer.lines("llava_textvqa_val_v051_ocr.jsonl", rows)
    writer.json("TextVQA_0.5.1_val.json", {"data": annotations})


def _gqa(writer: Writer) -> None:
    rows, annotations = [], {}
    for drawn in writer.drawn("data/images", "{}.jpg"):
        for number, question in enumerate(drawn.scene.questions):
            name = f"{drawn.name}{number:03d}"
            rows.append({"question_id": name, "image": drawn.path.name, "text": question.text + SHORT_ANSWER})
            kind = "query" if number else "verify"
            annotations[name] = {
                "question": question.text,
                "answer": question.answer,
                "imageId": drawn.name,
                "isBalanced": True,
                "types": {"structural": kind, "semantic": question.kind, "detailed": question.kind},
                "groups": {"global": question.kind, "local": None},
                "semantic": [{"operation": "select", "argument": "shape"}],
                "entailed": [],
            }
    writer.lines("llava_gqa_testdev_balanced.jsonl", rows)
    writer.json("data/testdev_balanced_questions.json", annotations)


def _pope(writer: Writer) -> None:
    rows: list[dict[str, Any]] = []
    labels: dict[str, list[dict[str, Any]]] = {category: [] for category in ("adversarial", "popular", "random")}
    for turn, drawn in enumerate(writer.drawn("val2014", "COCO_val2014_{:012d}.jpg")):
        shape = drawn.scene.tracks[0].shape
        absent = [name for name in world.SHAPES if name != shape]
        for offset, (category, table) in enumerate(labels.items()):
            there = (turn + offset) % 2 == 0
            text = f"Is there a {shape if there else absent[turn % 3]} in the image?"
            table.append({"question_id": len(table) + 1, "image": drawn.path.name, "text": text})
            table[-1]["label"] = "yes" if there else "no"
            rows.append({"question_id": len(rows) + 1, "image": drawn.path.name, "text": text + SHORT_ANSWER})
            rows[-1]["category"] = category
    writer.lines("llava_pope_test.jsonl", rows)
    for category, table in labels.items():
        writer.lines(f"coco/coco_pope_{category}.json", table)


def _mmbench(writer: Writer) -> None:
    rows: list[dict[str, Any]] = []
    for turn, drawn in enumerate(writer.drawn("images", "{}.png")):
        image = base64.b64encode(drawn.path.read_bytes()).decode()
        question = drawn.scene.questions[0]
        options, right = options_of(question, 4 if turn % 2 else 3, turn)
        for shift in range(len(options)):
            rotated = options[shift:] + options[:shift]
            cells = dict(zip("ABCD", [*rotated, ""], strict=False))
            rows.append(
                {
                    "index": shift * 1_000_000 + turn,
                    "question": question.text,
                    "hint": "The shapes are flat." if turn % 3 == 0 else "",
                    **cells,
                    "answer": "ABCD"[(right - shift) % len(options)],
                    "category": question.kind,
                    "image": image,
                    "source": "drawn",
                    "l2-category": "perception",
                    "comment": "",
                    "split": "dev",
                }
            )
    writer.table("mmbench_dev_20230712.tsv", rows, "\t")


def _scienceqa(writer: Writer) -> None:
    lines, problems = [], {}
    for turn, drawn in enumerate(writer.drawn("images/test", "{}/image.png")):
        question = drawn.scene.questions[0]
        options, right = options_of(question, 3, turn)
        name = drawn.path.parent.name
        letters = " ".join(f"({letter}) {option}" for letter, option in zip("ABC", options, strict=True))
        text = f"{question.text}\nContext: N/A\nOptions: {letters}"
        line: dict[str, Any] = {"id": name, "conversations": [{"from": "human", "value": f"<image>\n{text}"}]}
        if turn % 3 == 2:
            line["conversations"][0]["value"] = text  # a question without an image
        else:
            line["image"] = f"{name}/image.png"
        lines.append(line)
        problems[name] = {
            "choices": options,
            "answer": right,
            "subject": "natural science",
            "grade": f"grade{turn % 3}",
        }
    writer.json("llava_test_CQM-A.json", lines)
    writer.json("problems.json", problems)
    writer.json("pid_splits.json", {"test": list(problems)})


def _mmvet(writer: Writer) -> None:
    rows, answers = [], {}
    for number, drawn in enumerate(writer.drawn("images", "v1_{}.png")):
        question, *rest = drawn.scene.questions
        text = " ".join(each.text for each in (question, *rest[:1]))
        rows.append({"question_id": number, "image": drawn.path.name, "text": text})
        both = "<AND>".join(each.answer for each in (question, *rest[:1]))
        answers[f"v1_{number}"] = {"question": text, "answer": f"{both}<OR>anything", "capability": ["rec", "spat"]}
        if number % 2:
            answers[f"v1_{number}"] |= {"answer": both, "capability": ["rec"]}
    writer.lines("llava-mm-vet.jsonl", rows)
    writer.json("mm-vet.json", answers)


def _llava_bench(writer: Writer) -> None:
    rows: list[dict[str, Any]] = []
    answers, context = [], []
    for drawn in writer.drawn("images", "{:03d}.png"):
        captions = [f"There is a {track.colours[0]} {track.shape}." for track in drawn.scene.tracks]
        context.append({"image": drawn.path.name, "caption": captions if len(rows) % 2 else captions[0]})
        for question, category in zip(drawn.scene.questions, ("conv", "detail", "complex"), strict=False):
            row = {"question_id": len(rows), "image": drawn.path.name, "category": category}
            rows.append({**row, "text": question.text})
            answers.append({"question_id": row["question_id"], "text": question.answer, "answer_id": f"a{len(rows)}"})
    writer.lines("questions.jsonl", rows)
    writer.lines("answers_gpt4.jsonl", answers)
    writer.lines("context.jsonl", context)


WRITERS: dict[str, Callable[[Writer], None]] = {
    "vqav2": _vqav2,
    "vqav2_val": _vqav2_val,
    "gqa": _gqa,
    "vizwiz": _vizwiz,
    "vizwiz_val": _vizwiz_val,
    "scienceqa_img": _scienceqa,
    "textvqa": _textvqa,
    "pope": _pope,
    "mmbench": _mmbench,
    "llava_bench": _llava_bench,
    "mmvet": _mmvet,
}
"""What writes each task's files."""
