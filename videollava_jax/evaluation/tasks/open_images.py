"""MM-Vet and LLaVA-Bench in the wild: free answers about images, which the paper scores by GPT-4."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from videollava_jax.evaluation.question import Marked, Question
from videollava_jax.evaluation.scorers.open_answers import LONG, PARTS
from videollava_jax.evaluation.tasks.files import by_id, object_of, read_json, read_rows, text_of, texts_of
from videollava_jax.evaluation.tasks.task import Files, Needed, Task
from videollava_jax.evaluation.tasks.vqa import llava_questions


def _read_mmvet(files: Files) -> list[Question]:
    path = files["answers"]
    answers = object_of(read_json(path), path)
    questions = []
    for question in llava_questions(files["questions"], "images"):
        found = object_of(answers.get(f"v1_{question.id}"), path)
        abilities = sorted(texts_of(found, "capability", path))
        categories = {"abilities": "_".join(abilities), **{f"with {name}": "yes" for name in abilities}}
        target = text_of(found, "answer", path).replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
        facts = {"asked": text_of(found, "question", path)}
        questions.append(replace(question, target=target, categories=categories, facts=facts))
    return questions


def _mmvet_upload(marked: Sequence[Marked], files: Files) -> dict[str, str]:
    return {f"v1_{one.question.id}": one.text or "" for one in marked}


def _read_llava_bench(files: Files) -> list[Question]:
    path, described = files["answers"], files["context"]
    answers = by_id(read_rows(path), "question_id", path)
    context = by_id(read_rows(described), "image", described)
    questions = []
    for question in llava_questions(files["questions"], "images"):
        if question.id not in answers or question.cluster not in context:
            missing = path if question.id not in answers else described
            raise ValueError(f"{missing}: nothing of question {question.id!r} about {question.cluster!r}")
        caption = context[question.cluster].get("caption")
        row = {"caption": caption if isinstance(caption, list) else [caption]}
        facts = {"context": "\n".join(texts_of(row, "caption", described))}
        questions.append(replace(question, target=text_of(answers[question.id], "text", path), facts=facts))
    return questions


MMVET = Task(
    name="mmvet",
    title="MM-Vet",
    files=(
        Needed("questions", ("llava-mm-vet.jsonl",), "LLaVA-1.5's eval.zip"),
        Needed("answers", ("mm-vet.json",), "MM-Vet"),
    ),
    media="images/",
    read=_read_mmvet,
    scorer=PARTS,
    judges=("mmvet",),
    paper={"judge_mmvet": 32.0},
    max_new_tokens=1024,
    submission=_mmvet_upload,
    note="The paper's figure is GPT-4's. submission.json is what MM-Vet's own evaluator takes.",
)
LLAVA_BENCH = Task(
    name="llava_bench",
    title="LLaVA-Bench, in the wild",
    files=(
        Needed("questions", ("questions.jsonl",), "LLaVA-Bench"),
        Needed("context", ("context.jsonl",), "LLaVA-Bench"),
        Needed("answers", ("answers_gpt4.jsonl",), "LLaVA-Bench: the reference's answers"),
    ),
    media="images/",
    read=_read_llava_bench,
    scorer=LONG,
    judges=("relative",),
    paper={"judge_relative": 73.1},
    max_new_tokens=1024,
    note="The paper's figure is gpt-4-0314's: its grades of the answers, in percent of those of GPT-4's own answers.",
)
