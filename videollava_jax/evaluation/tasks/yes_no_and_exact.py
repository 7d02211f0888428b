"""GQA and POPE, in LLaVA's question files and the files of their authors."""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import replace
from typing import Any

from videollava_jax.evaluation.question import Question
from videollava_jax.evaluation.scorers.gqa import GQA as GQA_SCORER
from videollava_jax.evaluation.scorers.pope import POPE as POPE_SCORER
from videollava_jax.evaluation.tasks.files import object_of, read_json, read_rows, text_of, texts_of
from videollava_jax.evaluation.tasks.task import Files, Needed, Task
from videollava_jax.evaluation.tasks.vqa import llava_questions

_CATEGORIES = ("adversarial", "popular", "random")


def _read_gqa(files: Files) -> list[Question]:
    path = files["annotations"]
    annotations = object_of(read_json(path), path)
    choices = object_of(read_json(files["choices"]), files["choices"]) if files.get("choices") else {}
    folder = "data/images" if (files.root / "data" / "images").is_dir() else "images"
    questions = []
    for question in llava_questions(files["questions"], folder):
        found = annotations.get(question.id)
        if not isinstance(found, dict):
            raise ValueError(f"{path}: no question {question.id!r}, which {files['questions'].name} asks")
        if not found.get("isBalanced"):
            continue
        types = object_of(found.get("types"), path)
        structural, semantic = text_of(types, "structural", path), text_of(types, "semantic", path)
        group = object_of(found.get("groups") or {}, path).get("global")
        facts: dict[str, Any] = {
            "structural": structural,
            "group": None if group is None else str(group),
            "common": "Common" in text_of(types, "detailed", path),
            "choices": None,
        }
        if question.id in choices:
            facts["choices"] = {
                name: texts_of(choices[question.id], name, files["choices"]) for name in ("valid", "plausible")
            }
        categories = {"structural": structural, "semantic": semantic}
        target = text_of(found, "answer", path)
        questions.append(replace(question, target=target, facts=facts, categories=categories))
    return questions


def _read_pope(files: Files) -> list[Question]:
    """Joins questions and labels by category, image and question, where the authors' program goes by position."""
    labels: dict[tuple[str, str, str], deque[bool]] = defaultdict(deque)
    for category in _CATEGORIES:
        path = files[category]
        for row in read_rows(path):
            key = (category, text_of(row, "image", path), text_of(row, "text", path).strip())
            labels[key].append(text_of(row, "label", path) != "no")
    questions = []
    for question in llava_questions(files["questions"], "val2014"):
        category = question.categories.get("category", "")
        waiting = labels.get((category, question.cluster, question.text.split("\n")[0].strip()))
        if not waiting:
            raise ValueError(
                f"{files['questions']}, question {question.id}: no label for it in coco_pope_{category or '…'}.json, "
                f"by its image {question.cluster!r} and its first line"
            )
        questions.append(replace(question, target=waiting.popleft()))
    return questions


GQA = Task(
    name="gqa",
    title="GQA, test-dev balanced",
    files=(
        Needed("questions", ("llava_gqa_testdev_balanced.jsonl",), "LLaVA-1.5's eval.zip"),
        Needed(
            "annotations",
            tuple(f"{folder}testdev_balanced_questions.json" for folder in ("", "data/", "data/questions1.2/")),
            "questions1.2.zip of GQA",
        ),
        Needed("choices", ("testdev_balanced_choices.json",), "for validity and plausibility", optional=True),
    ),
    media="data/images/ or images/",
    read=_read_gqa,
    scorer=GQA_SCORER,
    pads=True,
    paper={"accuracy": 60.3},
)
POPE = Task(
    name="pope",
    title="POPE",
    files=(
        Needed("questions", ("llava_pope_test.jsonl",), "LLaVA-1.5's eval.zip"),
        *(
            Needed(category, (f"coco/coco_pope_{category}.json", f"coco_pope_{category}.json"), "POPE's output/coco")
            for category in _CATEGORIES
        ),
    ),
    media="val2014/",
    read=_read_pope,
    scorer=POPE_SCORER,
    pads=True,
    paper={"f1": 84.4},
)
