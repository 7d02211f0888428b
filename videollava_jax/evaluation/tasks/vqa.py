"""VQAv2, VizWiz and TextVQA: LLaVA's question files, and the challenges' own where answers are published."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from videollava_jax.evaluation.question import Marked, Question
from videollava_jax.evaluation.scorers.vqa import TEXTVQA as TEXTVQA_ACCURACY
from videollava_jax.evaluation.scorers.vqa import VQA, normalised
from videollava_jax.evaluation.tasks.files import by_id, index_of, read_rows, rows_under, text_of
from videollava_jax.evaluation.tasks.task import SHORT_ANSWER, Files, Needed, Task

_LLAVA = "LLaVA-1.5's eval.zip, which the authors extend"
_UNANSWERABLE = "\nWhen the provided information is insufficient, respond with 'Unanswerable'." + SHORT_ANSWER


def llava_questions(path: Path, folder: str) -> list[Question]:
    """Reads a question file of LLaVA: `question_id`, `image`, and a `text` that is the whole prompt."""
    return [
        Question(
            id=text_of(row, "question_id", path),
            text=text_of(row, "text", path),
            media=(("image", f"{folder}/{text_of(row, 'image', path)}"),),
            cluster=text_of(row, "image", path),
            categories={"category": text_of(row, "category", path)} if "category" in row else {},
        )
        for row in read_rows(path)
    ]


def _answers_of_ten(row: Any, path: Path) -> list[str]:
    given = row.get("answers")
    if not isinstance(given, list) or not given:
        raise ValueError(f"{path}: expected a list of people's answers under 'answers', got {str(given)[:100]}")
    return [text_of(each if isinstance(each, dict) else {"answer": each}, "answer", path) for each in given]


def _vqav2_upload(marked: Sequence[Marked], files: Files) -> list[dict[str, Any]]:
    """Makes the upload for VQAv2: an entry for every question of the split, "" where there is no answer."""
    answers = {one.question.id: normalised(one.text) if one.text is not None else "" for one in marked}
    path = files.get("split")
    names = [text_of(row, "question_id", path) for row in read_rows(path)] if path else list(answers)
    return [{"question_id": int(name) if name.isdecimal() else name, "answer": answers.get(name, "")} for name in names]


def _read_vqav2_val(files: Files) -> list[Question]:
    asked, answered = files["questions"], files["annotations"]
    annotations = by_id(rows_under(answered, "annotations"), "question_id", answered)
    questions = []
    for row in rows_under(asked, "questions"):
        name = text_of(row, "question_id", asked)
        if name not in annotations:
            raise ValueError(f"{answered}: no annotation of question {name}")
        image = f"val2014/COCO_val2014_{index_of(row, 'image_id', asked, 10**12):012d}.jpg"
        categories = {key: str(annotations[name][key]) for key in ("answer_type",) if key in annotations[name]}
        questions.append(
            Question(
                id=name,
                text=text_of(row, "question", asked) + SHORT_ANSWER,
                media=(("image", image),),
                target=_answers_of_ten(annotations[name], answered),
                cluster=image,
                categories=categories,
            )
        )
    return questions


def _read_vizwiz_val(files: Files) -> list[Question]:
    path = files["annotations"]
    return [
        Question(
            id=text_of(row, "image", path),
            text=text_of(row, "question", path) + _UNANSWERABLE,
            media=(("image", f"val/{text_of(row, 'image', path)}"),),
            target=_answers_of_ten(row, path),
            cluster=text_of(row, "image", path),
            categories={"answer_type": str(row.get("answer_type", ""))},
        )
        for row in read_rows(path)
    ]


def _vizwiz_upload(marked: Sequence[Marked], files: Files) -> list[dict[str, str]]:
    return [
        {"image": one.question.cluster, "answer": normalised(one.text) if one.text is not None else ""}
        for one in marked
    ]


def textvqa_question(prompt: str) -> str:
    """Returns the question in a prompt of LLaVA's TextVQA file, in lower case, as `eval_textvqa.py` finds it.

    Raises:
      ValueError: the prompt has none of the forms.
    """
    lines = prompt.split("\n")
    if prompt.startswith("OCR tokens: "):
        if match := re.search(r"Question: (.*?) Short answer:", prompt, re.DOTALL):
            return match[1].lower()
    elif "Reference OCR token: " in prompt and len(lines) == 3:
        return lines[1 if prompt.startswith("Reference OCR token:") else 0].lower()
    elif len(lines) == 2:
        return lines[0].lower()
    raise ValueError(
        f"expected a question, then OCR tokens or the instruction on lines of their own, got {prompt[:200]!r}"
    )


def _read_textvqa(files: Files) -> list[Question]:
    asked, answered = files["questions"], files["annotations"]
    annotations = {
        (text_of(row, "image_id", answered), text_of(row, "question", answered).lower()): row
        for row in rows_under(answered, "data")
    }
    questions = []
    seen: dict[str, int] = {}
    for row in read_rows(asked):
        image, prompt = text_of(row, "question_id", asked), text_of(row, "text", asked)
        try:
            key = (image, textvqa_question(prompt))
        except ValueError as error:
            raise ValueError(f"{asked}, question {image}: {error}") from None
        if key not in annotations:
            raise ValueError(f"{answered}: no annotation of image {image!r} with the question {key[1]!r}")
        seen[image] = seen.get(image, 0) + 1
        questions.append(
            Question(
                id=f"{image}_{seen[image]}",
                published_id=image,
                text=prompt,
                media=(("image", f"train_images/{text_of(row, 'image', asked)}"),),
                target=_answers_of_ten(annotations[key], answered),
                cluster=image,
            )
        )
    return questions


VQAV2 = Task(
    name="vqav2",
    title="VQAv2, test-dev",
    files=(
        Needed("questions", ("llava_vqav2_mscoco_test-dev2015.jsonl",), _LLAVA),
        Needed("split", ("llava_vqav2_mscoco_test2015.jsonl",), "all ids that an upload must have", optional=True),
    ),
    media="test2015/",
    read=lambda files: llava_questions(files["questions"], "test2015"),
    scorer=VQA,
    pads=True,
    paper={"accuracy": 74.7},
    submission=_vqav2_upload,
    note="The answers are not published: upload submission.json to the challenge's server.",
)
VQAV2_VAL = Task(
    name="vqav2_val",
    title="VQAv2, val",
    files=(
        Needed("questions", ("v2_OpenEnded_mscoco_val2014_questions.json",), "visualqa.org"),
        Needed("annotations", ("v2_mscoco_val2014_annotations.json",), "visualqa.org"),
    ),
    media="val2014/COCO_val2014_….jpg",
    read=_read_vqav2_val,
    scorer=VQA,
    pads=True,
    note="Scored here; the paper reports test-dev, and LLaVA's training data include images of this split.",
)
VIZWIZ = Task(
    name="vizwiz",
    title="VizWiz, test",
    files=(Needed("questions", ("llava_test.jsonl",), _LLAVA),),
    media="test/",
    read=lambda files: llava_questions(files["questions"], "test"),
    scorer=TEXTVQA_ACCURACY,
    pads=True,
    paper={"accuracy": 48.1},
    submission=_vizwiz_upload,
    note="The answers are not published: upload submission.json to the challenge's server.",
)
VIZWIZ_VAL = Task(
    name="vizwiz_val",
    title="VizWiz, val",
    files=(Needed("annotations", ("val.json", "Annotations/val.json"), "vizwiz.org"),),
    media="val/",
    read=_read_vizwiz_val,
    scorer=TEXTVQA_ACCURACY,
    pads=True,
    note="Scored here, by lmms-eval's rule; the paper reports the test split.",
)
TEXTVQA = Task(
    name="textvqa",
    title="TextVQA, val",
    files=(
        Needed("questions", ("llava_textvqa_val_v051_ocr.jsonl",), _LLAVA),
        Needed("annotations", ("TextVQA_0.5.1_val.json",), "textvqa.org"),
    ),
    media="train_images/",
    read=_read_textvqa,
    scorer=TEXTVQA_ACCURACY,
    pads=True,
    paper={"accuracy": 51.8},
    note="The prompts have OCR tokens in them, as in the paper.",
)
