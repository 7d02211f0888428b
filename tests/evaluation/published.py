"""Answers to a task's questions that are right or wrong by every scorer, and files of data in another order."""

import json
import random

from videollava_jax.evaluation.answers import Answer
from videollava_jax.evaluation.tasks import TASKS

CHOICES = ("scienceqa_img", "mmbench", "nextqa", "mvbench", "videomme")


def right(question):
    target = question.target
    if isinstance(target, bool):
        return "Yes" if target else "No"
    if isinstance(target, list):
        return max(target, key=target.count)
    return target.replace("<OR>", " ").replace("<AND>", " ") if target is not None else "two"


def wrong(question):
    if isinstance(question.target, bool):
        return "No" if question.target else "Yes"
    if question.options:
        return "ABCDE"[("ABCDE".index(question.target) + 1) % len(question.options)]
    return "nothing like it"


def answers(questions, say=right):
    return [Answer(id=question.id, text=say(question)) for question in questions]


def shuffle(root, seed=1):
    """Puts the entries of a task's files of rows into another order."""
    rng = random.Random(seed)
    for path in sorted(root.rglob("*")):
        if path.suffix in (".jsonl", ".tsv", ".csv") or path.parent.name == "coco":
            lines = path.read_text().splitlines(keepends=True)
            head = 1 if path.suffix in (".tsv", ".csv") else 0
            rest = lines[head:]
            rng.shuffle(rest)
            path.write_text("".join(lines[:head] + rest))
        elif path.suffix == ".json":
            rows = json.loads(path.read_text())
            if isinstance(rows, list):
                rng.shuffle(rows)
            path.write_text(json.dumps(rows))


BY_POSITION = ("video_chatgpt", "video_chatgpt_temporal", "video_chatgpt_consistency", "mvbench", "textvqa")
"""Tasks whose files have no ids: an entry's number is its name."""
NAMES = tuple(TASKS)
